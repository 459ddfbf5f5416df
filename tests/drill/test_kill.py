"""Workers killed with -9 at random points: no run is lost, and no tool has its effect twice.

The tools count their effects in a file outside of every process of ours. `make drill` runs more of the same.
"""

import asyncio
import os
import random
import sys
from collections import Counter
from pathlib import Path

import pytest
from tests.drill.orders import AGENT, SCRIPT, answer_unknown, check_effects, check_journals, check_sessions, counted
from tests.installation import Installation, installed

RUNS, KILLS = (400, 150) if os.environ.get("SOJOURN_DRILL") == "full" else (60, 25)
SEED = 7


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


@pytest.mark.drill
async def test_no_run_is_lost_and_no_effect_doubled_when_workers_are_killed(data_dir: Path) -> None:
    dice, over = random.Random(SEED), asyncio.Event()
    effects, env = counted(data_dir)
    async with installed(data_dir, SCRIPT, workers=2, env=env) as installation:
        runs = [await installation.run(agent=AGENT, input=f"order {n}") for n in range(RUNS)]
        killer = asyncio.create_task(kill_at_random(installation, dice, over))
        ended = await asyncio.gather(*(answer_unknown(installation, run_id, effects) for run_id in runs))
        over.set()
        kills = await killer
        assert Counter(run["status"] for run in ended) == {"completed": RUNS}, installation.tail()
        await check_sessions(installation, ended)
        await check_journals(installation, runs)
    had = check_effects(effects, RUNS)
    print(f"\n{RUNS} runs, {kills} workers killed, {had} effects, none lost, none doubled", file=sys.stderr)
    assert kills >= min(KILLS, 5)
