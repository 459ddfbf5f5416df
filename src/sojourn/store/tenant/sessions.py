"""Sessions: conversations with their sandbox. Called by the API, and by the worker through a lent scope.

The rule: the row says where the live sandbox is (`host`), and which archive rebuilds its files (`workspace`). A host
that wants the files of another one says so in `wanted_at`.
"""

from collections.abc import Collection
from datetime import datetime

import asyncpg  # type: ignore[import-untyped]

from sojourn.errors import Conflict, NotFound
from sojourn.store.db import Connection, Database
from sojourn.store.rows import IdleSession, SessionPage, SessionRow
from sojourn.store.stops.matching import NAMES_SESSION

COLUMNS = "id, user_id, created_at, closed_at, used_at, host, backend, workspace, enforced"
ROWS = f"select {COLUMNS} from session where tenant = (select scope_tenant())"
CREATE = f"insert into session (tenant, id, user_id) values (scope_tenant(), $1, scope_user()) returning {COLUMNS}"
UPDATE = "update session set {} where tenant = (select scope_tenant()) and id = $1"
TOUCH = UPDATE.format("used_at = now()") + " returning used_at"
WANT = UPDATE.format("wanted_at = now()")
PLACE = UPDATE.format("host = $2, backend = $3, enforced = $4")
# The archive that is replaced is needed no more.
SAVE = """
with before as (
    select tenant, workspace from session where tenant = (select scope_tenant()) and id = $1
), spare as (
    update blob b set look_at = greatest(b.kept_until, now()) from before
    where b.tenant = before.tenant and b.digest = before.workspace and b.digest <> $2 and b.look_at < 'infinity'
)
""" + UPDATE.format("workspace = coalesce($2, workspace), host = $3, begun = $4, wanted_at = null")
BEGUN = "select begun from session where tenant = (select scope_tenant()) and id = $1"
LOCK = "select from session where tenant = (select scope_tenant()) and id = $1 for update"
STILL = "select from session where tenant = (select scope_tenant()) and id = $1 for share"
CLOSE = """
update session s set closed_at = coalesce(closed_at, now())
where tenant = (select scope_tenant()) and id = $1 and not exists (
    select from run where tenant = s.tenant and session_id = s.id and finished_at is null
)
"""
# A session needs no sandbox once it is closed, stopped, or its run waits; one that was used just now may still be
# written to.
IDLE = f"""
select z.tenant, z.id, z.used_at from session z
where z.host = $1 and (
    z.used_at < now() - make_interval(secs => $2)
    or z.used_at < now() - make_interval(secs => $3) and (
        z.wanted_at is not null or exists (select from stop s where s.lifted_at is null and {NAMES_SESSION})
    )
    or z.used_at < now() - make_interval(secs => $4) and (z.closed_at is not null or exists (
        select from run r where r.tenant = z.tenant and r.session_id = z.id and r.status = 'suspended'
    ))
) and not exists (
    select from run r join worker w on w.id = r.lease_worker
    where r.tenant = z.tenant and r.session_id = z.id and w.host = z.host
)
order by z.wanted_at, z.used_at limit $5
"""
WANTED_S, OVER_S = 2.0, 60.0
KEPT = """
select id from session s
where id = any($2::text[]) and (host = $1 or host is not null and not exists (select from worker where host = s.host))
"""
NEWEST = "zzzz"
"""A cursor above every id."""


async def create(conn: Connection, session_id: str) -> SessionRow:
    """Begin a session of the caller. Raises Conflict where the id is taken."""
    try:
        return SessionRow(**await conn.fetchrow(CREATE, session_id))
    except asyncpg.UniqueViolationError:
        raise Conflict(f"There is a session {session_id} already.", code="session.exists") from None


async def get(conn: Connection, session_id: str) -> SessionRow:
    """Read one session. Raises NotFound."""
    row = await conn.fetchrow(f"{ROWS} and id = $1", session_id)
    if row is None:
        raise _missing(session_id)
    return SessionRow(**row)


async def lock(conn: Connection, session_id: str) -> SessionRow:
    """Read one session, and hold its row until the transaction ends. Raises NotFound."""
    await conn.execute(LOCK, session_id)
    return await get(conn, session_id)


async def still(conn: Connection, session_id: str) -> SessionRow:
    """Read one session, which nobody changes until the transaction ends. Raises NotFound."""
    await conn.execute(STILL, session_id)
    return await get(conn, session_id)


async def page(
    conn: Connection, *, after: str | None = None, limit: int = 50, user_id: str | None = None
) -> SessionPage:
    """Read a page of sessions, newest first; those of one user, if given."""
    whose, given = ("and user_id = $3", [user_id]) if user_id is not None else ("", [])
    statement = f"{ROWS} and id < $1 {whose} order by id desc limit $2"
    found = await conn.fetch(statement, after or NEWEST, limit + 1, *given)
    rows = tuple(SessionRow(**row) for row in found[:limit])
    return SessionPage(rows, rows[-1].id if len(found) > limit else None)


async def close(conn: Connection, session_id: str) -> SessionRow:
    """End a session. Raises NotFound, and Conflict while a run of it goes on."""
    await conn.execute(LOCK, session_id)  # first: who waited for it must see the run that was begun meanwhile
    if await conn.execute(CLOSE, session_id) == "UPDATE 0":
        await get(conn, session_id)
        raise Conflict(f"A run of session {session_id} goes on; cancel it first.", code="session.busy")
    return await get(conn, session_id)


async def touch(conn: Connection, session_id: str) -> datetime:
    """Say that the session's sandbox is used, and since when. Raises NotFound."""
    used_at: datetime | None = await conn.fetchval(TOUCH, session_id)
    if used_at is None:
        raise _missing(session_id)
    return used_at


async def want(conn: Connection, session_id: str) -> None:
    """Ask the host that has the session's files to put them away. Raises NotFound."""
    await _update(conn, WANT, session_id)


async def workspace(conn: Connection, session_id: str) -> str | None:
    """Give the digest of the last archive of the session's files. Raises NotFound."""
    return (await get(conn, session_id)).workspace


async def place(conn: Connection, session_id: str, *, host: str, backend: str, enforced: bytes | None) -> None:
    """Say where the session's sandbox runs now, and what it enforces (JSON). Raises NotFound."""
    await _update(conn, PLACE, session_id, host, backend, enforced)


async def begun(conn: Connection, session_id: str) -> str | None:
    """Give the record of what was ever begun on the session's files, which came with their archive."""
    record: str | None = await conn.fetchval(BEGUN, session_id)
    return record


async def save_workspace(
    conn: Connection, session_id: str, *, digest: str | None, begun: str | None = None, host: str | None = None
) -> None:
    """Say which archive holds the session's files (None: the last one); without a `host` no host has them any more.

    `begun` is the record that goes with it. Raises NotFound.
    """
    await _update(conn, SAVE, session_id, digest, host, begun)


async def idle(db: Database, *, host: str, older_than_s: float, limit: int = 100) -> list[IdleSession]:
    """Name the sessions on this host that were not used for a while, or that are over or wanted elsewhere."""
    async with db.engine() as engine:
        found = await engine.fetch(IDLE, host, older_than_s, WANTED_S, OVER_S, limit)
    return [IdleSession(row["tenant"], row["id"], row["used_at"]) for row in found]


async def kept(db: Database, *, host: str, ids: Collection[str]) -> frozenset[str]:
    """Name those of these sessions whose newest files may be on this host: neither archive nor living host has them."""
    async with db.engine() as engine:
        return frozenset(row["id"] for row in await engine.fetch(KEPT, host, list(ids)))


async def _update(conn: Connection, statement: str, session_id: str, *values: str | bytes | datetime | None) -> None:
    if await conn.execute(statement, session_id, *values) == "UPDATE 0":
        raise _missing(session_id)


def _missing(session_id: str) -> NotFound:
    return NotFound(f"There is no session {session_id}.")
