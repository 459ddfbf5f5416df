"""Whose run is next: tenants take turns, and none of them holds more runs than it may. Called by the queue.

    TURN   one statement: wake the timers that have come, lease runs to a worker, and say when to look again

How a turn goes: from the tenant that was served last, the statement walks along the tenants that have runs ready, in
one index, and gives each the same share of what the worker has room for, its most urgent and then its oldest runs
first. It stops when the room is used up, so it costs as much with ten tenants as with ten thousand.

The rules: priority orders the runs of one tenant and never the tenants; whoever is served goes to the back of the line;
nobody waits for a row or a tenant that another claimer looks at; and a limit is exact, for a limited tenant's runs are
counted and claimed under a lock of that tenant.
"""

from datetime import datetime

import msgspec

from sojourn.loop.moving.levels import LEVEL
from sojourn.store.db import ANSWER_S, Connection

WAKES_MAX = 1000
"""Timers that one turn wakes; the next one wakes more."""

TURN = f"""
with recursive line (tenant, place, lap) as (
    select $3::text, 0, 0
    union all
    select next.tenant, place + 1, next.lap from line cross join lateral (
        (
            select tenant, line.lap from run
            where ready and due_at is not null and tenant > line.tenant and (line.lap = 0 or tenant <= $3)
            order by tenant limit 1
        )
        union all
        (
            select tenant, 1 from run where ready and due_at is not null and line.lap = 0 and tenant <= $3
            order by tenant limit 1
        )
        limit 1
    ) as next
), share as materialized (
    select ceil($2::float8 / greatest(1, count(*)))::int as runs
    from (select from line where place > 0 limit $2) as first
), allowed as (
    select line.tenant, case
        when runs_max <= (
            select count(*)
            from (select from run where tenant = line.tenant and lease_worker is not null limit runs_max) as held
        ) then '{{"": 0}}'
        when runs_max is not null
            or exists (select from agent a where a.tenant = line.tenant and a.runs_max is not null)
        then claim_room(line.tenant, runs_max)
    end as room
    from line cross join lateral (
        select coalesce((select t.runs_max from tenant t where t.id = line.tenant), $4) as runs_max offset 0
    ) as its
    where place > 0
), taken as (
    select allowed.tenant, allowed.room, first.*
    from share cross join allowed cross join lateral (
        select id, agent_name from run
        where run.tenant = allowed.tenant and ready and due_at is not null and due_at <= now() and needs <= {LEVEL}
            and coalesce((room ->> agent_name)::int, 1) > 0
        order by priority desc, due_at
        limit least(share.runs, (room ->> '')::int)
        for no key update skip locked
    ) as first
    limit $2
), found as (
    select *, row_number() over (partition by tenant, agent_name order by n) as nth
    from (select *, row_number() over () as n from taken) as numbered
), claimed as (
    update run r set
        status = 'running', due_at = null, ready = false, lease_worker = $1, fence = r.fence + 1,
        claims = r.claims + 1, started_at = coalesce(r.started_at, now())
    from found f
    where r.tenant = f.tenant and r.id = f.id and nth <= coalesce((room ->> f.agent_name)::int, nth)
    returning r.tenant, r.id, r.fence, r.claims, r.snapshot, f.n
), woken as (
    update run set ready = true, status = 'queued'
    where (tenant, id) in (
        select tenant, id from run where due_at is not null and not ready and due_at <= now()
        order by due_at limit {WAKES_MAX} for no key update skip locked
    )
    returning 1
), timer as (
    select due_at from run where due_at is not null and not ready and due_at > now() order by due_at limit 1
)
select tenant, id, fence, claims, snapshot, n, null::timestamptz as next_at, null::bigint as woken, null::bool as left
from claimed
union all
select null, null, null, null, null, null, (select due_at from timer), (select count(*) from woken),
    (
        select count(*) from (
            select from run where ready and due_at is not null and needs <= {LEVEL} limit $2 + 1
        ) as first
    ) > count(*)
from claimed
order by n
"""


class Claim(msgspec.Struct, frozen=True):
    """A run that was just leased, as it is stored."""

    tenant: str
    run_id: str
    fence: int
    claims: int
    snapshot: bytes


class Turn(msgspec.Struct, frozen=True):
    """What one turn gave, in the order in which the tenants stood in line."""

    claims: tuple[Claim, ...]
    woken: int
    """Timers that had come; another turn may lease their runs."""
    left: bool
    """Runs are ready that this turn did not lease."""
    next_at: datetime | None
    """When the next timer comes."""

    @property
    def again(self) -> bool:
        """Whether another turn could lease something at once."""
        return bool(self.woken or (self.left and self.claims))


async def turn(conn: Connection, worker_id: str, n: int, *, after: str = "", runs_max: int | None = None) -> Turn:
    """Lease up to `n` runs to a worker, from the tenant that stands in line behind `after` on.

    `runs_max` is how many runs a tenant may have held where its row says nothing.
    """
    *found, last = await conn.fetch(TURN, worker_id, n, after, runs_max, timeout=ANSWER_S)
    claims = tuple(Claim(row["tenant"], row["id"], row["fence"], row["claims"], row["snapshot"]) for row in found)
    return Turn(claims=claims, woken=last["woken"], left=last["left"], next_at=last["next_at"])
