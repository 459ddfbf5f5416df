"""Answers to waits: what a decision, or the end of patience, does to the one call or frame that asked.

`machine.py` calls these. The rule: a decision touches the wait that it names and nothing else, and one that the
wait does not allow changes nothing.
"""

from datetime import datetime

from msgspec.structs import replace

from sojourn.loop import steps
from sojourn.loop.continuation import Call, Continuation, Failure, Frame, Wait, frames, pending
from sojourn.loop.events import Decided
from sojourn.loop.steps import Agents


def decide(agents: Agents, continuation: Continuation, event: Decided) -> Frame | None:
    """The root with one wait answered; None where the wait is not open, too old, or does not allow this."""
    wait = next((wait for wait in pending(continuation) if wait.id == event.wait), None)
    if wait is None or event.decision not in wait.allowed or _over(wait, event.at):
        return None
    if wait.call is None:
        return steps.at_frame(continuation.root, wait.frame, lambda frame: _decide_frame(frame, event))
    return steps.at_call(continuation.root, wait.call, lambda frame, call: _decide_call(agents, frame, call, event))


def expire(continuation: Continuation, at: datetime) -> Frame | None:
    """The root with every wait and pause that has run out by `at` ended; None where there is none."""
    root = continuation.root
    for frame in frames(continuation.root):
        if frame.turn.not_before is not None and frame.turn.not_before <= at:
            root = steps.at_frame(root, frame.id, _wake) or root
    for wait in pending(continuation):
        if _over(wait, at) and wait.on_expire != "keep":
            root = _expire_wait(root, wait) or root
    return root if root is not continuation.root else None


def _over(wait: Wait, at: datetime) -> bool:
    return wait.expires_at is not None and wait.expires_at <= at


def _wake(frame: Frame) -> Frame:
    return replace(frame, turn=replace(frame.turn, not_before=None))


def _expire_wait(root: Frame, wait: Wait) -> Frame | None:
    failure = Failure("approval.expired", f"Nobody answered in time: {wait.title}")
    if wait.on_expire == "fail" or wait.call is None:
        return steps.at_frame(root, wait.frame, lambda frame: steps.failed(frame, failure))
    return steps.at_call(root, wait.call, lambda _, call: steps.close(call, "expired", failure.detail))


def _decide_frame(frame: Frame, event: Decided) -> Frame | None:
    if event.decision == "extend" and event.limits is not None:
        return replace(frame, wait=None)
    if event.decision == "reject":
        return steps.failed(
            frame, Failure("budget.exhausted", event.reason or "A person declined to raise the budget.")
        )
    return None


def _decide_call(agents: Agents, frame: Frame, call: Call, event: Decided) -> Call:
    match event.decision:
        case "approve":
            return steps.authorize(agents, call, frame, event.at)
        case "retry":
            return replace(call, state="authorized", wait=None)
        case "reject":
            return steps.close(call, "rejected", f"A person rejected this call. {event.reason}".rstrip())
        case "answer":
            return steps.close(call, "answered", event.text)
        case _:  # mark_done is the only other decision that a call's wait allows
            return steps.close(call, "succeeded", event.text or "A person confirmed that this was done.")
