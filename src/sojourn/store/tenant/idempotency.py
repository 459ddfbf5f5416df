"""Answers by Idempotency-Key, so that a request that is sent again is not done again. Called by the API.

    begin    None: go on, and this key is yours until `finish`; an answer: give that one
    finish   keep the answer
    forget   let the key be used again, after a failure that changed nothing

The rule: a key belongs to one user and one request. Whoever began and never finished is taken for dead after a minute.
"""

from sojourn.errors import Conflict, IdempotencyReused
from sojourn.store.db import Connection, Database
from sojourn.store.rows import Stored

BEGIN = """
insert into idempotency as i (tenant, user_id, key, route, request_digest, expires_at)
values (scope_tenant(), scope_user(), $1, $2, $3, now() + make_interval(secs => $4))
on conflict (tenant, user_id, key) do update set
    route = excluded.route, request_digest = excluded.request_digest, expires_at = excluded.expires_at,
    created_at = now(), status = null, body = null
where i.expires_at < now() or i.status is null and i.created_at < now() - interval '1 minute'
    and i.route = excluded.route and i.request_digest = excluded.request_digest
returning true
"""
OURS = "where tenant = (select scope_tenant()) and user_id = (select scope_user()) and key = $1"
FIND = f"select route, request_digest, status, body from idempotency {OURS}"
FINISH = f"update idempotency set status = $2, body = $3 {OURS}"
FORGET = f"delete from idempotency {OURS} and status is null"


async def begin(conn: Connection, key: str, *, route: str, request_digest: str, ttl_s: float) -> Stored | None:
    """Take a key for a request, or find what the same request was answered.

    Raises IdempotencyReused for another request, and Conflict (request.in_progress) while the first is still at work.
    """
    if await conn.fetchval(BEGIN, key, route, request_digest, ttl_s):
        return None
    row = await conn.fetchrow(FIND, key)
    if row is not None and (row["route"], row["request_digest"]) != (route, request_digest):
        raise IdempotencyReused("This Idempotency-Key was used before with another request; use a new one.")
    if row is None or row["status"] is None:
        raise Conflict("A request with this Idempotency-Key is still at work.", code="request.in_progress")
    return Stored(row["status"], row["body"])


async def finish(conn: Connection, key: str, *, status: int, body: bytes) -> None:
    """Keep the answer of a request."""
    await conn.execute(FINISH, key, status, body)


async def forget(conn: Connection, key: str) -> None:
    """Give a key back that was begun and not finished."""
    await conn.execute(FORGET, key)


async def prune(db: Database) -> int:
    """Forget what has expired, and say how many."""
    async with db.engine() as engine:
        status = await engine.execute("delete from idempotency where expires_at < now()")
    return int(status.split()[-1])
