"""B9: what a claim costs beside other tenants' queues, limits, timers and a million runs that have ended.

    python -m bench.turns [--finished 1000000] [--json]

A database of its own with made-up rows; every claim is one of a worker that has room for one run, or for fifty.
"""

import argparse
import asyncio
import os
import shutil
import tempfile
import time
from pathlib import Path

import uvloop

from bench.figure import Figure, report, spread
from sojourn.store import embedded, health, queue
from sojourn.store.db import Connection, Database, connect
from sojourn.store.migrate import migrate
from sojourn.store.sharing import turns

TABLES = ("tenant", "session", "run")
FILL = """
with made as (
    select 't' || lpad(n::text, 5, '0') as tenant, $1 || '_' || n || '_' || m as id, m
    from generate_series($2::int, $3::int) n, generate_series(1, $4::int) m
), there as (
    insert into session (tenant, id, user_id) select tenant, 'ses_' || id, 'ann' from made on conflict do nothing
)
insert into run (tenant, id, session_id, user_id, agent_name, agent_version, agent_digest, status, due_at, ready,
    finished_at, seq, limits, labels, snapshot)
select tenant, 'run_' || id, 'ses_' || id, 'ann', 'clerk', 1, 'sha256:x', $1,
    case $1 when 'queued' then now() + m * interval '1 us' when 'suspended' then now() + interval '1 day' end,
    $1 = 'queued', case $1 when 'completed' then now() end, 3, '{}', '{}', convert_to(repeat('x', 1500), 'UTF8')
from made
"""


class Rows:
    """Fills the database, as its owner and past the walls."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn

    async def open(self) -> None:
        for table in TABLES:
            await self._conn.execute(f"alter table {table} no force row level security")
        await self._conn.execute(
            "insert into tenant select 't' || lpad(n::text, 5, '0') from generate_series(0, 10000) n"
        )

    async def add(self, status: str, tenants: tuple[int, int], runs: int) -> None:
        """Give each tenant of a range so many runs."""
        await self._conn.execute(FILL, status, *tenants, runs)
        await self._conn.execute("vacuum analyze run")

    async def clear(self) -> None:
        """Take everything that has not ended out of the way."""
        await self._conn.execute("delete from run where status <> 'completed'")
        await self._conn.execute("vacuum run")

    async def limit(self, runs_max: int | None) -> None:
        await self._conn.execute("update tenant set runs_max = $1", runs_max)


async def claims(db: Database, what: str, *, room: int = 1, rounds: int = 300, claimers: int = 1) -> Figure:
    """Time turns, each behind the last; `claimers` at once, each with a line of its own."""
    times: list[float] = []

    async def claimer() -> None:
        after = ""
        for _ in range(rounds // claimers):
            async with db.engine() as conn:
                began = time.perf_counter()
                turn = await turns.turn(conn, "bench", room, after=after)
                times.append((time.perf_counter() - began) * 1000)
            after = turn.claims[-1].tenant if turn.claims else after

    await asyncio.gather(*(claimer() for _ in range(claimers)))
    return spread("B9", f"claim of {room}, {what}", "ms", times[20:])


async def counts(db: Database) -> Figure:
    """Time what /metrics asks of the database."""
    times = []
    for _ in range(20):
        began = time.perf_counter()
        await health.counts(db)
        times.append((time.perf_counter() - began) * 1000)
    return spread("B9", "the queue's metrics, 201 tenants, one with 50,000", "ms", times)


async def measure(db: Database, rows: Rows, finished: int) -> list[Figure]:
    """Every state of the queue that could make a claim slow."""
    figures = [await claims(db, "nothing queued")]
    await rows.add("queued", (0, 0), 50_000)
    figures += [await claims(db, "1 tenant with 50,000"), await claims(db, "the same", room=50, rounds=100)]
    await rows.add("queued", (1, 200), 20)
    figures += [
        await claims(db, "201 tenants, one with 50,000"),
        await claims(db, "the same", room=50, rounds=60),
        await claims(db, "the same, 8 claimers at once", claimers=8),
    ]
    figures.append(await counts(db))
    await rows.limit(1_000_000)
    figures.append(await claims(db, "the same, each with a limit that leaves room"))
    await rows.limit(None)
    await rows.add("queued", (201, 10_000), 5)
    figures += [await claims(db, "10,000 tenants"), await claims(db, "the same", room=50, rounds=100)]
    await rows.limit(0)
    figures.append(await claims(db, "10,000 tenants, all held back by their limits", rounds=70))
    await rows.limit(None)
    await rows.clear()
    await rows.add("suspended", (1, 10_000), 5)
    figures.append(await claims(db, "nothing queued, 50,000 timers of 10,000 tenants"))
    await rows.clear()
    await rows.add("completed", (0, 9), finished // 10)
    figures.append(await claims(db, f"nothing queued, {finished:,} runs have ended"))
    await rows.add("queued", (0, 200), 20)
    figures.append(await claims(db, f"201 tenants, {finished:,} runs have ended"))
    return figures


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--finished", type=int, default=1_000_000)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="sojourn-bench-"))
    try:
        async with await embedded.start(folder) as cluster, await connect(cluster) as db:
            await migrate(db)
            life = await queue.register(db, "bench", host="here", pid=os.getpid(), version="0")
            async with db.migrator() as owner:
                rows = Rows(owner)
                await rows.open()
                report(await measure(db, rows, given.finished))
            await life.close()
        while embedded.running(folder):  # noqa: ASYNC110 (another process ends it)
            await asyncio.sleep(0.05)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    uvloop.run(main())
