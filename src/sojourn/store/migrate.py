"""Numbered migrations: `migrations/NNNN_name.sql`, applied once and in order. Called by `serve` and `worker` at start.

The rules: an applied file never changes; each is one transaction of the role that owns the tables, and many processes
may start at once. A file adds to what is there, so that releases that do not know it go on, start and come back beside
it. One that does not says so in a line of its own, and older releases then refuse to start:

    -- older releases stop: below level 2

What takes a lock waits for it LOCK_WAIT_S at most, and tries again: behind a statement of ours that waits for a long
transaction, everybody else would wait too.
"""

import asyncio
import hashlib
import logging
import re
from importlib.resources import files
from importlib.resources.abc import Traversable

import asyncpg  # type: ignore[import-untyped]
import msgspec

from sojourn.errors import StoreUnavailable
from sojourn.loop.moving.levels import LEVEL
from sojourn.store.db import Connection, Database

log = logging.getLogger("sojourn.store")

LOCK = 0x504A_0002
FILE_NAME = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")
STOPS = re.compile(r"^-- older releases stop: below level (\d+)$", re.MULTILINE)
LOCK_WAIT_S, LOCK_REST_S, LOCK_TRIES = 2.0, 1.0, 100
TABLE = """
create table if not exists schema_migration (
    version    integer primary key,
    name       text not null,
    sha256     bytea not null,
    applied_at timestamptz not null default now(),
    serves     integer not null default 0
);
"""
SERVES = "alter table schema_migration add column if not exists serves integer not null default 0"
# `serves` is the lowest level of a release that can go on with it; databases from before levels do not have it yet.
APPLIED = """
select version, name, sha256, coalesce((to_jsonb(m) ->> 'serves')::integer, 0) as serves
from schema_migration m order by version
"""


class Migration(msgspec.Struct, frozen=True):
    """One file."""

    version: int
    name: str
    sha256: bytes
    sql: str

    @property
    def serves(self) -> int:
        """The lowest level of a release that can go on beside it."""
        found = STOPS.search(self.sql)
        return int(found[1]) if found else 0


def load(folder: Traversable | None = None) -> list[Migration]:
    """Read the package's migrations, or a folder's, in order.

    Raises ValueError when the numbers do not run 1, 2, 3, ...
    """
    folder = folder or files("sojourn.store").joinpath("migrations")
    found = []
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        if match := FILE_NAME.fullmatch(file.name):
            content = file.read_bytes()
            found.append(Migration(int(match[1]), match[2], hashlib.sha256(content).digest(), content.decode()))
    if [migration.version for migration in found] != list(range(1, len(found) + 1)):
        raise ValueError(f"migrations must be numbered 0001, 0002, ... without a gap: {[m.version for m in found]}")
    return found


async def migrate(database: Database, migrations: list[Migration] | None = None) -> list[str]:
    """Apply what is pending and return its names.

    Raises StoreUnavailable when an applied file has changed, a newer one stops this release, or a table stays locked.
    """
    migrations = load() if migrations is None else migrations
    applied: list[str] = []
    async with database.migrator() as connection:
        while (name := await _patiently(connection, migrations)) is not None:
            applied.append(name)
    return applied


async def _patiently(connection: Connection, migrations: list[Migration]) -> str | None:
    """Apply the next file, again where a table that it changes is held by a long transaction; None where all are."""
    for _ in range(LOCK_TRIES):
        try:
            return await _next(connection, migrations)
        except asyncpg.LockNotAvailableError:
            log.warning("store.migration_waits", extra={"tries_max": LOCK_TRIES})
            await asyncio.sleep(LOCK_REST_S)
    raise StoreUnavailable(
        "A migration cannot have the table that it changes: a transaction holds it. End that one, and start again.",
        code="store.locked",
    )


async def _next(connection: Connection, migrations: list[Migration]) -> str | None:
    async with connection.transaction():
        await connection.execute("select pg_advisory_xact_lock($1)", LOCK)
        await connection.execute(f"set local lock_timeout = {LOCK_WAIT_S * 1000:.0f}")
        await connection.execute(TABLE)
        left = await _pending(connection, migrations)
        if not left:
            return None
        await _apply(connection, left[0])
        return left[0].name


async def pending(database: Database, migrations: list[Migration] | None = None) -> list[str]:
    """Name the migrations that have not been applied; raises as `migrate` does."""
    migrations = load() if migrations is None else migrations
    async with database.migrator() as connection:
        if await connection.fetchval("select to_regclass('public.schema_migration')") is None:
            return [migration.name for migration in migrations]
        return [migration.name for migration in await _pending(connection, migrations)]


async def _pending(connection: Connection, migrations: list[Migration]) -> list[Migration]:
    """Compare the files with what the database says was applied."""
    rows = await connection.fetch(APPLIED)
    if stops := [row for row in rows[len(migrations) :] if row["serves"] > LEVEL]:
        raise StoreUnavailable(
            f"The database is at migration {rows[-1]['version']}, and {stops[0]['name']} is not for this release, "
            f"which knows {len(migrations)}. Start the newer release, or restore the database from before its upgrade.",
            code="store.newer",
        )
    for row, migration in zip(rows, migrations, strict=False):
        if (row["version"], row["sha256"]) != (migration.version, migration.sha256):
            raise StoreUnavailable(
                f"Migration {row['version']:04} ({row['name']}) is not the file that was applied to this database. "
                "Install the release that applied it; to change the schema, add a migration.",
                code="store.changed_migration",
            )
    return migrations[len(rows) :]


async def lay(connection: Connection, migrations: list[Migration]) -> None:
    """Apply files in the caller's transaction, for a database that is made of a backup."""
    await connection.execute(TABLE)
    for migration in migrations:
        await _apply(connection, migration)


async def _apply(connection: Connection, migration: Migration) -> None:
    """Run one file and write it down."""
    await connection.execute(migration.sql)
    await connection.execute(SERVES)
    await connection.execute(
        "insert into schema_migration (version, name, sha256, serves) values ($1, $2, $3, $4)",
        migration.version,
        migration.name,
        migration.sha256,
        migration.serves,
    )
