"""Reads the audit log. Called by the API in a tenant's scope, and by the operator's commands.

The rule: a chain is named in every statement, for the operator's role sees them all.
"""

from collections.abc import Mapping
from datetime import datetime

import asyncpg  # type: ignore[import-untyped]
import msgspec

from sojourn.loop.messages import Plain
from sojourn.store.audit.writing import Outcome
from sojourn.store.db import Connection

COLUMNS = """
tenant, n, at, action, subject, operator, user_id, key_id, request_id, address, outcome, detail,
encode(hash, 'hex') as hash
"""
PAGE = f"select {COLUMNS} from audit where tenant = $1 and n < $2 {{}} order by n desc limit $3"
# An index answers these two; '/' comes after '.'.
FILTERS = {
    "action": """and action collate "C" = ${}""",
    "noun": """and action collate "C" >= ${0} || '.' and action collate "C" < ${0} || '/'""",
    "user": "and user_id = ${}",
    "since": "and at >= ${}",
    "until": "and at < ${}",
}
CHAIN = f"select {COLUMNS} from audit where tenant = $1 and n > $2 and n <= $3 order by n limit $4"
HEAD = "select tenant, n, encode(hash, 'hex') as hash from audit_head where tenant = $1"
NEWEST = 2**63 - 1


class Entry(Plain, frozen=True, kw_only=True):
    """Who did what: one row of the audit log."""

    n: int
    """Its place in the chain, from 1 on without a gap."""
    tenant: str
    """Whose chain this is; `*` is the operator's."""
    at: datetime
    action: str
    """`<noun>.<verb>`, such as `key.create`."""
    subject: str
    """The id or name of what was acted on; empty where a refused request named nothing."""
    operator: bool
    """The operator did it on the command line; `user_id` is then a login of that machine."""
    user_id: str
    key_id: str
    request_id: str
    address: str
    """The address that the request came from, as the server saw it."""
    outcome: Outcome
    """`refused` is what the caller may not do; of each key and action one in an hour is written."""
    detail: Mapping[str, str]
    """What else there is to say, without secrets, prompts and arguments."""
    hash: str
    """SHA-256 over all this and the hash of the row before, in hexadecimal digits."""


class Head(Plain, frozen=True, kw_only=True):
    """The end of a chain. Kept elsewhere, it proves later that nothing before it was changed."""

    tenant: str
    n: int
    hash: str


class Wanted(Plain, frozen=True, kw_only=True):
    """Which rows: None means all."""

    action: str | None = None
    """An action, or the noun that all actions on it begin with."""
    user: str | None = None
    since: datetime | None = None
    until: datetime | None = None


async def page(conn: Connection, tenant: str, wanted: Wanted, *, before: int | None, limit: int) -> list[Entry]:
    """Read rows, the newest first."""
    statement, where = selected(wanted)
    rows = await conn.fetch(statement, tenant, NEWEST if before is None else before, limit, *where)
    return [_entry(row) for row in rows]


def selected(wanted: Wanted) -> tuple[str, list[str | datetime]]:
    """Write the statement of a page with the filters that are given, and what they compare with."""
    kind = "action" if "." in (wanted.action or "") else "noun"
    asked = {kind: wanted.action, "user": wanted.user, "since": wanted.since, "until": wanted.until}
    given = {name: value for name, value in asked.items() if value is not None}
    return PAGE.format(" ".join(FILTERS[name].format(n) for n, name in enumerate(given, 4))), [*given.values()]


async def chain(conn: Connection, head: Head, *, after: int, limit: int) -> list[Entry]:
    """Read rows up to a head, the oldest first."""
    return [_entry(row) for row in await conn.fetch(CHAIN, head.tenant, after, head.n, limit)]


async def head(conn: Connection, tenant: str) -> Head:
    """Read where a chain ends; row 0 where nothing was done yet."""
    row = await conn.fetchrow(HEAD, tenant)
    return Head(**row) if row else Head(tenant=tenant, n=0, hash="0" * 64)


def _entry(row: asyncpg.Record) -> Entry:
    return Entry(**{**row, "detail": msgspec.json.decode(row["detail"])})
