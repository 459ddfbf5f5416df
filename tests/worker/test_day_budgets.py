"""What runs do that meet an empty pool of the day: they fail, or wait for room and go on by themselves."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from msgspec.structs import replace
from tests.conftest import until
from tests.worker.inside import Caller, SevenEach, Thinker, Turn, agent
from tests.worker.inside import working as working_at

from sojourn.loop import events as ev
from sojourn.loop.agent import Agent, Tool, digest
from sojourn.loop.budget import Limits, Price, Tariff
from sojourn.loop.messages import Message
from sojourn.models.model import ModelFailed, Request
from sojourn.store.budgets import pools
from sojourn.store.budgets.pools import Bounds, Defaults, Pool
from sojourn.store.db import Database
from sojourn.store.sharing.limits import set_limits
from sojourn.worker.worker import Worker

pytestmark = pytest.mark.usefixtures("whole_day")

COST = 1
"""Micro-USD: what a call costs here, and what it may cost at most."""
LOOK: Turn = (("no_such_tool", {}),)
PATIENT = Limits(on_exhaust="suspend")


class OneEach(SevenEach):
    """A call costs so little that it is rounded up to COST, whatever its size."""

    def tariff(self, reference: str) -> Tariff | None:  # type: ignore[override]
        return Tariff(Price(0, 1, 0, 0))


def working(
    database: Database,
    thinker: Thinker,
    sandboxes: None,
    prices: SevenEach = OneEach(),  # noqa: B008 (it holds nothing)
) -> AbstractAsyncContextManager[Worker]:
    return working_at(database, thinker, sandboxes, prices=prices)


def spending(*tools: str, **more: Any) -> Agent:
    return replace(agent(*tools), **more)


async def today(caller: Caller) -> Pool:
    """The tenant's pool."""
    async with caller.database.scoped(caller.principal.handle) as conn:
        return (await pools.pools(conn, ["ann"], Defaults()))[0][0]


async def nothing_held(caller: Caller, *, usd: int) -> None:
    pool = await today(caller)
    assert (pool.usd, pool.held_usd, pool.held_tokens) == (usd, 0, 0)


async def test_a_run_that_has_no_room_fails_and_its_call_is_not_made(database: Database) -> None:
    caller = await Caller.of(database)
    await set_limits(database, "acme", {"usd_day_micros": 2 * COST})
    thinker = Thinker("one")
    async with working(database, thinker, None) as worker:
        for _ in range(2):
            await caller.until(await caller.run(agent(), worker), "completed")
        third = await caller.until(await caller.run(agent(), worker), "failed")
    assert third.error is not None and third.error.code == "budget.day_exhausted"
    assert third.error.detail.startswith("The day's budget of the tenant (0.000002 US dollars) has no room")
    assert len(thinker.heard) == 2
    assert any(isinstance(event, ev.Unfunded) for event in await caller.events(third.id))
    await nothing_held(caller, usd=2 * COST)


async def test_a_run_that_waits_goes_on_when_its_pool_is_raised_the_first_one_first(database: Database) -> None:
    caller = await Caller.of(database)
    await set_limits(database, "acme", {"user_usd_day_micros": COST})
    thinker = Thinker("one")
    async with working(database, thinker, None) as worker:
        waiting = spending(limits=PATIENT)
        await caller.until(await caller.run(waiting, worker), "completed")
        ids = []
        for _ in range(3):
            ids.append(await caller.run(waiting, worker))
            row = await caller.until(ids[-1], "suspended")
            (wait,) = row.waits
            assert (wait.kind, wait.about) == ("day_budget", "user") and wait.expires_at is not None
        assert worker.drives == {}, "they hold nothing"
        await nothing_held(caller, usd=COST)
        await set_limits(database, "acme", {"user_usd_day_micros": 3 * COST})
        for run_id in ids[:2]:
            await caller.until(run_id, "completed")
        assert (await caller.row(ids[2])).status == "suspended"
        await set_limits(database, "acme", {"user_usd_day_micros": None})
        await caller.until(ids[2], "completed")
    answers = [event for event in await caller.events(ids[0]) if isinstance(event, ev.Decided)]
    assert [answer.by for answer in answers] == ["sojourn"]
    assert len(thinker.heard) == 4


async def test_a_run_that_waits_goes_on_by_itself_when_the_day_is_over(database: Database) -> None:
    caller = await Caller.of(database)
    await set_limits(database, "acme", {"usd_day_micros": COST})
    async with working(database, Thinker("one"), None) as worker:
        waiting = spending(limits=PATIENT)
        await caller.until(await caller.run(waiting, worker), "completed")
        run_id = await caller.run(waiting, worker)
        await caller.until(run_id, "suspended")
        async with database.engine() as engine:
            await engine.execute("delete from day_wait")
            due_at = await engine.fetchval("select due_at from run where id = $1", run_id)
            midnight = await engine.fetchval("select (now() at time zone 'UTC')::date + 1")
            assert timedelta() <= due_at.replace(tzinfo=None) - datetime.fromordinal(midnight.toordinal())
            await engine.execute("update day_account set day = day - 1")
        await caller.approve(run_id, worker)
        await caller.until(run_id, "completed")
        await nothing_held(caller, usd=COST)


async def test_a_run_can_be_cancelled_while_it_waits(database: Database) -> None:
    caller = await Caller.of(database)
    await set_limits(database, "acme", {"usd_day_micros": 0})
    async with working(database, Thinker("one"), None) as worker:
        run_id = await caller.run(spending(limits=PATIENT), worker)
        await caller.until(run_id, "suspended")
        await caller.post(run_id, ev.Cancelled(at=datetime.now(UTC), by="ann"))
        worker.parts.doorbell.ring("sojourn_work", ())
        await caller.until(run_id, "cancelled")
        await set_limits(database, "acme", {"usd_day_micros": None})
        async with asyncio.timeout(30), database.engine() as engine:
            while await engine.fetchval("select count(*) from day_wait"):  # noqa: ASYNC110 (a worker clears it)
                await asyncio.sleep(0.02)


class Gated(Thinker):
    """Answers once it is let."""

    def __init__(self) -> None:
        super().__init__("one")
        self.gate = asyncio.Event()

    async def stream(self, request: Request, **more: Any) -> AsyncGenerator[Message, None]:  # type: ignore[override]
        async for item in super().stream(request, **more):
            await self.gate.wait()
            yield item


class Shaky(Thinker):
    """Is overloaded once."""

    async def stream(self, request: Request, **more: Any) -> AsyncGenerator[Message, None]:  # type: ignore[override]
        async for item in super().stream(request, **more):
            if len(self.heard) == 1:
                raise ModelFailed("overloaded", "Busy.", retry=True)
            yield item


async def test_an_attempt_that_failed_gives_its_place_back(database: Database) -> None:
    caller = await Caller.of(database)
    await set_limits(database, "acme", {"usd_day_micros": COST})
    async with working(database, Shaky("one"), None) as worker:
        run_id = await caller.run(agent(), worker)
        await caller.until(run_id, "completed")
    assert not any(isinstance(event, ev.Unfunded) for event in await caller.events(run_id))
    await nothing_held(caller, usd=COST)


@pytest.mark.parametrize("limits", [Limits(), PATIENT], ids=["fail", "suspend"])
async def test_a_run_waits_a_moment_for_the_room_that_a_call_in_flight_holds(
    database: Database, limits: Limits
) -> None:
    caller = await Caller.of(database)
    await set_limits(database, "acme", {"tokens_day": 50_000})
    thinker = Gated()
    async with working(database, thinker, None) as worker:
        first = await caller.run(spending(limits=limits), worker)
        await until(lambda: len(thinker.heard) == 1)
        second = await caller.run(spending(limits=limits), worker)
        async with asyncio.timeout(30):
            while not any(isinstance(event, ev.Unfunded) for event in await caller.events(second)):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert (await caller.row(second)).waits == () and len(thinker.heard) == 1
        thinker.gate.set()
        for run_id in (first, second):
            await caller.until(run_id, "completed")


async def test_a_run_with_a_changed_pool_is_bounded_in_the_middle(database: Database) -> None:
    caller = await Caller.of(database)
    thinker = Gated()
    async with working(database, thinker, None) as worker:
        thinker.turns = (LOOK,)
        run_id = await caller.run(agent(), worker)
        await until(lambda: len(thinker.heard) == 1)
        async with database.scoped(caller.principal.handle) as conn:
            await pools.set_bounds(conn, "users", "", wanted=Bounds(usd_micros=COST), defaults=Defaults())
        async with asyncio.timeout(30):
            while not worker.parts.pools.bind("acme"):  # noqa: ASYNC110 (another task of the worker learns it)
                await asyncio.sleep(0.01)
        thinker.gate.set()
        row = await caller.until(run_id, "failed")
    assert row.error is not None and row.error.code == "budget.day_exhausted"
    await nothing_held(caller, usd=COST)


class Priceless(OneEach):
    """Knows no price of `sim:a`."""

    def tariff(self, reference: str) -> Tariff | None:  # type: ignore[override]
        return None if reference == "sim:a" else super().tariff(reference)


async def test_the_price_must_be_known_where_money_is_bound(database: Database) -> None:
    caller = await Caller.of(database)
    await set_limits(database, "acme", {"usd_day_micros": 10 * COST})
    thinker = Thinker("one")
    async with working(database, thinker, None, Priceless()) as worker:
        row = await caller.until(await caller.run(agent(), worker), "failed")
        assert row.error is not None and row.error.code == "budget.price_unknown"
        await caller.until(await caller.run(spending(models=("sim:a", "sim:b")), worker), "completed")
        assert len(thinker.heard) == 1
        await set_limits(database, "acme", {"usd_day_micros": None, "tokens_day": 100_000})
        await caller.until(await caller.run(agent(), worker), "completed")


async def test_sub_agents_are_paid_by_the_user_of_their_run(database: Database) -> None:
    caller = await Caller.of(database)
    await set_limits(database, "acme", {"user_usd_day_micros": 3 * COST})
    helper = replace(agent(), name="helper")
    boss = spending(tools=(Tool(name="helper", executor="agent", agent=digest(helper)),), limits=PATIENT)
    thinker = Thinker((("helper", {"input": "a"}), ("helper", {"input": "b"})))

    class Team(Thinker):
        async def stream(self, request: Request, **more: Any) -> AsyncGenerator[Message, None]:  # type: ignore[override]
            asks = thinker if request.tools else Thinker()
            thinker.heard += [] if request.tools else [request]
            async for item in asks.stream(request, **more):
                yield item

    async with working(database, Team(), None) as worker:
        run_id = await caller.run(boss, worker, agents=(helper,))
        await caller.until(run_id, "suspended")
        assert len(thinker.heard) == 3
        await nothing_held(caller, usd=3 * COST)
        await set_limits(database, "acme", {"user_usd_day_micros": 4 * COST})
        await caller.until(run_id, "completed")


async def test_who_has_no_pool_asks_nobody(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    caller = await Caller.of(database)
    async with working(database, Thinker("one"), None) as worker:
        monkeypatch.setattr(worker.parts.pools, "refusal", None)
        await caller.until(await caller.run(agent(), worker), "completed")
    async with database.engine() as engine:
        assert await engine.fetchval("select count(*) from reservation") == 0
