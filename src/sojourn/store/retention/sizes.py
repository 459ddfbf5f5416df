"""How large the database is, and what of it is past its time. Called by the metrics and the doctor.

The rule: the metrics ask only what an index answers; the doctor may count.
"""

from datetime import datetime

import msgspec

from sojourn.store.db import Database

PROGRESS = "select task, gone from tidying"
OLDEST = "select min(used_at) from session"
LEFT = "select count(*) from (select from purge limit 100000) as left_over"
TABLES = """
select c.relname as name, pg_total_relation_size(c.oid) as bytes, greatest(c.reltuples, 0)::bigint as rows
from pg_class c where c.relnamespace = 'public'::regnamespace and c.relkind = 'r'
order by 2 desc
"""
# The same as the doors ask, without the locks.
EXPIRED = """
select count(*) from session s join tenant t on t.id = s.tenant
where s.used_at < now() - make_interval(days => nullif(coalesce(t.runs_kept_days, $1), 0)) and not exists (
    select from run r where r.session_id = s.id and r.tenant = s.tenant and (r.finished_at is null
        or r.finished_at >= now() - make_interval(days => nullif(coalesce(t.runs_kept_days, $1), 0)))
)
"""


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far tidying is, over all tenants."""

    gone: dict[str, int]
    """How much went since the installation began, by kind."""
    left: int
    """Runs that are gone and whose rows are not yet; counted up to 100,000."""
    oldest_at: datetime | None
    """When the session was used last that was unused for longest."""


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """One table with its indexes and large values; its rows are the planner's estimate."""

    name: str
    bytes: int
    rows: int


async def progress(db: Database) -> Progress:
    """Say how far tidying is."""
    async with db.engine() as engine:
        gone = {row["task"]: row["gone"] for row in await engine.fetch(PROGRESS)}
        left, oldest = await engine.fetchval(LEFT), await engine.fetchval(OLDEST)
    return Progress(gone=gone, left=left, oldest_at=oldest)


async def tables(db: Database) -> list[Size]:
    """Say how large each table is, the largest first."""
    async with db.engine() as engine:
        return [Size(**row) for row in await engine.fetch(TABLES)]


async def expired(db: Database, *, kept_days: int) -> int:
    """Count the sessions that the workers will delete."""
    async with db.engine() as engine:
        return int(await engine.fetchval(EXPIRED, kept_days))
