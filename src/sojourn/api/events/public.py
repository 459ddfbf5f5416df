"""What callers see of the journal: one row in, no, one or several public events out. Pure.

The stream, the pages and the reference use it. The rule: the public events of one row depend on that row and the run's
agent alone, so every reader at any time sees the same; those of one row share its seq.
"""

from collections.abc import Iterator
from typing import Any

from sojourn.api.events import kinds as k
from sojourn.api.runs.shapes import Trouble, approval_id, cost, paid, usage
from sojourn.loop import events as ev
from sojourn.loop.agent import Agent
from sojourn.loop.budget import Spent
from sojourn.loop.continuation import Failure, Wait, pending
from sojourn.loop.machine import begin
from sojourn.loop.messages import Message, Part, Reasoning, Text, ToolCall, ToolResult
from sojourn.loop.policy import Verdict, gate
from sojourn.loop.step.waits import parsed
from sojourn.store.rows import RunRow

SANDBOX: dict[str, type[k.Seen]] = {
    "sandbox.opened": k.SandboxOpened,
    "sandbox.restored": k.SandboxRestored,
}


def project(run_id: str, agent: Agent | None, seq: int, event: ev.Event) -> Iterator[k.Kind]:
    """Yield the public events of one journal row. `agent` is what the root frame runs, None where it is not known."""
    here: dict[str, Any] = {"seq": seq, "at": event.at}
    match event:
        case ev.Began() | ev.Adopted():
            yield from _began(here, event)
        case ev.Turned():
            yield from _turned(here, run_id, event)
        case ev.ModelAsked():
            yield k.ModelStarted(**here, frame=event.frame, step=event.step, attempt=event.attempt, model=event.model)
        case ev.Unfunded(later=False):
            yield k.BudgetExhausted(**here, detail=event.error.detail)
        case ev.Replied():
            yield from _replied(here, agent, event)
        case ev.ModelErred():
            yield _erred(here, event)
        case ev.Intended():
            yield k.ToolUseStarted(**here, call=event.call, attempt=event.attempt)
        case ev.Returned():
            text = "".join(part.text for part in _parts(event.message) if isinstance(part, ToolResult))
            yield k.ToolResultSeen(**here, call=event.call, attempt=event.attempt, text=text, error=event.failed)
        case ev.ModelLost():
            yield _lost(here, event)
        case ev.CallLost():
            lost = Trouble(code="worker.lost", detail="The worker that ran this call is gone.")
            yield k.ErrorSeen(**here, error=lost, call=event.call, attempt=event.attempt)
        case ev.Said():
            yield k.UserMessage(**here, text=event.message.text if event.message else "")
        case ev.Decided():
            yield k.ApprovalResolved(
                **here,
                approval=approval_id(run_id, event.wait),
                wait=event.wait,
                decision=event.decision,
                by=event.by,
                reason=event.reason,
                text=event.text,
            )
        case ev.Asked(waits=waits):
            yield from (_question(here, run_id, wait) for wait in waits)
        case ev.Compacted():
            yield k.ContextCompacted(**here, frame=event.frame, step=event.step, **paid(ev.bill(event)))
        case ev.Paused():
            yield k.RunHeld(**here, by=event.by, reason=event.reason)
        case ev.Signalled(signal=signal):
            yield k.SignalReceived(**here, name=signal.name, id=signal.id, data=signal.data)
        case ev.Consulted():
            yield _consulted(here, event)
        case ev.Noted(kind="guardrails.in_force", data=data):
            yield k.GuardrailsInForce(**here, versions=data)  # type: ignore[arg-type]
        case ev.Noted(kind="guardrail.acted", data=data):
            yield k.GuardrailActed(**here, **data)  # type: ignore[arg-type]
        case ev.Noted(kind=kind):
            yield SANDBOX[kind](**here)  # type: ignore[misc]


def _consulted(here: dict[str, Any], event: ev.Consulted) -> k.GuardrailConsulted:
    return k.GuardrailConsulted(
        **here,
        guardrail=event.guardrail,
        version=event.version,
        operator=event.operator,
        rule=event.rule,
        on=event.on,
        frame=event.frame,
        call=event.call or None,
        model=event.bill.model if event.bill else None,
        verdict=event.verdict,
        error=event.error or None,
        **paid(event.bill),
    )


def quarantined(run: RunRow) -> k.RunQuarantined | None:
    """What is told of a dead letter beside its journal; None of any other run."""
    if run.dead_letter is None:
        return None
    error = run.error or Failure("run.not_driven")
    return k.RunQuarantined(at=run.dead_letter.at, error=Trouble(code=error.code, detail=error.detail))


def is_end(event: ev.Event) -> bool:
    """Say whether nothing comes after this row."""
    return isinstance(event, ev.Turned) and event.phase in ("completed", "failed", "cancelled")


def _began(here: dict[str, Any], event: ev.Began | ev.Adopted) -> Iterator[k.Kind]:
    agent = event.agent if isinstance(event, ev.Began) else event.root.agent
    yield k.RunQueued(
        **here,
        session_id=event.session_id,
        user_id=event.principal.user,
        agent=agent.name,
        version=agent.version,
        made_from=event.lineage.run_id if isinstance(event, ev.Adopted) else None,
    )
    if isinstance(event, ev.Began) and event.message is not None:
        yield k.UserMessage(**here, text=event.message.text)
    for wait in pending(begin(event)):
        yield _question(here, event.run_id, wait)


def _question(here: dict[str, Any], run_id: str, wait: Wait) -> k.ApprovalRequested:
    return k.ApprovalRequested(
        **here,
        approval=approval_id(run_id, wait.id),
        wait=wait.id,
        kind=wait.kind,
        title=wait.title,
        display=wait.display,
        frame=wait.frame,
        call=wait.call,
        allowed=wait.allowed,
        expires_at=wait.expires_at,
    )


def _turned(here: dict[str, Any], run_id: str, event: ev.Turned) -> Iterator[k.Kind]:
    match event.phase:
        case "running":
            yield k.RunResumed(**here) if event.resumed else k.RunStarted(**here)
        case "suspended":
            yield k.RunSuspended(**here, waits=event.waits)
        case "completed":
            yield k.RunCompleted(**here, **_spent(event.spent))
        case "cancelled":
            yield k.RunCancelled(**here, **_spent(event.spent))
        case "failed":
            error = event.error or Failure("run.failed")
            if error.code == "budget.exhausted":
                yield k.BudgetExhausted(**here, detail=error.detail)
            yield k.RunFailed(**here, error=Trouble(code=error.code, detail=error.detail), **_spent(event.spent))


def _replied(here: dict[str, Any], agent: Agent | None, event: ev.Replied) -> Iterator[k.Kind]:
    """The end of the request first, then what was said, in its order; a sub-agent that asks for nothing has ended."""
    where: dict[str, Any] = {"frame": event.frame, "step": event.step}
    message = event.message
    yield _finished({**here, **where}, event)
    uids = (f"{event.frame.rstrip('/')}/{event.step}.{i}" for i in range(len(_parts(message))))
    for part in _parts(message):
        match part:
            case Reasoning(text=text) if text:
                yield k.AgentThinking(**here, **where, text=text)
            case Text(text=text) if text:
                yield k.AgentMessage(**here, **where, text=text)
            case ToolCall():
                yield from _asked({**here, **where}, part, next(uids), agent if event.frame == "/" else None)
    if message is not None and event.frame != "/" and message.text and not message.calls:
        yield k.FrameFinished(**here, frame=event.frame)


def _asked(place: dict[str, Any], part: ToolCall, call: str, agent: Agent | None) -> Iterator[k.Kind]:
    """A tool call, and the sub-agent that it starts at once."""
    tool = agent.tool(part.name) if agent else None
    verdict = _judged(agent, part) if agent and tool else None
    yield k.ToolUse(**place, call=call, tool=part.name, arguments=part.arguments, evaluated_permission=verdict)
    if tool and tool.executor == "agent" and verdict == "allow":
        yield k.FrameStarted(seq=place["seq"], at=place["at"], frame=call, tool=part.name)


def _judged(agent: Agent, part: ToolCall) -> Verdict | None:
    """What the policy says of a call; None where its arguments cannot be read, and it never gets to a gate."""
    try:
        return gate(agent.policy, part.name, parsed(part.arguments or "{}")).verdict
    except (ValueError, RecursionError):
        return None


def _finished(place: dict[str, Any], event: ev.Replied) -> k.ModelFinished:
    message = event.message
    source = message.source if message else None
    return k.ModelFinished(
        **place,
        attempt=event.attempt,
        provider=source.provider if source else None,
        model=source.model if source else None,
        **paid(ev.bill(event)),
        first_token_ms=event.first_token_ms,
        stop=message.stop if message else None,
    )


def _erred(here: dict[str, Any], event: ev.ModelErred) -> k.ModelFinished:
    return k.ModelFinished(
        **here,
        frame=event.frame,
        step=event.step,
        attempt=event.attempt,
        error=Trouble(code=event.error.code, detail=event.error.detail),
        retry=event.retry,
        retry_after_s=event.retry_after_s,
        **paid(ev.bill(event)),
    )


def _lost(here: dict[str, Any], event: ev.ModelLost) -> k.Kind:
    """A call that the run gave up is over; one whose worker died is made again."""
    if event.given_up:
        error = Trouble(
            code="model.given_up", detail="The run ended it: cancelled, interrupted or out of time or budget."
        )
        place: dict[str, Any] = {"frame": event.frame, "step": event.step, "attempt": event.attempt}
        return k.ModelFinished(**here, **place, error=error, **paid(ev.bill(event)))
    error = Trouble(code="worker.lost", detail="The worker that asked the model is gone; it is asked again.")
    return k.ErrorSeen(**here, error=error, frame=event.frame, attempt=event.attempt, **paid(ev.bill(event)))


def _spent(spent: Spent | None) -> dict[str, Any]:
    if spent is None:
        return {}
    known = None if spent.unpriced else spent.usd_micros
    return {"steps": spent.steps, "usage": usage(spent.usage), "cost": cost(known, estimated=spent.estimated > 0)}


def _parts(message: Message | None) -> tuple[Part, ...]:
    return message.parts if message else ()
