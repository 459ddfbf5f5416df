"""One transaction, and Idempotency-Key: the same request twice is one request. Called by handlers that write.

The rule: what a request writes, the memory of its answer and its row of the audit log are one transaction, so a crash
leaves all or nothing; it is committed when the request is counted, and doorbells ring only after it. A refusal is not
remembered: it changed nothing, and the next try may succeed.
"""

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
from aiohttp import web

from sojourn.api.audit import acts
from sojourn.api.route import Answer, Ask, Route
from sojourn.errors import Invalid
from sojourn.store.db import Connection
from sojourn.store.tenant import idempotency

Work = Callable[[Connection], Awaitable[Answer]]

KEY_CHARS_MAX = 255


class Kept(msgspec.Struct, frozen=True):
    """An answer as it is remembered."""

    headers: Mapping[str, str]
    body: msgspec.Raw


async def once(ask: Ask[Any, Any], work: Work) -> Answer:
    """Do the work in one transaction, or give the answer that it had before; then ring the doorbells."""
    key = key_of(ask.http, ask.route)
    async with ask.transaction() as connection:
        answer = await _done(ask, connection, work) if key is None else await _remembered(ask, key, connection, work)
        if ask.counting is not None:
            await ask.counting
    for channel, id_ in answer.rings:
        ask.parts.doorbell.ring(channel, (id_,))
    return answer


def key_of(http: web.Request, route: Route) -> str | None:
    """The caller's Idempotency-Key. Raises Invalid."""
    key = http.headers.get("Idempotency-Key") if route.creates else None
    if key is not None and not (0 < len(key) <= KEY_CHARS_MAX and key.isascii() and key.isprintable()):
        raise Invalid(f"Idempotency-Key is 1 to {KEY_CHARS_MAX} printable ASCII characters.")
    return key


def digest_of(http: web.Request, raw: bytes) -> str:
    """What makes a request the same as another one."""
    return hashlib.sha256(f"{http.rel_url.raw_path_qs}\n".encode() + raw).hexdigest()


async def _done(ask: Ask[Any, Any], connection: Connection, work: Work) -> Answer:
    answer = await work(connection)
    if ask.route.audit is not None:
        await acts.note(ask, connection, answer)
    return answer


async def _remembered(ask: Ask[Any, Any], key: str, connection: Connection, work: Work) -> Answer:
    stored = await idempotency.begin(
        connection,
        key,
        route=ask.route.name,
        request_digest=digest_of(ask.http, ask.raw),
        ttl_s=ask.parts.settings.idempotency_hours * 3600,
    )
    if stored is not None:
        kept = msgspec.json.decode(stored.body, type=Kept)
        return Answer(
            status=stored.status, body=bytes(kept.body), headers={**kept.headers, "Idempotency-Replayed": "true"}
        )
    answer = await _done(ask, connection, work)
    kept = Kept(headers=answer.headers, body=msgspec.Raw(msgspec.json.encode(answer.body)))
    await idempotency.finish(connection, key, status=answer.status, body=msgspec.json.encode(kept))
    return answer
