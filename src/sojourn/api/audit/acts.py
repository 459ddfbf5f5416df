"""Writes what a route's `audit` says into the audit log. Called by `once`, by the guard, and by the export of runs.

The rule: an act is told in its own transaction, or did not happen. A refusal changes nothing, so one that cannot be
written stays the same refusal.
"""

import logging
from collections.abc import Callable
from typing import Any

from aiohttp import web

from sojourn.api.parts import Api
from sojourn.api.route import Answer, Ask, Audited
from sojourn.errors import SojournError
from sojourn.store.audit import writing
from sojourn.store.audit.writing import Act, Origin
from sojourn.store.db import Connection
from sojourn.store.rows import Principal

log = logging.getLogger("sojourn.api")

CHARS_MAX = 128
"""Of what comes as the caller likes: a name in a refused request, the address."""


async def note(ask: Ask[Any, Any], connection: Connection, answer: Answer) -> None:
    """Write what the route did, as the last thing of its transaction."""
    told = ask.route.audit
    assert told is not None, "the route says nothing of the audit log"
    action = (told.instead(ask) if told.instead else None) or told.action
    act = Act(action=action, subject=told.subject(ask, answer), detail=told.detail(ask, answer))
    await writing.note(connection, act, origin=_origin(ask.http, ask.request_id))


async def refused(parts: Api, principal: Principal, told: Audited, *, request: web.Request, request_id: str) -> None:
    """Write that a caller may not do this: of each key and action once an hour."""
    named = next(iter(request.match_info.values()), "")
    act = Act(action=told.action, subject=named[:CHARS_MAX] if named.isascii() and named.isprintable() else "")
    try:
        async with parts.database.scoped(principal.handle) as connection:
            await writing.note(connection, act, origin=_origin(request, request_id), outcome="refused")
    except SojournError as error:
        log.warning("audit.unwritten", extra={"request": request_id, "action": act.action, "code": error.code})


def made(field: str) -> Callable[[Ask[Any, Any], Answer], str]:
    """Name what was made by a field of the answer."""

    def subject(ask: Ask[Any, Any], answer: Answer) -> str:
        return str(getattr(answer.body, field))

    return subject


def _origin(request: web.Request, request_id: str) -> Origin:
    return Origin(request_id=request_id, address=(request.remote or "")[:CHARS_MAX])
