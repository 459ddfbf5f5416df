"""What callers send to and get from /v1/runs. `create` and `routes` use them, and the reference is made from them."""

import base64
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from sojourn.api.agents.shapes import LimitsSeen, Spec, Taints, VersionNumber, dollars
from sojourn.api.patterns import DIGEST, whole
from sojourn.loop.agent import Taint
from sojourn.loop.budget import Bill
from sojourn.loop.messages import Usage as Tokens
from sojourn.store.rows import PRIORITY_MAX, Status
from sojourn.store.sharing.limits import HeldBack

MEDIA_TYPE = "[a-z0-9][a-z0-9!#$&^_.+-]{0,63}/[a-z0-9][a-z0-9!#$&^_.+-]{0,63}"
Id = Annotated[str, Meta(max_length=64)]
Label = Annotated[str, Meta(max_length=256)]
Labels = Annotated[dict[Label, Label], Meta(max_length=16)]
Priority = Annotated[int, Meta(ge=0, le=PRIORITY_MAX)]
Instant = Annotated[datetime, Meta(tz=True)]
"""A time with its zone."""
DELAY_MAX_S = 366 * 86400

Digest = Annotated[str, Meta(pattern=whole(DIGEST), description="What POST /v1/blobs answered.")]
MediaType = Annotated[str, Meta(pattern=whole(MEDIA_TYPE))]
FileName = Annotated[str, Meta(pattern=whole(r"[^/\x00-\x1f\x7f]{0,200}"))]


class TextPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="text"):
    """Words."""

    text: str


class ImagePart(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="image"):
    """A picture: PNG, JPEG, GIF or WebP."""

    blob: Digest
    media_type: MediaType | None = None
    """What it was called when it came, where it is not said."""


class FilePart(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="file"):
    """A document. Models read text and PDF; of any other they learn that it is there."""

    blob: Digest
    media_type: MediaType | None = None
    """What it was called when it came, where it is not said."""
    name: FileName = ""


Part = TextPart | ImagePart | FilePart
Input = str | Annotated[list[Part], Meta(max_length=64)]
"""What a user says, in the order in which the model reads it. What a program is to read belongs into the session's
files."""


class CreateRun(Spec, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A goal, and who pursues it: an agent by name, one written out, or model, system and tools right here."""

    input: Input
    agent: Annotated[str, Meta(max_length=64)] | Spec | None = None
    """The name of an agent, whose live version runs; or a version written out."""
    version: VersionNumber | None = None
    """A version of the named agent, in place of the live one."""
    session: Id | None = None
    """The session to go on with; none makes a new one."""
    taints: Taints = ()
    """What the input is."""
    labels: Labels = {}
    priority: Priority = 0
    """Higher ones are claimed first, among the runs of your tenant; tenants take turns."""
    start_at: Instant | None = None
    """When it begins, at most a year ahead; a time that has passed means now."""
    delay_s: Annotated[float, Meta(gt=0, le=DELAY_MAX_S)] | None = None
    """How long after now it begins."""


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    """The run is written down and will be worked on, whatever crashes."""

    run_id: str
    session_id: str
    status: str


class Reason(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Why."""

    reason: Annotated[str, Meta(max_length=1000)] = ""


class Say(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A message to a run that goes on; it is heard before the next model call."""

    input: Input
    interrupt: bool = False
    """Give up the model call that is in flight, and make it again with the message."""
    taints: Taints = ()
    """What the message is."""


class Heard(msgspec.Struct, frozen=True, kw_only=True):
    """The message is in the run's inbox."""

    accepted: bool


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens. What was read from and written to the provider's cache is not in `input_tokens`."""

    input_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    """The part of the output that was thought."""


class Cost(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Money."""

    usd: str | None
    """US dollars as a decimal, null where a price is not known."""
    estimated: bool = False
    """Some of it is an estimate: a call was cut before its provider counted, or its provider never counts."""


class Trouble(msgspec.Struct, frozen=True, kw_only=True):
    """Why something came to nothing."""

    code: str
    detail: str


class RunAgent(msgspec.Struct, frozen=True, kw_only=True):
    """The version that runs."""

    name: str
    version: int
    """0 where it was written out in the request."""
    digest: str


class TaintSeen(msgspec.Struct, frozen=True, kw_only=True):
    """What a run's root frame has read, and where it came from first."""

    taint: Taint
    source: str
    """A call, an earlier run of the session, or `input`, `message` or `signal`."""
    tool: str
    """The tool that was called, where one was."""


class OpenWait(msgspec.Struct, frozen=True, kw_only=True):
    """A question that the run waits for."""

    id: str
    approval: str
    """Where to answer: POST /v1/approvals/{approval}."""
    kind: str
    title: str
    path: str
    """The frame that asks, "/" for the root."""
    call: str | None
    allowed: tuple[str, ...]
    created_at: datetime
    expires_at: datetime | None = None


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One execution, from input to result."""

    id: str
    object: Literal["run"] = "run"
    status: Status
    session_id: str
    user_id: str
    agent: RunAgent
    input: str
    """The first 500 characters."""
    output: str | None
    error: Trouble | None
    waits: tuple[OpenWait, ...]
    steps: int
    usage: Usage
    cost: Cost
    limits: LimitsSeen
    labels: dict[str, str]
    schedule: str | None
    """The schedule that made it."""
    fire_at: datetime | None
    """The time of the schedule that it was made for; null where somebody fired it out of turn."""
    created_at: datetime
    start_at: datetime | None
    """No worker takes it before; null where it was to begin at once."""
    started_at: datetime | None
    finished_at: datetime | None
    rev: int
    """Counts the run's events."""
    taints: tuple[TaintSeen, ...] | None = None
    """What it has read that is private or untrusted; told where one run is asked for."""
    children: int | None = None
    """How many sub-agents it began; told where one run is asked for."""
    held_back: HeldBack | None = None
    """The limit that keeps a queued run from beginning, where one does; not in lists."""


class RunsPage(msgspec.Struct, frozen=True, kw_only=True):
    """Runs, the newest first."""

    data: tuple[Run, ...]
    has_more: bool
    next: str | None
    """Give this as `after` for the next page."""


def usage(tokens: Tokens) -> Usage:
    """Say tokens with their unit."""
    return Usage(
        input_tokens=tokens.input,
        cache_read_tokens=tokens.cache_read,
        cache_write_tokens=tokens.cache_write,
        output_tokens=tokens.output,
        reasoning_tokens=tokens.reasoning,
    )


def cost(usd_micros: int | None, *, estimated: bool = False) -> Cost:
    """Say micro-USD as a decimal."""
    return Cost(usd=dollars(usd_micros), estimated=estimated)


def paid(bill: Bill | None) -> dict[str, Any]:
    """What a call to a model took, as `usage` and `cost`, as far as anything is known of it."""
    if bill is None:
        return {}
    counted = usage(bill.usage) if bill.usage != Tokens() else None
    return {"usage": counted, "cost": cost(bill.usd_micros, estimated=bill.estimated)}


def approval_id(run_id: str, wait: str) -> str:
    """Name a wait to the outside."""
    return f"{run_id}.{base64.urlsafe_b64encode(wait.encode()).decode().rstrip('=')}"


def wait_of(approval: str) -> tuple[str, str]:
    """The reverse of `approval_id`: run and wait. Raises ValueError."""
    run_id, _, coded = approval.partition(".")
    return run_id, base64.urlsafe_b64decode(coded + "=" * (-len(coded) % 4)).decode()
