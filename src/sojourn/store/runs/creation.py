"""Creates a run: the row, its first event, its first message and its agents. Called by the API.

The rule: one statement, so that a run is there as a whole or not at all, and due from the first moment, or from its
`start_at` on.
"""

import asyncpg  # type: ignore[import-untyped]
import msgspec

from sojourn.errors import Conflict, NotFound, QueueFull
from sojourn.loop.continuation import fresh
from sojourn.loop.moving.levels import needed
from sojourn.store.budgets.pools import BOUND
from sojourn.store.db import Connection
from sojourn.store.rows import NewRun
from sojourn.store.runs.journal import rows
from sojourn.store.runs.pins import columns
from sojourn.store.runs.snapshots import encode, freeze, text

CREATE = f"""
with place as (
    select s.tenant, s.id, s.closed_at, t.queued_max,
        queue_is_full(t.queued_max, $26::timestamptz is not null) as full, (
        select id from run
        where tenant = s.tenant and session_id = s.id and finished_at is not null
        order by finished_at desc limit 1
    ) is distinct from $24 or exists (
        select from run where tenant = s.tenant and session_id = s.id and finished_at is null
    ) as busy, t.bound
    from session s cross join lateral (
        select case when $26::timestamptz is null then coalesce(queued_max, $3) else $3 end as queued_max,
            {BOUND} as bound
        from tenant where id = s.tenant offset 0
    ) as t
    where s.tenant = (select scope_tenant()) and s.id = $2
    for share of s
), made as (
    insert into run (tenant, id, session_id, user_id, agent_name, agent_version, agent_digest, priority, due_at, ready,
        seq, input, limits, labels, snapshot, needs, start_at, schedule, fire_at)
    select tenant, $1, $2, $4, $5, $6, $7, $8, coalesce($26::timestamptz, now()), $26::timestamptz is null,
        1, $9, $10, $11, $12, $25, $26, $27, $28
    from place where closed_at is null and not "full" and not busy
    returning tenant, id
), journaled as (
    insert into journal (tenant, run_id, seq, at, kind, event, frame_id, slot)
    select tenant, id, 1, $13, $14, $15, $16, $17 from made
), spoken as (
    insert into message (tenant, run_id, frame_id, slot, body)
    select tenant, id, frame_id, slot, body
    from made, unnest($18::text[], $19::int[], $20::bytea[]) as message (frame_id, slot, body)
), pinned as (
    insert into agent_spec (tenant, digest, subs, spec)
    select tenant, digest, string_to_array(subs, ' '), spec
    from made, unnest($21::text[], $22::text[], $23::text[]) as agent (digest, subs, spec)
    on conflict do nothing
)
select closed_at is not null as closed, "full", queued_max, busy, bound from place
"""
# The first in line has waited for as long as it takes a queue of this length to begin.
WAITED_S = """
select extract(epoch from now() - due_at)::float8 from run
where tenant = (select scope_tenant()) and ready and due_at is not null
order by priority desc, due_at limit 1
"""
RETRY_MIN_S, RETRY_MAX_S = 1.0, 60.0
INPUT_MAX = 500


async def create(conn: Connection, new: NewRun, *, queued_max: int) -> bool:
    """Create a run of a session; ring `sojourn_work` after the transaction. Says whether its tenant has day pools.

    `queued_max` holds where the tenant's row says nothing; requests that come at the very same moment do not see each
    other, so that it can be passed by as many as there are connections. Of a run with `start_at` it bounds those that
    are to begin later, and the row says nothing of them.

    The run's history must be what `history` says of the session. Raises NotFound for the session, QueueFull, and
    Conflict when the session is closed, another run of it goes on, or has ended since the history was read, and when a
    stop is in force (stop.in_force).
    """
    try:
        place = await conn.fetchrow(CREATE, *_values(new, queued_max))
    except asyncpg.UniqueViolationError as error:
        raise _conflict(new, error) from None
    except asyncpg.ObjectNotInPrerequisiteStateError as error:
        raise stopped(error) from None
    if place is None:
        raise NotFound(f"There is no session {new.event.session_id}.")
    if place["closed"]:
        raise Conflict(f"Session {new.event.session_id} is closed; start a new one.", code="session.closed")
    if place["busy"]:
        raise _busy(new)
    if place["full"]:
        raise await queue_full(conn, place["queued_max"], later=new.start_at is not None)
    return bool(place["bound"])


async def queue_full(conn: Connection, queued_max: int, *, later: bool = False) -> QueueFull:
    """Say that no more runs are taken, and when about a tenth of those that wait will have begun."""
    waited_s = await conn.fetchval(WAITED_S) or 0.0
    return QueueFull(
        f"{queued_max} runs of this tenant {'are to begin later' if later else 'wait for a worker'}. "
        "Try again when some have begun.",
        retry_after_s=min(RETRY_MAX_S, max(RETRY_MIN_S, waited_s / 10)),
    )


def stopped(error: asyncpg.ObjectNotInPrerequisiteStateError) -> Conflict:
    """Say why the database lets no run begin here: the trigger of 0010_stops.sql names the stop."""
    return Conflict(f"{error.message.rstrip('.')}. No run begins here before it is lifted.", code="stop.in_force")


def _values(new: NewRun, queued_max: int) -> list[object]:
    event, whole = new.event, new.continuation
    bodies = list(fresh(None, whole))
    first = rows([event], 1, bodies)[0]
    return [
        event.run_id,
        event.session_id,
        queued_max,
        event.principal.user,
        event.agent.name,
        event.agent.version,
        event.agent.digest,
        new.priority,
        text(new.input)[:INPUT_MAX],
        encode(event.limits),
        msgspec.json.encode(new.labels),
        freeze(whole),
        first.at,
        first.kind,
        first.event,
        first.frame_id,
        first.slot,
        [frame for frame, _, _ in bodies],
        [slot for _, slot, _ in bodies],
        [encode(message) for _, _, message in bodies],
        *columns([new.agent, *new.agents]),
        event.history[-1].run_id if event.history else None,
        max(map(needed, (whole, new.agent, *new.agents))),
        new.start_at,
        new.schedule,
        new.fire_at,
    ]


def _conflict(new: NewRun, error: asyncpg.UniqueViolationError) -> Conflict:
    if error.constraint_name == "run_one_per_session":
        return _busy(new)
    return Conflict(f"There is a run {new.event.run_id} already.", code="run.exists")


def _busy(new: NewRun) -> Conflict:
    detail = (
        f"Another run of session {new.event.session_id} goes on, or is to begin later. "
        "Send it a message, or wait until it ends."
    )
    return Conflict(detail, code="session.busy")
