"""Answers to waits, and the end of patience: what either does to the one call or frame that asked.

`machine.py` applies them; the API asks `refusal` first, so that a person hears at once why an answer is not taken.
The rule: a decision touches the wait that it names and nothing else, what runs is what was shown, and an answer that
is refused changes nothing.
"""

from collections.abc import Callable
from datetime import datetime
from math import ceil

from msgspec.structs import replace

from sojourn.loop.agent import Taint, digest
from sojourn.loop.budget import Limits, exhausted
from sojourn.loop.continuation import (
    Call,
    Continuation,
    Decision,
    Failure,
    Frame,
    Grant,
    Vote,
    Wait,
    frames,
    path,
    pending,
)
from sojourn.loop.events import Decided
from sojourn.loop.messages import said
from sojourn.loop.policy import gate
from sojourn.loop.step import taints
from sojourn.loop.step.budgets import began
from sojourn.loop.step.calls import Agents, authorize, close
from sojourn.loop.step.ending import failed
from sojourn.loop.step.tree import at_frame, put, with_call
from sojourn.loop.step.waits import anew, asked, bind, bound, escalated, parsed

GRANTS_MAX = 64

# ---- may it be decided so? -------------------------------------------------------------------


def refusal(agents: Agents, continuation: Continuation, event: Decided) -> Failure | None:
    """Why this decision is not taken, with a code of its own; None where it is."""
    wait = open_wait(continuation, event.wait)
    if wait is None:
        return Failure("run.not_waiting", "Nobody waits for this answer any more.")
    if event.decision not in wait.allowed:
        return Failure("approval.not_allowed", f"This takes one of: {', '.join(wait.allowed)}.")
    if over(wait, event.at) and not (event.decision == "extend" and wait.ask.on_expire == "keep"):
        return Failure("approval.expired", "The time to answer is over.")
    initiator = continuation.principal.user
    return wrong_person(wait, event.by, initiator, event.decision) or _wrong_content(agents, continuation, wait, event)


def open_wait(continuation: Continuation, id: str) -> Wait | None:
    """The wait of that id, where it is open."""
    return next((wait for wait in pending(continuation) if wait.id == id), None)


def wrong_person(wait: Wait, by: str, initiator: str, decision: Decision) -> Failure | None:
    """Why this user may not answer so; None where nothing is against it."""
    if not wait.ask.may(by):
        return Failure("approval.not_yours", f"Only these may answer: {', '.join(wait.ask.approvers)}.")
    if wait.ask.exclude_initiator and by == initiator:
        return Failure("approval.initiator", "The user that the run acts for may not answer: ask somebody else.")
    if decision == "approve" and any(vote.by == by for vote in wait.votes):
        return Failure("approval.voted", "You approved it already; somebody else must, too.")
    return None


def _wrong_content(agents: Agents, continuation: Continuation, wait: Wait, event: Decided) -> Failure | None:
    if event.args_digest not in (None, wait.args_digest):
        return Failure("approval.other_arguments", "The arguments are not those that you saw: read it again.")
    if event.grant is not None and wait.ask.need > 1:
        return Failure("approval.not_allowed", "What several people must approve is approved call by call: no grant.")
    if event.decision == "extend":
        return _wrong_extension(continuation, wait, event)
    if wait.call is None:
        return None
    frame, call = place(continuation, wait)
    tool = agents[frame.agent.digest].tool(call.tool.name)
    if tool is None or (wait.tool_digest or call.tool.digest) != digest(tool):
        return Failure("approval.other_tool", "The tool is not the one that was asked about.")
    return _wrong_edit(agents, frame, call, event.args) if event.decision == "edit" else None


def _wrong_extension(continuation: Continuation, wait: Wait, event: Decided) -> Failure | None:
    if wait.kind != "budget":
        if event.limits is not None:
            return Failure("approval.no_limits", "This is no budget: leave out the limits.")
        if event.expires_at is None or event.expires_at <= max(event.at, wait.expires_at or event.at):
            return Failure("approval.no_end", "Say an end that is later than the present one.")
        return None
    if event.limits is None:
        return Failure("approval.no_limits", "Say the new limits of a budget.")
    pool = path(continuation.root, wait.about or continuation.root.id)[-1]
    spent = continuation.spent if pool.id == continuation.root.id else pool.spent
    since = began(continuation, pool)
    if used := exhausted(event.limits, spent, since=since, at=event.at):
        after = f" It began {ceil((event.at - since).total_seconds())} s ago." if "wall_s" in used else ""
        return Failure("approval.no_limits", f"These limits are used up already: raise {', '.join(used)}.{after}")
    return None


def _wrong_edit(agents: Agents, frame: Frame, call: Call, args: str | None) -> Failure | None:
    try:
        values = parsed(args or "")
    except (ValueError, RecursionError) as error:
        return Failure("approval.edit_invalid", f"The arguments are not a JSON object: {error}.")
    verdict = gate(agents[frame.agent.digest].policy, call.tool.name, values)
    if verdict.verdict == "deny":
        return Failure("approval.edit_denied", f"The policy does not allow this call. {verdict.reason}".rstrip())
    if verdict.verdict == "ask" and verdict.ask != asked(call):
        return Failure("approval.edit_widens", "These arguments need an approval of another kind: reject the call.")
    return None


def place(continuation: Continuation, wait: Wait) -> tuple[Frame, Call]:
    """The call that an open wait is about, and its frame."""
    frame = path(continuation.root, wait.frame)[-1]
    return frame, next(call for call in frame.calls if call.uid == wait.call)


# ---- the answer ------------------------------------------------------------------------------


def decide(agents: Agents, continuation: Continuation, event: Decided) -> Continuation | None:
    """The run with one wait answered; None where the answer is refused."""
    wait = open_wait(continuation, event.wait)
    if wait is None or refusal(agents, continuation, event) is not None:
        return None
    if wait.kind == "hold":
        return replace(continuation, wait=None)
    if event.limits is not None and wait.about is not None and event.decision == "extend":
        return _extend_budget(continuation, wait.about, event.limits)
    if wait.call is None:
        active_ms = continuation.spent.active_ms
        return _rooted(continuation, wait.frame, lambda frame: _decide_frame(frame, wait, event, active_ms))
    root = with_call(continuation.root, wait.call, lambda frame, call: _decide_call(agents, frame, call, event))
    return replace(continuation, root=root or continuation.root)


def _rooted(continuation: Continuation, id: str, change: Callable[[Frame], Frame]) -> Continuation:
    return replace(continuation, root=at_frame(continuation.root, id, change) or continuation.root)


def _extend_budget(continuation: Continuation, pool: str, limits: Limits) -> Continuation:
    """Raise the limits of the run or of a sub-agent, and answer everybody who waits for that."""
    if pool == continuation.root.id:
        after = replace(continuation, limits=limits)
    else:
        after = _rooted(continuation, pool, lambda frame: replace(frame, limits=limits))
    for wait in pending(after):
        if wait.kind == "budget" and wait.about == pool:
            after = _rooted(after, wait.frame, lambda frame: replace(frame, wait=None))
    return after


def _decide_frame(frame: Frame, wait: Wait, event: Decided, active_ms: int) -> Frame:
    if event.decision == "approve":
        return replace(frame, wait=None) if wait.kind == "day_budget" else go_on(frame, wait, active_ms)
    codes = {"budget": "budget.exhausted", "day_budget": "budget.day_exhausted"}
    code = codes.get(wait.kind, "run.stopped")
    return failed(frame, Failure(code, event.reason or "A person said that it is enough."))


def go_on(frame: Frame, wait: Wait, active_ms: int) -> Frame:
    """The frame after its pause; turns and seconds count anew, and repetitions where they are what paused it."""
    marks = replace(frame.marks, turns=frame.step, active_ms=active_ms, past=frame.marks.past or wait.kind == "timer")
    if wait.kind == "loop_guard":
        marks = replace(marks, circle=frame.step, warned=False)
    return replace(frame, wait=None, marks=marks)


def _decide_call(agents: Agents, frame: Frame, call: Call, event: Decided) -> Frame:
    return put(*_answered(agents, frame, call, event))


def _answered(agents: Agents, frame: Frame, call: Call, event: Decided) -> tuple[Frame, Call]:
    wait = call.wait
    assert wait is not None
    match event.decision:
        case "approve" if wait.kind == "timer":
            return frame, close(call, "answered", "A person said to go on now.")
        case "approve" | "edit":
            return _approve(frame, _edited(agents, frame, call, event), event)
        case "extend":
            return frame, replace(call, wait=replace(wait, expires_at=event.expires_at))
        case "retry":
            return frame, replace(call, state="authorized", wait=None)
        case "reject":
            return frame, close(call, "rejected", f"A person rejected this call. {event.reason}".rstrip())
        case "answer":
            closed = close(call, "failed" if event.failed else "answered", event.text)
            return frame, taints.tainted(closed, _of_client(agents, frame, call))
        case "cancel":
            return frame, close(call, "cancelled", f"Nobody knows whether this ran. Leave it. {event.reason}".rstrip())
        case _:  # mark_done
            return frame, close(call, "succeeded", event.text or "A person confirmed that this was done.")


def _of_client(agents: Agents, frame: Frame, call: Call) -> tuple[Taint, ...]:
    """What an answer is: a client's is what its tool says; a person's is neither private nor untrusted."""
    assert call.wait is not None
    return taints.flow(agents, frame, call, None).taints if call.wait.kind == "client_tool" else ()


def _approve(frame: Frame, call: Call, event: Decided) -> tuple[Frame, Call]:
    """Count a yes; with the last one the call may run, and the model is told of arguments that are not its own."""
    wait = call.wait
    assert wait is not None
    wait = replace(wait, votes=(*wait.votes, Vote(event.by, event.at)))
    if len({vote.by for vote in wait.votes}) < wait.ask.need:
        return frame, anew(call, wait, event.at) if event.decision == "edit" else replace(call, wait=wait)
    if event.grant is not None:
        frame = _granted(frame, call, wait, event)
    if call.args_effective is not None:
        note = f"A person changed the arguments of your call of {call.tool.name} before it ran, to: "
        told = said(f"{call.uid}!", f"{note}{call.args_effective}\n{event.reason}".rstrip())
        frame = replace(frame, inbox=(*frame.inbox, told))
    return frame, authorize(replace(call, sending="approved") if call.sending else call)


def _edited(agents: Agents, frame: Frame, call: Call, event: Decided) -> Call:
    """Put the approver's arguments, if there are any, in the place of the model's; votes for others are void."""
    wait, args = call.wait, event.args
    if event.decision != "edit" or wait is None or args is None:
        return call
    call = replace(call, args_effective=args)
    verdict = gate(agents[frame.agent.digest].policy, call.tool.name, parsed(args))
    call = replace(call, gate=verdict if verdict.verdict == "ask" else call.gate)
    return replace(call, wait=replace(bind(wait, call), votes=()))


def _granted(frame: Frame, call: Call, wait: Wait, event: Decided) -> Frame:
    assert event.grant is not None
    grant = Grant(
        id=wait.id,
        by=event.by,
        ask=asked(call),
        tool_digest=call.tool.digest,
        args_digest=bound(call) if event.grant.same_arguments else None,
        left=event.grant.count,
        expires_at=event.grant.expires_at,
        sending=call.sending == "asked",
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
        if frame.wait is not None and frame.wait.kind == "day_budget" and over(frame.wait, at):
            root = at_frame(root, frame.id, lambda one: replace(one, wait=None)) or root
    for wait in pending(continuation):
        if over(wait, at) and wait.ask.on_expire != "keep" and wait.call is not None:
            root = with_call(root, wait.call, _expiring(wait, at)) or root
    return replace(continuation, root=root) if root is not continuation.root else None


def _wake(frame: Frame) -> Frame:
    return replace(frame, turn=replace(frame.turn, not_before=None))


def _expiring(wait: Wait, at: datetime) -> Callable[[Frame, Call], Frame | None]:
    def end(frame: Frame, call: Call) -> Frame | None:
        if call.wait is not wait:
            return None  # it went with its frame
        if wait.ask.on_expire == "fail":
            return failed(frame, Failure("approval.expired", f"Nobody answered in time: {wait.title}"))
        return put(frame, _end_wait(call, wait, at))

    return end


def _end_wait(call: Call, wait: Wait, at: datetime) -> Call:
    match wait.kind, wait.ask.on_expire:
        case "timer", _:
            return close(call, "answered", f"It is {at.isoformat(timespec='seconds')} now.")
        case "event", _:
            return close(call, "expired", f"No event {wait.about} came in time.")
        case _, "escalate" if wait.ask.escalate_to:
            return escalated(call, wait, at)
    return close(call, "expired", f"Nobody answered in time: {wait.title} It was not run.")
