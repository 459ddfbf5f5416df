"""A database of the operator's own that is away: at the start, and in the middle of runs."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from tests.conftest import until
from tests.installation import Installation, installed
from tests.own_postgres import OwnPostgres, own_postgres

GOAL = {"input": "Talk.", "agent": {"model": "openai:sim-tokens-60-rate-20"}}
WITHIN_S = 60.0


@pytest.fixture
async def postgres() -> AsyncIterator[OwnPostgres]:
    async with own_postgres() as postgres:
        yield postgres


class Reading:
    """A follower that comes back with Last-Event-ID as every client of server-sent events does."""

    def __init__(self, installation: Installation, run_id: str) -> None:
        self.http, self.path = installation.http, f"/v1/runs/{run_id}/events"
        self.durable: list[Any] = []
        self.deltas = 0
        self.connections = 0

    async def read(self) -> None:
        """Read to the end of the run."""
        while not (self.durable and self.durable[-1]["type"] == "run.completed"):
            last = {"Last-Event-ID": str(self.durable[-1]["seq"])} if self.durable else {}
            try:
                async with self.http.get(self.path, headers={"Accept": "text/event-stream", **last}) as response:
                    self.connections += response.status == 200
                    await self._take(response)
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.05)

    async def _take(self, response: aiohttp.ClientResponse) -> None:
        async for line in response.content:
            if line.startswith(b"data: "):
                event = msgspec.json.decode(line.removeprefix(b"data: "))
                self.deltas += "seq" not in event
                self.durable += [event] if "seq" in event else []


async def answered(installation: Installation, path: str, status: int) -> Any:
    """What a GET says once it has this status."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            async with installation.http.get(path) as response:
                if response.status == status:
                    return await response.json(content_type=None)
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["stopped", "crashed"])
async def test_a_database_that_goes_away_and_comes_back_costs_nothing(
    data_dir: Path, postgres: OwnPostgres, how: signal.Signals
) -> None:
    env = {"SOJOURN_DATABASE_URL": postgres.url}
    async with installed(data_dir, env=env) as installation:
        accepted = [await installation.run(**GOAL) for _ in range(12)]
        reading = Reading(installation, accepted[0])
        follower = asyncio.create_task(reading.read())
        await until(lambda: reading.deltas > 5)
        await postgres.stop(how)

        problem = await installation.post("/v1/runs", GOAL, expect=503)
        assert (problem["code"], problem["retryable"]) == ("store.unavailable", True)
        assert (await installation.get(f"/v1/runs/{accepted[0]}", expect=503))["code"] == "store.unavailable"
        assert (await installation.get("/healthz"))["status"] == "ok"
        assert (await installation.get("/readyz", expect=503))["code"] == "store.unavailable"

        await postgres.start()
        await answered(installation, "/readyz", 200)
        accepted.append(await installation.run(**GOAL))
        ended = [await installation.until(run_id) for run_id in accepted]
        assert {run["status"] for run in ended} == {"completed"}, ended
        assert {run["steps"] for run in ended} == {1}
        async with asyncio.timeout(WITHIN_S):
            await follower
        assert reading.durable == await installation.events(accepted[0]), "every event once and in order"
        assert all(process.returncode is None for process in installation.processes), installation.tail()


@pytest.mark.parametrize("command", ["serve", "worker"])
async def test_a_start_without_its_database_says_so_and_ends_with_3(
    data_dir: Path, postgres: OwnPostgres, command: str
) -> None:
    await postgres.stop()
    installation = Installation(data_dir, "http://127.0.0.1:9", {"SOJOURN_DATABASE_URL": postgres.url})
    process = await installation.start(command, name="start")
    assert await asyncio.wait_for(process.wait(), WITHIN_S) == 3
    said = installation.tail()
    assert "sojourn: The database does not answer" in said
    assert "--wait-database" in said
    assert "Traceback" not in said


async def test_a_start_waits_for_its_database_where_it_was_told_to(data_dir: Path, postgres: OwnPostgres) -> None:
    await postgres.stop()
    installation = Installation(data_dir, "http://127.0.0.1:9", {"SOJOURN_DATABASE_URL": postgres.url})
    try:
        serving = asyncio.create_task(installation.start_api("--no-worker", "--wait-database", "60"))
        await until(lambda: "store.awaited" in installation.tail())
        await postgres.start()
        await serving
        assert (await installation.get("/readyz"))["status"] == "ok"
    finally:
        await installation.stop()


async def test_a_start_that_waits_can_be_ended(data_dir: Path, postgres: OwnPostgres) -> None:
    await postgres.stop()
    installation = Installation(data_dir, "http://127.0.0.1:9", {"SOJOURN_DATABASE_URL": postgres.url})
    process = await installation.start("serve", "--wait-database", "600", name="start")
    await until(lambda: "store.awaited" in installation.tail())
    process.terminate()
    assert await asyncio.wait_for(process.wait(), WITHIN_S) != 0


async def test_an_outage_longer_than_the_lease_takes_no_run_from_a_worker(
    data_dir: Path, postgres: OwnPostgres
) -> None:
    env = {"SOJOURN_DATABASE_URL": postgres.url, "SOJOURN_LEASE_S": "10", "SOJOURN_BEAT_S": "0.2"}
    async with installed(data_dir, workers=2, env=env) as installation:
        await postgres.until("(select count(*) = 2 from worker_lock)")
        accepted = [await installation.run(**GOAL) for _ in range(8)]
        await postgres.until("(select count(distinct lease_worker) = 2 and min(seq) > 1 from run)")
        await postgres.stop()
        await asyncio.sleep(10.5)  # the lease
        await postgres.start()
        await answered(installation, "/readyz", 200)
        ended = [await installation.until(run_id) for run_id in accepted]
        assert {(run["status"], run["steps"]) for run in ended} == {("completed", 1)}
        assert "worker.stole" not in installation.tail(10_000)
