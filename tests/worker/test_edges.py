"""The edges of a suspended run, from the outside: what has changed meanwhile, and who comes at the same time."""

import asyncio
import hashlib
import os
import re
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.sandboxes.test_crash import keeper_pid
from tests.worker.restarted import PAY, TOOLS, Company, Follower, asks, company, plays

from sojourn.models.simulator.script import Call, Pacing, Rule, Script, When

LONG = "echo begun >> log; for i in 1 2 3 4 5; do sleep 0.2; done; cat log"
LIMIT_BYTES = 6 << 20
ANSWER = "a whole answer of quite some words"
SCRIPT = Script(
    pacing=Pacing(chunk_tokens=1),
    rules=(
        Rule(when=When(model="clerk", system="new words"), text="by the new words"),
        *plays("clerk", (Call("charge", {"n": 1}),), text="by the old words"),
        *plays("racer", (Call("charge", {"n": 1}),), (Call("ask_user", {"question": "And now?"}),)),
        *plays("drain", (Call("shell", {"command": LONG}), Call("charge", {"n": 1}))),
        *plays(
            "keeps",
            (Call("write_file", {"path": "note", "content": "kept"}), Call("shell", {"command": "touch /tmp/gone"})),
            (Call("charge", {"n": 1}),),
            (Call("shell", {"command": "cat note; ls /tmp"}),),
        ),
        *plays("stuck", (Call("shell", {"command": "echo begun >> log; sleep 600"}),)),
        *plays("long", (Call("report", {"kb": 5 << 10}),)),
        *plays("longer", (Call("report", {"kb": 7 << 10}),)),
        *plays("talker", (Call("charge", {"n": 1}),), text=ANSWER),
        *plays("payer", (Call("pay", {"n": 1}),)),
        *plays("priced"),
    ),
)
CLERK = {"model": "openai:clerk", "system": "old words", "tools": ["charge"], "policy": asks("charge")}


@pytest.fixture(scope="module")
async def here() -> AsyncIterator[Company]:
    """One company for all these tests; sandboxes stay alive while a run waits."""
    env = {"SOJOURN_SANDBOX_SUSPEND_S": "3600", "SOJOURN_BLOB_MAX_BYTES": str(LIMIT_BYTES)}
    async with company(SCRIPT, **env) as made:
        yield made


# ---- who comes at the same time ----------------------------------------------------------------


async def answers(here: Company, wait: Any, *decisions: str) -> list[int]:
    """Give several answers at once; how each was taken."""

    async def answer(decision: str) -> int:
        async with here.http.post(f"/v1/approvals/{wait['approval']}", json={"decision": decision}) as response:
            return response.status

    return list(await asyncio.gather(*map(answer, decisions)))


async def workers(here: Company) -> int:
    """How many workers the installation counts."""
    async with here.http.get("/metrics") as response:
        (count,) = re.findall(r"^sojourn_workers (\d+)$", await response.text(), re.MULTILINE)
    return int(count)


async def test_two_resumes_race_one_wins(here: Company) -> None:
    await here.start_worker()
    async with asyncio.timeout(60):
        while await workers(here) < 2:  # noqa: ASYNC110 (it starts)
            await asyncio.sleep(0.02)
    agent = {"model": "openai:racer", "tools": ["charge", "ask_user"], "policy": asks("charge")}
    runs = [await here.run(agent=agent, input="go") for _ in range(10)]
    waits = [await here.asked(run_id, "approval") for run_id in runs]
    rivals = [("approve", "approve") if n % 2 else ("approve", "reject") for n in range(10)]
    taken = await asyncio.gather(
        *(answers(here, wait, *decisions) for wait, decisions in zip(waits, rivals, strict=True))
    )
    for run_id, decisions, statuses in zip(runs, rivals, taken, strict=True):
        assert sorted(statuses) == ([202, 202] if decisions[0] == decisions[1] else [202, 409])
        await here.decide(await here.asked(run_id, "answer"), "answer", text="nothing")
        assert (await here.until(run_id))["status"] == "completed"
        resolved, _ = await here.of(run_id, "approval.resolved")
        assert resolved["decision"] == decisions[statuses.index(202)]
        assert here.done(run_id) == (["charge 1"] if resolved["decision"] == "approve" else [])
        assert len(await here.of(run_id, "agent.tool_started")) == len(here.done(run_id))


async def test_deploy_drain_suspends_cleanly(here: Company) -> None:
    agent = {"model": "openai:drain", "tools": ["shell", "charge"], "policy": asks("charge")}
    await here.restart()
    run_id = await here.run(agent=agent, input="go")
    await here.begun(run_id)
    old = here.workers[-1]
    old.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(old.wait(), 60) == 0
    run = await here.get(f"/v1/runs/{run_id}")
    assert (run["status"], [wait["kind"] for wait in run["waits"]]) == ("suspended", ["approval"])
    assert await here.results(run_id) == ["begun\n"], "the command was let end"
    async with here.sandboxes() as sandboxes:
        assert await sandboxes.attach(run["session_id"]) is None, "no process of it is left"
    await here.start_worker()
    await here.decide(run["waits"][0], "approve")
    assert (await here.until(run_id))["output"] == "all done"
    assert (here.done(run_id), await here.log_of(run_id)) == (["charge 1"], "begun\n")


# ---- what has changed meanwhile ----------------------------------------------------------------


async def kill_keeper(here: Company) -> None:
    """End all sandboxes of this host as a crash would."""
    async with here.sandboxes() as sandboxes:
        os.kill(keeper_pid(sandboxes), signal.SIGKILL)


async def test_sandbox_gone_on_resume_is_rebuilt_or_call_becomes_unknown(here: Company) -> None:
    keeps = {"model": "openai:keeps", "tools": ["write_file", "shell", "charge"], "policy": asks("charge")}
    stuck = {"model": "openai:stuck", "tools": ["shell"]}
    suspended, running = await here.run(agent=keeps, input="go"), await here.run(agent=stuck, input="go")
    wait = await here.asked(suspended, "approval")
    await here.begun(running)
    await here.kill_workers()
    await kill_keeper(here)
    await here.start_worker()
    await here.decide(wait, "approve")

    assert (await here.until(suspended))["status"] == "completed"
    assert (await here.results(suspended))[-1] == "kept", "its files are there, and what was in /tmp is not"
    assert len(await here.of(suspended, "sandbox.restored")) == 1

    assert (await here.until(running))["status"] == "completed"
    (told,) = await here.of(running, "agent.tool_result")
    assert told.get("error") and "may have run wholly, in part or not at all" in told["text"]
    assert await here.log_of(running) == "begun\n", "it was not run again"


async def test_prompt_changed_while_suspended_uses_the_pinned_version(here: Company) -> None:
    await here.post("/v1/agents", {"name": "clerk", **CLERK}, expect=201)
    old = await here.run(agent="clerk", input="go")
    wait = await here.asked(old, "approval")
    await here.post("/v1/agents/clerk/versions", {**CLERK, "system": "new words"}, expect=201)
    async with here.http.put("/v1/agents/clerk/live", json={"version": 2}) as response:
        assert response.status == 200
    await here.restart()
    await here.decide(wait, "approve")
    run = await here.until(old)
    assert (run["output"], run["agent"]["version"]) == ("by the old words", 1)
    assert here.done(old) == ["charge 1"]
    new = await here.until(await here.run(agent="clerk", input="go"))
    assert (new["output"], new["agent"]["version"]) == ("by the new words", 2)


OTHERS = {
    "the same, with other words": (PAY.replace("Pays.", "Pays in full."), "paid 1"),
    "another schema": (PAY.replace("n: int,", "n: int, cents: int = 0,"), "has changed since a person approved"),
    "another effect": (PAY.replace("@tool", '@tool(effect="idempotent")'), "has changed since a person approved"),
    "none": ("", "no tool named pay"),
}


async def test_tool_removed_or_changed_while_suspended(here: Company) -> None:
    site = here.data_dir / "site"
    points = site / "offered-1.dist-info" / "entry_points.txt"
    offered = points.read_text()
    agent = {"model": "openai:payer", "tools": ["pay"], "policy": asks("pay")}
    runs = {name: await here.run(agent=agent, input="go") for name in OTHERS}
    waits = {name: await here.asked(run_id, "approval") for name, run_id in runs.items()}
    try:
        for name, (source, said) in OTHERS.items():
            (site / "offered.py").write_text(TOOLS + source)
            points.write_text(offered if source else offered.replace("pay = offered:pay\n", ""))
            await here.restart()
            await here.decide(waits[name], "approve")
            assert (await here.until(runs[name]))["status"] == "completed", name
            (told,) = await here.of(runs[name], "agent.tool_result")
            assert said in told["text"], name
            refused = said != "paid 1"
            assert (told.get("error", False), here.done(runs[name])) == (refused, [] if refused else ["pay 1"]), name
    finally:
        (site / "offered.py").write_text(TOOLS + PAY)
        points.write_text(offered)
        await here.restart()


# ---- what is long ------------------------------------------------------------------------------


def spoken(kb: int) -> bytes:
    """What the tool `report` says."""
    return "".join(f"{n:1023}\n" for n in range(kb)).encode()


async def observed(here: Company, model: str) -> str:
    """What the model reads of a long report, seen to be short."""
    run_id = await here.run(agent={"model": f"openai:{model}", "tools": ["report"]}, input="go")
    assert (await here.until(run_id))["status"] == "completed"
    (text,) = await here.results(run_id)
    assert len(text.encode()) < (64 << 10) + 300
    *_, request = here.simulator.requests(model=model)
    assert request.body is not None and len(bytes(request.body)) < 80 << 10, "the model read no more"
    return text


async def test_five_megabyte_result_spills_to_a_blob(here: Company) -> None:
    whole, text = spoken(5 << 10), await observed(here, "long")
    assert whole.startswith(text[: 32 << 10].encode()) and whole.endswith(text[-(32 << 10) :].encode())
    assert f"[{len(whole) - (64 << 10)} of {len(whole)} bytes are left out here. " in text
    (digest,) = re.findall(r"kept as the blob (sha256:[0-9a-f]{64})\.", text)
    async with here.http.get(f"/v1/blobs/{digest}") as response:
        assert (response.status, response.content_type) == (200, "text/plain")
        assert hashlib.sha256(await response.read()).hexdigest() == hashlib.sha256(whole).hexdigest()
    assert "The whole could not be kept." in await observed(here, "longer"), "the setting bounds it"


async def test_stream_reconnects_across_suspend(here: Company) -> None:
    agent = {"model": "openai:talker", "tools": ["charge"], "policy": asks("charge")}
    run_id = await here.run(agent=agent, input="go")
    stays, leaves = Follower(here, run_id), Follower(here, run_id)
    staying = asyncio.create_task(stays.read("run.completed"))
    await leaves.read("run.suspended")
    await here.restart()
    await here.decide(await here.asked(run_id, "approval"), "approve")
    await here.until(run_id)
    await leaves.read("run.completed")
    async with asyncio.timeout(60):
        await staying
    events = await here.events(run_id)
    assert leaves.durable == events, "no gap, and nothing twice"
    assert stays.durable == events
    assert [event["type"] for event in events].count("run.resumed") == 1
    assert ANSWER.startswith("".join(stays.said())), "deltas may end early, for the event holds the whole"


# ---- what cannot be paid -----------------------------------------------------------------------

POOR = {"usd": "1.00"}


async def test_unknown_price_refused(here: Company) -> None:
    unpriced = {"name": "unpriced", "model": "openai:nobody-knows"}
    await here.post("/v1/agents", unpriced, expect=201)
    chains: dict[str, dict[str, Any]] = {
        "its model": {"model": "openai:nobody-knows"},
        "a model of its chain": {"models": ["openai:priced", "openai:nobody-knows"]},
        "the model of a sub-agent": {"model": "openai:priced", "tools": [{"agent": "unpriced"}]},
    }
    for who, agent in chains.items():
        refused = await here.post("/v1/runs", {**agent, "input": "go", "limits": POOR}, expect=422)
        assert (refused["code"], refused["errors"][0]["pointer"]) == ("budget.no_price", "/limits/usd"), who
        assert "openai:nobody-knows" in refused["detail"], who
    run = await here.until(await here.run(model="openai:priced", input="go", limits=POOR))
    assert (run["status"], run["cost"]["usd"] is not None) == ("completed", True)
