"""One transaction, and Idempotency-Key: the same request twice is one request. Called by handlers that write.

The rule: what a request writes and the memory of its answer are one transaction, so a crash leaves both or neither, and
doorbells ring only after it. A refusal is not remembered: it changed nothing, and the next try may succeed.
"""

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from sojourn.api.route import Answer, Ask
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
    key = _key(ask)
    async with ask.transaction() as connection:
        answer = await work(connection) if key is None else await _remembered(ask, key, connection, work)
    for channel, id_ in answer.rings:
        ask.parts.doorbell.ring(channel, (id_,))
    return answer


def _key(ask: Ask[Any, Any]) -> str | None:
    """The caller's Idempotency-Key. Raises Invalid."""
    key = ask.http.headers.get("Idempotency-Key") if ask.route.creates else None
    if key is not None and not (0 < len(key) <= KEY_CHARS_MAX and key.isascii() and key.isprintable()):
        raise Invalid(f"Idempotency-Key is 1 to {KEY_CHARS_MAX} printable ASCII characters.")
    return key


async def _remembered(ask: Ask[Any, Any], key: str, connection: Connection, work: Work) -> Answer:
    route = f"{ask.route.method} {ask.route.path}"
    what = f"{ask.http.rel_url.raw_path_qs}\n".encode() + ask.raw
    stored = await idempotency.begin(
        connection,
        key,
        route=route,
        request_digest=hashlib.sha256(what).hexdigest(),
        ttl_s=ask.parts.settings.idempotency_hours * 3600,
    )
    if stored is not None:
        kept = msgspec.json.decode(stored.body, type=Kept)
        return Answer(
            status=stored.status, body=bytes(kept.body), headers={**kept.headers, "Idempotency-Replayed": "true"}
        )
    answer = await work(connection)
    kept = Kept(headers=answer.headers, body=msgspec.Raw(msgspec.json.encode(answer.body)))
    await idempotency.finish(connection, key, status=answer.status, body=msgspec.json.encode(kept))
    return answer
