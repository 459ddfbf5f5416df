"""What a million finished runs cost those that begin now, and what their end costs.

    python -m bench.size [--small] [--json] [--runs 1000000 ...]

The store alone, without network or model. The same work is timed in an empty database, in a full one, while half of it
is deleted, and afterwards. It takes a quarter of an hour, so `make bench` leaves it out: `make bench-size`.
"""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import uvloop
from tests.store.scripted_runs import Hand, Worker, hired, submit

from bench.figure import Figure, chosen, report, spread
from bench.place import empty_database
from sojourn.settings import Settings
from sojourn.store import health, queue, runs
from sojourn.store.db import Connection, Database
from sojourn.store.retention import sizes
from sojourn.store.rows import Principal, RunFilter
from sojourn.store.tenant import keys, sessions
from sojourn.worker.upkeep.tidying import tidy

PART = 50_000
KEPT_DAYS = 90
TABLES = ("tenant", "run", "session", "journal", "message", "ledger")

# Copies of one real run, half of them old.
FILL = (
    """
insert into session (tenant, id, user_id, used_at)
select 'acme', 'ses_' || lpad(n::text, 12, '0'), 'ann', now() - make_interval(days => 1 + n % 2 * 100)
from generate_series($1::int, $2::int) n where $3::text is not null
""",
    """
insert into run (tenant, id, session_id, user_id, agent_name, agent_version, agent_digest, status, seq, limits, labels,
    snapshot, finished_at, input, result)
select r.tenant, 'run_' || lpad(n::text, 12, '0'), 'ses_' || lpad(n::text, 12, '0'), 'ann', 'clerk' || n % 1000, 1,
    r.agent_digest, 'completed', r.seq, r.limits, r.labels, r.snapshot, now() - make_interval(days => 1 + n % 2 * 100),
    r.input, r.result
from generate_series($1::int, $2::int) n, run r where r.id = $3
""",
    """
insert into journal (tenant, run_id, seq, at, kind, event, frame_id, slot)
select j.tenant, 'run_' || lpad(n::text, 12, '0'), seq, at, kind, event, frame_id, slot
from generate_series($1::int, $2::int) n, journal j where j.run_id = $3
""",
    """
insert into message (tenant, run_id, frame_id, slot, body)
select m.tenant, 'run_' || lpad(n::text, 12, '0'), frame_id, slot, body
from generate_series($1::int, $2::int) n, message m where m.run_id = $3
""",
    """
insert into ledger
select l.tenant, 'run_' || lpad(n::text, 12, '0'), seq, at, user_id, agent_name, provider, model, attempt, input,
    cache_read, cache_write, output, reasoning, usd_micros
from generate_series($1::int, $2::int) n, ledger l where l.run_id = $3
""",
)
DEAD = "select relname, n_dead_tup, n_live_tup from pg_stat_user_tables where relname = any($1)"


class Sizes(msgspec.Struct, frozen=True):
    """How much is measured."""

    runs: int = 1_000_000
    rounds: int = 300


SMALL = Sizes(runs=200, rounds=3)


class Work:
    """What callers and workers do all the time, one after the other, timed in ms."""

    caller: Principal

    def __init__(self, database: Database, worker: Worker, token: str) -> None:
        self.database, self.worker, self.token = database, worker, token
        self.times: dict[str, list[float]] = {}

    async def timed(self, what: str, work: Awaitable[Any]) -> Any:
        began = time.perf_counter()
        result = await work
        self.times.setdefault(what, []).append((time.perf_counter() - began) * 1000)
        return result

    async def read(self, what: str, read: Callable[..., Awaitable[object]], *arguments: object) -> None:
        async def reading() -> None:
            async with self.database.scoped(self.caller.handle) as conn:
                await read(conn, *arguments)

        await self.timed(what, reading())

    async def round(self) -> str:
        """Everything once; the run's id."""
        self.caller = await keys.authenticate(self.database, self.token)
        await self.timed("create", submit(self.database, self.caller))
        (claimed,) = await self.timed("claim", queue.claim(self.database, self.worker.id))
        opened = await self.timed("open", queue.open(self.database, claimed))
        hand = Hand(self.worker.committer, claimed, opened.continuation, opened.agents)
        await self.timed("3 commits of a step", hand.step(0))
        await self.timed("2 last commits", hand.finish(1))
        await self.read("replay of events", runs.events, hand.run_id)
        await self.read("page of runs", runs.page)
        await self.read("page of a session", runs.page, RunFilter(session_id=hand.state.session_id))
        await self.read("page of an agent", runs.page, RunFilter(agent="clerk777"))
        await self.read("page of sessions", sessions.page)
        await self.timed("counts for metrics", health.counts(self.database))
        await self.timed("tidying for metrics", sizes.progress(self.database))
        return hand.run_id

    async def rounds(self, until: Callable[[int], bool]) -> dict[str, list[float]]:
        """Go round until told to stop; the times."""
        self.times, n = {}, 0
        while not until(n):
            await self.round()
            n += 1
        return self.times

    async def rare(self) -> dict[str, list[float]]:
        """Lists of what there is not; the times."""
        self.times = {}
        for _ in range(3):
            await self.read("page of failed runs: none", runs.page, RunFilter(status="failed"))
            await self.read("page of a user: none", runs.page, RunFilter(user_id="nobody"))
        return self.times


async def fill(database: Database, run_id: str, count: int) -> None:
    """Copy a run so many times."""
    async with database.migrator() as owner:
        for table in TABLES:
            await owner.execute(f"alter table {table} no force row level security")
        for first in range(1, count + 1, PART):
            for statement in FILL:
                await owner.execute(statement, first, min(first + PART - 1, count), run_id)
        for table in TABLES:
            await owner.execute(f"alter table {table} force row level security")
        await owner.execute("vacuum analyze")


async def empty(database: Database) -> list[Figure]:
    """Delete what is old, as a worker does."""
    parts: Any = SimpleNamespace(database=database, settings=Settings(runs_kept_days=KEPT_DAYS))
    async with database.migrator() as owner:
        wal, began = await _wal(owner), time.perf_counter()
        while await tidy(parts):
            pass
        took_s, written = time.perf_counter() - began, await _wal(owner) - wal
        gone = (await sizes.progress(database)).gone
        dead = {row[0]: row[1] for row in await owner.fetch(DEAD, TABLES)}
        began = time.perf_counter()
        await owner.execute("vacuum journal")
        vacuum_s = time.perf_counter() - began
    total = gone["rows"] + gone["runs"] + gone["sessions"]
    return [
        _fact("rows deleted, in one stream that rests half the time", "1/s", total / took_s),
        _fact("log written for a deleted row", "bytes", written / total),
        _fact("dead rows of the journal that autovacuum left", "", dead["journal"]),
        _fact("vacuum of the journal then", "s", vacuum_s),
    ]


async def _wal(owner: Connection) -> int:
    position = await owner.fetchval("select pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint")
    return int(position)


def _fact(what: str, unit: str, value: float) -> Figure:
    return Figure(id="D8", what=what, unit=unit, median=value)


def compared(what: str, times: dict[str, list[float]], floor: dict[str, list[float]]) -> list[Figure]:
    """Figures of every kind of work, beside the empty database's."""
    return [
        spread("D8", f"{kind}, {what}", "ms", found, most=(max(1.5 * statistics.median(floor[kind]), 1), None))
        if kind in floor
        else spread("D8", f"{kind}, {what}", "ms", found)
        for kind, found in times.items()
    ]


async def main(given: Sizes) -> None:
    async with empty_database() as database, hired(database, "w1") as worker:
        work = Work(database, worker, str(await keys.bootstrap(database, tenant="acme", user="ann")))
        known = await work.round()
        floor = await work.rounds(lambda n: n >= given.rounds)
        figures = compared("empty", floor, {})
        began = time.perf_counter()
        await fill(database, known, given.runs)
        figures.append(_fact(f"{given.runs:,} runs filled in", "s", time.perf_counter() - began))
        figures += [_fact(f"table {one.name}", "MiB", one.bytes / 2**20) for one in (await sizes.tables(database))[:5]]
        figures += compared("full", await work.rounds(lambda n: n >= given.rounds), floor)
        figures += compared("full", await work.rare(), {})
        deleting = asyncio.create_task(empty(database))
        figures += compared("while half is deleted", await work.rounds(lambda _: deleting.done()), floor)
        figures += await deleting
        figures += compared("afterwards", await work.rounds(lambda n: n >= given.rounds), floor)
    report(figures)


if __name__ == "__main__":
    uvloop.run(main(chosen(__doc__, Sizes(), SMALL)))
