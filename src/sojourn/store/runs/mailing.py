"""What callers say to a run that goes on: messages, decisions, cancellations. Called by the API.

The rule: it waits in the run's inbox, and a run that nobody holds is due at once. The row's lock orders it with the
release of the lease, so that mail never lies unread in a run that sleeps.
"""

from sojourn.errors import Conflict, NotFound
from sojourn.loop.events import Cancelled, Decided, Said
from sojourn.loop.events import encode as encode_event
from sojourn.store.db import Connection

POST = """
with target as (
    select tenant, id, finished_at from run where tenant = (select scope_tenant()) and id = $1 for no key update
), posted as (
    insert into inbox (tenant, run_id, event)
    select tenant, id, $2 from target where finished_at is null
    returning tenant, run_id, id
), woken as (
    update run r set
        mail_last = posted.id,
        status = case when r.status = 'running' then r.status else 'queued' end,
        due_at = case when r.status = 'running' then null else now() end
    from posted where r.tenant = posted.tenant and r.id = posted.run_id
)
select finished_at is not null as finished from target
"""


async def post(conn: Connection, run_id: str, event: Said | Cancelled | Decided) -> None:
    """Put an event into a run's inbox; ring `sojourn_work` and `sojourn_inbox` after the transaction.

    Raises NotFound, and Conflict with the code run.ended.
    """
    target = await conn.fetchrow(POST, run_id, encode_event(event))
    if target is None:
        raise NotFound(f"There is no run {run_id}.")
    if target["finished"]:
        raise Conflict(f"Run {run_id} has ended.", code="run.ended")
