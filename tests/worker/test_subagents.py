"""Agents that call agents that call agents, as a caller sees them: real workers, killed, cancelled and asked to wait.

`boss` gives a task to two `scout`s at the same time; each gives it to a `digger`, which runs a command in the session's
sandbox that all of them share.
"""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import until
from tests.installation import Installation, at, installed, offer_tools
from tests.worker.test_outside import running

from sojourn.models.simulator.script import Call, Rule, Script, When
from sojourn.store.roles import Dsns

SIDES = ("left", "right")


def script(dig: dict[str, Call], *first: Rule) -> Script:
    """What the three models say; `dig` is what a digger does for each side."""
    return Script(
        rules=(
            *first,
            Rule(when=When(model="boss", step=0), calls=tuple(Call("scout", {"input": side}) for side in SIDES)),
            *(
                Rule(when=When(model="scout", user=side, step=0), calls=(Call("digger", {"input": f"dig {side}"}),))
                for side in SIDES
            ),
            *(Rule(when=When(model="digger", user=side, step=0), calls=(dig[side],)) for side in SIDES),
            Rule(when=When(model="digger"), text="dug"),
            Rule(when=When(model="scout"), text="scouted"),
            Rule(text="all done"),
        )
    )


def shell(command: str) -> dict[str, Call]:
    return {side: Call("shell", {"command": command.replace("SIDE", side)}) for side in SIDES}


QUICK = "echo SIDE >> log; cat log | wc -l"
LONG = "echo SIDE >> log; for i in 1 2 3 4 5 6 7 8; do sleep 0.2; done; grep -c SIDE log"
ASK = {"rules": [{"tool": "shell", "verdict": "ask"}]}


@pytest.fixture
async def installation(data_dir: Path, dsns: Dsns, request: pytest.FixtureRequest) -> AsyncIterator[Installation]:
    """An installation with one worker and an operator's tool; its script is the test's parameter."""
    env = {"SOJOURN_DRAIN_S": "0.2", "SOJOURN_BEAT_S": "0.2", "SOJOURN_SANDBOX_SUSPEND_S": "0"}
    env |= {**at(dsns), **offer_tools(data_dir, CHARGE, "charge"), "EFFECTS": str(data_dir / "effects")}
    async with installed(data_dir, request.param, env=env) as ready:
        yield ready


CHARGE = '''
import os, time
from sojourn.tools.functions import tool

@tool
def charge(n: int, *, context) -> str:
    """Has an effect that must not be had twice, and hangs."""
    with open(os.environ["EFFECTS"], "a") as file:
        file.write(context.call + "\\n")
    time.sleep(600)
'''


async def start(installation: Installation, *tools: str, policy: Any = None) -> str:
    """Make the three agents and ask the boss."""
    digger = {"name": "digger", "model": "openai:digger", "tools": list(tools)}
    await installation.post("/v1/agents", {**digger, **({"policy": policy} if policy else {})}, expect=201)
    scout = {"name": "scout", "model": "openai:scout", "tools": [{"agent": "digger"}]}
    await installation.post("/v1/agents", scout, expect=201)
    await installation.post(
        "/v1/agents", {"name": "boss", "model": "openai:boss", "tools": [{"agent": "scout"}]}, expect=201
    )
    return await installation.run(agent="boss", input="find it")


async def log_of(installation: Installation, run_id: str) -> list[str]:
    """What the diggers' commands have written so far."""
    session = (await installation.get(f"/v1/runs/{run_id}"))["session_id"]
    async with installation.http.get(f"/v1/sessions/{session}/files/log") as response:
        return sorted((await response.text()).split()) if response.status == 200 else []


async def both_begun(installation: Installation, run_id: str) -> None:
    async with asyncio.timeout(60):
        while await log_of(installation, run_id) != list(SIDES):  # noqa: ASYNC110 (the diggers do it)
            await asyncio.sleep(0.02)


async def results(installation: Installation, run_id: str) -> dict[str, str]:
    """What each call came to, by its name in the tree."""
    events = await installation.events(run_id)
    return {event["call"]: event["text"] for event in events if event["type"] == "agent.tool_result"}


async def scouted(installation: Installation, run_id: str) -> list[str]:
    """What the boss read of its scouts."""
    transcript = (await installation.get(f"/v1/runs/{run_id}/messages"))["data"]
    return [part["text"] for message in transcript if message["role"] == "tool" for part in message["parts"]]


DIGS = ("/0.0/0.0/0.0", "/0.1/0.0/0.0")
SCOUTS = ("/0.0", "/0.1", "/0.0/0.0", "/0.1/0.0")


@pytest.mark.parametrize("installation", [script(shell(QUICK))], indirect=True)
async def test_two_levels_of_agents_in_parallel_answer_in_their_calls_places(installation: Installation) -> None:
    run_id = await start(installation, "shell")
    run = await installation.until(run_id)
    assert (run["status"], run["output"], run["steps"]) == ("completed", "all done", 10)
    assert await log_of(installation, run_id) == list(SIDES), "they share the session's files"
    events = await installation.events(run_id)
    asked = {event["call"] for event in events if event["type"] == "agent.tool_use"}
    assert asked == {*SCOUTS, *DIGS}
    assert await scouted(installation, run_id) == ["scouted", "scouted"]
    opened = [event for event in events if event["type"] == "sandbox.opened"]
    assert len(opened) == 1, "both diggers asked for it at the same time"


@pytest.mark.parametrize("installation", [script(shell(QUICK))], indirect=True)
async def test_what_grandchildren_ask_surfaces_at_the_run_and_each_is_answered_alone(
    installation: Installation,
) -> None:
    run_id = await start(installation, "shell", policy=ASK)
    waits = (await both_wait(installation, run_id))["waits"]
    assert sorted(wait["call"] for wait in waits) == list(DIGS)
    assert sorted(wait["path"] for wait in waits) == ["/0.0/0.0", "/0.1/0.0"]
    assert await log_of(installation, run_id) == []
    left, right = sorted(waits, key=lambda wait: wait["call"])
    await installation.post(f"/v1/approvals/{right['approval']}", {"decision": "approve"})
    async with asyncio.timeout(60):
        while await log_of(installation, run_id) != ["right"]:  # noqa: ASYNC110 (a digger does it)
            await asyncio.sleep(0.02)
    run = await installation.until(run_id, "suspended")
    assert [wait["call"] for wait in run["waits"]] == [left["call"]]
    await installation.post(f"/v1/approvals/{left['approval']}", {"decision": "reject", "reason": "not there"})
    run = await installation.until(run_id)
    assert (run["status"], run["output"]) == ("completed", "all done")
    assert await log_of(installation, run_id) == ["right"]
    found = await results(installation, run_id)
    assert "not there" in found.get(left["call"], "not there") and found[right["call"]] == "1\n"


async def both_wait(installation: Installation, run_id: str) -> Any:
    async with asyncio.timeout(60):
        while True:
            run = await installation.until(run_id, "suspended")
            if len(run["waits"]) == 2:
                return run
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("installation", [script(shell(LONG))], indirect=True)
async def test_a_worker_that_goes_in_the_middle_of_grandchildrens_calls_costs_nothing(
    installation: Installation, how: signal.Signals
) -> None:
    run_id = await start(installation, "shell")
    await both_begun(installation, run_id)
    installation.workers[0].send_signal(how)
    await installation.start_worker()
    run = await installation.until(run_id)
    assert (run["status"], run["output"], run["steps"]) == ("completed", "all done", 10)
    assert await log_of(installation, run_id) == list(SIDES), "each command ran once"
    found = await results(installation, run_id)
    assert {call: found[call] for call in DIGS} == dict.fromkeys(DIGS, "1\n")


@pytest.mark.parametrize("installation", [script(shell("echo SIDE >> log; sleep 71.733"))], indirect=True)
async def test_cancelling_ends_the_commands_of_grandchildren(installation: Installation) -> None:
    run_id = await start(installation, "shell")
    await both_begun(installation, run_id)
    await until(lambda: running("71.733"))
    await installation.post(f"/v1/runs/{run_id}/cancel", {"reason": "enough"})
    assert (await installation.until(run_id))["status"] == "cancelled"
    await until(lambda: not running("71.733"))
    assert (await installation.events(run_id))[-1]["type"] == "run.cancelled"


HANGING = script({"left": Call("charge", {"n": 1}), "right": Call("shell", {"command": "echo right >> log"})})


@pytest.mark.parametrize("installation", [HANGING], indirect=True)
async def test_a_grandchilds_call_of_unknown_outcome_asks_a_person_and_its_cousin_goes_on(
    installation: Installation,
) -> None:
    run_id = await start(installation, "shell", "charge")
    effects = installation.data_dir / "effects"
    await until(lambda: effects.exists() and effects.read_text() != "")
    installation.workers[0].kill()
    await installation.start_worker()
    run = await installation.until(run_id, "suspended")
    (wait,) = run["waits"]
    assert (wait["kind"], wait["path"], wait["call"]) == ("outcome_unknown", "/0.0/0.0", "/0.0/0.0/0.0")
    assert await log_of(installation, run_id) == ["right"]
    await installation.post(f"/v1/approvals/{wait['approval']}", {"decision": "mark_done", "text": "charged"})
    assert (await installation.until(run_id))["output"] == "all done"
    assert effects.read_text() == "/0.0/0.0/0.0\n", "it was not done again"


MISSING = script(
    shell(QUICK),
    Rule(when=When(model="scout", user="left", step=0), calls=(Call("nobody", {"input": "x"}),)),
    Rule(when=When(model="scout", user="left"), text="nobody there"),
)


@pytest.mark.parametrize("installation", [MISSING], indirect=True)
async def test_a_child_that_goes_astray_leaves_its_sibling_alone(installation: Installation) -> None:
    run_id = await start(installation, "shell")
    assert (await installation.until(run_id))["output"] == "all done"
    assert await scouted(installation, run_id) == ["nobody there", "scouted"]
    assert await log_of(installation, run_id) == ["right"]
