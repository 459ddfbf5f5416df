"""API keys: random tokens, of which only the SHA-256 is kept. Called by the API's guard and the command line.

The rule: the database checks a key and mints the handle, and it alone lets a key manager make or revoke keys.
"""

import hashlib
import re
import secrets
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import TypedDict, Unpack

import asyncpg  # type: ignore[import-untyped]

from sojourn.errors import Conflict, Forbidden, Invalid, NotFound, Unauthenticated
from sojourn.store.audit import writing as audit
from sojourn.store.audit.operator import operator
from sojourn.store.audit.writing import Act
from sojourn.store.db import Connection, Database
from sojourn.store.rows import KeyRow, Principal

AUTHENTICATE = "select * from authenticate($1)"
CREATE = "select create_key($1, $2, $3, $4, $5, $6, $7, $8)"
REPLACE = "select replace_key($1, $2, $3, $4, $5)"
FOUND = "select found_tenant($1, $2, $3, $4, $5, $6)"
ROWS = """
select id, prefix, user_id, name, scopes, created_at, expires_at, revoked_at, last_used_at, replaced_by,
    confined
from api_key where tenant = (select scope_tenant())
"""
PAGE = f"{ROWS} and (created_at, id) < ($1, $2) order by created_at desc, id desc limit $3"
CURSOR = re.compile(r"([0-9]{1,17})\.([A-Za-z0-9_-]{1,64})")
EPOCH, MICROSECOND = datetime.fromtimestamp(0, UTC), timedelta(microseconds=1)

TENANT, LOCAL_KEY = "default", "first key"
RECOVER = """
with revoked as (
    update api_key set revoked_at = now() where tenant = $1 and name = $7 and revoked_at is null
)
insert into api_key (tenant, id, hash, prefix, user_id, name, scopes)
select id, $2, $3, $4, $5, $7, $6 from tenant where id = $1
returning 1
"""

MARK = "sj_"
SHOWN = len(MARK) + 6
"""How much of a token a list may show."""


async def authenticate(db: Database, token: str) -> Principal:
    """Find out who calls. Raises Unauthenticated for a token that is unknown, expired or revoked."""
    async with db.api() as connection:
        row = await connection.fetchrow(AUTHENTICATE, _hash(token))
    if row is None:
        raise Unauthenticated("The API key is unknown, expired or revoked.")
    return Principal(
        tenant=row["tenant"],
        user=row["user_id"],
        key_id=row["key_id"],
        scopes=frozenset(row["scopes"]),
        handle=row["handle"],
        expires_at=row["handle_expires_at"],
    )


class Terms(TypedDict, total=False):
    """What may be said of a new key beside."""

    expires_at: datetime | None
    confined: bool
    """It sees and touches what is its user's alone."""


async def create(
    conn: Connection, *, user: str, name: str, scopes: Collection[str], **terms: Unpack[Terms]
) -> tuple[KeyRow, str]:
    """Make a key for a user of the caller's tenant; give its row and its token, which is never shown again.

    Raises Forbidden where the caller's own key may not manage keys (admin:keys, admin:* or *), or is confined.
    """
    key_id, token = _new()
    given = (key_id, _hash(token), token[:SHOWN], user, name, list(scopes))
    try:
        await conn.execute(CREATE, *given, terms.get("expires_at"), terms.get("confined", False))
    except asyncpg.InsufficientPrivilegeError:
        raise _forbidden() from None
    return await get(conn, key_id), token


async def get(conn: Connection, key_id: str) -> KeyRow:
    """Read a key. Raises NotFound."""
    row = await conn.fetchrow(f"{ROWS} and id = $1", key_id)
    if row is None:
        raise NotFound(f"There is no key {key_id}.")
    return _row(row)


async def page(conn: Connection, *, after: str | None = None, limit: int = 50) -> tuple[list[KeyRow], str | None]:
    """Read a page of the tenant's keys, newest first, and the cursor of the next one. Raises Invalid for no cursor."""
    found = [_row(row) for row in await conn.fetch(PAGE, *_place(after), limit + 1)]
    rows, more = found[:limit], len(found) > limit
    return rows, f"{(rows[-1].created_at - EPOCH) // MICROSECOND}.{rows[-1].id}" if more else None


def _place(cursor: str | None) -> tuple[datetime, str]:
    """The time and the id of the key that a page begins after; keys of one moment have no other order."""
    if cursor is None:
        return datetime.max.replace(tzinfo=UTC), ""
    match = CURSOR.fullmatch(cursor)
    if match is None:
        raise Invalid("This is no cursor of such a page.", pointer="/after")
    return EPOCH + int(match[1]) * MICROSECOND, match[2]


async def revoke(conn: Connection, key_id: str) -> None:
    """End a key; a handle that it got lives five more minutes at most. Raises NotFound, and Forbidden as `create`."""
    try:
        if not await conn.fetchval("select revoke_key($1)", key_id):
            raise NotFound(f"There is no key {key_id}.")
    except asyncpg.InsufficientPrivilegeError:
        raise _forbidden() from None


async def replace(conn: Connection, key_id: str, overlap: timedelta) -> tuple[KeyRow, str]:
    """Make a key's successor, which its schedules act as from now on; the key ends after the overlap at the latest.

    Gives the successor as `create` does. Raises NotFound, Conflict for a key that has ended or has a successor, and
    Forbidden as `create`.
    """
    new_id, token = _new()
    try:
        trouble = await conn.fetchval(REPLACE, key_id, new_id, _hash(token), token[:SHOWN], overlap)
    except asyncpg.InsufficientPrivilegeError:
        raise _forbidden() from None
    if trouble is None:
        raise NotFound(f"There is no key {key_id}.")
    if trouble:
        raise Conflict(f"The key {key_id} {trouble}.", code="key.ended")
    return await get(conn, new_id), token


async def bootstrap(
    db: Database, *, tenant: str = TENANT, user: str = "local", scopes: Collection[str] = ("*",), by: str = "setup"
) -> str | None:
    """Make a tenant with its first key and give the token; None where the tenant exists."""
    key_id, token = _new()
    act = Act(action="tenant.create", subject=tenant, detail={"key": key_id, "user": user, "scopes": " ".join(scopes)})
    async with db.migrator() as connection, connection.transaction():
        made = await connection.fetchval(FOUND, tenant, key_id, _hash(token), token[:SHOWN], user, list(scopes))
        if made:
            await audit.operated(connection, act, tenant=tenant, by=by)
    return token if made else None


async def recover(db: Database, *, tenant: str = TENANT, user: str = "local", by: str = "setup") -> str:
    """Make a first key anew for whoever owns the database, and end the older ones. Raises NotFound."""
    key_id, token = _new()
    arguments = (tenant, key_id, _hash(token), token[:SHOWN], user, ["*"], LOCAL_KEY)
    act = Act(action="key.recover", subject=key_id, detail={"user": user})
    async with operator(db) as conn:
        if not await conn.fetchval(RECOVER, *arguments):
            raise NotFound(f"There is no tenant {tenant}. `sojourn tenants list` lists them.")
        await audit.operated(conn, act, tenant=tenant, by=by)
    return token


def _new() -> tuple[str, str]:
    """Make up an id and a token."""
    return f"key_{secrets.token_hex(10)}", MARK + secrets.token_urlsafe(32)


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="replace")).digest()


def _row(row: asyncpg.Record) -> KeyRow:
    return KeyRow(**{**row, "scopes": tuple(row["scopes"])})


def _forbidden() -> Forbidden:
    return Forbidden("This needs a key with the scope admin:keys.")
