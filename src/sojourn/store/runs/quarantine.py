"""Runs that this release cannot read: taken out of the queue untouched, and put back by an operator.

The worker takes them out, the API puts them back. The rule: nothing of such a run is changed but where it stands, so
that the release that can read it finds what it left.
"""

from sojourn.errors import Conflict, NotFound, SojournError
from sojourn.store.db import Connection, Database
from sojourn.store.runs.snapshots import text

# Its claims are forgotten: whoever takes it up once it is released is not the ninth in vain.
QUARANTINE = """
update run set status = 'quarantined', lease_worker = null, due_at = null, claims = 0,
    error_code = $4, error_detail = $5
where id = $2 and fence = $3 and lease_worker = $1
returning true
"""
RELEASE = """
with target as (
    select tenant, id, status from run where tenant = (select scope_tenant()) and id = $1 for no key update
), released as (
    update run r set status = 'queued', due_at = now(), ready = true
    from target t where r.tenant = t.tenant and r.id = t.id and t.status = 'quarantined'
)
select status from target
"""


async def quarantine(db: Database, worker_id: str, lease: tuple[str, int], reason: SojournError) -> bool:
    """Take a run that the worker holds (run id, fence) out of the queue; false where it is another worker's now."""
    run_id, fence = lease
    async with db.engine() as engine:
        done = await engine.fetchval(QUARANTINE, worker_id, run_id, fence, reason.code, text(str(reason)))
    return bool(done)


async def release(conn: Connection, run_id: str) -> None:
    """Put a run back into the queue; ring `sojourn_work` after the transaction.

    Raises NotFound, and Conflict where it is not in quarantine.
    """
    status = await conn.fetchval(RELEASE, run_id)
    if status is None:
        raise NotFound(f"There is no run {run_id}.")
    if status != "quarantined":
        raise Conflict(f"Run {run_id} is {status}, and not in quarantine.", code="run.not_quarantined")
