"""Workers killed with -9 at random points: no run is lost, and no tool has its effect twice.

The tools count their effects in a file outside of every process of ours. `make drill` runs more of the same.
"""

import asyncio
import os
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.installation import Installation, installed, offer_tools

from sojourn.models.simulator.script import Call, Rule, Script, When

RUNS, KILLS = (400, 150) if os.environ.get("SOJOURN_DRILL") == "full" else (60, 25)
SEED = 7

TOOLS = '''
import os, time
from pathlib import Path
from sojourn.tools.functions import tool

def record(line):
    fd = os.open(os.environ["DRILL_EFFECTS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(fd, (line + "\\n").encode())
    os.close(fd)

@tool(effect="at_most_once")
def charge(n: int, *, context) -> str:
    """Has an effect that must not be had twice."""
    record(f"charge {context.key}")
    time.sleep(0.05)
    return f"charged {n}"

@tool(effect="idempotent")
def ship(n: int, *, context) -> str:
    """Has an effect that the outside deduplicates by key."""
    record(f"ship {context.key}")
    return f"shipped {n}"
'''

STEPS = (
    (
        Call("charge", {"n": 1}),
        Call("ship", {"n": 2}),
        Call("shell", {"command": "echo one >> log; sleep 0.2; wc -l < log"}),
    ),
    (Call("shell", {"command": "echo two >> log; cat log"}),),
    (Call("charge", {"n": 3}),),
)
SCRIPT = Script(
    rules=(
        *(Rule(when=When(step=step), calls=calls) for step, calls in enumerate(STEPS)),
        Rule(text="all done"),
    )
)


async def kill_at_random(installation: Installation, dice: random.Random, progress: asyncio.Event) -> int:
    """Kill a worker and start another, again and again, until the runs are over."""
    kills = 0
    while kills < KILLS and not progress.is_set():
        await asyncio.sleep(dice.uniform(0.05, 0.6))
        victim = installation.workers.pop(dice.randrange(len(installation.workers)))
        victim.kill()
        await victim.wait()
        kills += 1
        await installation.start_worker()
    return kills


async def answer_unknown(installation: Installation, run_id: str, effects: Path) -> Any:
    """Follow a run to its end; where an outcome is unknown, look outside as a person would, and say what is true."""
    while True:
        run = await installation.until(run_id, "suspended", "completed", "failed", "cancelled", within_s=300)
        if run["status"] != "suspended":
            return run
        for wait in run["waits"]:
            done = f"charge {run_id}{wait['call']}\n" in effects.read_text()
            decision = {"decision": "mark_done", "text": "charged"} if done else {"decision": "retry"}
            await installation.post(f"/v1/approvals/{wait['approval']}", decision)
        await asyncio.sleep(0.05)


@pytest.mark.drill
async def test_no_run_is_lost_and_no_effect_doubled_when_workers_are_killed(data_dir: Path) -> None:
    dice, over = random.Random(SEED), asyncio.Event()
    effects = data_dir / "effects"
    effects.touch()
    env = {**offer_tools(data_dir, TOOLS, "charge", "ship"), "DRILL_EFFECTS": str(effects)}
    async with installed(data_dir, SCRIPT, workers=2, env=env) as installation:
        agent = {"model": "openai:sim", "tools": ["charge", "ship", "shell"]}
        runs = [await installation.run(agent=agent, input=f"order {n}") for n in range(RUNS)]
        killer = asyncio.create_task(kill_at_random(installation, dice, over))
        ended = await asyncio.gather(*(answer_unknown(installation, run_id, effects) for run_id in runs))
        over.set()
        kills = await killer
        assert Counter(run["status"] for run in ended) == {"completed": RUNS}, installation.tail()
        await check_sessions(installation, ended)
        await check_journals(installation, runs)
    had = Counter(effects.read_text().splitlines())
    charges = {line: count for line, count in had.items() if line.startswith("charge")}
    assert len(charges) == 2 * RUNS and set(charges.values()) == {1}
    assert len([line for line in had if line.startswith("ship")]) == RUNS
    print(
        f"\n{RUNS} runs, {kills} workers killed, {sum(had.values())} effects, none lost, none doubled", file=sys.stderr
    )
    assert kills >= min(KILLS, 5)


async def check_sessions(installation: Installation, ended: list[Any]) -> None:
    """The commands that the model wrote ran once each, in the session's own sandbox."""
    for run in ended:
        async with installation.http.get(f"/v1/sessions/{run['session_id']}/files/log") as response:
            assert response.status == 200, await response.text()
            assert await response.text() == "one\ntwo\n"


async def check_journals(installation: Installation, runs: list[str]) -> None:
    """Every stream is gap-free as far as it says, and shows each call once."""
    for run_id in runs:
        events = await installation.events(run_id)
        assert [event["seq"] for event in events] == sorted(event["seq"] for event in events)
        asked = [event["call"] for event in events if event["type"] == "agent.tool_use"]
        came_back = Counter(event["call"] for event in events if event["type"] == "agent.tool_result")
        told = {e["wait"].partition("?")[0] for e in events if e["type"] == "approval.resolved"}
        assert len(asked) == len(set(asked)) == 5 and set(came_back.values()) <= {1}
        assert set(asked) == set(came_back) | told
