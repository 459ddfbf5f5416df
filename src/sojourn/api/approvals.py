"""/v1/approvals: what waits for a person, and their answers.

The rule: an answer names the one wait that it answers, is made by an authenticated key with a scope of its own, and
nothing that is said in a conversation can stand in for it.
"""

import binascii
from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from sojourn.api.agents.shapes import LimitsSpec
from sojourn.api.agents.specs import limits
from sojourn.api.http.once import once
from sojourn.api.http.pages import Page
from sojourn.api.route import Answer, Ask, Route
from sojourn.api.runs.routes import mailed, waiting
from sojourn.api.runs.shapes import OpenWait, wait_of
from sojourn.errors import Invalid, NotFound, NotWaiting
from sojourn.identity import scopes
from sojourn.loop.continuation import Decision
from sojourn.loop.events import Decided
from sojourn.store import runs
from sojourn.store.db import Connection


class Approval(msgspec.Struct, frozen=True, kw_only=True):
    """An open question."""

    id: str
    """POST /v1/approvals/{id} answers it."""
    run_id: str
    session_id: str
    agent: str
    kind: str
    title: str
    path: str
    call: str | None
    allowed: tuple[str, ...]
    created_at: datetime
    expires_at: datetime | None


class ApprovalsPage(msgspec.Struct, frozen=True, kw_only=True):
    """Open questions; those of one run come together."""

    data: tuple[Approval, ...]
    has_more: bool
    next: str | None


class Decide(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An answer."""

    decision: Decision
    reason: Annotated[str, Meta(max_length=1000)] = ""
    """The model reads it where the call is rejected."""
    text: Annotated[str, Meta(max_length=65536)] = ""
    """What the model reads in the tool's place, where the decision is `answer`."""
    limits: LimitsSpec | None = None
    """The new limits, where the decision is `extend`."""


class Noted(msgspec.Struct, frozen=True, kw_only=True):
    """The answer is in the run's inbox."""

    accepted: bool


async def page(ask: Ask[None, Page]) -> Answer:
    """List what waits."""
    async with ask.transaction() as connection:
        found = await runs.waiting(connection, after=ask.query.after, limit=ask.query.limit)
    data = tuple(
        _seen(waiting(run.id, one), run.id, run.session_id, run.agent.name) for run in found.rows for one in run.waits
    )
    return Answer(body=ApprovalsPage(data=data, has_more=found.next is not None, next=found.next))


async def decide(ask: Ask[Decide, None]) -> Answer:
    """Answer one question."""
    try:
        run_id, wait_id = wait_of(ask.names["approval_id"])
    except (ValueError, binascii.Error):
        raise NotFound from None
    body = ask.body

    async def work(connection: Connection) -> Answer:
        run = await runs.get(connection, run_id)
        wait = next((one for one in run.waits if one.id == wait_id), None)
        if wait is None:
            raise NotWaiting("Nobody waits for this answer any more: it was given, or the run has ended.")
        if body.decision not in wait.allowed:
            words = ", ".join(wait.allowed)
            raise Invalid(f"A wait of kind {wait.kind} takes one of: {words}.", pointer="/decision")
        raised = None
        if body.decision == "extend":
            scopes.require(ask.principal.scopes, "budgets:raise")
            if body.limits is None:
                raise Invalid("Say the new limits.", pointer="/limits")
            raised = limits(run.limits, body.limits)
        event = Decided(
            at=ask.parts.now(),
            wait=wait_id,
            by=ask.principal.user,
            decision=body.decision,
            reason=body.reason,
            text=body.text,
            limits=raised,
        )
        await runs.post(connection, run_id, event)
        return Answer(status=202, body=Noted(accepted=True), rings=mailed(run_id))

    return await once(ask, work)


def _seen(wait: OpenWait, run_id: str, session_id: str, agent: str) -> Approval:
    return Approval(
        id=wait.approval,
        run_id=run_id,
        session_id=session_id,
        agent=agent,
        kind=wait.kind,
        title=wait.title,
        path=wait.path,
        call=wait.call,
        allowed=wait.allowed,
        created_at=wait.created_at,
        expires_at=wait.expires_at,
    )


ROUTES = (
    Route(
        method="GET",
        path="/v1/approvals",
        handler=page,
        summary="List what waits for a person",
        tag="approvals",
        scope="approvals:read",
        query=Page,
        answers={200: (ApprovalsPage, "Open questions, page by page of runs")},
    ),
    Route(
        method="POST",
        path="/v1/approvals/{approval_id}",
        handler=decide,
        summary="Answer what waits",
        tag="approvals",
        scope="approvals:decide",
        body=Decide,
        answers={202: (Noted, "The run goes on with it")},
        refusals=("request.not_found", "run.not_waiting", "run.ended"),
        creates=True,
        example={"decision": "reject", "reason": "not on a Friday"},
    ),
)
