"""What has happened: the durable facts of a run, one journal row each.

The worker and the API make them, `machine.apply` folds them, the stream and the trace show them. The rule: every event
says when, and names the exact attempt or wait that it answers, so that a late or repeated one changes nothing.
"""

from datetime import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from sojourn.loop.agent import AgentRef, Suspend, Taint
from sojourn.loop.budget import Bill, Held, Limits, Spent, Tariff
from sojourn.loop.continuation import (
    Compaction,
    Decision,
    Failure,
    Floor,
    Frame,
    Lineage,
    Origin,
    Phase,
    Principal,
    Segment,
    Signal,
    Wait,
)
from sojourn.loop.messages import Message, Plain, Usage


class Began(Plain, frozen=True, kw_only=True, tag="began"):
    """A caller asked for a run."""

    at: datetime
    run_id: str
    tenant: str
    session_id: str
    principal: Principal
    agent: AgentRef
    limits: Limits
    suspend: Suspend = Suspend()
    history: tuple[Segment, ...] = ()
    message: Message | None = None
    taints: tuple[Origin, ...] = ()
    """Of the message, and of the session's earlier runs."""
    start_at: datetime | None = None
    """What its wall time counts from, where it has one and is to begin later."""


class Adopted(Plain, frozen=True, kw_only=True, tag="adopted"):
    """A run was made from another one, here or elsewhere: an import or a fork."""

    at: datetime
    run_id: str
    tenant: str
    session_id: str
    principal: Principal
    limits: Limits
    spent: Spent = Spent()
    suspend: Suspend = Suspend()
    wait: Wait | None = None
    waits: int = 0
    signals: tuple[Signal, ...] = ()
    heard: tuple[str, ...] = ()
    lineage: Lineage
    root: Frame
    """Without bodies; they are written beside it."""
    bodies: str
    """The digest of the bodies."""


class ModelAsked(Plain, frozen=True, kw_only=True, tag="model_asked"):
    """A model call is about to be made."""

    at: datetime
    frame: str
    step: int
    attempt: int
    model: str
    held: Held = Held()
    """What it may cost at most; it is refused where there is no room for so much."""
    least: Bill | None = None
    """What the request alone costs, by an estimate."""
    tariff: Tariff | None = None
    """What the model costs, where this is the run's first call of it."""


class Unfunded(Plain, frozen=True, kw_only=True, tag="unfunded"):
    """A model call was not made: a pool that it would be paid from has no room for it today."""

    at: datetime
    frame: str
    step: int
    attempt: int
    pool: Literal["tenant", "user"]
    held: Held = Held()
    """What it may cost at most."""
    error: Failure
    until: datetime | None = None
    """When the day ends; None where another day does not help, because the price is not known."""
    later: bool = False
    """Room may come back before that: calls in flight hold it."""


class Replied(Plain, frozen=True, kw_only=True, tag="replied"):
    """The model answered, with a whole message."""

    at: datetime
    frame: str
    step: int
    attempt: int
    message: Message | None
    usd_micros: int | None = None
    """What the call cost; None where the price is not known."""
    estimate: Usage | None = None
    """What it is taken to have used, where the provider does not count."""
    first_token_ms: int | None = None
    withheld: str = ""
    """Why nobody reads this reply: a guardrail refused it, and the message is without its parts."""


class ModelErred(Plain, frozen=True, kw_only=True, tag="model_erred"):
    """An attempt at a model call failed. `retry` tells whether the same model may do better later."""

    at: datetime
    frame: str
    step: int
    attempt: int
    error: Failure
    retry: bool = False
    retry_after_s: float | None = None
    bill: Bill | None = None
    """What it cost all the same; None where nothing was sent, or the provider refused it."""


class Intended(Plain, frozen=True, kw_only=True, tag="intended"):
    """A tool is about to run: this stands before any effect that the world can see."""

    at: datetime
    call: str
    attempt: int


class Judged(Plain, frozen=True, kw_only=True, tag="judged"):
    """Guardrails looked at a call that has not begun, and want it asked about or denied."""

    at: datetime
    call: str
    waits: int
    """How many questions the call had asked by then: a later one is not answered by this."""
    verdict: Literal["ask", "deny"]
    by: str
    """The guardrails with their versions, as name@version."""
    reason: str


class FloorRaised(Plain, frozen=True, kw_only=True, tag="floor_raised"):
    """The operator says more of the run's tools than was known of them here."""

    at: datetime
    floor: Floor


class Returned(Plain, frozen=True, kw_only=True, tag="returned"):
    """A tool came back."""

    at: datetime
    call: str
    attempt: int
    message: Message | None
    failed: bool = False


class ModelLost(Plain, frozen=True, kw_only=True, tag="model_lost"):
    """The worker that asked the model is gone, or the run gave the call up; whatever came back was not kept."""

    at: datetime
    frame: str
    step: int
    attempt: int
    bill: Bill | None = None
    """What it cost all the same; None where nothing was sent."""
    given_up: bool = False
    """The event that follows ends the call: somebody cancelled the run, or spoke up, or a limit was reached."""


class CallLost(Plain, frozen=True, kw_only=True, tag="call_lost"):
    """The worker that ran the tool is gone, and nobody knows what became of the attempt."""

    at: datetime
    call: str
    attempt: int


class Said(Plain, frozen=True, kw_only=True, tag="said"):
    """A user sent a message to a run that goes on."""

    at: datetime
    message: Message | None
    interrupt: bool = False
    """The root's model call in flight is given up, and made again with the message."""
    taints: tuple[Taint, ...] = ()


class NewGrant(Plain, frozen=True, kw_only=True):
    """How often, and for which arguments, a yes holds beyond the call that was asked about."""

    count: Annotated[int, Meta(ge=1, le=1000)]
    same_arguments: bool = True
    expires_at: datetime | None = None


class Decided(Plain, frozen=True, kw_only=True, tag="decided"):
    """An authenticated principal answered one wait."""

    at: datetime
    wait: str
    by: str
    decision: Decision
    reason: str = ""
    text: str = ""
    """The observation, where the decision is to answer in the tool's place."""
    failed: bool = False
    """The answer is an error."""
    args: str | None = None
    """The arguments to run with, as JSON text, where the decision is to edit."""
    args_digest: str | None = None
    """The arguments that the decider saw; others are not decided with it."""
    grant: NewGrant | None = None
    limits: Limits | None = None
    """The new limits, where the decision is to extend a budget."""
    expires_at: datetime | None = None
    """The new end, where the decision is to extend another wait."""


class Paused(Plain, frozen=True, kw_only=True, tag="paused"):
    """Somebody put the run on hold: what is in flight ends, and nothing new begins."""

    at: datetime
    by: str
    reason: str = ""


class Signalled(Plain, frozen=True, kw_only=True, tag="signalled"):
    """Something happened in the world that a call of this run waits for, or may yet wait for."""

    at: datetime
    signal: Signal


class Cancelled(Plain, frozen=True, kw_only=True, tag="cancelled"):
    """Somebody stopped the run."""

    at: datetime
    by: str
    reason: str = ""


class GaveUp(Plain, frozen=True, kw_only=True, tag="gave_up"):
    """No worker can go on with the run: one after the other tried, and came no step further."""

    at: datetime
    error: Failure


class Ticked(Plain, frozen=True, kw_only=True, tag="ticked"):
    """A time has come that something was waiting for."""

    at: datetime


class Turned(Plain, frozen=True, kw_only=True, tag="turned"):
    """The run as a whole entered another phase: a fact for readers, which the machine draws no conclusion from."""

    at: datetime
    phase: Phase
    resumed: bool = False
    """It runs again after it was suspended."""
    waits: tuple[str, ...] = ()
    error: Failure | None = None
    spent: Spent | None = None
    """All that it used, where it has ended."""


class Consulted(Plain, frozen=True, kw_only=True, tag="consulted"):
    """A model was asked whether a text breaks a guardrail's criteria."""

    at: datetime
    began_at: datetime
    frame: str
    step: int
    call: str = ""
    """The call whose arguments or result it is about."""
    on: Literal["input", "output", "tool_arguments", "tool_result"]
    guardrail: str
    version: int
    operator: bool = False
    rule: int
    """Which one of its rules, from 1."""
    key: str
    """Names the question: the model, the criteria and the text."""
    verdict: Literal["passes", "breaks", "failed"]
    error: str = ""
    """Why there is no verdict, as a code."""
    bill: Bill | None = None
    """What it cost; None where it cost nothing."""


NotedKind = Literal["sandbox.opened", "sandbox.restored", "guardrails.in_force", "guardrail.acted"]


class Asked(Plain, frozen=True, kw_only=True, tag="asked"):
    """Questions were opened: a fact for readers, which keeps what people were shown."""

    at: datetime
    waits: tuple[Wait, ...]


class Compacted(Plain, frozen=True, kw_only=True, tag="compacted"):
    """What a frame's model is shown of its transcript was made shorter, within the attempt that it is for."""

    at: datetime
    frame: str
    step: int
    attempt: int
    compaction: Compaction
    originals: str = ""
    """The digest of the messages that a new summary stands for."""
    model: str = ""
    """Who wrote the summary, as `provider:model`; empty where no model did."""
    usage: Usage | None = None
    usd_micros: int | None = None
    estimated: bool = False
    """The call for the summary was cut, and `usage` is an estimate."""


class Noted(Plain, frozen=True, kw_only=True, tag="noted"):
    """Something that readers of the journal want to know, such as that a sandbox was opened."""

    at: datetime
    kind: NotedKind
    data: dict[str, str | int | float | bool | None] = {}


Event = (
    Began | Adopted | ModelAsked | Unfunded | Replied | ModelErred | ModelLost | Judged | FloorRaised | Intended
    | Returned | CallLost | Said | Decided | Paused | Signalled | Cancelled | GaveUp | Ticked | Turned | Asked
    | Compacted | Consulted | Noted
)  # fmt: skip


def bill(event: Event) -> Bill | None:
    """What an event says that a call to a model cost; None where it says nothing of it."""
    match event:
        case Replied(message=message, usd_micros=usd_micros, estimate=estimate):
            source = message.source if message else None
            model = f"{source.provider}:{source.model}" if source else ""
            usage = (message.usage if message else None) or estimate or Usage()
            return Bill(model=model, usage=usage, usd_micros=usd_micros, estimated=estimate is not None)
        case Compacted(model=model, usage=usage, usd_micros=usd_micros) if usage is not None:
            return Bill(model=model, usage=usage, usd_micros=usd_micros, estimated=event.estimated)
        case ModelErred(bill=owed) | ModelLost(bill=owed) | Consulted(bill=owed):
            return owed
    return None


_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)


def encode(event: Event) -> bytes:
    """The event as the journal keeps it and the hash chain reads it."""
    return _encoder.encode(event)


def decode(data: bytes | str) -> Event:
    """The reverse of `encode`. Raises msgspec.ValidationError."""
    return _decoder.decode(data)
