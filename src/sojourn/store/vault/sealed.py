"""A tenant's data keys, secrets and signing key as they are kept. Called by `identity/secrets/vault.py`.

The rule: what was sealed and the key that it is under are read in one statement, so no rotation comes between them.
"""

from collections.abc import Mapping
from typing import Any

import asyncpg  # type: ignore[import-untyped]
import msgspec

from sojourn.errors import Forbidden, NotFound
from sojourn.store.db import Connection

CURRENT = (
    "select tenant, id, root_key, wrapped from data_key where ended_at is null and tenant = (select scope_tenant())"
)
OFFER = """
insert into data_key (tenant, id, root_key, wrapped) values ((select scope_tenant()), $1, $2, $3) on conflict do nothing
"""
VERSION = """
select s.version, s.sealed, d.tenant, d.id, d.root_key, d.wrapped
from secret s join data_key d on d.tenant = s.tenant and d.id = s.data_key
where s.tenant = (select scope_tenant()) and s.name = $1 and s.version = coalesce($2, (
    select max(n.version) from secret n where n.tenant = (select scope_tenant()) and n.name = $1
))
"""
NEWEST = "select coalesce(max(version), 0) from secret where tenant = (select scope_tenant()) and name = $1"
ADD = """
insert into secret (tenant, name, version, data_key, sealed) values ((select scope_tenant()), $1, $2, $3, $4)
on conflict do nothing
"""
FORGET = "delete from secret where tenant = (select scope_tenant()) and name = $1 and version < $2"


class Wrapped(msgspec.Struct, frozen=True):
    """A data key as it is kept."""

    tenant: str
    id: str
    root_key: str
    wrapped: bytes


class Secret(msgspec.Struct, frozen=True):
    """A version of a secret as it is kept, and the key that it is under."""

    name: str
    version: int
    sealed: bytes
    under: Wrapped


class Signing(msgspec.Struct, frozen=True):
    """The secret half of a signing key as it is kept: sealed under a data key, or plain."""

    tenant: str
    issuer: str
    plain: bytes | None
    sealed: bytes | None
    under: Wrapped | None


async def data_key(conn: Connection) -> Wrapped | None:
    """The tenant's current data key."""
    row = await conn.fetchrow(CURRENT)
    return Wrapped(**row) if row else None


async def offer(conn: Connection, key: Wrapped) -> Wrapped:
    """Make a data key the tenant's first one, and give the one that it is."""
    await conn.execute(OFFER, key.id, key.root_key, key.wrapped)
    return await data_key(conn) or key


async def tenant(conn: Connection) -> str:
    """Whose handle the connection has."""
    found: str = await conn.fetchval("select scope_tenant()")
    return found


async def get(conn: Connection, name: str, version: int | None) -> Secret:
    """A version of a secret, the newest if none is given. Raises NotFound."""
    row = await conn.fetchrow(VERSION, name, version)
    if row is None:
        raise NotFound(
            f"There is no secret {name}." if version is None else f"There is no version {version} of {name}."
        )
    return Secret(name, row["version"], row["sealed"], under(row, row["id"]))


async def newest(conn: Connection, name: str) -> int:
    """The newest version of a secret; 0 where there is none."""
    found: int = await conn.fetchval(NEWEST, name)
    return found


async def add(conn: Connection, secret: Secret) -> bool:
    """Keep a version of a secret; False where somebody else has taken its number."""
    status: str = await conn.execute(ADD, secret.name, secret.version, secret.under.id, secret.sealed)
    return status == "INSERT 0 1"


async def forget(conn: Connection, name: str, *, before: int) -> None:
    """Forget the versions of a secret before one."""
    await conn.execute(FORGET, name, before)


async def signing(conn: Connection) -> Signing | None:
    """The key that the tenant signs with, if it has one. Raises Forbidden without runs:read."""
    try:
        row = await conn.fetchrow("select * from signing_key()")
    except asyncpg.InsufficientPrivilegeError:
        raise Forbidden("This needs a key with the scope runs:read.") from None
    return as_signing(row) if row else None


async def offer_signing(conn: Connection, issuer: str, sealed: bytes, key: Wrapped) -> None:
    """Make a sealed key the one that the tenant signs with where it has none. Raises Forbidden without runs:read."""
    try:
        await conn.execute("select offer_signing_key($1, $2, $3)", issuer, sealed, key.id)
    except asyncpg.InsufficientPrivilegeError:
        raise Forbidden("This needs a key with the scope runs:read.") from None


async def rotate_signing(conn: Connection, issuer: str, sealed: bytes, key: Wrapped) -> None:
    """Sign with another key, sealed, from now on. Raises Forbidden without admin:keys."""
    try:
        await conn.execute("select rotate_signing_key($1, $2, $3)", issuer, sealed, key.id)
    except asyncpg.InsufficientPrivilegeError:
        raise Forbidden("This needs a key with the scope admin:keys.") from None


def as_signing(row: Mapping[str, Any]) -> Signing:
    """Read a row of a signing key with the columns of its data key."""
    key = under(row, row["data_key"]) if row["data_key"] else None
    return Signing(row["tenant"], row["issuer"], row["secret"], row["sealed"], key)


def under(row: Mapping[str, Any], key_id: str) -> Wrapped:
    """Read the columns of a data key."""
    return Wrapped(row["tenant"], key_id, row["root_key"], row["wrapped"])
