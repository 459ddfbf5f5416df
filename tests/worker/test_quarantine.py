"""A run that no worker here can read is set aside, untouched, and goes on when it is let out."""

import asyncio

from tests.store.scripted_runs import submit
from tests.worker.inside import Caller, Thinker, agent, working

from sojourn.store import queue, runs
from sojourn.store.db import Database


async def spoil(database: Database, run_id: str, *, claims: int) -> bytes:
    """Make a run's snapshot that of a newer release, after so many claims in vain; give the old one."""
    async with database.engine() as engine:
        old: bytes = await engine.fetchval("select snapshot from run where id = $1", run_id)
        newer = b'{"version":99,' + old.removeprefix(b"{")
        await engine.execute("update run set snapshot = $2, claims = $3 where id = $1", run_id, newer, claims)
    return old


async def test_newer_version_is_quarantined_untouched_and_goes_on_when_it_is_let_out(database: Database) -> None:
    caller = await Caller.of(database)
    run_id = await submit(database, caller.principal, agent=agent())
    old = await spoil(database, run_id, claims=queue.CLAIMS_MAX)
    async with working(database, Thinker("read"), None) as worker:
        row = await caller.until(run_id, "quarantined")
        assert row.error is not None and row.error.code == "continuation.unknown_format"
        async with database.engine() as engine:
            kept = await engine.fetchval("select snapshot from run where id = $1", run_id)
            assert kept == b'{"version":99,' + old.removeprefix(b"{")
            await engine.execute("update run set snapshot = $2 where id = $1", run_id, old)
        async with database.scoped(caller.principal.handle) as conn:
            await runs.retry(conn, run_id)
        worker.parts.doorbell.ring("sojourn_work", ())
        row = await caller.until(run_id, "completed")
        assert (row.result, row.error) == ("read", None)


async def test_a_run_that_one_worker_cannot_read_is_left_to_the_next(database: Database) -> None:
    caller = await Caller.of(database)
    run_id = await submit(database, caller.principal, agent=agent())
    old = await spoil(database, run_id, claims=0)
    async with working(database, Thinker("read"), None):
        async with asyncio.timeout(60), database.engine() as engine:
            given_back = "select claims > 0 and status = 'queued' from run where id = $1"
            while not await engine.fetchval(given_back, run_id):  # noqa: ASYNC110 (a worker gets it there)
                await asyncio.sleep(0.01)
            await engine.execute("update run set snapshot = $2 where id = $1", run_id, old)
        assert (await caller.until(run_id, "completed")).result == "read"
