"""What one route is, and what its handler gets and gives. Every noun's module lists its own; `app` serves them.

The rule: what stands in a Route is what the guard enforces and what the reference tells, so the two cannot differ.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import msgspec
from aiohttp import web

from sojourn.api.events.hub import Hub
from sojourn.api.http.gate import Gate
from sojourn.api.http.meter import Meter
from sojourn.api.parts import Api
from sojourn.api.patterns import DIGEST, ID, ISSUER, NAME
from sojourn.api.rates.known import Known
from sojourn.api.rates.limiter import Limiter
from sojourn.errors import SojournError
from sojourn.identity.tokens import Tokens
from sojourn.store.db import Connection
from sojourn.store.rows import Principal
from sojourn.store.sharing.rates import Class

B = TypeVar("B")
Q = TypeVar("Q")

NAMES: Mapping[str, str] = {
    "run_id": f"run_{ID}",
    "session_id": f"ses_{ID}",
    "key_id": f"key_{ID}",
    "stop_id": f"stp_{ID}",
    "webhook_id": f"whk_{ID}",
    "alert_id": f"alr_{ID}",
    "digest": DIGEST,
    "issuer": ISSUER,
    "approval_id": f"run_{ID}\\.[A-Za-z0-9_-]{{1,400}}",
    "name": NAME,
    "version": "[1-9][0-9]{0,8}",
    "user": "[^|\x00-\x1f\x7f]{1,200}",
    "path": ".{1,1024}",
}
"""What the parts of a path may look like; what looks otherwise cannot exist, and is not found."""


@dataclass(frozen=True, kw_only=True)
class Live:
    """What lives as long as the application: verified tokens, streams, counters, limits, gates."""

    tokens: Tokens
    hub: Hub
    meter: Meter
    limits: Known
    limiter: Limiter
    opening: Gate
    """Before the sandboxes."""
    moving: Gate
    """Before exports and imports, which are in memory several times over."""


@dataclass(frozen=True, kw_only=True)
class Ask(Generic[B, Q]):
    """One request, parsed and permitted."""

    parts: Api
    live: Live
    http: web.Request
    route: "Route"
    request_id: str
    token: str
    principal: Principal
    names: Mapping[str, str]
    body: B
    query: Q
    raw: bytes = b""
    """The body as it came."""
    counting: Awaitable[None] | None = None
    """Against its rate limits; raises RateLimited."""

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """Lend a transaction that sees what the caller may see now, however long ago the request began."""
        principal = await self.live.tokens.principal(self.token)
        async with self.parts.database.scoped(principal.handle) as connection:
            yield connection


def own(ask: Ask[Any, Any]) -> str | None:
    """The user whom a caller is confined to: said to a list, it is found by an index."""
    return ask.principal.user if ask.principal.confined else None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a handler says."""

    body: Any = None
    """A Struct that becomes JSON; bytes go out as they are."""
    status: int = 200
    headers: Mapping[str, str] = {}
    rings: tuple[tuple[str, str], ...] = ()
    """The doorbells (channel, id) to ring once the transaction is committed."""


Handler = Callable[[Ask[Any, Any]], Awaitable[Answer | web.StreamResponse]]


def _name(ask: Ask[Any, Any], answer: Answer) -> str:
    """The name in the path."""
    return next(iter(ask.names.values()))


def _nothing(ask: Ask[Any, Any], answer: Answer) -> Mapping[str, str]:
    return {}


@dataclass(frozen=True, kw_only=True)
class Audited:
    """What a route writes into the audit log, in the transaction of what it does; and when its caller may not do it."""

    action: str
    """`<noun>.<verb>`"""
    subject: Callable[[Ask[Any, Any], Answer], str] = _name
    """The id or name of what is acted on; what the path names, if not said."""
    detail: Callable[[Ask[Any, Any], Answer], Mapping[str, str]] = _nothing
    """What else is told: never a secret, a prompt or an argument."""
    instead: Callable[[Ask[Any, Any]], str | None] | None = None
    """Another action, where what is asked for is one."""


@dataclass(frozen=True, kw_only=True)
class Route:
    """One method on one path."""

    method: str
    path: str
    handler: Handler
    summary: str
    detail: str = ""
    tag: str
    scope: str | None = None
    """What the caller's key must allow; None asks for a key only."""
    public: bool = False
    """Nobody is asked who they are."""
    body: type | None = None
    body_optional: bool = False
    query: type | None = None
    answers: Mapping[int, tuple[type | None, str]]
    """By status: the Struct of the JSON body, None where there is none, and what it means."""
    refusals: tuple[type[SojournError] | str, ...] = ()
    """The refusals that are this route's own, by class or code; those of the guard come by themselves."""
    creates: bool = False
    """It takes an Idempotency-Key."""
    counted_meanwhile: bool = False
    """It begins while its limits are asked: all of it is done in `once`, which takes it back where one refuses."""
    media: tuple[str, ...] = field(default=("application/json",))
    """What the successful answer may be."""
    fills: bool = False
    """It takes room on the disk, and is refused while there is little."""
    upload: bool = False
    """The body is raw bytes, which the handler reads itself."""
    rate: Class | None = None
    """Which rate limits it counts against, where that does not follow from its method; see `counts_as`."""
    agent: Callable[[Any, Mapping[str, str]], str | None] | None = None
    """The agent that it counts for, by name, as its body and the names in its path tell."""
    example: Any = None
    """A body to show."""
    audit: Audited | None = None
    """What the audit log is told; its handler does its work in `once`, or calls `acts.note` at the end of its own."""

    @property
    def name(self) -> str:
        return f"{self.method} {self.path}"

    def counts_as(self, accept: str) -> Class:
        """The class of a request with that header."""
        if "text/event-stream" in self.media and "text/event-stream" in accept:
            return "streams"
        return self.rate or ("reads" if self.method == "GET" else "writes")
