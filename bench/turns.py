"""B9: what a claim costs beside other tenants' queues, limits, timers and a million runs that have ended.

    python -m bench.turns [--small] [--json] [--finished 1000000 ...]

A database of its own with made-up rows; every claim is one of a worker that has room for one run, or for fifty.
"""

import asyncio
import os
import time

import msgspec
import uvloop

from bench.figure import Figure, chosen, report, spread
from bench.place import empty_database
from sojourn.store import health, queue
from sojourn.store.db import Connection, Database
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


class Sizes(msgspec.Struct, frozen=True):
    """How much is measured."""

    finished: int = 1_000_000
    queued: int = 50_000
    """Of one tenant."""
    some: int = 200
    tenants: int = 10_000
    rounds: int = 300


SMALL = Sizes(finished=200, queued=200, some=5, tenants=20, rounds=30)


class Rows:
    """Fills the database, as its owner and past the walls."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn

    async def open(self, tenants: int) -> None:
        for table in TABLES:
            await self._conn.execute(f"alter table {table} no force row level security")
        await self._conn.execute(
            "insert into tenant select 't' || lpad(n::text, 5, '0') from generate_series(0, $1::int) n", tenants
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


async def claims(db: Database, what: str, rounds: int, *, room: int = 1, claimers: int = 1) -> Figure:
    """Time turns, each behind the last; `claimers` at once, each with a line of its own. The first few are not told."""
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
    return spread("B9", f"claim of {room}, {what}", "ms", times[rounds // 15 :])


async def counts(db: Database, what: str) -> Figure:
    """Time what /metrics asks of the database."""
    times = []
    for _ in range(20):
        began = time.perf_counter()
        await health.counts(db)
        times.append((time.perf_counter() - began) * 1000)
    return spread("B9", f"the queue's metrics, {what}", "ms", times)


async def measure(db: Database, rows: Rows, sizes: Sizes) -> list[Figure]:
    """Every state of the queue that could make a claim slow."""
    times, few = sizes.rounds, sizes.rounds // 3
    figures = [await claims(db, "nothing queued", times)]
    await rows.add("queued", (0, 0), sizes.queued)
    figures += [
        await claims(db, f"1 tenant with {sizes.queued:,}", times),
        await claims(db, "the same", few, room=50),
    ]
    await rows.add("queued", (1, sizes.some), 20)
    uneven = f"{sizes.some + 1} tenants, one with {sizes.queued:,}"
    figures += [
        await claims(db, uneven, times),
        await claims(db, "the same", times // 5, room=50),  # few enough to leave every tenant some
        await claims(db, "the same, 8 claimers at once", times, claimers=8),
        await counts(db, uneven),
    ]
    await rows.limit(1_000_000)
    figures.append(await claims(db, "the same, each with a limit that leaves room", times))
    await rows.limit(None)
    await rows.add("queued", (sizes.some + 1, sizes.tenants), 5)
    figures += [
        await claims(db, f"{sizes.tenants:,} tenants", times),
        await claims(db, "the same", few, room=50),
    ]
    await rows.limit(0)
    figures.append(await claims(db, f"{sizes.tenants:,} tenants, all held back by their limits", few))
    await rows.limit(None)
    await rows.clear()
    await rows.add("suspended", (1, sizes.tenants), 5)
    timers = f"nothing queued, {5 * sizes.tenants:,} timers of {sizes.tenants:,} tenants"
    figures.append(await claims(db, timers, times))
    await rows.clear()
    await rows.add("completed", (0, 9), sizes.finished // 10)
    ended = f"{sizes.finished:,} runs have ended"
    figures.append(await claims(db, f"nothing queued, {ended}", times))
    await rows.add("queued", (0, sizes.some), 20)
    figures.append(await claims(db, f"{sizes.some + 1} tenants, {ended}", times))
    return figures


async def main(sizes: Sizes) -> None:
    async with empty_database() as db:
        life = await queue.register(db, "bench", host="here", pid=os.getpid(), version="0")
        async with db.migrator() as owner:
            rows = Rows(owner)
            await rows.open(sizes.tenants)
            report(await measure(db, rows, sizes))
        await life.close()


if __name__ == "__main__":
    uvloop.run(main(chosen(__doc__, Sizes(), SMALL)))
