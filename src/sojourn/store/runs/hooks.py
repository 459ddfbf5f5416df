"""Webhooks that outside systems send to a run. Called by the API.

The rule: the database holds the secret and verifies the signature, and lends the scope of the run for it; no process of
ours can speak for a run that nobody signed for.
"""

from sojourn.errors import NotFound
from sojourn.store.db import Connection, Database


async def secret(conn: Connection, run_id: str) -> bytes:
    """The 32 bytes that webhooks to a run are signed with. Raises NotFound."""
    found: bytes | None = await conn.fetchval("select hook_secret($1)", run_id)
    if found is None:
        raise NotFound(f"There is no run {run_id}.")
    return found


async def scope(
    database: Database, run_id: str, message_id: str, *, sent_s: int, signed: tuple[bytes, bytes]
) -> str | None:
    """The handle for a webhook by its body and signature; None where that is not the run's, or is old."""
    body, signature = signed
    async with database.api() as conn:
        handle: str | None = await conn.fetchval(
            "select hook_scope($1, $2, $3, $4, $5)", run_id, message_id, sent_s, body, signature
        )
    return handle
