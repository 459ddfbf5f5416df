"""What a stop costs: creating and opening runs beside one that is in force elsewhere, and ending a tenant's queue.

    python -m bench.stops [--small] [--json] [--runs 50000 ...]

The two hot statements are measured with and without their look at the stops, in turns. The queue is swept as one worker
does it, on a database whose every commit goes to the disk.
"""

import os
import time
from datetime import UTC, datetime

import msgspec
import uvloop

from bench.commits import submit
from bench.figure import Figure, chosen, report, spread
from bench.place import empty_database
from sojourn.store import queue, stops
from sojourn.store.db import Database
from sojourn.store.rows import Principal
from sojourn.store.tenant import keys

SESSIONS = """
insert into session (tenant, id, user_id) select scope_tenant(), 'ses_' || n, scope_user() from generate_series(1, $1) n
"""
# The id of the run that is copied is as long as the others, wherever it stands in the JSON.
RUNS = """
insert into run (tenant, id, session_id, user_id, agent_name, agent_version, agent_digest, due_at, seq, limits, labels,
    snapshot)
select r.tenant, made.id, 'ses_' || n, r.user_id, r.agent_name, r.agent_version, r.agent_digest, now(), 1, r.limits,
    r.labels, convert_to(replace(convert_from(r.snapshot, 'UTF8'), r.id, made.id), 'UTF8')
from run r, generate_series(1, $2) n, lateral (
    select left(r.id, 4) || lpad(n::text, length(r.id) - 4, '0') as id
) as made
where r.id = $1
"""


class Sizes(msgspec.Struct, frozen=True):
    """How much is measured."""

    runs: int = 50_000
    """In the queue that a stop ends."""
    rounds: int = 10
    each: int = 60


SMALL = Sizes(runs=200, rounds=2, each=5)


async def enter(db: Database, tenant: str) -> Principal:
    return await keys.authenticate(db, await keys.bootstrap(db, tenant=tenant) or "")


async def copied(db: Database, caller: Principal, count: int) -> None:
    """Queue `count` runs more, as copies of one."""
    await submit(db, caller, 1)
    async with db.scoped(caller.handle) as conn:
        original = await conn.fetchval("select id from run")
        await conn.execute(SESSIONS, count)
        await conn.execute(RUNS, original, count, timeout=600)


async def made(db: Database, caller: Principal) -> stops.Stop:
    async with db.scoped(caller.handle) as conn:
        new = stops.NewStop(tenant=caller.tenant, what="tenant")
        return await stops.make(conn, new, stop_id="stp_" + "0" * 26, by=caller.user)


async def creating(db: Database, caller: Principal, sizes: Sizes) -> list[Figure]:
    """Creating a run, with the trigger and without it."""
    took: dict[str, list[float]] = {"enable": [], "disable": []}
    for turn in range(2 * sizes.rounds):
        how = ("enable", "disable")[turn % 2]
        async with db.migrator() as owner:
            await owner.execute(f"alter table run {how} trigger stopped")
        for _ in range(sizes.each):
            began = time.perf_counter()
            await submit(db, caller, 1)
            took[how].append((time.perf_counter() - began) * 1000)
    async with db.migrator() as owner:
        await owner.execute("alter table run enable trigger stopped")
    return [
        spread("", "create a run and its session, looking at stops", "ms", took["enable"]),
        spread("", "the same without looking", "ms", took["disable"]),
    ]


async def opening(db: Database, sizes: Sizes) -> list[Figure]:
    """Opening a claimed run, with the look at the stops and without it."""
    statements = {"with": queue.OPEN, "without": queue.OPEN.rpartition("union all\nselect s.mode")[0]}
    took: dict[str, list[float]] = {how: [] for how in statements}
    (claimed,) = await queue.claim(db, "bench", 1)
    spec = claimed.snapshot.root.agent.digest
    arguments = [claimed.tenant, claimed.run_id, ["/"], [], [], [], [spec], []]
    async with db.engine() as engine:
        for turn in range(2 * sizes.rounds):
            how = ("with", "without")[turn % 2]
            for _ in range(sizes.each):
                began = time.perf_counter()
                await engine.fetch(statements[how], *arguments)
                took[how].append((time.perf_counter() - began) * 1000)
    return [
        spread("", "open a claimed run, looking at stops", "ms", took["with"]),
        spread("", "the same without looking", "ms", took["without"]),
    ]


async def ending(db: Database, caller: Principal, count: int) -> list[Figure]:
    """Ending a tenant that has `count` runs queued."""
    await copied(db, caller, count)
    began = time.perf_counter()
    stop = await made(db, caller)
    refused_s = time.perf_counter() - began
    while await stops.sweep(db, lambda _channel, _ids: None, datetime.now(UTC)):
        pass
    ended_s = time.perf_counter() - began
    async with db.scoped(caller.handle) as conn:
        began = time.perf_counter()
        seen = await stops.report(conn, stop)
        counted_s = time.perf_counter() - began
        assert seen.settled and seen.hit == {"cancelled": count + 1}, seen
    return [
        Figure(id="", what="make the stop: from now on all is refused", unit="ms", median=refused_s * 1000),
        Figure(id="", what=f"until {count:,} queued runs have ended", unit="s", median=ended_s),
        Figure(id="", what="runs ended a second", unit="/s", median=count / ended_s),
        Figure(id="", what="count what it hit and what is left", unit="ms", median=counted_s * 1000),
    ]


async def run(sizes: Sizes) -> list[Figure]:
    async with empty_database() as db:
        await made(db, await enter(db, "elsewhere"))
        life = await queue.register(db, "bench", host="here", pid=os.getpid(), version="0")
        caller = await enter(db, "beside")
        figures = [*await creating(db, caller, sizes), *await opening(db, sizes)]
        figures += await ending(db, await enter(db, "stopped"), sizes.runs)
        await life.close()
        return figures


if __name__ == "__main__":
    report(uvloop.run(run(chosen(__doc__, Sizes(), SMALL))))
