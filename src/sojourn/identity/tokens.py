"""From a bearer token to a principal, with a memory of 30 seconds. Called by the API for every request.

The rule: `callers` finds out who sends a token, and with that comes the handle that opens the tenant's rows; what is
remembered is a hash of the token, and never for longer than the token or the handle lives.
"""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

from sojourn.errors import Unauthenticated
from sojourn.store.rows import Principal

CACHE_S = 30.0
CACHE_MAX = 10_000
TOKEN_CHARS_MAX = 8000
"""What the HTTP server lets through in a header, less its name; an API key has 46, a JWT some 1,000."""

Lookup = Callable[[str], Awaitable[Principal]]


class Tokens:
    """The verified tokens of one process."""

    def __init__(self, lookup: Lookup, now: Callable[[], datetime]) -> None:
        self._lookup, self._now = lookup, now
        self._known: OrderedDict[bytes, tuple[datetime, Principal]] = OrderedDict()
        self._asking: dict[bytes, asyncio.Future[Principal]] = {}

    async def principal(self, token: str) -> Principal:
        """Say who sends this token. Raises Unauthenticated and StoreUnavailable."""
        if not token or len(token) > TOKEN_CHARS_MAX or not token.isascii() or not token.isprintable():
            raise Unauthenticated
        digest = hashlib.sha256(token.encode()).digest()
        found = self._known.get(digest)
        if found is not None and self._now() < found[0]:
            return found[1]
        return await self._ask(digest, token)

    def forget(self, key_id: str) -> None:
        """Drop what is remembered of a key that was revoked here; other processes notice within CACHE_S."""
        for digest in [digest for digest, (_, principal) in self._known.items() if principal.key_id == key_id]:
            del self._known[digest]
        self._asking.clear()  # what is being looked up may have been read before

    async def _ask(self, digest: bytes, token: str) -> Principal:
        """Ask the database once, however many requests wait for the answer."""
        asking = self._asking.get(digest)
        if asking is None:
            asking = asyncio.ensure_future(self._lookup(token))
            self._asking[digest] = asking
            asking.add_done_callback(lambda done: self._answered(digest, done))
        return await asyncio.shield(asking)

    def _answered(self, digest: bytes, done: "asyncio.Future[Principal]") -> None:
        self._known.pop(digest, None)
        if done.cancelled() or done.exception() is not None or self._asking.get(digest) is not done:
            self._asking.pop(digest, None)
            return
        del self._asking[digest]
        principal = done.result()
        until = self._now() + timedelta(seconds=CACHE_S)
        self._known[digest] = (min(until, principal.expires_at or until), principal)
        while len(self._known) > CACHE_MAX:
            self._known.popitem(last=False)
