"""Streams of an installation of many processes, some of which die while they are read."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import cycle
from pathlib import Path

import asyncpg
import pytest
from tests.conftest import until
from tests.installation import Installation, installed
from tests.own_postgres import OwnPostgres, own_postgres
from tests.store.scripted_runs import enter, hired, submit
from tests.stream_reader import Reader

from sojourn.store.db import Database, connect
from sojourn.store.deltas import DeltaWriter
from sojourn.store.migrate import migrate

ENDLESS = {"input": "Talk.", "agent": {"model": "openai:sim-tokens-9000-rate-30"}}
SHORT = {"input": "Talk.", "agent": {"model": "openai:sim-tokens-60-rate-20"}}
RUNS, READERS = 4, 3
WITHIN_S = 90.0
END_BELLS = """
select pg_terminate_backend(pid) from pg_stat_activity
where application_name = 'sojourn-api' and (query ilike 'listen %' or query ilike '%pg_notify%')
"""


class Cluster:
    """Two APIs and two workers over a database of the operator's own."""

    def __init__(self, installation: Installation, postgres: OwnPostgres) -> None:
        self.installation, self.postgres = installation, postgres
        self.apis: list[asyncio.subprocess.Process] = [installation.processes[0]]
        self.urls = [installation.url]

    async def start_api(self) -> None:
        """Start one more API, whose log is its own."""
        name = f"api-{len(self.urls)}"
        process = await self.installation.start("serve", "--no-worker", "--port", "0", name=name)
        log = self.installation.data_dir / f"{name}.log"
        await until(lambda: "listens on " in log.read_text(), 60)
        line = next(line for line in log.read_text().splitlines() if "listens on " in line)
        self.apis.append(process)
        self.urls.append(line.rpartition(" ")[2].strip())

    @asynccontextmanager
    async def read(self, runs: int = RUNS) -> AsyncIterator[list[Reader]]:
        """Start runs that talk until they are cancelled, and let each be followed by some on every API."""
        names = [await self.installation.run(**ENDLESS) for _ in range(runs)]
        readers = [
            Reader(self.installation.http, run_id, cycle(self.urls[n % 2 :] + self.urls[: n % 2]))
            for run_id in names
            for n in range(READERS)
        ]
        tasks = [asyncio.create_task(reader.read()) for reader in readers]
        try:
            yield readers
            for run_id in names:
                await self.installation.post(f"/v1/runs/{run_id}/cancel")
            async with asyncio.timeout(WITHIN_S):
                await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def verify(self, readers: list[Reader]) -> None:
        """See that everybody was told every event once and in order."""
        for reader in readers:
            whole = await self.installation.events(reader.run_id)
            assert [event["seq"] for event in whole] == sorted(event["seq"] for event in whole)
            assert reader.durable == whole, self.installation.tail()


@pytest.fixture
async def cluster(data_dir: Path) -> AsyncIterator[Cluster]:
    async with own_postgres() as postgres:
        env = {"SOJOURN_DATABASE_URL": postgres.url, "SOJOURN_LOG_LEVEL": "warning", "SOJOURN_LEASE_S": "3"}
        async with installed(data_dir, workers=2, env=env) as installation:
            cluster = Cluster(installation, postgres)
            await cluster.start_api()
            yield cluster


async def heard_anew(readers: list[Reader]) -> None:
    """Wait until every reader is told a delta that it was not told before."""
    before = [len(reader.deltas) for reader in readers]
    await until(lambda: all(len(reader.deltas) > had for reader, had in zip(readers, before, strict=True)), 60)


async def test_readers_miss_nothing_while_what_they_read_from_dies(cluster: Cluster) -> None:
    async with cluster.read() as readers:
        await heard_anew(readers)
        cluster.installation.workers[0].kill()
        await heard_anew(readers)
        cluster.apis[1].kill()
        await heard_anew(readers)
        await cluster.postgres.stop(signal.SIGQUIT)
        await cluster.postgres.start()
        await heard_anew(readers)
    await cluster.verify(readers)
    assert all(reader.connections > 1 for reader in readers[1::READERS]), "no reader came back to the other API"


async def test_rings_that_are_lost_with_their_connection_cost_no_event(cluster: Cluster) -> None:
    waiting = asyncio.create_task(waited(cluster))
    admin = await asyncpg.connect(cluster.postgres.superuser_url)
    async with cluster.read() as readers:
        for _ in range(4):
            await heard_anew(readers)
            async with asyncio.timeout(60):
                while not await admin.fetch(END_BELLS):  # noqa: ASYNC110 (a bell that was ended comes back)
                    await asyncio.sleep(0.05)
    await admin.close()
    await cluster.verify(readers)
    assert {reader.connections for reader in readers} == {1}, "a stream ended for a lost bell"
    assert await waiting == "completed"


async def test_what_a_worker_says_after_it_lost_its_run_is_not_heard(cluster: Cluster) -> None:
    zombie, heir = cluster.installation.workers
    heir.send_signal(signal.SIGSTOP)
    async with cluster.read(runs=1) as readers:
        await heard_anew(readers)
        zombie.send_signal(signal.SIGSTOP)
        heir.send_signal(signal.SIGCONT)
        await until(lambda: all(reader.deltas[-1]["attempt"] == 2 for reader in readers), 60)
        zombie.send_signal(signal.SIGCONT)
        for _ in range(20):
            await heard_anew(readers)
    await cluster.verify(readers)
    for reader in readers:
        attempts = [delta["attempt"] for delta in reader.deltas]
        assert attempts == sorted(attempts), "two workers spoke at once"
        new = attempts.index(2)
        assert reader.deltas[new]["type"] == "delta.reset"
        said, again = [
            "".join(delta.get("text", "") for delta in part) for part in (reader.deltas[:new], reader.deltas[new:])
        ]
        assert said, "nothing was taken back"
        assert again.startswith(said[: len(again)]), "the new attempt is not told from its beginning"


async def waited(cluster: Cluster) -> str:
    """The status that a caller of the second API is told, who waits for the end of a run."""
    url = f"{cluster.urls[1]}/v1/runs?wait=60"
    async with cluster.installation.http.post(url, json=SHORT) as reply:
        return str((await reply.json())["status"])


async def test_deltas_after_a_crash_of_the_database_come_after_those_before_it() -> None:
    async with own_postgres() as postgres, await connect(postgres.url) as database:
        await migrate(database)
        run_id = await submit(database, await enter(database))
        async with hired(database) as worker:
            fence = (await worker.take_one()).claimed.fence
        before = await written(database, run_id, fence, 40)
        await postgres.stop(signal.SIGQUIT)
        await postgres.start()
        assert await written(database, run_id, fence, 1) > before


async def written(database: Database, run_id: str, fence: int, number: int) -> int:
    """Write deltas, each in a row of its own, and give the id of the last one."""
    for _ in range(number):
        writer = DeltaWriter(database, lambda channel, ids: None)
        writer.add(("acme", run_id, fence, "/", 0, 1), b"{}")
        await writer.close()
    async with database.migrator() as owner:
        return int(await owner.fetchval("select last_value from delta_id_seq"))
