"""Appends to the audit log. Called by the API in a tenant's scope, and by what the operator does.

The rule: an act is noted last in its own transaction, for from then on whoever else acts in that tenant waits for it.
"""

from collections.abc import Mapping
from typing import Literal

import asyncpg  # type: ignore[import-untyped]
import msgspec

from sojourn.errors import Unauthenticated
from sojourn.loop.messages import Plain
from sojourn.store.db import Connection
from sojourn.store.roles import KEYRING

NOTE = "select audit_act($1, $2, $3, $4, $5, $6)"
OPERATE = "select audit_operator($1, $2, $3, $4, $5)"
EVERYBODY = "*"
"""In the place of a tenant: the operator's chain, and what is done to no single tenant."""

Outcome = Literal["done", "refused"]


class Act(Plain, frozen=True, kw_only=True):
    """What is told of one act. `detail` holds no secret, prompt or argument, but digests of them."""

    action: str
    """`<noun>.<verb>`"""
    subject: str = ""
    """The id or name of what was acted on."""
    detail: Mapping[str, str] = {}


class Origin(Plain, frozen=True, kw_only=True):
    """Where a request came from."""

    request_id: str
    address: str
    """As this server sees it: a proxy's, behind one."""


async def note(conn: Connection, act: Act, *, origin: Origin, outcome: Outcome = "done") -> None:
    """Write an act of the scope's principal; the same refusal again within an hour is not written twice.

    Raises Unauthenticated where the scope has ended meanwhile.
    """
    detail = msgspec.json.encode(act.detail)
    try:
        await conn.execute(NOTE, act.action, act.subject, detail, origin.request_id, origin.address, outcome)
    except asyncpg.InsufficientPrivilegeError:
        raise Unauthenticated(
            "The request took longer than its scope lasts; nothing was done. Send it again."
        ) from None


async def operated(conn: Connection, act: Act, *, tenant: str, by: str) -> None:
    """Write an act of the operator into his chain and that of the tenant, in a transaction of the database's owner."""
    await conn.execute(f"set local role {KEYRING}")
    await conn.execute(OPERATE, tenant, by, act.action, act.subject, msgspec.json.encode(act.detail))
