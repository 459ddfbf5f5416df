"""Levels: what a release must be able to read to go on with a run.

A level is counted up when a release begins to write what older ones cannot read: a field of the snapshot, a kind of
event, a setting of an agent. What is written then carries the level that it needs, and workers of older releases leave
it alone. The rules: LEVEL only grows, and a run asks for no more than what it holds, so that a release that can do more
takes nothing away from those beside it.

    LEVEL 0    everything up to 0.4
    LEVEL 1    what calls cost that gave no reply, pinned prices, and what a run cost that ended
    LEVEL 2    pools of a day: the event Unfunded, the wait day_budget
    LEVEL 3    what guardrails did: Judged, a reply withheld, a call judged, facts about them
"""

from typing import Final

from sojourn.loop.continuation import Continuation, frames
from sojourn.loop.events import Judged, Noted, Replied, Unfunded

LEVEL: Final = 3
"""What this release can read."""


def needed(value: object) -> int:
    """The level that it takes to read a continuation, an event or an agent."""
    match value:
        case Continuation():
            return _needed(value)
        case Judged() | Noted(kind="guardrails.in_force" | "guardrail.acted"):
            return 3
        case Replied(withheld=why) if why:
            return 3
        case Unfunded():
            return 2
    return 0


def _needed(run: Continuation) -> int:
    spent = run.spent
    level = int(run.root.ended or bool(run.prices or spent.estimated or spent.unpriced))
    for frame in frames(run.root):
        if frame.turn.withheld or any(call.judged for call in frame.calls):
            return 3
        if frame.wait is not None and frame.wait.kind == "day_budget":
            level = 2
        elif frame.turn.least:
            level = level or 1
    return level
