"""A rolling deploy to the next release and back, under load: no run is lost, no effect doubled, no request in vain.

Three workers and two APIs are replaced one by one while callers start runs; the tools count their effects in a file
outside. Callers do what the answers tell them: they ask again, elsewhere, where a refusal is one that may be retried.
"""

import asyncio
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.drill.orders import AGENT, SCRIPT, answer_unknown, check_effects, check_journals, check_sessions, counted
from tests.installation import Installation, installed
from tests.releases.next_release import next_release

FULL = os.environ.get("SOJOURN_DRILL") == "full"
RUNS_MIN = 200 if FULL else 6
AGAIN = (aiohttp.ClientConnectionError, asyncio.TimeoutError)


class Fleet:
    """The processes that serve, and callers who find one that does."""

    def __init__(self, here: Installation, release: dict[str, str]) -> None:
        self.here, self.release = here, release
        self.apis: list[tuple[asyncio.subprocess.Process, aiohttp.ClientSession]] = []
        self.retried: Counter[str] = Counter()
        self.started = 0

    async def add_api(self) -> None:
        self.started += 1
        name = f"api-{self.started}"
        process = await self.here.start("serve", "--port", "0", "--no-worker", name=name, env=self.release)
        self.apis.append((process, self.here.caller(await self.here.announced(process, name))))

    async def replace_api(self) -> None:
        """Start another one, then tell the oldest to stop."""
        await self.add_api()
        process, http = self.apis.pop(0)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 60) == 0
        await http.close()

    async def replace_worker(self) -> None:
        """Tell the oldest to stop, then start another one."""
        process = self.here.workers.pop(0)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 60) == 0, self.here.tail()
        await self.here.start_worker(**self.release)

    async def roll(self, release: dict[str, str]) -> None:
        self.release = release
        for replace in (
            self.replace_worker,
            self.replace_api,
            self.replace_worker,
            self.replace_api,
            self.replace_worker,
        ):
            await replace()

    async def run(self, number: int) -> str:
        """Start a run once, however often it must be asked for."""
        headers = {"Idempotency-Key": f"order-{number}"}
        body = {"agent": AGENT, "input": f"order {number}"}
        while True:
            http = self.apis[number % len(self.apis)][1]
            try:
                async with http.post("/v1/runs", json=body, headers=headers) as answer:
                    told = await answer.json(content_type=None)
                    if answer.status == 202:
                        return str(told["run_id"])
                    assert told["retryable"], told
                    self.retried[told["code"]] += 1
            except (*AGAIN, RuntimeError) as error:  # a session that was closed
                self.retried[type(error).__name__] += 1
            await asyncio.sleep(0.1)


@pytest.mark.drill
async def test_a_rolling_deploy_and_its_roll_back_lose_and_double_nothing(data_dir: Path) -> None:
    effects, env = counted(data_dir)
    env |= {"SOJOURN_DRAIN_S": "1", "SOJOURN_LINGER_S": "0.5"}
    async with installed(data_dir, SCRIPT, workers=3, env=env) as here:
        newer = next_release(data_dir)
        newer["PYTHONPATH"] += f":{env['PYTHONPATH']}"
        fleet, over = Fleet(here, {}), asyncio.Event()
        for _ in range(2):
            await fleet.add_api()

        async def order() -> list[str]:
            runs: list[str] = []
            while not over.is_set():
                runs.append(await fleet.run(len(runs)))
                await asyncio.sleep(0.2)
            return runs

        ordering = asyncio.create_task(order())
        for release in (newer, {}) * 5 if FULL else (newer,):
            await fleet.roll(release)
        over.set()
        runs = await ordering
        ended: list[Any] = await asyncio.gather(*(answer_unknown(here, run_id, effects) for run_id in runs))
        assert Counter(run["status"] for run in ended) == {"completed": len(runs)}, here.tail()
        await check_sessions(here, ended)
        await check_journals(here, runs)
        for _, http in fleet.apis:
            await http.close()
    check_effects(effects, len(runs))
    print(f"\n{len(runs)} runs, retried: {dict(fleet.retried)}", file=sys.stderr)
    assert len(runs) >= RUNS_MIN
