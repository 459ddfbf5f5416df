"""The public event types: what a reader of /v1/runs/{run_id}/events meets. `public` makes them from journal rows.

The rule: a type only ever gains fields, and whatever a reader does not know it may pass over.
"""

from datetime import datetime
from typing import Literal

import msgspec

from sojourn.api.runs.shapes import Cost, Trouble, Usage
from sojourn.loop.policy import Verdict


class Seen(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", omit_defaults=True):
    """What all events have."""

    seq: int
    """The position in the run's journal; events made of one row share it."""
    at: datetime


class RunQueued(Seen, frozen=True, kw_only=True, tag="run.queued"):
    """The run was accepted."""

    session_id: str
    user_id: str
    agent: str
    version: int
    made_from: str | None = None
    """The run that this one was forked or imported from."""


class RunStarted(Seen, frozen=True, kw_only=True, tag="run.started"):
    """A worker began with it."""


class RunSuspended(Seen, frozen=True, kw_only=True, tag="run.suspended"):
    """It waits for somebody, and holds nothing meanwhile."""

    waits: tuple[str, ...]
    """The ids of the open questions."""


class RunHeld(Seen, frozen=True, kw_only=True, tag="run.held"):
    """Somebody put it on hold: what is in flight ends, and nothing new begins."""

    by: str
    reason: str = ""


class RunResumed(Seen, frozen=True, kw_only=True, tag="run.resumed"):
    """It goes on."""


class Ended(Seen, frozen=True, kw_only=True):
    """What the end of a run tells: all that it used."""

    steps: int = 0
    usage: Usage | None = None
    cost: Cost | None = None


class RunCompleted(Ended, frozen=True, kw_only=True, tag="run.completed"):
    """It ended with a result, which the last agent.message of the root frame holds. The stream ends here."""


class RunFailed(Ended, frozen=True, kw_only=True, tag="run.failed"):
    """It ended without a result. The stream ends here."""

    error: Trouble


class RunCancelled(Ended, frozen=True, kw_only=True, tag="run.cancelled"):
    """Somebody stopped it. The stream ends here."""


class UserMessage(Seen, frozen=True, kw_only=True, tag="user.message"):
    """A user said something."""

    text: str


class ModelStarted(Seen, frozen=True, kw_only=True, tag="model.request_started"):
    """A model is asked for the next reply of a frame."""

    frame: str
    step: int
    attempt: int
    model: str


class ModelFinished(Seen, frozen=True, kw_only=True, tag="model.request_finished"):
    """A model request ended: with a reply and what it used, or with an error."""

    frame: str
    step: int
    attempt: int
    provider: str | None = None
    model: str | None = None
    usage: Usage | None = None
    cost: Cost | None = None
    first_token_ms: int | None = None
    stop: str | None = None
    error: Trouble | None = None
    retry: bool | None = None
    """Whether the same model may do better; another of the chain may be asked in any case."""
    retry_after_s: float | None = None
    """What the provider asked for; it is bounded before it is obeyed."""


class AgentThinking(Seen, frozen=True, kw_only=True, tag="agent.thinking"):
    """What the model thought aloud."""

    frame: str
    step: int
    text: str


class AgentMessage(Seen, frozen=True, kw_only=True, tag="agent.message"):
    """What the model said."""

    frame: str
    step: int
    text: str


class ToolUse(Seen, frozen=True, kw_only=True, tag="agent.tool_use"):
    """The model asks for a tool."""

    frame: str
    step: int
    call: str
    tool: str
    arguments: str
    """As the model wrote them; they may not even be JSON."""
    evaluated_permission: Verdict | None = None
    """What the policy says; absent in sub-agents."""


class ToolUseStarted(Seen, frozen=True, kw_only=True, tag="agent.tool_started"):
    """An attempt at a tool call begins."""

    call: str
    attempt: int


class ToolResultSeen(Seen, frozen=True, kw_only=True, tag="agent.tool_result"):
    """A tool call came back; the text is what the model reads."""

    call: str
    attempt: int
    text: str
    error: bool = False


class FrameStarted(Seen, frozen=True, kw_only=True, tag="agent.frame_started"):
    """A sub-agent begins; its frame is named by the call that it answers."""

    frame: str
    tool: str


class FrameFinished(Seen, frozen=True, kw_only=True, tag="agent.frame_finished"):
    """A sub-agent ended with an answer."""

    frame: str


class ApprovalRequested(Seen, frozen=True, kw_only=True, tag="approval.requested"):
    """Somebody is asked something; POST /v1/approvals/{approval} answers it."""

    approval: str
    wait: str
    kind: str
    title: str
    display: str
    """What would run, where it is about a call."""
    frame: str
    call: str | None
    allowed: tuple[str, ...]
    expires_at: datetime | None = None


class ApprovalResolved(Seen, frozen=True, kw_only=True, tag="approval.resolved"):
    """Somebody answered."""

    approval: str
    wait: str
    decision: str
    by: str
    reason: str = ""
    text: str = ""
    """What the agent reads in the tool's place."""


class SignalReceived(Seen, frozen=True, kw_only=True, tag="signal.received"):
    """Something happened in the world that a call waits for, or may yet wait for."""

    name: str
    id: str
    data: str = ""


class BudgetExhausted(Seen, frozen=True, kw_only=True, tag="budget.exhausted"):
    """A limit, or a pool of the day, leaves no room for another step."""

    detail: str


class SandboxOpened(Seen, frozen=True, kw_only=True, tag="sandbox.opened"):
    """The session's sandbox was made."""


class SandboxRestored(Seen, frozen=True, kw_only=True, tag="sandbox.restored"):
    """The session's files were brought back into a new sandbox; its processes are gone."""


class GuardrailsInForce(Seen, frozen=True, kw_only=True, tag="guardrails.in_force"):
    """These judge the run from here on; those of the operator are named operator/."""

    versions: dict[str, int]


class GuardrailActed(Seen, frozen=True, kw_only=True, tag="guardrail.acted"):
    """A rule of a guardrail fitted: what it was about was refused, redacted or asked about."""

    guardrail: str
    version: int
    operator: bool
    rule: int
    """Which one of its rules, from 1."""
    on: str
    then: str
    frame: str | None = None
    call: str | None = None


class GuardrailConsulted(Seen, frozen=True, kw_only=True, tag="guardrail.consulted"):
    """A judge was asked: a model, for a rule of a guardrail, whether a text breaks its criteria."""

    guardrail: str
    version: int
    operator: bool
    rule: int
    """Which one of its rules, from 1."""
    on: str
    frame: str
    call: str | None = None
    model: str | None = None
    """As `provider:model`; null where nothing was sent."""
    verdict: Literal["passes", "breaks", "failed"]
    error: str | None = None
    """Why there is no verdict, as a code; what was judged did not pass then."""
    usage: Usage | None = None
    cost: Cost | None = None


class ContextCompacted(Seen, frozen=True, kw_only=True, tag="context.compacted"):
    """What the model is shown of the transcript was made shorter; the transcript itself stays."""

    frame: str
    step: int
    usage: Usage | None = None
    """What the summary took, where a model wrote one."""
    cost: Cost | None = None


class ErrorSeen(Seen, frozen=True, kw_only=True, tag="error"):
    """Something was lost and is dealt with, such as a worker that died in the middle of an attempt."""

    error: Trouble
    frame: str | None = None
    call: str | None = None
    attempt: int | None = None
    usage: Usage | None = None
    """What a model request took that was lost, by an estimate."""
    cost: Cost | None = None


class RunQuarantined(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="run.quarantined"):
    """It stands still as a dead letter. No fact of the journal, so without a seq: it is told while it is so."""

    at: datetime | None
    error: Trouble


Kind = (
    RunQueued | RunStarted | RunSuspended | RunHeld | RunResumed | RunCompleted | RunFailed | RunCancelled | UserMessage
    | ModelStarted | ModelFinished | AgentThinking | AgentMessage | ToolUse | ToolUseStarted | ToolResultSeen
    | FrameStarted | FrameFinished | ApprovalRequested | ApprovalResolved | SignalReceived
    | RunQuarantined | BudgetExhausted | SandboxOpened | SandboxRestored | ContextCompacted | ErrorSeen
    | GuardrailsInForce | GuardrailActed | GuardrailConsulted
)  # fmt: skip

ENDS: tuple[type[Seen], ...] = (RunCompleted, RunFailed, RunCancelled)
"""After one of these there is nothing more."""

DELTAS = ("delta.message", "delta.thinking", "delta.tool_arguments", "delta.tool_output", "delta.reset")
"""The names of deltas in a stream: `delta.reset` voids those before it of its frame and step, or of its call."""


class Delta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A piece of what is being made; it has no id, and the event that follows holds the whole."""

    frame: str
    step: int
    attempt: int
    text: str = ""
    index: int | None = None
    """Which tool call of this reply the arguments belong to."""
    name: str | None = None
    """Its tool."""
    call: str | None = None
    """Which call prints this output."""
