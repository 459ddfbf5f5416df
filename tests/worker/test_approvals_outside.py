"""Waits as a caller sees them, over HTTP: between a question and its answer every worker is killed with -9."""

import asyncio
import base64
import hashlib
import hmac
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from tests.worker.restarted import Company, asks, company, plays

from sojourn.models.simulator.script import Call, Script

LONG = "echo begun >> log; for i in 1 2 3 4 5 6 7 8; do sleep 0.2; done; cat log"
TRIP = tuple((Call("ship", {"to": f"place {n}"}),) for n in range(5))
PLACES = [f"ship place {n}" for n in range(5)]
SCRIPT = Script(
    rules=(
        *plays("boss", (Call("scout", {"input": "look"}), Call("charge", {"n": 1}))),
        *plays("scout", (Call("digger", {"input": "dig"}),), text="scouted"),
        *plays("digger", (Call("ship", {"to": "the deep"}),), text="dug"),
        *plays("payer", (Call("charge", {"n": 1}),)),
        *plays("listener", (Call("charge", {"n": 1}),), (Call("wait_for_event", {"name": "paid"}),)),
        *plays("asker", (Call("ask_user", {"question": "Which city?", "choices": ["Oslo", "Rome"]}),)),
        *plays("looker", (Call("lookup", {"city": "Oslo"}),)),
        *plays("worker", (Call("shell", {"command": LONG}),)),
        *plays("traveller", *TRIP),
    )
)


@pytest.fixture(scope="module")
async def here() -> AsyncIterator[Company]:
    """One company for all these tests; each kills its workers."""
    async with company(SCRIPT) as made:
        agents: tuple[dict[str, Any], ...] = (
            {"name": "digger", "tools": ["ship"], "policy": asks("ship")},
            {"name": "scout", "tools": [{"agent": "digger"}]},
            {"name": "boss", "tools": [{"agent": "scout"}, "charge"], "policy": asks("charge")},
        )
        for agent in agents:
            await made.post("/v1/agents", {"model": f"openai:{agent['name']}", **agent}, expect=201)
        yield made


async def finished(here: Company, run_id: str) -> None:
    run = await here.until(run_id)
    assert (run["status"], run["output"], run["waits"]) == ("completed", "all done", []), run


SHALLOW, DEEP = "/0.1", "/0.0/0.0/0.0"
EFFECT = {SHALLOW: "charge 1", DEEP: "ship the deep"}


@pytest.mark.parametrize("order", [(SHALLOW, DEEP), (DEEP, SHALLOW)], ids=["root first", "grandchild first"])
async def test_two_questions_of_three_levels_are_answered_one_by_one_by_ever_new_workers(
    here: Company, order: tuple[str, str]
) -> None:
    run_id = await here.run(agent="boss", input="go")
    waits = await here.asking(run_id, "approval", "approval")
    assert {call: wait["path"] for call, wait in waits.items()} == {SHALLOW: "/", DEEP: "/0.0/0.0"}
    assert here.done(run_id) == []
    await here.restart()
    first, second = order
    await here.decide(waits[first], "approve")
    left = await here.asking(run_id, "approval")
    assert left == {second: waits[second]}, "the other question is as it was"
    assert here.done(run_id) == [EFFECT[first]]
    await here.restart()
    await here.decide(left[second], "approve")
    await finished(here, run_id)
    assert here.done(run_id) == [EFFECT[first], EFFECT[second]]
    resolved = [event["wait"].partition("?")[0] for event in await here.of(run_id, "approval.resolved")]
    assert resolved == list(order)


async def test_a_question_that_nobody_answers_is_escalated_and_then_rejected_by_the_clock(here: Company) -> None:
    how = {"approvers": ["boss"], "expires_s": 0.5, "on_expire": "escalate", "escalate_to": ["director"]}
    agent = {"model": "openai:payer", "tools": ["charge"], "policy": asks("charge", **how)}
    run_id = await here.run(agent=agent, input="go")
    async with asyncio.timeout(60):
        while not await here.of(run_id, "approval.requested"):  # noqa: ASYNC110 (a worker asks)
            await asyncio.sleep(0.02)
    await here.restart()
    await finished(here, run_id)
    asked = await here.of(run_id, "approval.requested")
    assert [event["wait"] for event in asked] == ["/0.0?0", "/0.0?1"]
    (said,) = [part["text"] for part in await observations(here, run_id)]
    assert "Nobody answered in time" in said and "not run" in said
    assert here.done(run_id) == []
    late = await here.decide(asked[0], "approve", expect=409)
    assert late["code"] == "run.ended"


async def observations(here: Company, run_id: str) -> list[Any]:
    """What the model read of its calls."""
    transcript = (await here.get(f"/v1/runs/{run_id}/messages"))["data"]
    return [part for message in transcript if message["role"] == "tool" for part in message["parts"]]


async def deliver(here: Company, run_id: str, secret: str, body: bytes) -> int:
    """Send a webhook without any key, signed as a Standard Webhooks library signs it."""
    stamp = str(int(time.time()))
    key = base64.b64decode(secret.removeprefix("whsec_"))
    made = base64.b64encode(hmac.new(key, f"msg_1.{stamp}.".encode() + body, hashlib.sha256).digest()).decode()
    headers = {"webhook-id": "msg_1", "webhook-timestamp": stamp, "webhook-signature": f"v1,{made}"}
    headers["Content-Type"] = "application/json"
    async with aiohttp.request("POST", f"{here.url}/v1/hooks/{run_id}", data=body, headers=headers) as response:
        return response.status


async def test_a_signed_webhook_that_arrives_before_its_wait_is_kept_for_it_once(here: Company) -> None:
    agent = {"model": "openai:listener", "tools": ["charge", "wait_for_event"], "policy": asks("charge")}
    run_id = await here.run(agent=agent, input="go")
    wait = await here.asked(run_id, "approval")
    secret = (await here.get(f"/v1/runs/{run_id}/hook"))["secret"]
    body = b'{"type":"paid","data":{"cents":1200}}'
    assert await deliver(here, run_id, "whsec_" + base64.b64encode(b"guess").decode(), body) == 401
    assert [await deliver(here, run_id, secret, body) for _ in range(2)] == [202, 202]
    await here.asked(run_id, "approval")
    await here.restart()
    await here.decide(wait, "approve")
    await finished(here, run_id)
    assert [part["text"] for part in await observations(here, run_id)] == ["charged 1", '{"cents":1200}']
    assert len(await here.of(run_id, "signal.received")) == 1
    assert len(await here.of(run_id, "run.suspended")) == 1, "it never waited for the event"


async def test_the_users_answer_to_a_question_is_what_the_model_reads(here: Company) -> None:
    run_id = await here.run(agent={"model": "openai:asker", "tools": ["ask_user"]}, input="go")
    wait = await here.asked(run_id, "answer")
    assert "Which city?" in (await here.get(f"/v1/approvals/{wait['approval']}"))["display"]
    await here.restart()
    await here.decide(wait, "answer", text="Oslo")
    await finished(here, run_id)
    assert [part["text"] for part in await observations(here, run_id)] == ["Oslo"]
    assert (await here.decide(wait, "answer", expect=409, text="Rome"))["code"] == "run.ended"


async def test_the_result_of_a_callers_own_tool_is_taken_once(here: Company) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    agent = {"model": "openai:looker", "tools": [{"name": "lookup", "schema": schema}]}
    run_id = await here.run(agent=agent, input="go")
    wait = await here.asked(run_id, "client_tool")
    await here.restart()
    path, result = f"/v1/runs/{run_id}/tool_results", {"call": wait["call"], "output": "700,000 people"}
    await here.post(path, result)
    await finished(here, run_id)
    assert [part["text"] for part in await observations(here, run_id)] == ["700,000 people"]


async def test_a_hold_lets_the_running_command_end_and_begins_nothing_before_the_resume(here: Company) -> None:
    run_id = await here.run(agent={"model": "openai:worker", "tools": ["shell"]}, input="go")
    await here.begun(run_id)
    await here.post(f"/v1/runs/{run_id}/hold", {"reason": "wait for me"})
    wait = await here.asked(run_id, "hold")
    assert await here.results(run_id) == ["begun\n"], "what was in flight ended"
    assert "wait for me" in wait["title"]
    asked = len(here.simulator.requests(model="worker"))
    await here.restart()
    assert (await here.get(f"/v1/runs/{run_id}"))["status"] == "suspended"
    await here.post(f"/v1/runs/{run_id}/resume")
    await finished(here, run_id)
    assert len(here.simulator.requests(model="worker")) == asked + 1 == 2
    assert await here.log_of(run_id) == "begun\n"


async def test_a_stop_every_two_turns_counts_on_in_a_new_process(here: Company) -> None:
    agent = {"model": "openai:traveller", "tools": ["ship"], "suspend": {"every_turns": 2}}
    run_id = await here.run(agent=agent, input="go")
    for turns in (2, 4):
        wait = await here.asked(run_id, "turns")
        assert here.done(run_id) == PLACES[:turns]
        await here.restart()
        await here.decide(wait, "approve")
    await finished(here, run_id)
    assert here.done(run_id) == PLACES


async def test_a_run_that_used_up_its_budget_goes_on_at_the_same_point_with_more(here: Company) -> None:
    agent = {"model": "openai:traveller", "tools": ["ship"], "limits": {"steps": 2, "on_exhaust": "suspend"}}
    before = len(here.simulator.requests(model="traveller"))
    run_id = await here.run(agent=agent, input="go")
    wait = await here.asked(run_id, "budget")
    assert here.done(run_id) == PLACES[:2]
    await here.restart()
    assert (await here.decide(wait, "extend", expect=422, limits={"steps": 2}))["code"] == "approval.no_limits"
    await here.decide(wait, "extend", limits={"steps": 10})
    await finished(here, run_id)
    run = await here.get(f"/v1/runs/{run_id}")
    assert (run["steps"], run["limits"]["steps"]) == (6, 10)
    assert here.done(run_id) == PLACES, "no step was made twice"
    assert len(here.simulator.requests(model="traveller")) == before + 6
