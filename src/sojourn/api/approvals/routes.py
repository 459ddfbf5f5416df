"""/v1/approvals: what waits for a person, and their answers.

The rule: an answer names the one wait that it answers, is made by an authenticated key with a scope of its own, and
nothing that is said in a conversation can stand in for it.
"""

import binascii
from datetime import timedelta
from typing import Annotated

import msgspec
from msgspec import Meta

from sojourn.api.agents.specs import limits, need_price
from sojourn.api.approvals import judge, shapes
from sojourn.api.guardrails.screen import screened
from sojourn.api.http.once import once
from sojourn.api.http.pages import Page
from sojourn.api.route import Answer, Ask, Audited, Route
from sojourn.api.runs.shapes import wait_of
from sojourn.errors import Invalid, NotFound, NotWaiting, StaleVersion
from sojourn.identity import scopes
from sojourn.loop.agent import digest
from sojourn.loop.budget import Limits
from sojourn.loop.continuation import Wait, WaitKind, path
from sojourn.loop.events import Decided, NewGrant
from sojourn.loop.step.decisions import wrong_person
from sojourn.loop.step.waits import arguments
from sojourn.store import runs
from sojourn.store.db import Connection
from sojourn.store.rows import RunPage

EXTENDED_MAX = timedelta(days=366)


class Inbox(Page, frozen=True, forbid_unknown_fields=True, kw_only=True):
    run: Annotated[str, Meta(max_length=64, description="Only the questions of this run.")] | None = None
    kind: Annotated[WaitKind, Meta(description="Only this kind; without it, what only a person can answer.")] | None = (
        None
    )
    mine: Annotated[bool, Meta(description="Only what you may answer, and have not approved yet.")] = False
    expires_within_s: (
        Annotated[float, Meta(gt=0, le=10**9, description="Only what runs out within so many seconds.")] | None
    ) = None


async def page(ask: Ask[None, Inbox]) -> Answer:
    """List what waits."""
    wanted = ask.query
    async with ask.transaction() as connection:
        if wanted.run is not None:
            found = RunPage((await runs.get(connection, wanted.run),))
        else:
            found = await runs.waiting(connection, after=wanted.after, limit=wanted.limit)
    data = tuple(shapes.seen(run, wait) for run in found.rows for wait in run.waits if _wanted(ask, run.user_id, wait))
    return Answer(body=shapes.ApprovalsPage(data=data, has_more=found.next is not None, next=found.next))


def _wanted(ask: Ask[None, Inbox], initiator: str, wait: Wait) -> bool:
    """Whether the query asks for this question."""
    query, user = ask.query, ask.principal.user
    if (wait.kind != query.kind) if query.kind is not None else (wait.kind not in shapes.PEOPLE):
        return False
    if query.mine and wrong_person(wait, user, initiator, "approve") is not None:
        return False
    if query.expires_within_s is None:
        return True
    end = ask.parts.now() + timedelta(seconds=query.expires_within_s)
    return wait.expires_at is not None and wait.expires_at <= end


async def get(ask: Ask[None, None]) -> Answer:
    """Show one question with all that it is about."""
    run_id, wait_id = named(ask.names["approval_id"])
    async with ask.transaction() as connection:
        run = await runs.get(connection, run_id)
        if run.finished_at is not None:
            why = f" ({run.error.code})" if run.error is not None else ""
            raise NotWaiting(f"The run has ended{why}; nothing of it waits.")
        asked = await runs.asked(connection, run_id)
    wait = judge.open_wait(asked, wait_id)
    if wait is None:
        raise NotWaiting("Nobody waits for this answer any more.")
    call, tool = judge.call_of(asked, wait) if wait.call is not None else (None, None)
    effective = arguments(call) if call else None
    seen = shapes.detail(
        run,
        wait,
        tool=call.tool.name if call else None,
        arguments=effective,
        proposed=call.args if call and call.args != effective else None,
        schema=msgspec.Raw(tool.schema.encode()) if tool else None,
        reason=call.gate.reason if call and call.gate else "",
    )
    return Answer(body=seen, headers={"ETag": f'"{run.seq}"'})


async def decide(ask: Ask[shapes.Decide, None]) -> Answer:
    """Answer one question."""
    run_id, wait_id = named(ask.names["approval_id"])
    body = ask.body
    if body.decision == "edit" and body.arguments is None:
        raise Invalid("Say the arguments to run with.", pointer="/arguments")
    if body.decision == "extend":
        _extends(ask, body)
    text = await screened(ask, "tool_result", body.text, pointer="/text")

    async def work(connection: Connection) -> Answer:
        asked = await runs.asked(connection, run_id)
        if body.rev is not None and (await runs.get(connection, run_id)).seq != body.rev:
            raise StaleVersion("Something happened in the run since you read it; read it again.", pointer="/rev")
        event = Decided(
            at=ask.parts.now(),
            wait=wait_id,
            by=ask.principal.user,
            decision=body.decision,
            reason=body.reason,
            text=text(),
            args=msgspec.json.encode(body.arguments).decode() if body.decision == "edit" else None,
            args_digest=body.arguments_digest,
            grant=_grant(body),
            limits=_raised(ask, asked, wait_id),
            expires_at=body.expires_at if body.decision == "extend" else None,
        )
        return await judge.post(connection, asked, event)

    return await once(ask, work)


def named(approval: str) -> tuple[str, str]:
    """The run and the wait of an approval's id. Raises NotFound."""
    try:
        return wait_of(approval)
    except (ValueError, binascii.Error):
        raise NotFound from None


def _grant(body: shapes.Decide) -> NewGrant | None:
    if body.grant is None:
        return None
    if body.decision not in ("approve", "edit"):
        raise Invalid("A grant goes with a yes.", pointer="/grant")
    wanted = body.grant
    return NewGrant(count=wanted.count, same_arguments=wanted.same_arguments, expires_at=wanted.expires_at)


def _extends(ask: Ask[shapes.Decide, None], body: shapes.Decide) -> None:
    """See that the caller may raise limits, and that the new end is one. Raises Forbidden and Invalid."""
    if body.limits is not None:
        scopes.require(ask.principal.scopes, "budgets:raise")
    if body.expires_at is not None and body.expires_at > ask.parts.now() + EXTENDED_MAX:
        raise Invalid(
            f"An end is at most {EXTENDED_MAX.days} days away.", code="approval.no_end", pointer="/expires_at"
        )


def _raised(ask: Ask[shapes.Decide, None], asked: runs.Asked, wait_id: str) -> Limits | None:
    """The limits of the run or the sub-agent that the wait is about, with those that were said over them."""
    body = ask.body
    if body.decision != "extend" or body.limits is None:
        return None
    wait, whole = judge.open_wait(asked, wait_id), asked.continuation
    found = path(whole.root, wait.about) if wait is not None and wait.about else ()
    base = whole.limits if len(found) < 2 else found[-1].limits
    raised = limits(ask.parts, base or whole.limits, body.limits)
    if raised.usd_micros is not None:
        need_price(ask.parts, list(asked.agents.values()))
    return raised


def _told(ask: Ask[shapes.Decide, None], answer: Answer) -> dict[str, str]:
    """What the audit log says of an answer: arguments and words by their digests."""
    body = ask.body
    told = {"decision": body.decision}
    hidden = {"arguments": body.arguments, "text": body.text or None}
    shown = {"limits": body.limits, "grant": body.grant}
    told |= {name: digest(value) for name, value in hidden.items() if value is not None}
    return told | {name: msgspec.json.encode(value).decode() for name, value in shown.items() if value is not None}


def _raises(ask: Ask[shapes.Decide, None]) -> str | None:
    return "budget.raise" if ask.body.decision == "extend" and ask.body.limits is not None else None


ROUTES = (
    Route(
        method="GET",
        path="/v1/approvals",
        handler=page,
        summary="List what waits for a person",
        detail="The inbox over all runs. Tools of the caller's own, events and times are not in it: ask for the kind.",
        tag="approvals",
        scope="approvals:read",
        query=Inbox,
        answers={200: (shapes.ApprovalsPage, "Open questions, page by page of runs")},
    ),
    Route(
        method="GET",
        path="/v1/approvals/{approval_id}",
        handler=get,
        summary="Show what waits, with its arguments whole",
        tag="approvals",
        scope="approvals:read",
        answers={200: (shapes.Detail, "The question")},
        refusals=("request.not_found", "run.not_waiting", "run.ended"),
    ),
    Route(
        method="POST",
        path="/v1/approvals/{approval_id}",
        handler=decide,
        rate="decisions",
        summary="Answer what waits",
        detail=(
            "Of two answers the first one counts. The same answer again is accepted and changes nothing; another one "
            "is refused with approval.already_decided."
        ),
        tag="approvals",
        scope="approvals:decide",
        body=shapes.Decide,
        audit=Audited(action="approval.decide", detail=_told, instead=_raises),
        answers={202: (shapes.Noted, "The run goes on with it")},
        refusals=(
            "request.not_found",
            "run.ended",
            "approval.already_decided",
            "request.stale_version",
            "guardrail.refused",
            *judge.REFUSALS,
        ),
        creates=True,
        example={"decision": "reject", "reason": "not on a Friday"},
    ),
)
