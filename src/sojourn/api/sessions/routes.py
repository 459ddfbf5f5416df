"""The handlers of /v1/sessions but for its files."""

from datetime import datetime
from typing import Literal

import msgspec

from sojourn.api.http.once import once
from sojourn.api.http.pages import Page
from sojourn.api.route import Answer, Ask, Audited, Route, own
from sojourn.store.db import Connection
from sojourn.store.retention import deletion
from sojourn.store.rows import SessionRow
from sojourn.store.tenant import sessions


class CreateSession(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Nothing to say about it yet."""


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation with its sandbox; it holds many runs, one at a time."""

    id: str
    object: Literal["session"] = "session"
    user_id: str
    created_at: datetime
    closed_at: datetime | None
    used_at: datetime


class SessionsPage(msgspec.Struct, frozen=True, kw_only=True):
    """Sessions, the newest first."""

    data: tuple[Session, ...]
    has_more: bool
    next: str | None


async def make(ask: Ask[CreateSession, None]) -> Answer:
    """Make a session."""

    async def work(connection: Connection) -> Answer:
        session_id = ask.parts.new_id("ses")
        row = await sessions.create(connection, session_id)
        return Answer(status=201, body=_seen(row), headers={"Location": f"/v1/sessions/{session_id}"})

    return await once(ask, work)


async def page(ask: Ask[None, Page]) -> Answer:
    """List sessions."""
    async with ask.transaction() as connection:
        found = await sessions.page(connection, after=ask.query.after, limit=ask.query.limit, user_id=own(ask))
    rows = tuple(_seen(row) for row in found.rows)
    return Answer(body=SessionsPage(data=rows, has_more=found.next is not None, next=found.next))


async def get(ask: Ask[None, None]) -> Answer:
    """Show one session."""
    async with ask.transaction() as connection:
        return Answer(body=_seen(await sessions.get(connection, ask.names["session_id"])))


async def close(ask: Ask[None, None]) -> Answer:
    """Close a session: no new run begins in it."""
    session_id = ask.names["session_id"]

    async def work(connection: Connection) -> Answer:
        return Answer(body=_seen(await sessions.close(connection, session_id)))

    return await once(ask, work)


async def delete(ask: Ask[None, None]) -> Answer:
    """Delete a session."""

    async def work(connection: Connection) -> Answer:
        await deletion.session(connection, ask.names["session_id"])
        return Answer(status=204)

    return await once(ask, work)


def _seen(row: SessionRow) -> Session:
    return Session(
        id=row.id, user_id=row.user_id, created_at=row.created_at, closed_at=row.closed_at, used_at=row.used_at
    )


ROUTES = (
    Route(
        method="POST",
        path="/v1/sessions",
        handler=make,
        summary="Make a session",
        detail="A run makes one by itself where none is given; make one first to put files into it.",
        tag="sessions",
        scope="sessions:write",
        body=CreateSession,
        body_optional=True,
        answers={201: (Session, "The session")},
        creates=True,
        example={},
    ),
    Route(
        method="GET",
        path="/v1/sessions",
        handler=page,
        summary="List sessions, newest first",
        tag="sessions",
        scope="sessions:read",
        query=Page,
        answers={200: (SessionsPage, "Sessions")},
    ),
    Route(
        method="GET",
        path="/v1/sessions/{session_id}",
        handler=get,
        summary="Get a session",
        tag="sessions",
        scope="sessions:read",
        answers={200: (Session, "The session")},
        refusals=("request.not_found",),
    ),
    Route(
        method="POST",
        path="/v1/sessions/{session_id}/close",
        handler=close,
        summary="Close a session",
        detail="No new run begins in it. Its files can still be read.",
        tag="sessions",
        scope="sessions:write",
        answers={200: (Session, "The session")},
        refusals=("request.not_found", "session.busy"),
        creates=True,
    ),
    Route(
        method="DELETE",
        path="/v1/sessions/{session_id}",
        handler=delete,
        summary="Delete a closed session",
        detail="With its runs and its files. What the runs cost stays in the usage.",
        tag="sessions",
        scope="sessions:write",
        audit=Audited(action="session.delete"),
        answers={204: (None, "It is gone")},
        refusals=("request.not_found", "session.open"),
    ),
)
