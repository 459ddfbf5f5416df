"""Makes what is there older, and lets it expire, for the tests of retention."""

from sojourn.store.db import Database
from sojourn.store.retention import expiry

AGED = ("session", "run", "blob", "ledger")
AGE = """
update session set used_at = used_at - $1::interval;
update run set finished_at = finished_at - $1::interval where finished_at is not null;
update blob set look_at = look_at - $1::interval, kept_until = kept_until - $1::interval
"""
ROWS = """
select 'session' as name, id as key from session union all
select 'run', id from run union all
select 'inbox', run_id from inbox union all
select 'journal', run_id from journal union all
select 'message', run_id from message union all
select 'delta', run_id from delta union all
select 'ledger', run_id from ledger union all
select 'blob_use', run_id from blob_use union all
select 'purge', run_id from purge union all
select 'blob', digest from blob
"""
SEEN = ("session", "run", "inbox", "journal", "message", "delta", "ledger", "blob_use", "purge", "blob")


async def age(database: Database, days: float) -> None:
    """Put everything so many days back."""
    async with database.migrator() as owner, owner.transaction():
        for table in AGED:
            await owner.execute(f"alter table {table} no force row level security")
        for statement in AGE.split(";"):
            await owner.execute(statement.replace("$1", f"'{days} days'"))
        for table in AGED:
            await owner.execute(f"alter table {table} force row level security")


async def there(database: Database) -> dict[str, set[str]]:
    """Name what each table holds, over all tenants."""
    found: dict[str, set[str]] = {table: set() for table in SEEN}
    async with database.migrator() as owner, owner.transaction():
        for table in SEEN:
            await owner.execute(f"alter table {table} no force row level security")
        for row in await owner.fetch(ROWS):
            found[row["name"]].add(row["key"])
        for table in SEEN:
            await owner.execute(f"alter table {table} force row level security")
    return found


async def expire(database: Database, *, days: int = 0, ledger_days: int = 0) -> dict[str, int]:
    """Delete all that has expired; how much went, by kind."""
    gone: dict[str, int] = {}
    for batch in (
        await expiry.sessions(database, kept_days=days),
        await expiry.rows(database),
        await expiry.ledger(database, kept_days=ledger_days),
        await expiry.blobs(database),
    ):
        gone |= batch.gone
    return gone
