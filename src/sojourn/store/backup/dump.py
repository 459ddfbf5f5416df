"""The database of one moment, into a file. Called by `sojourn backup`.

The rules: every table is read as it was at one instant, whatever is committed meanwhile, and nobody waits for it; a
table goes through memory piece by piece. What is left out is made anew: keys of scopes, which live for minutes, and
unlogged tables, which a crash empties too.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

import asyncpg  # type: ignore[import-untyped]
from msgspec.structs import replace

from sojourn.errors import Invalid, StoreUnavailable
from sojourn.store.audit import writing as audit
from sojourn.store.audit.writing import Act
from sojourn.store.backup.container import Header, Table, Writer
from sojourn.store.db import Connection, Database
from sojourn.store.roles import OWNER

log = logging.getLogger("sojourn.store")

LEFT_OUT = ("schema_migration", "scope_key")
TABLES = f"""
select c.relname as name, pg_get_userbyid(c.relowner)::text as owner, array(
    select a.attname::text from pg_attribute a
    where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated = '' order by a.attnum
) as columns
from pg_class c
where c.relnamespace = 'public'::regnamespace and c.relkind = 'r' and c.relpersistence = 'p'
    and c.relname not in {LEFT_OUT}
    and not exists (select from pg_depend d where d.objid = c.oid and d.deptype = 'e')
order by c.relname
"""
CLOSED = """
select c.relname as name, pg_get_userbyid(c.relowner)::text as owner from pg_class c
where c.relnamespace = 'public'::regnamespace and c.relkind = 'r' and c.relpersistence = 'p' and c.relforcerowsecurity
    and not exists (select from pg_policy p where p.polrelid = c.oid and p.polname = 'backup')
"""
OPEN = 'create policy backup on "{}" for select to {} using (true)'
APPLIED = (
    "select lpad(version::text, 4, '0') || '_' || name, encode(sha256, 'hex') from schema_migration order by version"
)
ROOTS = """
select r.id from root_key r
where r.ended_at is null or exists (select from data_key d where d.root_key = r.id)
order by r.ended_at desc nulls first
"""
SEQUENCES = """
select sequencename::text as name, last_value from pg_sequences where schemaname = 'public' and last_value is not null
"""
PLACED = "select tenant, id, host from session where host is not null order by id"
LOCK_WAIT_MS, LOCK_TRIES, LOCK_REST_S = 2000, 100, 1.0


class Placed(NamedTuple):
    """A session whose files a host has."""

    tenant: str
    id: str
    host: str


class Dumped(NamedTuple):
    """What is to be said of a database at the end of the file."""

    sequences: dict[str, int]
    placed: list[Placed]
    root: str | None


async def dump(
    db: Database, writer: Writer, header: Header, *, told: Callable[[str], None], by: str = "setup"
) -> Dumped:
    """Write the header, with what the database needs, and every table; `told` hears each one's name.

    Raises Invalid and StoreUnavailable.
    """
    async with db.migrator() as conn:
        if await conn.fetchval("select to_regclass('public.root_key')") is None:
            raise Invalid("There is no installation of this release in this database: start `sojourn serve` once.")
        await _open_tables(conn)
        async with conn.transaction(isolation="repeatable_read", readonly=True):
            tables = await conn.fetch(TABLES)
            roots = tuple([row["id"] for row in await conn.fetch(ROOTS)])
            migrations = tuple([(row[0], row[1]) for row in await conn.fetch(APPLIED)])
            writer.head(replace(header, migrations=migrations, roots=roots))
            for row in tables:
                told(row["name"])
                async with acting_as(conn, row["owner"]):
                    await _table(conn, writer, Table(row["name"], tuple(row["columns"])))
            # Read last: a number that was given out meanwhile is not given out again.
            sequences = {row["name"]: row["last_value"] for row in await conn.fetch(SEQUENCES)}
            placed = [Placed(*row) for row in await conn.fetch(PLACED)]
        async with conn.transaction():
            await audit.operated(conn, Act(action="database.backup"), tenant=audit.EVERYBODY, by=by)
    return Dumped(sequences, placed, roots[0] if roots else None)


async def _table(conn: Connection, writer: Writer, table: Table) -> None:
    """Write a table's rows."""

    async def take(data: bytes) -> None:
        writer.add(data)

    writer.begin(table)
    columns = ", ".join(f'"{name}"' for name in table.columns)
    await conn.copy_from_query(f'select {columns} from "{table.name}"', output=take, format="binary")


@asynccontextmanager
async def acting_as(conn: Connection, role: str) -> AsyncIterator[None]:
    """Act as another role of ours, within a transaction of the owner's."""
    await conn.execute(f'set local role "{role}"')
    yield
    await conn.execute(f"set local role {OWNER}")


async def _open_tables(conn: Connection) -> None:
    """Let the owner of tables read them, whose walls hold for him too. Done once; he may take the walls down anyway."""
    for row in await conn.fetch(CLOSED):
        for attempt in range(LOCK_TRIES):
            try:
                async with conn.transaction():
                    await conn.execute(f"set local lock_timeout = {LOCK_WAIT_MS}")
                    async with acting_as(conn, row["owner"]):
                        await conn.execute(OPEN.format(row["name"], row["owner"]))
                break
            except asyncpg.LockNotAvailableError:
                log.info("backup.waits", extra={"table": row["name"], "tries": attempt + 1})
                await asyncio.sleep(LOCK_REST_S)
            except asyncpg.DuplicateObjectError:
                break  # another backup was first
        else:
            raise StoreUnavailable(f"The table {row['name']} is locked by a long transaction. Try again.")
