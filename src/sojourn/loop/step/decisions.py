"""Answers to waits, and the end of patience: what either does to the one call or frame that asked.

`machine.py` applies them; the API asks `refusal` first, so that a person hears at once why an answer is not taken.
The rule: a decision touches the wait that it names and nothing else, what runs is what was shown, and an answer that
is refused changes nothing.
"""

from collections.abc import Callable
from datetime import datetime

from msgspec.structs import replace

from sojourn.loop.agent import digest
from sojourn.loop.continuation import (
    Call,
    Continuation,
    Failure,
    Frame,
    Grant,
    Marks,
    Vote,
    Wait,
    frames,
    path,
    pending,
)
from sojourn.loop.events import Decided
from sojourn.loop.messages import said
from sojourn.loop.policy import gate
from sojourn.loop.step.calls import Agents, authorize, close
from sojourn.loop.step.ending import failed
from sojourn.loop.step.tree import at_call, at_frame, with_call
from sojourn.loop.step.waits import bound, escalated, parsed, shown

GRANTS_MAX = 64

# ---- may it be decided so? -------------------------------------------------------------------


def refusal(agents: Agents, continuation: Continuation, event: Decided) -> Failure | None:
    """Why this decision is not taken, with a code of its own; None where it is."""
    wait = next((wait for wait in pending(continuation) if wait.id == event.wait), None)
    if wait is None:
        return Failure("run.not_waiting", "Nobody waits for this answer any more.")
    if event.decision not in wait.allowed:
        return Failure("approval.not_allowed", f"This takes one of: {', '.join(wait.allowed)}.")
    if over(wait, event.at) and not (event.decision == "extend" and wait.ask.on_expire == "keep"):
        return Failure("approval.expired", "The time to answer is over.")
    return _wrong_person(continuation, wait, event) or _wrong_content(agents, continuation, wait, event)


def _wrong_person(continuation: Continuation, wait: Wait, event: Decided) -> Failure | None:
    if not wait.ask.may(event.by):
        return Failure("approval.not_yours", f"Only these may answer: {', '.join(wait.ask.approvers)}.")
    if wait.ask.exclude_initiator and event.by == continuation.principal.user:
        return Failure("approval.initiator", "The user that the run acts for may not answer: ask somebody else.")
    if event.decision == "approve" and any(vote.by == event.by for vote in wait.votes):
        return Failure("approval.voted", "You approved it already; somebody else must, too.")
    return None


def _wrong_content(agents: Agents, continuation: Continuation, wait: Wait, event: Decided) -> Failure | None:
    if event.args_digest not in (None, wait.args_digest):
        return Failure("approval.other_arguments", "The arguments are not those that you saw: read it again.")
    if event.decision == "extend" and (event.limits is None) == (wait.kind == "budget"):
        return Failure("approval.no_limits", "Say the new limits of a budget.")
    if event.decision == "extend" and wait.kind != "budget" and (event.expires_at or event.at) <= event.at:
        return Failure("approval.no_end", "Say an end that is still to come.")
    if wait.call is None:
        return None
    frame, call = _place(continuation, wait)
    tool = agents[frame.agent.digest].tool(call.tool.name)
    if tool is None or (wait.tool_digest or call.tool.digest) != digest(tool):
        return Failure("approval.other_tool", "The tool is not the one that was asked about.")
    return _wrong_edit(agents, frame, call, event.args) if event.decision == "edit" else None


def _wrong_edit(agents: Agents, frame: Frame, call: Call, args: str | None) -> Failure | None:
    try:
        values = parsed(args or "")
    except (ValueError, RecursionError) as error:
        return Failure("approval.edit_invalid", f"The arguments are not a JSON object: {error}.")
    verdict = gate(agents[frame.agent.digest].policy, call.tool.name, values)
    if verdict.verdict == "deny":
        return Failure("approval.edit_denied", f"The policy does not allow this call. {verdict.reason}".rstrip())
    asked = call.gate.ask if call.gate is not None else None
    if verdict.verdict == "ask" and verdict.ask != asked:
        return Failure("approval.edit_widens", "These arguments need an approval of another kind: reject the call.")
    return None


def _place(continuation: Continuation, wait: Wait) -> tuple[Frame, Call]:
    frame = path(continuation.root, wait.frame)[-1]
    return frame, next(call for call in frame.calls if call.uid == wait.call)


# ---- the answer ------------------------------------------------------------------------------


def decide(agents: Agents, continuation: Continuation, event: Decided) -> Continuation | None:
    """The run with one wait answered; None where the answer is refused."""
    if refusal(agents, continuation, event) is not None:
        return None
    wait = next(wait for wait in pending(continuation) if wait.id == event.wait)
    if wait.kind == "hold":
        return replace(continuation, wait=None)
    if event.limits is not None and wait.about is not None and event.decision == "extend":
        return _extend_budget(continuation, wait.about, event)
    if wait.call is None:
        active_ms = continuation.spent.active_ms
        return _rooted(continuation, wait.frame, lambda frame: _decide_frame(frame, wait, event, active_ms))
    root = with_call(continuation.root, wait.call, lambda frame, call: _decide_call(agents, frame, call, event))
    return replace(continuation, root=root or continuation.root)


def _rooted(continuation: Continuation, id: str, change: Callable[[Frame], Frame]) -> Continuation:
    return replace(continuation, root=at_frame(continuation.root, id, change) or continuation.root)


def _extend_budget(continuation: Continuation, pool: str, event: Decided) -> Continuation:
    """Raise the limits of the run or of a sub-agent, and answer everybody who waits for that."""

    def raised(frame: Frame) -> Frame:
        return frame if frame.id == continuation.root.id else replace(frame, limits=event.limits)

    after = _rooted(continuation, pool, raised)
    for wait in pending(after):
        if wait.kind == "budget" and wait.about == pool:
            after = _rooted(after, wait.frame, lambda frame: replace(frame, wait=None))
    whole = pool == continuation.root.id and event.limits is not None
    return replace(after, limits=event.limits) if whole else after


def _decide_frame(frame: Frame, wait: Wait, event: Decided, active_ms: int) -> Frame:
    if event.decision == "approve":
        return go_on(frame, wait, active_ms)
    code = "budget.exhausted" if wait.kind == "budget" else "run.stopped"
    return failed(frame, Failure(code, event.reason or "A person said that it is enough."))


def go_on(frame: Frame, wait: Wait, active_ms: int) -> Frame:
    """The frame after its pause; what paused it counts anew."""
    marks = Marks(
        turns=frame.step,
        active_ms=active_ms,
        past=frame.marks.past or wait.kind == "timer",
        circle=frame.step,
    )
    return replace(frame, wait=None, marks=marks)


def _decide_call(agents: Agents, frame: Frame, call: Call, event: Decided) -> Frame:
    frame, call = _answered(agents, frame, call, event)
    return replace(frame, calls=tuple(call if one.uid == call.uid else one for one in frame.calls))


def _answered(agents: Agents, frame: Frame, call: Call, event: Decided) -> tuple[Frame, Call]:
    wait = call.wait
    assert wait is not None
    match event.decision:
        case "approve" if wait.kind == "timer":
            return frame, close(call, "answered", "A person said to go on now.")
        case "approve" | "edit":
            return _approve(agents, frame, call, event)
        case "extend":
            return frame, replace(call, wait=replace(wait, expires_at=event.expires_at))
        case "retry":
            return frame, replace(call, state="authorized", wait=None)
        case "reject":
            return frame, close(call, "rejected", f"A person rejected this call. {event.reason}".rstrip())
        case "answer":
            return frame, close(call, "failed" if event.failed else "answered", event.text)
        case "cancel":
            return frame, close(call, "cancelled", f"Nobody knows whether this ran. Leave it. {event.reason}".rstrip())
        case "mark_done":
            return frame, close(call, "succeeded", event.text or "A person confirmed that this was done.")


def _approve(agents: Agents, frame: Frame, call: Call, event: Decided) -> tuple[Frame, Call]:
    """Count a yes, to the arguments as they are or as the approver writes them; with the last one the call may run."""
    if event.decision == "edit":
        frame, call = _edited(agents, frame, call, event)
    wait = call.wait
    assert wait is not None
    wait = replace(wait, votes=(*wait.votes, Vote(event.by, event.at)))
    if len({vote.by for vote in wait.votes}) < wait.ask.need:
        return frame, replace(call, wait=wait)
    if event.grant is not None:
        frame = _granted(frame, call, wait, event)
    return frame, authorize(agents, call, frame, event.at)


def _edited(agents: Agents, frame: Frame, call: Call, event: Decided) -> tuple[Frame, Call]:
    """Put the approver's arguments in the place of the model's; votes for others are void, and the model is told."""
    wait, args = call.wait, event.args
    assert wait is not None and args is not None
    call = replace(call, args_effective=args)
    verdict = gate(agents[frame.agent.digest].policy, call.tool.name, parsed(args))
    call = replace(call, gate=verdict if verdict.verdict == "ask" else call.gate)
    call = replace(call, wait=replace(wait, args_digest=bound(call), display=shown(args), votes=()))
    note = f"A person changed the arguments of your call of {call.tool.name} before it ran, to: {args}"
    told = said(f"{wait.id}!", f"{note}\n{event.reason}".rstrip())
    return replace(frame, inbox=(*frame.inbox, told)), call


def _granted(frame: Frame, call: Call, wait: Wait, event: Decided) -> Frame:
    assert event.grant is not None
    grant = Grant(
        id=wait.id,
        by=event.by,
        tool_digest=call.tool.digest,
        args_digest=bound(call) if event.grant.same_arguments else None,
        left=event.grant.count,
        expires_at=event.grant.expires_at,
    )
    return replace(frame, grants=(*frame.grants, grant)[-GRANTS_MAX:])


# ---- the end of patience ---------------------------------------------------------------------


def over(wait: Wait, at: datetime) -> bool:
    """Whether the time to answer has run out."""
    return wait.expires_at is not None and wait.expires_at <= at


def expire(continuation: Continuation, at: datetime) -> Continuation | None:
    """The run with every wait and pause that has run out by `at` ended; None where there is none."""
    root = continuation.root
    for frame in frames(continuation.root):
        if frame.turn.not_before is not None and frame.turn.not_before <= at:
            root = at_frame(root, frame.id, _wake) or root
    for wait in pending(continuation):
        if over(wait, at) and wait.ask.on_expire != "keep" and wait.call is not None:
            root = _expire_wait(root, wait, at) or root
    return replace(continuation, root=root) if root is not continuation.root else None


def _wake(frame: Frame) -> Frame:
    return replace(frame, turn=replace(frame.turn, not_before=None))


def _expire_wait(root: Frame, wait: Wait, at: datetime) -> Frame | None:
    assert wait.call is not None
    if wait.ask.on_expire == "fail":
        failure = Failure("approval.expired", f"Nobody answered in time: {wait.title}")
        return at_frame(root, wait.frame, lambda frame: failed(frame, failure))
    return at_call(root, wait.call, lambda _, call: _end_wait(call, wait, at))


def _end_wait(call: Call, wait: Wait, at: datetime) -> Call:
    match wait.kind, wait.ask.on_expire:
        case "timer", _:
            return close(call, "answered", f"It is {at.isoformat(timespec='seconds')} now.")
        case "event", _:
            return close(call, "expired", f"No event {wait.about} came in time.")
        case _, "escalate":
            return escalated(call, wait, at)
    return close(call, "expired", f"Nobody answered in time: {wait.title} It was not run.")
