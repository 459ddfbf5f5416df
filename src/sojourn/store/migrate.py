"""Numbered migrations: `migrations/NNNN_name.sql`, applied once and in order. Called by `serve` and `worker` at start.

The rule: an applied file never changes, and the database is never newer than the code. Each file is one transaction of
the role that owns the tables; many processes may start at once.
"""

import hashlib
import re
from importlib.resources import files
from importlib.resources.abc import Traversable

import msgspec

from sojourn.errors import StoreUnavailable
from sojourn.store.db import Connection, Database

LOCK = 0x504A_0002
FILE_NAME = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")
TABLE = """
create table if not exists schema_migration (
    version    integer primary key,
    name       text not null,
    sha256     bytea not null,
    applied_at timestamptz not null default now()
)
"""


class Migration(msgspec.Struct, frozen=True):
    """One file."""

    version: int
    name: str
    sha256: bytes
    sql: str


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

    Raises StoreUnavailable when an applied file has changed, or the database is newer than this code.
    """
    migrations = load() if migrations is None else migrations
    applied: list[str] = []
    async with database.migrator() as connection:
        while True:
            async with connection.transaction():
                await connection.execute("select pg_advisory_xact_lock($1)", LOCK)
                await connection.execute(TABLE)
                left = await _pending(connection, migrations)
                if not left:
                    return applied
                await _apply(connection, left[0])
                applied.append(left[0].name)


async def pending(database: Database, migrations: list[Migration] | None = None) -> list[str]:
    """Name the migrations that have not been applied; raises as `migrate` does."""
    migrations = load() if migrations is None else migrations
    async with database.migrator() as connection:
        if await connection.fetchval("select to_regclass('public.schema_migration')") is None:
            return [migration.name for migration in migrations]
        return [migration.name for migration in await _pending(connection, migrations)]


async def _pending(connection: Connection, migrations: list[Migration]) -> list[Migration]:
    """Compare the files with what the database says was applied."""
    rows = await connection.fetch("select version, name, sha256 from schema_migration order by version")
    if len(rows) > len(migrations):
        raise StoreUnavailable(
            f"The database is at migration {rows[-1]['version']} and this release knows {len(migrations)}. Start the "
            "newer release, or restore the database from before its upgrade.",
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


async def _apply(connection: Connection, migration: Migration) -> None:
    """Run one file and write it down."""
    await connection.execute(migration.sql)
    await connection.execute(
        "insert into schema_migration (version, name, sha256) values ($1, $2, $3)",
        migration.version,
        migration.name,
        migration.sha256,
    )
