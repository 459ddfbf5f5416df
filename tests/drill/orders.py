"""The runs of the drills, and what must be true of them once they have ended, whatever was done to the processes.

A run charges twice and ships once, which a file outside of every process of ours counts, and writes to its session's
files twice.
"""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

from tests.installation import RECORD, Installation, offer_tools

from sojourn.models.simulator.script import Call, Rule, Script, When
from sojourn.tools.shell import INTERRUPTED

AGENT = {"model": "openai:sim", "tools": ["charge", "ship", "shell"]}
CHARGES, SHIPMENTS, CALLS = 2, 1, 5

TOOLS = (
    RECORD
    + '''
@tool(effect="at_most_once")
async def charge(n: int, *, context) -> str:
    """Has an effect that must not be had twice."""
    record(f"charge {context.key}")
    await asyncio.sleep(0.05)
    return f"charged {n}"

@tool(effect="idempotent")
def ship(n: int, *, context) -> str:
    """Has an effect that the outside deduplicates by key."""
    record(f"ship {context.key}")
    return f"shipped {n}"
'''
)

STEPS = (
    (
        Call("charge", {"n": 1}),
        Call("ship", {"n": 2}),
        Call("shell", {"command": "echo one >> log; sleep 0.2; wc -l < log"}),
    ),
    (Call("shell", {"command": "echo two >> log; cat log"}),),
    (Call("charge", {"n": 3}),),
)
LOG = "one\ntwo\n"
"""What the commands leave in the session's files."""
SCRIPT = Script(
    rules=(
        *(Rule(when=When(step=step), calls=calls) for step, calls in enumerate(STEPS)),
        Rule(text="all done"),
    )
)


def counted(data_dir: Path) -> tuple[Path, dict[str, str]]:
    """The file that counts effects, and the environment of workers that have the tools."""
    effects = data_dir / "effects"
    effects.touch()
    return effects, {**offer_tools(data_dir, TOOLS, "charge", "ship"), "EFFECTS": str(effects)}


def look(effects: Path, run_id: str, wait: Any) -> dict[str, str]:
    """What a person answers about a call whose outcome is unknown, having looked outside."""
    done = f"charge {run_id}{wait['call']}\n" in effects.read_text()
    return {"decision": "mark_done", "text": "charged"} if done else {"decision": "retry"}


def check_effects(effects: Path, runs: int) -> int:
    """Every effect was had, and none twice that must not be; how many there were."""
    had = Counter(effects.read_text().splitlines())
    charges = {line: count for line, count in had.items() if line.startswith("charge")}
    assert {line: count for line, count in charges.items() if count > 1} == {}
    assert len(charges) == CHARGES * runs
    assert len([line for line in had if line.startswith("ship")]) == SHIPMENTS * runs
    return sum(had.values())


async def check_sessions(installation: Installation, ended: list[Any]) -> int:
    """No command ran twice, and each ran once unless its run was told; how many were told that it may not have run."""
    told = 0
    for run in ended:
        events = await installation.events(run["id"])
        said = (await installation.get(f"/v1/runs/{run['id']}/messages"))["data"]
        async with installation.http.get(f"/v1/sessions/{run['session_id']}/files/log") as response:
            assert response.status in (200, 404), await response.text()
            log = await response.text() if response.status == 200 else ""
        told += check_log(log, events, said)
    return told


def check_log(log: str, events: list[Any], said: list[Any]) -> int:
    """Compare a session's log with its run's journal and messages; how many commands are told as interrupted."""
    commands = [event for event in events if event["type"] == "agent.tool_use" and event["tool"] == "shell"]
    lines = dict(zip(LOG.split(), commands, strict=True))
    told = {event["call"] for event in events if event["type"] == "agent.tool_result" and event["text"] == INTERRUPTED}
    heard = [part for message in said if message["role"] == "tool" for part in message["parts"]]
    assert [part["text"] for part in heard].count(INTERRUPTED) == len(told), "the model reads what the journal says"
    written = log.splitlines()
    missing = [line for line in lines if line not in written]
    assert written == [line for line in lines if line in written], (log, events)
    assert all(lines[line]["call"] in told for line in missing), ("a command is missing in silence", log, events)
    return len(told)


def check_journal(events: list[Any]) -> None:
    """A run's stream is in order, and shows each call once."""
    assert [event["seq"] for event in events] == sorted(event["seq"] for event in events)
    asked = [event["call"] for event in events if event["type"] == "agent.tool_use"]
    came_back = Counter(event["call"] for event in events if event["type"] == "agent.tool_result")
    told = {e["wait"].partition("?")[0] for e in events if e["type"] == "approval.resolved"}
    assert len(asked) == len(set(asked)) == CALLS and set(came_back.values()) <= {1}
    assert set(asked) == set(came_back) | told


async def check_journals(installation: Installation, runs: list[str]) -> None:
    """The same of many runs."""
    for run_id in runs:
        check_journal(await installation.events(run_id))


async def answer_unknown(installation: Installation, run_id: str, effects: Path) -> Any:
    """Follow a run to its end; where an outcome is unknown, look outside as a person would, and say what is true."""
    while True:
        run = await installation.until(run_id, "suspended", "completed", "failed", "cancelled", within_s=300)
        if run["status"] != "suspended":
            return run
        for wait in run["waits"]:
            await installation.post(f"/v1/approvals/{wait['approval']}", look(effects, run_id, wait))
        await asyncio.sleep(0.05)
