"""What a stop has hit, and the proof that nothing of it is left. Called by the API, and by the operator's command line.

The rule: every number is counted in the tables when it is asked for; nobody's memory is believed.
"""

import asyncio
from collections.abc import Sequence
from datetime import datetime

import asyncpg  # type: ignore[import-untyped]

from sojourn.loop.machine import in_flight
from sojourn.loop.messages import Plain
from sojourn.store.audit.writing import EVERYBODY
from sojourn.store.db import Connection
from sojourn.store.runs.snapshots import thaw
from sojourn.store.stops.matching import NAMES_RUN, NAMES_SESSION
from sojourn.store.stops.orders import Stop

SHOWN = 20
"""So many of what is left are named."""
LEASES_MAX, BATCH = 1000, 50
"""The snapshots of so many held runs are looked into, and so many are in memory at a time."""

STATUSES = f"""
select r.status, count(*) as runs from stopped_run x join run r on r.tenant = x.tenant and r.id = x.run_id
where x.stop_id = $2 and ($1 = '{EVERYBODY}' or x.tenant = $1) group by r.status
"""
UNFINISHED = f"""
select r.status, count(*) as runs, (array_agg(r.id order by r.id))[:{SHOWN}] as some
from stop s join run r on {NAMES_RUN}
where s.tenant = $1 and s.id = $2 and r.finished_at is null group by r.status
"""
# Workers are not the tenant's to see: a door tells when the one of a run was last heard of.
HELD = f"""
select r.id, r.snapshot, coalesce(lease_heard_at(r.id), now()) as heard_at, now() as at
from stop s join run r on {NAMES_RUN}
where s.tenant = $1 and s.id = $2 and r.finished_at is null and r.lease_worker is not null
    and r.id > $3
order by r.id limit $4
"""
HELD_BY_ALL = HELD.replace("lease_heard_at(r.id)", "(select seen_at from worker where id = r.lease_worker)")
SANDBOXES = f"""
select z.id, z.host, count(*) over () as all from stop s join session z on z.host is not null and {NAMES_SESSION}
where s.tenant = $1 and s.id = $2 order by z.id limit {SHOWN}
"""
SILENT_S = 5.0


class Left(Plain, frozen=True, kw_only=True):
    """One thing that is left, and why."""

    kind: str
    id: str
    why: str


class Report(Plain, frozen=True, kw_only=True):
    """How far a stop has come: what it hit, by status, and what is left of what it names."""

    hit: dict[str, int]
    runs: int = 0
    """Runs that have not ended; under a hold, those that do not stand still."""
    leases: int = 0
    calls: int = 0
    """Model and tool calls that were begun by a worker that holds the run, and not answered."""
    sandboxes: int = 0
    left: tuple[Left, ...] = ()

    @property
    def settled(self) -> bool:
        return not (self.runs or self.leases or self.calls or self.sandboxes)


async def report(conn: Connection, stop: Stop, *, operator: bool = False) -> Report:
    """Count what is left; `conn` is in the tenant's scope, or, for the operator, the engine's."""
    key = (stop.tenant, stop.id)
    hit = {row["status"]: row["runs"] for row in await conn.fetch(STATUSES, *key)}
    if stop.lifted_at is not None:
        return Report(hit=hit)
    unfinished = await conn.fetch(UNFINISHED, *key)
    if stop.mode == "hold":
        unfinished = [row for row in unfinished if row["status"] == "running"]
    leased, calls = await _leased(conn, HELD_BY_ALL if operator else HELD, key)
    sandboxes = await conn.fetch(SANDBOXES, *key)
    waiting = [
        Left(kind="run", id=run_id, why="no worker has come to end it; it holds nothing meanwhile")
        for row in unfinished if row["status"] != "running" for run_id in row["some"]
    ]  # fmt: skip
    open_ = [Left(kind="sandbox", id=row["id"], why=f"a worker on {row['host']} puts it away") for row in sandboxes]
    return Report(
        hit=hit,
        runs=sum(row["runs"] for row in unfinished),
        leases=sum(row["runs"] for row in unfinished if row["status"] == "running"),
        calls=calls,
        sandboxes=sandboxes[0]["all"] if sandboxes else 0,
        left=(*leased[:SHOWN], *waiting[:SHOWN], *open_),
    )


async def _leased(conn: Connection, statement: str, key: tuple[str, str]) -> tuple[list[Left], int]:
    """Name the runs that workers hold, and count the calls that they have begun."""
    leased: list[Left] = []
    calls, after, more = 0, "", True
    while more and len(leased) < LEASES_MAX:
        held = await conn.fetch(statement, *key, after, BATCH)
        calls += await asyncio.to_thread(_calls, held)
        leased += [Left(kind="run", id=row["id"], why=_why(row["heard_at"], row["at"])) for row in held]
        after, more = held[-1]["id"] if held else "", len(held) == BATCH
    return leased, calls


def _calls(held: Sequence[asyncpg.Record]) -> int:
    """Count the calls that held runs have begun: their snapshots take a while."""
    return sum(len(in_flight(thaw(row["snapshot"]), row["at"])) for row in held)


def _why(heard_at: datetime, at: datetime) -> str:
    silent_s = (at - heard_at).total_seconds()
    if silent_s > SILENT_S:
        return f"its worker was not heard of for {silent_s:.0f} s; the lease runs out, and another one ends it"
    return "its worker was told, and ends what is in flight"
