"""API processes killed with -9 while schedules come due: every time is fired once, and none is lost.

`make drill` runs more of the same.
"""

import asyncio
import os
import random
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import msgspec
import pytest
from tests.installation import Installation, installed

SCHEDULES, KILLS, SPAN_S = (1000, 20, 60.0) if os.environ.get("SOJOURN_DRILL") == "full" else (80, 2, 2.0)
ENV = {"SOJOURN_QUEUED_RUNS_MAX": "100000", "SOJOURN_SCHEDULES_MAX": "100000"}


async def ready(installation: Installation) -> asyncio.subprocess.Process:
    """One more API process on a port of its own, once it listens."""
    log = installation.data_dir / "more.log"
    log.touch()
    before = len(re.findall("listens on ", log.read_text()))
    process = await installation.start("serve", "--port", "0", "--no-worker", name="more")
    async with asyncio.timeout(60):
        while len(re.findall("listens on ", log.read_text())) <= before:  # noqa: ASYNC110 (another process writes it)
            await asyncio.sleep(0.02)
    return process


async def fired(installation: Installation) -> int:
    """How many schedules have made their run."""
    made, after = 0, ""
    while True:
        page = await installation.get(f"/v1/schedules?limit=200{after}")
        made += sum(one["fires"]["made"] for one in page["data"])
        if not page["has_more"]:
            return made
        after = f"&after={page['next']}"


async def schedule(installation: Installation, name: str, at: datetime) -> None:
    """Make a schedule that fires at a time, and then daily."""
    body = {"name": name, "every_s": 86400, "start_at": at.isoformat(), "run": {"agent": "clerk", "input": "go"}}
    await installation.post("/v1/schedules", body, expect=201)


@pytest.mark.drill
async def test_no_fire_is_lost_or_doubled_when_api_processes_are_killed(data_dir: Path) -> None:
    dice = random.Random(11)
    async with installed(data_dir, workers=0, env=ENV) as installation:
        await installation.post("/v1/agents", {"name": "clerk", "model": "openai:sim"}, expect=201)
        began = datetime.now(UTC)
        await schedule(installation, "first", began + timedelta(days=1))
        first = began + 3 * SCHEDULES * (datetime.now(UTC) - began) + timedelta(seconds=2)
        for n in range(SCHEDULES):
            await schedule(installation, f"n{n}", first + timedelta(seconds=dice.uniform(0, SPAN_S / 2)))
        assert datetime.now(UTC) < first, "they came due before all were there"
        victims = [await ready(installation) for _ in range(2)]
        for _ in range(KILLS):
            await asyncio.sleep(dice.uniform(0, SPAN_S / KILLS))
            victim = victims.pop(0)
            victim.kill()
            await victim.wait()
            victims.append(await ready(installation))
        async with asyncio.timeout(120):
            while await fired(installation) < SCHEDULES:  # noqa: ASYNC110 (other processes fire them)
                await asyncio.sleep(0.1)
        assert await fired(installation) == SCHEDULES
        times = await all_fires(installation.http)
        assert len(times) == len(set(times)) == SCHEDULES
        print(f"\n{SCHEDULES} schedules, {KILLS} API processes killed, none lost, none doubled", file=sys.stderr)


async def all_fires(http: aiohttp.ClientSession) -> list[tuple[str, str]]:
    """The schedule and the time of every run."""
    found, after = [], ""
    while True:
        async with http.get(f"/v1/runs?limit=200{after}") as response:
            page = msgspec.json.decode(await response.read())
        found += [(run["schedule"], run["fire_at"]) for run in page["data"]]
        if not page["has_more"]:
            return found
        after = f"&after={page['next']}"
