"""A worker deletes what has expired beside its runs, and one that is killed over it has done nothing by halves."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.conftest import until
from tests.installation import Installation
from tests.store.aged_runs import age, there
from tests.store.scripted_runs import enter, hired, submit

from sojourn.store import embedded
from sojourn.store.db import Database, connect
from sojourn.store.migrate import migrate

RUNS = 20
WAITS = """
select exists (select from pg_locks w where not w.granted and exists (
    select from pg_locks h where h.pid = w.pid and h.relation = 'tidying'::regclass
))
"""
END = """
select pg_terminate_backend(pid) from pg_stat_activity
where usename = session_user and pid <> pg_backend_pid() and wait_event_type = 'Lock'
"""


@pytest.fixture
async def old(data_dir: Path) -> AsyncIterator[Database]:
    """The database of a data folder with runs that ended long ago."""
    async with await embedded.start(data_dir) as cluster, await connect(cluster) as database:
        await migrate(database)
        caller = await enter(database)
        async with hired(database) as worker:
            for _ in range(RUNS):
                await submit(database, caller)
                hand = await worker.take_one()
                await hand.step(0)
                await hand.finish(1)
        await age(database, 40)
        yield database
    await until(lambda: not embedded.running(data_dir))


async def test_a_worker_killed_over_a_deletion_leaves_all_of_it_to_the_next(data_dir: Path, old: Database) -> None:
    before = await there(old)
    victim = sorted(before["run"])[RUNS // 2]
    installation = Installation(data_dir, "http://127.0.0.1:9", {"SOJOURN_RUNS_KEPT_DAYS": "30"})
    async with old.migrator() as owner:
        await owner.execute("alter table purge no force row level security")
        async with owner.transaction():
            await owner.execute("insert into purge (tenant, run_id) values ('acme', $1)", victim)
            worker = await installation.start_worker()
            await in_the_middle(old)
            worker.kill()
            await worker.wait()
            await end_connections(old)
            await owner.execute("delete from purge")
        await owner.execute("alter table purge force row level security")
    assert await there(old) == before
    worker = await installation.start_worker()
    log = data_dir / "worker.log"
    await until(lambda: "tidy.deleted" in log.read_text(), timeout_s=60)
    left = await there(old)
    assert not left["run"] | left["journal"] | left["message"] | left["session"] | left["purge"]
    assert left["ledger"] == before["ledger"]
    worker.terminate()
    assert await worker.wait() == 0


async def in_the_middle(database: Database) -> None:
    """Wait until somebody who deletes waits for somebody."""
    async with asyncio.timeout(60), database.api() as conn:
        while not await conn.fetchval(WAITS):  # noqa: ASYNC110 (another process)
            await asyncio.sleep(0.02)


async def end_connections(database: Database) -> None:
    """End what the server still does for a worker that has gone: it would only notice at the next word to it."""
    async with database.engine() as engine:
        await engine.execute(END)
        async with asyncio.timeout(30):
            while await engine.fetchval(WAITS):  # noqa: ASYNC110 (another process)
                await asyncio.sleep(0.01)
