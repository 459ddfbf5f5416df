"""What callers say to a run that goes on: messages, decisions, cancellations. The API, stops and budgets call it.

The rules: it waits in the run's inbox, and a run that nobody holds is due at once. The row's lock orders it with the
release of the lease, so that mail never lies unread in a run that sleeps. A run in quarantine hears nothing but its
end, and what is said to a run that is to begin later waits for that, but for its end. And a run keeps no more words and
signals than it can carry, however many come: a decision and the end of the run are always taken.
"""

from collections.abc import Sequence

from sojourn.errors import Conflict, NotFound, OverLimit
from sojourn.loop.events import Cancelled, Decided, Event, Paused, Said, Signalled
from sojourn.loop.events import encode as encode_event
from sojourn.loop.moving.levels import needed
from sojourn.store.db import Connection

MAIL_MAX, MAIL_BYTES_MAX = 1000, 8 << 20
"""Letters that wait to be read, and their bytes."""
SNAPSHOT_BYTES_MAX = 8 << 20
"""A run that carries more takes no more words: each of its commits writes all of that anew."""

POST = f"""
with target as (
    select tenant, id, finished_at, octet_length(snapshot) as carried from run
    where tenant = (select scope_tenant()) and id = $1 for no key update
), unread as (
    select count(*) as letters, coalesce(sum(octet_length(i.event)), 0) as size
    from target, lateral (
        select event from inbox where tenant = target.tenant and run_id = target.id limit {MAIL_MAX}
    ) i
), place as (
    select tenant, id, finished_at, not $3::boolean and (
        letters >= {MAIL_MAX} or size + octet_length($2::bytea) > {MAIL_BYTES_MAX} or carried > {SNAPSHOT_BYTES_MAX}
    ) as "full" from target, unread
), posted as (
    insert into inbox (tenant, run_id, event)
    select tenant, id, $2 from place where finished_at is null and not "full"
    returning tenant, run_id, id
), woken as (
    update run r set
        mail_last = posted.id,
        needs = greatest(r.needs, $4),
        status = case when r.status = 'running' or r.status = 'quarantined' and not $5 then r.status else 'queued' end,
        due_at = case when r.status <> 'running' and (r.status <> 'quarantined' or $5) then
            least(r.due_at, case when $5::boolean then now() else greatest(now(), r.start_at) end)
        end,
        ready = r.status <> 'running' and (r.status <> 'quarantined' or $5) and (
            r.ready or $5::boolean or coalesce(r.start_at <= now(), true)
        )
    from posted where r.tenant = posted.tenant and r.id = posted.run_id
)
select finished_at is not null as finished, "full" from place
"""

POST_ALL = """
with target as (
    select r.tenant, r.id, letter.event, letter.needs
    from unnest($1::text[], $2::text[], $3::bytea[], $4::int[]) as letter (tenant, run_id, event, needs)
    join run r on r.tenant = letter.tenant and r.id = letter.run_id
    where r.finished_at is null order by r.id for no key update of r
), posted as (
    insert into inbox (tenant, run_id, event) select tenant, id, event from target returning tenant, run_id, id
)
update run r set
    mail_last = posted.id,
    needs = greatest(r.needs, target.needs),
    status = case when r.status in ('running', 'quarantined') then r.status else 'queued' end,
    due_at = case when r.status not in ('running', 'quarantined') then now() end,
    ready = r.status not in ('running', 'quarantined')
from posted join target on target.tenant = posted.tenant and target.id = posted.run_id
where r.tenant = posted.tenant and r.id = posted.run_id
"""


async def post(conn: Connection, run_id: str, event: Said | Cancelled | Decided | Paused | Signalled) -> None:
    """Put an event into a run's inbox; ring `sojourn_work` and `sojourn_inbox` after the transaction.

    Raises NotFound, Conflict with the code run.ended, and OverLimit where too much of it was not heard yet.
    """
    ends, urgent = isinstance(event, Cancelled), isinstance(event, Decided | Cancelled)
    target = await conn.fetchrow(POST, run_id, encode_event(event), urgent, needed(event), ends)
    if target is None:
        raise NotFound(f"There is no run {run_id}.")
    if target["finished"]:
        raise Conflict(f"Run {run_id} has ended.", code="run.ended")
    if target["full"]:
        raise OverLimit(f"Run {run_id} has more mail than it has read. Wait until it goes on, and try again.")


async def post_all(engine: Connection, letters: Sequence[tuple[str, str, Event]]) -> None:
    """Post events (tenant, run id, event) for a worker: to many runs, and to those that have ended none."""
    if letters:
        tenants, ids, events = zip(*letters, strict=True)
        bodies, levels = [encode_event(event) for event in events], [needed(event) for event in events]
        await engine.execute(POST_ALL, tenants, ids, bodies, levels)
