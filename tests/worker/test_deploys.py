"""A process that is told to stop: what is in flight ends or is handed back in bounded time, and no step is lost."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from tests.conftest import until
from tests.worker.restarted import Company, company, plays

from sojourn.models.simulator.script import Call, Pacing, Rule, Script, When
from sojourn.wiring import SHUTDOWN_S
from sojourn.worker.worker import HAND_BACK_S

DRAIN_S = 2.0
ENDS_WITHIN_S = DRAIN_S + 2 * HAND_BACK_S + 10
"""The rest is for a busy machine."""
WORDS = " ".join(f"word{n}" for n in range(200))
SCRIPT = Script(
    rules=(
        Rule(when=When(model="talker"), text=WORDS, pacing=Pacing(tokens_per_s=40)),
        *plays("waits", (Call("shell", {"command": "echo begun >> log; sleep 6; echo ended >> log; cat log"}),)),
        *plays("stuck", (Call("stubborn"),)),
        *plays("many", (Call("shell", {"command": "echo begun >> log; sleep 1"}),), (Call("charge", {"n": 1}),)),
    )
)


def agent(model: str, *tools: str) -> dict[str, Any]:
    return {"model": f"openai:{model}", "tools": list(tools)}


@pytest.fixture(scope="module")
async def here() -> AsyncIterator[Company]:
    async with company(SCRIPT, SOJOURN_DRAIN_S=str(DRAIN_S), SOJOURN_SANDBOX_SUSPEND_S="3600") as made:
        await made.kill_workers()
        yield made


async def told(here: Company, number: signal.Signals = signal.SIGTERM, *, times: int = 1) -> float:
    """Tell the last worker to stop; how long it took."""
    worker, began = here.workers[-1], time.monotonic()
    for _ in range(times):
        worker.send_signal(number)
        await asyncio.sleep(0.3 if times > 1 else 0)
    assert await asyncio.wait_for(worker.wait(), 60) == 0, here.tail()
    return time.monotonic() - began


def logged(here: Company, word: str) -> int:
    return (here.data_dir / "worker.log").read_text().count(word)


async def in_flight(here: Company) -> dict[str, str]:
    """A model that streams, a command that runs and a tool that hangs, all at a new worker."""
    await here.start_worker()
    runs = {
        "talks": await here.run(agent=agent("talker"), input="go"),
        "waits": await here.run(agent=agent("waits", "shell"), input="go"),
        "stuck": await here.run(agent=agent("stuck", "stubborn"), input="go"),
    }
    await here.begun(runs["waits"])
    await until(
        lambda: here.done(runs["stuck"]) != [] and here.simulator.requests(model="talker", outcome="open") != []
    )
    return runs


@pytest.mark.parametrize("hastened", [False, True])
async def test_what_is_in_flight_is_handed_back_in_bounded_time(here: Company, hastened: bool) -> None:
    runs, stuck = await in_flight(here), logged(here, "process.tasks_stuck")
    took_s = await told(here, times=2 if hastened else 1)
    assert logged(here, "process.tasks_stuck") == stuck + 1, "the tool held nobody"
    assert took_s < (ENDS_WITHIN_S if not hastened else ENDS_WITHIN_S - DRAIN_S)
    assert {(await here.get(f"/v1/runs/{run_id}"))["status"] for run_id in runs.values()} == {"queued"}
    await here.start_worker(STUBBORN="0")
    ended = {name: await here.until(run_id) for name, run_id in runs.items()}
    assert {run["status"] for run in ended.values()} == {"completed"}
    assert ended["talks"]["output"] == WORDS
    assert await here.results(runs["waits"]) == ["begun\nended\n"], "the command was never begun a second time"
    await here.kill_workers()


async def test_fifty_runs_are_handed_over_and_each_charges_once(here: Company) -> None:
    """And the supervisor, who has no patience, kills the second worker while it drains."""
    await here.start_worker()
    runs = [await here.run(agent=agent("many", "shell", "charge"), input="go") for _ in range(50)]
    await here.begun(runs[0])
    await told(here)
    charged = sum(len(here.done(run_id)) for run_id in runs)
    await here.start_worker()
    await until(lambda: sum(len(here.done(run_id)) for run_id in runs) > charged, 60)
    impatient, before = here.workers[-1], logged(here, "worker.draining")
    impatient.send_signal(signal.SIGTERM)
    await until(lambda: logged(here, "worker.draining") > before)
    impatient.kill()
    await impatient.wait()
    await here.start_worker()
    for run_id in runs:
        run = await here.until(run_id, "completed", "suspended")
        while run["status"] == "suspended":  # killed while it charged: a person looks
            done = here.done(run_id) == ["charge 1"]
            (wait,) = run["waits"]
            await here.decide(wait, "mark_done" if done else "retry", **({"text": "charged"} if done else {}))
            run = await here.until(run_id, "completed", "suspended")
        assert (here.done(run_id), await here.log_of(run_id)) == (["charge 1"], "begun\n")
    await here.kill_workers()


# ---- the API ---------------------------------------------------------------------------------


async def test_an_api_that_stops_lets_its_callers_finish_and_sends_them_elsewhere(here: Company) -> None:
    api = await here.start("serve", "--port", "0", "--no-worker", name="api-2", env={"SOJOURN_LINGER_S": "3"})
    url = await here.announced(api, "api-2")
    async with here.caller(url) as second:
        run_id = await here.run(agent=agent("talker"), input="go")
        follower = asyncio.create_task(read_to_its_end(second, run_id))
        body = {"agent": agent("talker"), "input": "go"}
        waiting = asyncio.create_task(second.post("/v1/runs?wait=60", json=body))
        async with second.get("/readyz") as ready:
            assert ready.status == 200
        async with asyncio.timeout(30):
            while len((await here.get("/v1/runs?status=queued"))["data"]) < 2:  # noqa: ASYNC110 (it is accepted)
                await asyncio.sleep(0.02)
        api.send_signal(signal.SIGTERM)
        async with asyncio.timeout(SHUTDOWN_S):
            while True:
                async with second.get("/readyz") as ready:
                    if ready.status == 503:
                        assert (await ready.json(content_type=None))["code"] == "server.stopping"
                        break
        async with second.get("/v1/runs") as listed:
            assert listed.status == 200, "it still answers"
        async with await waiting as answer:
            assert answer.status == 202 and (await answer.json())["status"] == "queued"
        text = await follower
        assert text.endswith("come back with Last-Event-ID\nretry: 500\n\n")
        assert await asyncio.wait_for(api.wait(), 30) == 0


async def read_to_its_end(http: aiohttp.ClientSession, run_id: str) -> str:
    async with http.get(f"/v1/runs/{run_id}/events", headers={"Accept": "text/event-stream"}) as response:
        return await response.text()
