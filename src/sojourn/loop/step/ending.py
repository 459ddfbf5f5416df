"""The end of a step, of a frame, of a run. The rule: what has ended leaves no question and no attempt open."""

from msgspec.structs import replace

from sojourn.loop.continuation import SETTLED, Call, Failure, Frame
from sojourn.loop.step import taints
from sojourn.loop.step.calls import close


def settle(frame: Frame) -> Frame:
    """Fold ended children into their calls and settled calls into the transcript; then hear the user."""
    if frame.state == "acting":
        frame = replace(frame, calls=tuple(_settle_call(call) for call in frame.calls))
        if all(call.state in SETTLED for call in frame.calls):
            results = tuple(call.result for call in frame.calls if call.result is not None)
            frame = replace(
                frame, state="ready", calls=(), messages=(*frame.messages, *results), taints=taints.read(frame)
            )
    if frame.state == "ready" and frame.inbox and not frame.turn.sent:
        frame = replace(frame, messages=(*frame.messages, *frame.inbox), inbox=())
    return frame


def _settle_call(call: Call) -> Call:
    if call.child is None:
        return call
    child = settle(call.child)
    if child.state == "done":
        return replace(close(call, "succeeded", child.result or ""), taints=taints.below(child))
    if child.ended:
        detail = child.error.detail if child.error else "It was cancelled."
        text = f"The sub-agent {child.agent.name} did not finish. {detail}"
        return replace(close(call, "failed", text), taints=taints.below(child))
    return replace(call, child=child)


def failed(frame: Frame, error: Failure) -> Frame:
    """End a frame without a result, and all below it."""
    return replace(_stopped(frame), state="failed", error=error)


def cancelled(frame: Frame) -> Frame:
    """Stop a frame and all below it."""
    return replace(_stopped(frame), state="cancelled")


def _stopped(frame: Frame) -> Frame:
    calls = tuple(
        call
        if call.state in SETTLED
        else replace(call, state="cancelled", wait=None, child=cancelled(call.child) if call.child else None)
        for call in frame.calls
    )
    return replace(frame, calls=calls, wait=None)
