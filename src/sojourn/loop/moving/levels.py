"""Levels: what a release must be able to read to go on with a run.

A level is counted up when a release begins to write what older ones cannot read: a field of the snapshot, a kind of
event, a setting of an agent. What is written then carries the level that it needs, and workers of older releases leave
it alone. The rules: LEVEL only grows, and a run asks for no more than what it holds, so that a release that can do more
takes nothing away from those beside it.

    LEVEL 0    everything up to 0.4
    LEVEL 1    what calls cost that gave no reply, pinned prices, and what a run cost that ended
    LEVEL 2    pools of a day: the event Unfunded, the wait day_budget
    LEVEL 3    what guardrails did: Judged, a reply withheld, a call judged, facts about them
    LEVEL 4    taints, tools that send outward, and what becomes of their calls
    LEVEL 5    limits of wall time, depth and children that are not the default, and sub-agents that are counted
    LEVEL 6    judges: the event Consulted, the opinions of a frame
"""

from typing import Final

from sojourn.loop.agent import Agent
from sojourn.loop.budget import CHILDREN, DEPTH, Limits
from sojourn.loop.continuation import Continuation, Frame, Signal, frames
from sojourn.loop.events import (
    Began,
    Consulted,
    Decided,
    FloorRaised,
    Judged,
    Noted,
    Replied,
    Said,
    Signalled,
    Unfunded,
)

LEVEL: Final = 6
"""What this release can read."""


def needed(value: object) -> int:
    """The level that it takes to read a continuation, an event or an agent."""
    match value:
        case Continuation():
            return _needed(value)
        case Agent(limits=limits) | Decided(limits=Limits() as limits) if _bounds(limits):
            return 5
        case Agent(tools=tools, policy=policy):
            return 4 if policy.outward != "ask" or any(tool.taints or tool.outward for tool in tools) else 0
        case Consulted():
            return 6
        case FloorRaised():
            return 4
        case Began(taints=known) | Said(taints=known) | Signalled(signal=Signal(taints=known)) if known:
            return 4
        case Judged() | Noted(kind="guardrails.in_force" | "guardrail.acted"):
            return 3
        case Replied(withheld=why) if why:
            return 3
        case Unfunded():
            return 2
    return 0


def _needed(run: Continuation) -> int:
    spent = run.spent
    if spent.children or _bounds(run.limits):
        level = 5
    elif run.floor is not None or any(signal.taints for signal in run.signals):
        level = 4
    else:
        level = int(run.root.ended or bool(run.prices or spent.estimated or spent.unpriced))
    return max(level, *map(_of_frame, frames(run.root)))


def _bounds(limits: Limits) -> bool:
    """Whether they bind in a way that older releases do not know."""
    return limits.wall_s is not None or limits.depth != DEPTH or limits.children != CHILDREN


def _of_frame(frame: Frame) -> int:
    if frame.opinions:
        return 6
    if frame.limits is not None and _bounds(frame.limits):
        return 5
    if frame.taints:
        return 4
    level = 3 if frame.turn.withheld else 0
    for call in frame.calls:
        if call.taints or call.sending:
            return 4
        if call.judged:
            level = 3
    day = 2 if frame.wait is not None and frame.wait.kind == "day_budget" else 0
    return level or day or int(frame.turn.least is not None)
