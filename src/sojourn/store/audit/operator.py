"""The transactions of the operator: who owns the database sees every tenant. Called by all that acts with that login.

The rule: no request and no worker comes here. No wall stands, so a statement names the tenants that it is about; what
is changed is told, by `writing.operated`.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg  # type: ignore[import-untyped]

from sojourn.errors import NotFound
from sojourn.store.db import Connection, Database
from sojourn.store.roles import KEYRING


@asynccontextmanager
async def operator(db: Database, *, readonly: bool = False) -> AsyncIterator[Connection]:
    """Lend a transaction that sees all tenants; a read-only one sees them as they are at one moment.

    Raises NotFound where there is no installation.
    """
    async with db.migrator() as conn, operating(conn, readonly=readonly):
        yield conn


@asynccontextmanager
async def operating(conn: Connection, *, readonly: bool = False) -> AsyncIterator[None]:
    """Begin such a transaction on a connection of the database's owner."""
    try:
        async with conn.transaction(isolation="repeatable_read" if readonly else None, readonly=readonly):
            await conn.execute(f"set local role {KEYRING}")
            yield
    except asyncpg.UndefinedTableError:
        raise NotFound(
            "There is no installation of this release in this database. `sojourn serve` makes one, or upgrades an "
            "older one."
        ) from None
