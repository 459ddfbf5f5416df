"""Whether the database answers, and how the server stands. Called by the API for /readyz and /metrics.

The rule: it is cheap enough to be asked every second, and names no tenant.
"""

from sojourn.store.db import Database
from sojourn.store.queue import NEXT_DUE
from sojourn.store.rows import Counts

RUNS = "select status, count(*) as runs from run where finished_at is null group by status"
WORKERS = "select count(*) from worker where seen_at > now() - interval '15 seconds'"


async def ping(db: Database) -> None:
    """See that the database answers. Raises StoreUnavailable."""
    async with db.api() as connection:
        await connection.fetchval("select 1")


async def counts(db: Database) -> Counts:
    """Count unfinished runs and living workers, over all tenants."""
    async with db.engine() as engine:
        runs = {row["status"]: row["runs"] for row in await engine.fetch(RUNS)}
        workers = await engine.fetchval(WORKERS)
        oldest = await engine.fetchval(NEXT_DUE)
    return Counts(runs=runs, workers=workers, oldest_due_at=oldest)
