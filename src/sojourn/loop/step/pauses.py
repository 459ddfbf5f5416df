"""An agent stops before its next model call: by a rule of its own, or because it goes round in circles.

`machine.py` asks after every event. The rules: a pause never touches a call, so what was approved still runs; and what
it counts from stands in the frame, so that another process counts on.
"""

from datetime import datetime, timedelta

from msgspec.structs import replace

from sojourn.loop.agent import Suspend
from sojourn.loop.continuation import Continuation, Frame, WaitKind, frames
from sojourn.loop.messages import Message, ToolResult, said
from sojourn.loop.step.calls import Agents
from sojourn.loop.step.tree import at_frame
from sojourn.loop.step.waits import ask_frame

CIRCLES = ((1, 3), (2, 6))
"""So many different steps in turn, so often in all, are a circle: A-A-A and A-B-A-B-A-B."""
WARNING = (
    "You have made the same calls again and again, with the same results. Do something else, or say what stops you."
)


def rest(agents: Agents, continuation: Continuation, at: datetime) -> Frame:
    """The root, with a question at every frame that is to stop before it asks its model."""
    root = continuation.root
    for frame in frames(root):
        if asks(frame):
            root = at_frame(root, frame.id, lambda f: _pause(agents, continuation, f, at)) or root
    return root


def asks(frame: Frame) -> bool:
    """Whether the frame's model is to be asked now."""
    turn = frame.turn
    return frame.state == "ready" and not turn.sent and turn.not_before is None and frame.wait is None


def _pause(agents: Agents, continuation: Continuation, frame: Frame, at: datetime) -> Frame | None:
    agent = agents[frame.agent.digest]
    if frame.step == 0 and frame.turn.attempt == 1:
        active_ms = continuation.spent.active_ms
        return replace(frame, marks=replace(frame.marks, active_ms=active_ms)) if agent.suspend.after_active_s else None
    rules = (agent.suspend, continuation.suspend) if frame.id == continuation.root.id else (agent.suspend,)
    for rule in rules:
        if (due := _due(rule, frame, continuation.spent.active_ms, at)) is not None:
            kind, title = due
            return ask_frame(frame, kind, at=at, title=title)
    return _circle(frame, at) if agent.policy.loop_guard else None


def _due(rule: Suspend, frame: Frame, active_ms: int, at: datetime) -> tuple[WaitKind, str] | None:
    """Which rule stops the frame now, and what is asked."""
    turns, ran_ms = frame.step - frame.marks.turns, active_ms - frame.marks.active_ms
    if rule.every_turns is not None and turns >= rule.every_turns:
        return "turns", f"{frame.agent.name} made {turns} turns. Go on?"
    if rule.after_active_s is not None and timedelta(milliseconds=ran_ms) >= timedelta(seconds=rule.after_active_s):
        return "seconds", f"{frame.agent.name} worked for {ran_ms / 1000:.0f} s. Go on?"
    if rule.at is not None and not frame.marks.past and frame.step and at >= rule.at:
        return "timer", f"It is past {rule.at.isoformat(timespec='seconds')}. Go on?"
    return None


# ---- circles ---------------------------------------------------------------------------------


def _circle(frame: Frame, at: datetime) -> Frame | None:
    """Tell an agent once that it goes round in circles; the next time, ask a person."""
    if not _circles(frame.messages, frame.step - frame.marks.circle):
        return None
    if frame.marks.warned:
        title = f"{frame.agent.name} makes the same calls again and again. Go on?"
        return ask_frame(frame, "loop_guard", at=at, title=title)
    told = said(f"{frame.id}!{frame.step}", WARNING)
    marks = replace(frame.marks, circle=frame.step, warned=True)
    return replace(frame, messages=(*frame.messages, told), marks=marks)


def _circles(messages: tuple[Message, ...], steps: int) -> bool:
    newest, *before = _rounds(messages, 3) if steps >= 3 else [()]
    if newest not in before:
        return False
    for period, length in CIRCLES:
        if steps >= length:
            last = _rounds(messages, length)
            if len(last) == length and last[0] and all(last[i] == last[i - period] for i in range(period, length)):
                return True
    return False


def _rounds(messages: tuple[Message, ...], count: int) -> list[tuple[object, ...]]:
    """The calls and observations of the last steps, the newest first; users' words are left out."""
    rounds: list[tuple[object, ...]] = []
    results: list[object] = []
    for message in reversed(messages):
        if message.role == "tool":
            results += [(part.text, part.error) for part in message.parts if isinstance(part, ToolResult)]
        elif message.role == "assistant":
            calls = [(call.name, call.arguments) for call in message.calls]
            rounds.append((*calls, *reversed(results)))
            results = []
        if len(rounds) == count:
            break
    return rounds
