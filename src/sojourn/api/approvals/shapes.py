"""What callers send to and get from /v1/approvals. The routes use them, and the reference is made from them."""

from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from sojourn.api.agents.shapes import LimitsSpec
from sojourn.api.runs.shapes import approval_id
from sojourn.loop.continuation import Decision, Wait, WaitKind
from sojourn.store.rows import RunRow


class Vote(msgspec.Struct, frozen=True, kw_only=True):
    """One person's yes."""

    by: str
    at: datetime


class Approval(msgspec.Struct, frozen=True, kw_only=True):
    """An open question."""

    id: str
    """POST /v1/approvals/{id} answers it."""
    run_id: str
    session_id: str
    agent: str
    kind: str
    title: str
    display: str
    """What would run, rendered by the server from the arguments that are bound; marks that hide text are shown."""
    path: str
    """The frame that asks, "/" for the root."""
    call: str | None
    arguments_digest: str | None
    """Send it back with the answer: other arguments than these are then not decided."""
    allowed: tuple[str, ...]
    need: int
    """So many different people must approve."""
    votes: tuple[Vote, ...]
    approvers: tuple[str, ...]
    """Who may answer; empty: everybody whose key may decide."""
    exclude_initiator: bool
    created_at: datetime
    expires_at: datetime | None
    on_expire: str


class Detail(Approval, frozen=True, kw_only=True):
    """An open question with all that it is about."""

    tool: str | None
    arguments: str | None
    """What would run, whole, as raw JSON text."""
    proposed: str | None
    """What the model wrote, where a person has edited it."""
    schema: msgspec.Raw | None
    """The JSON Schema that edited arguments must fit."""
    reason: str
    """Why the policy asks."""


class ApprovalsPage(msgspec.Struct, frozen=True, kw_only=True):
    """Open questions; those of one run come together."""

    data: tuple[Approval, ...]
    has_more: bool
    next: str | None


class Grant(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A yes for further calls of the same tool in the same frame."""

    count: Annotated[int, Meta(ge=1, le=1000)]
    """For so many more calls."""
    same_arguments: bool = True
    """Only for the very same arguments."""
    expires_at: Annotated[datetime, Meta(tz=True)] | None = None


class Decide(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An answer."""

    decision: Decision
    reason: Annotated[str, Meta(max_length=1000)] = ""
    """The model reads it where the call is rejected."""
    text: Annotated[str, Meta(max_length=65536)] = ""
    """What the model reads in the tool's place, where the decision is `answer` or `mark_done`."""
    arguments: dict[str, Any] | None = None
    """What runs instead, where the decision is `edit`."""
    arguments_digest: Annotated[str, Meta(max_length=80)] | None = None
    """What you saw; the answer is refused where it is about something else by now."""
    grant: Grant | None = None
    limits: LimitsSpec | None = None
    """The new limits, where the decision is `extend` and the question is about a budget."""
    expires_at: Annotated[datetime, Meta(tz=True)] | None = None
    """The new end, where the decision is `extend` and the question runs out."""
    rev: Annotated[int, Meta(ge=0)] | None = None
    """The run's `rev` as you saw it; the answer is refused where anything has happened since."""


class Noted(msgspec.Struct, frozen=True, kw_only=True):
    """The answer is in the run's inbox."""

    accepted: bool
    replayed: bool = False
    """It had been given before, and nothing was changed."""


class ToolResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a tool of yours returned: its output, or an error that the model reads."""

    call: Annotated[str, Meta(max_length=200)]
    """The call's id, as the event agent.tool_use and the run's `waits` name it."""
    output: Annotated[str, Meta(max_length=262144)] | None = None
    error: Annotated[str, Meta(max_length=65536)] | None = None


PEOPLE: frozenset[WaitKind] = frozenset(
    ("approval", "answer", "auth", "budget", "turns", "seconds", "outcome_unknown", "hold", "loop_guard")
)
"""The questions that only a person answers: the inbox shows these, if no kind is asked for."""


def seen(run: RunRow, wait: Wait) -> Approval:
    """Show an open question."""
    return Approval(**_fields(run, wait))


def detail(run: RunRow, wait: Wait, **more: Any) -> Detail:
    """Show an open question with all that it is about."""
    return Detail(**_fields(run, wait), **more)


def _fields(run: RunRow, wait: Wait) -> dict[str, Any]:
    return {
        "id": approval_id(run.id, wait.id),
        "run_id": run.id,
        "session_id": run.session_id,
        "agent": run.agent.name,
        "kind": wait.kind,
        "title": wait.title,
        "display": wait.display,
        "path": wait.frame,
        "call": wait.call,
        "arguments_digest": wait.args_digest,
        "allowed": wait.allowed,
        "need": wait.ask.need,
        "votes": tuple(Vote(by=vote.by, at=vote.at) for vote in wait.votes),
        "approvers": wait.ask.approvers,
        "exclude_initiator": wait.ask.exclude_initiator,
        "created_at": wait.created_at,
        "expires_at": wait.expires_at,
        "on_expire": wait.ask.on_expire,
    }
