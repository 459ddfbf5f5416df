"""Wall time and sub-agents as callers see them: a run that sleeps ends, or asks for more, though workers are killed."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.worker.restarted import Company, asks, company, plays

from sojourn.models.simulator.script import Call, Script

SCRIPT = Script(
    rules=(
        *plays("payer", (Call("charge", {"n": 1}),)),
        *plays("boss", (Call("scout", {"input": "a"}), Call("scout", {"input": "b"}))),
        *plays("scout", text="scouted"),
    )
)


@pytest.fixture(scope="module")
async def here() -> AsyncIterator[Company]:
    """One company for all these tests; each kills its workers."""
    async with company(SCRIPT) as made:
        yield made


async def asleep(here: Company, on_exhaust: str) -> tuple[str, Any]:
    """A run that waits for a yes within its wall time, and the question; on a slow machine it gets more."""
    for wall_s in (4, 16, 64):
        limits = {"wall_s": wall_s, "on_exhaust": on_exhaust}
        agent = {"model": "openai:payer", "tools": ["charge"], "policy": asks("charge"), "limits": limits}
        run_id = await here.run(agent=agent, input="go")
        run = await here.until(run_id, "suspended", "failed")
        if [wait["kind"] for wait in run["waits"]] == ["approval"]:
            return run_id, run["waits"][0]
    raise AssertionError(f"it does not come to its question: {run}\n{here.tail()}")


async def test_a_run_that_sleeps_on_an_approval_ends_when_its_wall_time_does(here: Company) -> None:
    run_id, wait = await asleep(here, "fail")
    await here.restart()
    run = await here.until(run_id, "failed")
    assert (run["error"]["code"], run["waits"]) == ("budget.exhausted", [])
    assert "all of its wall_s" in run["error"]["detail"]
    async with here.http.get(f"/v1/approvals/{wait['approval']}") as response:
        assert (response.status, "budget.exhausted" in await response.text()) == (409, True)
    await here.post(f"/v1/approvals/{wait['approval']}", {"decision": "approve"}, expect=409)
    assert here.done(run_id) == []


async def test_a_run_that_may_ask_for_more_wall_time_goes_on_exactly_with_it(here: Company) -> None:
    run_id, wait = await asleep(here, "suspend")
    await here.restart()
    waits = await here.asking(run_id, "approval", "budget")
    assert waits["/0.0"] == wait, "the question stays as it was"
    await here.restart()
    await here.decide(waits["/0.0"], "approve")
    left = await here.asked(run_id, "budget")
    assert left == waits[None] and here.done(run_id) == [], "nothing begins over the end"
    refused = await here.decide(left, "extend", expect=422, limits={"wall_s": 1})
    assert refused["code"] == "approval.no_limits" and "raise wall_s. It began" in refused["detail"]
    await here.restart()
    await here.decide(left, "extend", limits={"wall_s": 100_000})
    run = await here.until(run_id)
    assert (run["status"], run["limits"]["wall_s"], here.done(run_id)) == ("completed", 100_000, ["charge 1"])


async def test_a_sub_agent_too_many_is_an_error_that_the_model_reads(here: Company) -> None:
    await here.post("/v1/agents", {"name": "scout", "model": "openai:scout"}, expect=201)
    agent = {"model": "openai:boss", "tools": [{"agent": "scout"}], "limits": {"children": 1}}
    run_id = await here.run(agent=agent, input="go")
    run = await here.until(run_id)
    assert (run["status"], run["children"], run["limits"]["children"]) == ("completed", 1, 1)
    bodies = [bytes(one.body or b"").decode() for one in here.simulator.requests(model="boss")]
    assert "The run may begin 1 sub-agents in all (the limit `children`), and has." in bodies[-1]
