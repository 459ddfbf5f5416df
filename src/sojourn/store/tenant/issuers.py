"""The keys that a tenant signs exports with, and those of others that it trusts. Called by the API.

The rule: the secret half comes out of the database for the one signature that is made with it, and only while its key
is active; the database alone says who may end a key or trust one.
"""

import asyncpg  # type: ignore[import-untyped]

from sojourn.errors import Forbidden, NotFound
from sojourn.store.db import Connection
from sojourn.store.rows import IssuerRow

OWN = """
select issuer, state, created_at, ended_at from seal_key where tenant = (select scope_tenant())
"""
TRUSTED = """
select issuer, 'trusted' as state, name, added_at as created_at from trusted_issuer
where tenant = (select scope_tenant())
"""
NEWEST_FIRST = "order by created_at desc, issuer"

Pair = tuple[str, bytes]
"""An issuer, and the secret half of its key."""


async def sealing(conn: Connection, offered: Pair) -> Pair:
    """The key to sign with; the one offered is kept where the tenant has none. Raises Forbidden without runs:read."""
    try:
        row = await conn.fetchrow("select issuer, secret from sealing_key($1, $2)", *offered)
    except asyncpg.InsufficientPrivilegeError:
        raise Forbidden("This needs a key with the scope runs:read.") from None
    return row["issuer"], row["secret"]


async def find(conn: Connection, issuer: str) -> IssuerRow | None:
    """What the tenant thinks of an issuer; None where it never heard of it. Its own keys come first."""
    for rows in (OWN, TRUSTED):
        if row := await conn.fetchrow(f"{rows} and issuer = $1", issuer):
            return IssuerRow(**row)
    return None


async def own(conn: Connection) -> list[IssuerRow]:
    """The tenant's own keys, newest first."""
    return [IssuerRow(**row) for row in await conn.fetch(f"{OWN} {NEWEST_FIRST}")]


async def trusted(conn: Connection) -> list[IssuerRow]:
    """The keys of others that the tenant trusts, newest first."""
    return [IssuerRow(**row) for row in await conn.fetch(f"{TRUSTED} {NEWEST_FIRST}")]


async def rotate(conn: Connection, fresh: Pair) -> None:
    """Sign with another key from now on. Raises Forbidden without admin:keys."""
    await _managed(conn, "select rotate_seal_key($1, $2)", *fresh)


async def revoke(conn: Connection, issuer: str) -> None:
    """Take a key's signatures for nothing. Raises NotFound, and Forbidden without admin:keys."""
    if not await _managed(conn, "select revoke_seal_key($1)", issuer):
        raise NotFound(f"You have no signing key {issuer}.")


async def trust(conn: Connection, issuer: str, name: str) -> None:
    """Let in what somebody else's key has signed. Raises Forbidden without admin:keys."""
    await _managed(conn, "select trust_issuer($1, $2)", issuer, name)


async def distrust(conn: Connection, issuer: str) -> None:
    """Let it in no longer. Raises NotFound, and Forbidden without admin:keys."""
    if not await _managed(conn, "select distrust_issuer($1)", issuer):
        raise NotFound(f"You do not trust a key {issuer}.")


async def _managed(conn: Connection, statement: str, *values: str | bytes) -> object:
    try:
        return await conn.fetchval(statement, *values)
    except asyncpg.InsufficientPrivilegeError:
        raise Forbidden("This needs a key with the scope admin:keys.") from None
