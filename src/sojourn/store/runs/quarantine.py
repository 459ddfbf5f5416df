"""Dead letters: runs that no worker can go on with, taken out of the queue and put back where they stood.

    quarantine   the worker takes a run out: nobody could read it, or one worker after the other died of it
    retry        the API puts it back
    ending       what a run that cannot be read is to be told: that it is over
    bury         end a run unread

The rule: nothing of such a run is changed but where it stands, so that whoever can go on with it finds what was left.
`bury` alone adds to its journal, in the name of whoever cancelled it.
"""

import msgspec

from sojourn.errors import Conflict, NotFound, SojournError
from sojourn.loop import events as ev
from sojourn.store.db import Connection, Database
from sojourn.store.runs.snapshots import text

# Its claims are forgotten: whoever takes it up once it is let out is not the ninth in vain.
QUARANTINE = """
update run set status = 'quarantined', lease_worker = null, due_at = null, claims = 0, quarantined_at = now(),
    quarantined_claims = claims - 1, error_code = $4, error_detail = $5
where id = $2 and fence = $3 and lease_worker = $1
returning true
"""
RETRY = """
with target as (
    select tenant, id, status from run where tenant = (select scope_tenant()) and id = $1 for no key update
), released as (
    update run r set status = 'queued', due_at = now(), ready = true
    from target t where r.tenant = t.tenant and r.id = t.id and t.status = 'quarantined'
)
select status from target
"""
LETTERS = """
select i.event from run r join inbox i on i.tenant = r.tenant and i.run_id = r.id
where r.id = $2 and r.fence = $3 and r.lease_worker = $1 order by i.id
"""
BURY = """
with buried as (
    update run set status = 'cancelled', lease_worker = null, due_at = null, waits = null, finished_at = now(),
        seq = seq + 2, mail_read = mail_last
    where id = $2 and fence = $3 and coalesce(lease_worker, '') = $1 and finished_at is null
    returning tenant, id, seq
), told as (
    insert into journal (tenant, run_id, seq, at, kind, event)
    select tenant, id, seq - 2 + told.n, $4, told.kind, told.event
    from buried, unnest($5::text[], $6::bytea[]) with ordinality as told (kind, event, n)
), heard as (
    delete from inbox i using buried where i.tenant = buried.tenant and i.run_id = buried.id
)
select true from buried
"""

Lease = tuple[str, int]


async def quarantine(db: Database, worker_id: str, lease: Lease, reason: SojournError) -> bool:
    """Take a run that the worker holds (run id, fence) out of the queue; false where it is another worker's now."""
    async with db.engine() as engine:
        done = await engine.fetchval(QUARANTINE, worker_id, *lease, reason.code, text(str(reason)))
    return bool(done)


async def retry(conn: Connection, run_id: str) -> None:
    """Put a run back into the queue; ring `sojourn_work` after the transaction.

    Raises NotFound, and Conflict where it is not in quarantine.
    """
    status = await conn.fetchval(RETRY, run_id)
    if status is None:
        raise NotFound(f"There is no run {run_id}.")
    if status != "quarantined":
        raise Conflict(f"Run {run_id} is {status}, and not in quarantine.", code="run.not_quarantined")


async def ending(db: Database, worker_id: str, lease: Lease) -> ev.Cancelled | None:
    """Find the word that a held run is over in its mail, whatever else of it cannot be read."""
    async with db.engine() as engine:
        letters = [row["event"] for row in await engine.fetch(LETTERS, worker_id, *lease)]
    for letter in letters:
        try:
            event = ev.decode(letter)
        except msgspec.DecodeError:
            continue
        if isinstance(event, ev.Cancelled):
            return event
    return None


async def bury(db: Database, worker_id: str, lease: Lease, event: ev.Event) -> bool:
    """End an unreadable run that the worker, or nobody (""), holds; its snapshot stays. False as `quarantine`."""
    over = ev.Turned(at=event.at, phase="cancelled")
    kinds, events = [str(one.__struct_config__.tag) for one in (event, over)], [ev.encode(event), ev.encode(over)]
    async with db.engine() as engine:
        return bool(await engine.fetchval(BURY, worker_id, *lease, event.at, kinds, events))
