"""The clock by which a worker stops: nothing begins beyond it, wherever an effect stands at that moment."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.hand_clock import HandClock
from tests.loop.run_kit import Run
from tests.worker.inside import Unasked

from sojourn.errors import LeaseLost
from sojourn.guardrails.judging import EMPTY
from sojourn.loop import events as ev
from sojourn.settings import Settings
from sojourn.store.budgets.pools import Defaults
from sojourn.store.rows import Commit, Opened
from sojourn.worker import shutdown
from sojourn.worker.budgets.pools import DayPools
from sojourn.worker.drive import Drive
from sojourn.worker.slots import CallSlots
from sojourn.worker.tenure import SHARE, Tenure


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def tenure(clock: HandClock) -> Tenure:
    return Tenure(10, now_s=clock)


async def test_a_tenure_is_over_before_the_lease_that_was_asked_for(clock: HandClock, tenure: Tenure) -> None:
    assert not tenure.holds, "it begins with a beat"
    asked_at_s = clock.now_s
    clock.now_s += 3  # so long was the beat underway
    tenure.renew(asked_at_s)
    assert tenure.holds
    clock.now_s = asked_at_s + 10 * SHARE - 0.01
    tenure.check()
    clock.now_s = asked_at_s + 10 * SHARE
    assert not tenure.holds
    with pytest.raises(LeaseLost):
        tenure.check()
    async with asyncio.timeout(30):
        await tenure.over()


async def test_who_waits_begins_when_a_beat_goes_through_and_not_before(clock: HandClock, tenure: Tenure) -> None:
    waiting = [asyncio.create_task(tenure.held()) for _ in range(3)]
    await asyncio.sleep(0)
    tenure.renew(clock.now_s - 9)  # it was underway for too long
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    tenure.renew(clock.now_s)
    async with asyncio.timeout(30):
        await asyncio.gather(*waiting)
    tenure.doubt()
    assert not tenure.holds, "the connection that others know us by has gone"
    with pytest.raises(LeaseLost):
        tenure.check()


class Scene:
    """A run whose first model call is announced, at a worker whose commits and models are looked at."""

    provider = "openai"

    def __init__(self, tenure: Tenure) -> None:
        self.run, self.tenure = Run(), tenure
        self.commits: list[Commit] = []
        self.asked: list[str] = []
        self.ended = 0
        parts: Any = SimpleNamespace(
            now=self.run.at,
            committer=self,
            models=self,
            tenure=tenure,
            calls=CallSlots(cast(Any, None), "w1", {}, lease_s=15.0),
            prices=SimpleNamespace(window=lambda _: 10**6, tariff=lambda _: None),
            guardrails=SimpleNamespace(of=lambda tenant: EMPTY),
            pools=DayPools(cast(Any, Unasked()), "w1", Defaults()),
            tools={},
            settings=Settings(),
        )
        claimed: Any = SimpleNamespace(tenant="t", run_id="run_1", fence=1, claims=1)
        self.drive = Drive(parts, claimed, Opened(continuation=self.run.state, agents={}), self.run.agents)

    async def commit(self, commit: Commit) -> None:
        self.commits.append(commit)

    def resolve(self, reference: str) -> Any:
        return self, reference

    async def stream(self, request: object, *, message_id: str, **_: object) -> Any:
        self.asked.append(message_id)
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            self.ended += 1
            raise
        yield None

    def announced(self) -> list[int]:
        return [event.attempt for commit in self.commits for event in commit.events if isinstance(event, ev.ModelAsked)]


async def turns(condition: Any) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 (the drive does it)
            await asyncio.sleep(0)


async def test_what_is_announced_begins_only_once_the_lease_is_sure(clock: HandClock, tenure: Tenure) -> None:
    scene = Scene(tenure)
    driving = asyncio.create_task(scene.drive.run())
    await turns(lambda: scene.announced() == [1])
    for _ in range(50):
        await asyncio.sleep(0)
    assert scene.asked == []
    scene.drive.interrupt()
    assert scene.drive.running, "what has not begun is no loss, and waits"
    tenure.renew(clock.now_s)
    await turns(lambda: scene.asked == ["/#0"])
    scene.drive.leave("lost")
    await driving
    assert (scene.ended, scene.announced()) == (1, [1])


async def test_what_the_clock_ends_is_announced_anew_once_the_lease_is_sure(clock: HandClock, tenure: Tenure) -> None:
    scene = Scene(tenure)
    tenure.renew(clock.now_s)
    driving = asyncio.create_task(scene.drive.run())
    await turns(lambda: scene.asked == ["/#0"])
    clock.now_s += 10
    scene.drive.interrupt()
    await turns(lambda: scene.ended == 1 and scene.announced() == [1, 2])
    for _ in range(50):
        await asyncio.sleep(0)
    assert len(scene.asked) == 1
    tenure.renew(clock.now_s)
    await turns(lambda: len(scene.asked) == 2)
    lost = [event for commit in scene.commits for event in commit.events if isinstance(event, ev.ModelLost)]
    assert [event.attempt for event in lost] == [1]
    scene.drive.leave("lost")
    await driving
    assert scene.ended == 2


async def test_a_loop_that_loses_its_cancellation_is_cancelled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutdown, "AGAIN_S", 0.01)
    begun, lost = asyncio.Event(), 0

    async def loop() -> None:
        nonlocal lost
        while True:
            begun.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if lost == 2:
                    raise
                lost += 1

    task = asyncio.create_task(loop())
    await begun.wait()
    await shutdown.ended([task])
    assert task.cancelled() and lost == 2
