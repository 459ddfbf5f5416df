"""Runs that are ended from outside, one by one or by the switch: what they began ends, and what is left is told."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.conftest import until
from tests.worker.restarted import Company, company
from tests.worker.stoppable import RULES, STATES, database, everywhere, left_by, sub_agents

from sojourn.models.simulator.script import Script

LEASE_S = 4.0
WITHIN_S = 30.0
STEP_S = 10.0
"""One step, on a busy machine; it is some hundredths of a second on a quiet one."""


@pytest.fixture(scope="module")
async def here() -> AsyncIterator[Company]:
    async with company(Script(rules=RULES), SOJOURN_LEASE_S=str(LEASE_S), SOJOURN_DRAIN_S="1") as made:
        await sub_agents(made)
        yield made


# ---- one by one ------------------------------------------------------------------------------


async def cancelled(here: Company, run_id: str) -> float:
    """Cancel a run twice, and wait for its end; how many seconds it took."""
    began = time.monotonic()
    for _ in range(2):
        await here.post(f"/v1/runs/{run_id}/cancel", {"reason": "enough"})
    run = await here.until(run_id, within_s=STEP_S)
    took_s = time.monotonic() - began
    assert (run["status"], run["waits"]) == ("cancelled", [])
    again = await here.post(f"/v1/runs/{run_id}/cancel")
    assert (again["status"], again["rev"]) == ("cancelled", run["rev"]), "once more changes nothing"
    events = await here.events(run_id)
    assert [event["type"] for event in events].count("run.cancelled") == 1
    assert events[-1]["type"] == "run.cancelled"
    return took_s


async def test_a_run_is_cancelled_in_every_state(here: Company) -> None:
    runs = await everywhere(here)
    took_s = dict(zip(runs, await asyncio.gather(*(cancelled(here, run_id) for run_id in runs.values())), strict=True))
    print({state: round(seconds, 2) for state, seconds in took_s.items()})
    await until(lambda: not list(left_by(here)))
    spent = await here.get(f"/v1/runs/{runs['its model speaks']}")
    assert (spent["steps"], spent["usage"]["output_tokens"] > 0) == (1, True), "what was spent is kept"
    assert here.done(runs["its model speaks"]) == ["charge 1"]
    assert here.done(runs["it asks"]) == here.done(runs["its sub-agent asks"]) == []
    alive = await here.until(await here.run(model="openai:sim", input="go"))
    assert alive["status"] == "completed", "a tool that hangs is left, and keeps nobody else"


async def test_a_run_that_waits_for_a_worker_or_for_its_time_is_cancelled_and_no_model_is_asked(here: Company) -> None:
    await here.kill_workers()
    asked = len(here.simulator.requests())
    queued, delayed, dead, gone = [await here.run(model="openai:sim", input="go") for _ in range(4)]
    async with database(here) as db, db.engine() as engine:
        await engine.execute("update run set due_at = now() + interval '1 day' where id = $1", delayed)
        aside = "update run set status = 'quarantined', due_at = null where id = any($1)"
        await engine.execute(aside, [dead, gone])
        unreadable = """update run set snapshot = '{"version":99}' where id = $1"""
        await engine.execute(unreadable, gone)
    runs = (queued, delayed, dead, gone)
    for run_id in runs:
        await here.post(f"/v1/runs/{run_id}/cancel")
    await here.start_worker()
    for run_id in runs:
        assert (await here.until(run_id))["status"] == "cancelled"
        events = await here.events(run_id)
        assert [event["type"] for event in events] == ["run.queued", "user.message", "run.cancelled"]
    assert len(here.simulator.requests()) == asked


async def test_a_cancellation_that_comes_with_the_end_is_told_what_became_of_it(here: Company) -> None:
    for _ in range(5):
        run_id = await here.run(**STATES["it asks"].body, input="go")
        wait = await here.asked(run_id, "approval")
        await here.post(f"/v1/approvals/{wait['approval']}", {"decision": "approve"})
        async with here.http.post(f"/v1/runs/{run_id}/cancel") as response:
            status, body = response.status, await response.json()
        run = await here.until(run_id)
        assert run["status"] in ("cancelled", "completed"), "its last reply may have come first"
        if status == 409:
            assert (body["code"], run["status"]) == ("run.ended", "completed")
        await here.post(f"/v1/runs/{run_id}/cancel", expect=202 if run["status"] == "cancelled" else 409)
        ends = [
            event["type"] for event in await here.events(run_id) if event["type"] in ("run.cancelled", "run.completed")
        ]
        assert ends == [f"run.{run['status']}"]


# ---- by the switch ---------------------------------------------------------------------------


async def stop(here: Company, what: str = "tenant", id: str = "", **more: Any) -> Any:
    return await here.post("/v1/admin/stops", {"what": what, "id": id, **more})


async def settled(here: Company, made: Any, within_s: float = WITHIN_S) -> Any:
    """The stop, once nothing of it is left."""
    seen: Any = None
    try:
        async with asyncio.timeout(within_s):
            while True:
                seen = await here.get(f"/v1/admin/stops/{made['id']}")
                if seen["progress"]["settled"]:
                    return seen
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"it does not settle: {seen}\n{here.tail()}") from None


async def held(here: Company, run_id: str) -> None:
    """Wait until a run stands still under a hold."""
    async with asyncio.timeout(WITHIN_S):
        while all(wait["kind"] != "hold" for wait in (await here.until(run_id, "suspended"))["waits"]):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def lift(here: Company, made: Any) -> None:
    async with here.http.delete(f"/v1/admin/stops/{made['id']}") as response:
        assert response.status == 200, await response.text()


async def test_tenant_kill_switch_stops_within_one_step(here: Company) -> None:
    runs = await everywhere(here)
    began = time.monotonic()
    made = await stop(here, reason="the key leaked")
    assert made["progress"]["runs"] == len(runs)
    refused = await here.post("/v1/runs", {"model": "openai:sim", "input": "go"}, expect=409)
    assert refused["code"] == "stop.in_force"
    assert made["id"] in refused["detail"] and "the key leaked" in refused["detail"]
    for run_id in runs.values():
        assert (await here.until(run_id, within_s=STEP_S))["status"] == "cancelled"
    ended_s = time.monotonic() - began
    seen = await settled(here, made)
    print(f"runs ended after {ended_s:.2f} s, settled after {time.monotonic() - began:.2f} s")
    assert seen["progress"]["hit"] == {"cancelled": len(runs)}
    await until(lambda: not list(left_by(here)))
    async with here.sandboxes() as sandboxes:
        for run_id in runs.values():
            assert await sandboxes.attach((await here.get(f"/v1/runs/{run_id}"))["session_id"]) is None
    page = await here.get(f"/v1/admin/stops/{made['id']}/runs")
    assert {one["run_id"] for one in page["data"]} == set(runs.values())
    for run_id in runs.values():
        (end,) = await here.of(run_id, "run.cancelled")
        assert (await here.events(run_id))[-1] == end
    await lift(here, made)
    assert (await here.until(await here.run(model="openai:sim", input="go")))["status"] == "completed"


async def test_a_stop_holds_what_it_names_through_a_deploy_and_lets_it_go_on(here: Company) -> None:
    asks, talks = STATES["it asks"], STATES["its model speaks"]
    suspended, speaks = await here.run(**asks.body, input="go"), await here.run(**talks.body, input="go")
    wait = await here.asked(suspended, "approval")
    await talks.there(here, speaks)
    made = await stop(here, "user", "local", mode="hold", reason="let us look")
    old = here.workers[-1]
    old.send_signal(signal.SIGTERM)
    await here.start_worker()
    await here.post(f"/v1/approvals/{wait['approval']}", {"decision": "approve"})
    for run_id in (suspended, speaks):
        await held(here, run_id)
    assert here.done(suspended) == [], "what was approved does not begin under a hold"
    async with asyncio.timeout(WITHIN_S):  # told once more than needed, one may just be looked at again
        while (await settled(here, made))["progress"]["hit"] != {"suspended": 2}:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    refused = await here.post(f"/v1/runs/{suspended}/resume", expect=409)
    assert refused["code"] == "stop.in_force"
    await lift(here, made)
    assert (await here.until(suspended))["status"] == "completed"
    assert here.done(suspended) == ["charge 1"]
    await here.until(speaks, "running")
    await here.post(f"/v1/runs/{speaks}/cancel")
    await here.until(speaks)
    assert await asyncio.wait_for(old.wait(), 60) == 0


async def test_only_what_is_named_is_stopped(here: Company) -> None:
    bodies = {"run": {}, "session": {}, "agent": {"agent": "boss"}}
    ask = STATES["it asks"].body
    runs = {what: await here.run(**(body or ask), input="go") for what, body in bodies.items()}
    other = await here.run(**ask, input="go")
    for run_id in (*runs.values(), other):
        await here.asked(run_id, "approval")
    session = (await here.get(f"/v1/runs/{runs['session']}"))["session_id"]
    names = {"run": runs["run"], "session": session, "agent": "boss"}
    for what, name in names.items():
        made = await stop(here, what, name)
        assert (await here.until(runs[what]))["status"] == "cancelled", what
        await settled(here, made)
        assert (await stop(here, what, name))["id"] == made["id"], "the same stop twice is one"
        await lift(here, made)
    assert (await here.get(f"/v1/runs/{other}"))["status"] == "suspended"
    await here.post(f"/v1/runs/{other}/cancel")


async def test_a_frozen_worker_keeps_a_stop_from_settling_until_its_lease_runs_out(here: Company) -> None:
    talks = STATES["its model speaks"]
    run_id = await here.run(**talks.body, input="go")
    await talks.there(here, run_id)
    frozen = here.workers[-1]
    frozen.send_signal(signal.SIGSTOP)
    try:
        made = await stop(here, "run", run_id)
        await here.start_worker()
        left = made["progress"]["left"]
        assert (made["progress"]["leases"], made["progress"]["calls"], left[0]["id"]) == (1, 1, run_id)
        seen = await settled(here, made)
        assert seen["progress"]["hit"] == {"cancelled": 1}
        rev = (await here.get(f"/v1/runs/{run_id}"))["rev"]
    finally:
        frozen.send_signal(signal.SIGCONT)
    await until(lambda: not list(left_by(here)))
    assert (await here.get(f"/v1/runs/{run_id}"))["rev"] == rev, "who wakes up late writes nothing"
    await lift(here, made)
