"""/v1/audit: who did what, as pages and as the whole chain.

The rule: an export is the chain as it stands, row after row without a gap, so that whoever has it can verify it alone.
"""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Literal

import msgspec
from aiohttp import web
from msgspec import Meta

from sojourn.api.http import parse, transfer
from sojourn.api.http.pages import Size
from sojourn.api.route import Answer, Ask, Route
from sojourn.errors import Invalid, SojournError
from sojourn.store.audit import reading
from sojourn.store.audit.reading import Entry, Head, Wanted

LINES = "application/jsonl"
BATCH = 500
FILTERS = ("action", "user", "since", "until")


class Query(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    action: (
        Annotated[str, Meta(max_length=81, description="Only this action, or those on this noun: `key`.")] | None
    ) = None
    user: Annotated[str, Meta(max_length=200, description="Only what this user did.")] | None = None
    since: Annotated[datetime, Meta(tz=True, description="Only from this time on.")] | None = None
    until: Annotated[datetime, Meta(tz=True, description="Only before this time.")] | None = None
    after: (
        Annotated[
            int,
            Meta(
                ge=0, le=2**63 - 1, description="The `next` of the page before; in an export, the row to go on after."
            ),
        ]
        | None
    ) = None
    limit: Size = 50
    format: Annotated[Literal["json", "jsonl"], Meta(description="`jsonl` is an export of the whole chain.")] = "json"


class AuditPage(msgspec.Struct, frozen=True, kw_only=True):
    """Rows, the newest first."""

    data: tuple[Entry, ...]
    has_more: bool
    next: str | None


async def page(ask: Ask[None, Query]) -> Answer | web.StreamResponse:
    """List rows, or send all of them."""
    asked = ask.query
    if asked.format == "jsonl" or LINES in ask.http.headers.get("Accept", ""):
        return await _export(ask)
    since = asked.since and parse.in_utc(asked.since, "/since")
    until = asked.until and parse.in_utc(asked.until, "/until")
    wanted = Wanted(action=asked.action, user=asked.user, since=since, until=until)
    async with ask.transaction() as connection:
        found = await reading.page(connection, ask.principal.tenant, wanted, before=asked.after, limit=asked.limit + 1)
    rows, more = tuple(found[: asked.limit]), len(found) > asked.limit
    return Answer(body=AuditPage(data=rows, has_more=more, next=str(rows[-1].n) if more else None))


async def head(ask: Ask[None, None]) -> Answer:
    """Show where the chain ends."""
    async with ask.transaction() as connection:
        return Answer(body=await reading.head(connection, ask.principal.tenant))


async def _export(ask: Ask[None, Query]) -> web.StreamResponse:
    """Send the chain up to its present head, and the head last. Raises Invalid for filters."""
    for name in FILTERS:
        if getattr(ask.query, name) is not None:
            raise Invalid("An export is the whole chain; filters go with the list.", pointer=f"/{name}")
    pieces = _pieces(ask)
    piece = await anext(pieces)
    name = transfer.attachment("audit.jsonl")
    response = web.StreamResponse(headers={"Content-Type": LINES, "Content-Disposition": name})
    await response.prepare(ask.http)
    try:
        while piece:
            async with asyncio.timeout(transfer.HELD_S):
                await response.write(piece)
            piece = await anext(pieces, b"")
    except (SojournError, TimeoutError):
        if ask.http.transport is not None:
            ask.http.transport.abort()
    return response


async def _pieces(ask: Ask[None, Query]) -> AsyncIterator[bytes]:
    """The lines of an export; no connection of the database is held while they are sent."""
    after = ask.query.after or 0
    async with ask.transaction() as connection:
        end = await reading.head(connection, ask.principal.tenant)
    while after < end.n:
        async with ask.transaction() as connection:
            rows = await reading.chain(connection, end, after=after, limit=BATCH)
        if not rows:
            break
        yield b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
        after = rows[-1].n
    yield msgspec.json.encode({"head": end}) + b"\n"


ROUTES = (
    Route(
        method="GET",
        path="/v1/audit",
        handler=page,
        summary="See who did what",
        detail="Keys, agents' versions, decisions, exports, stops and what else people do, each with who did it; and "
        "what their keys did not allow. Every row holds a hash over itself and the row before. With "
        "`format=jsonl`, or `Accept: application/jsonl`, the answer is the whole chain, the oldest row first, a line "
        'each, and `{"head": ...}` last: `sojourn audit verify` checks it.',
        tag="audit",
        scope="admin:audit",
        query=Query,
        answers={200: (AuditPage, "Rows")},
        media=("application/json", LINES),
    ),
    Route(
        method="GET",
        path="/v1/audit/head",
        handler=head,
        summary="See where the audit log ends",
        detail="Keep it where nobody here can change it: later it proves that nothing up to it was changed.",
        tag="audit",
        scope="admin:audit",
        answers={200: (Head, "The number and the hash of the last row")},
    ),
)
