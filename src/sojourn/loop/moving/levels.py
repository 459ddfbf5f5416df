"""Levels: what a release must be able to read to go on with a run.

A level is counted up when a release begins to write what older ones cannot read: a field of the snapshot, a kind of
event, a setting of an agent. What is written then carries the level that it needs, and workers of older releases leave
it alone. The rules: LEVEL only grows, and a run asks for no more than what it holds, so that a release that can do more
takes nothing away from those beside it.

    LEVEL 0    everything up to 0.4
    LEVEL 1    what calls cost that gave no reply, pinned prices, and what a run cost that ended
    LEVEL 2    pools of a day: the event Unfunded, the wait day_budget
"""

from typing import Final

from sojourn.loop.continuation import Continuation, frames
from sojourn.loop.events import Unfunded

LEVEL: Final = 2
"""What this release can read."""


def needed(value: object) -> int:
    """The level that it takes to read a continuation, an event or an agent."""
    if isinstance(value, Unfunded):
        return 2
    if not isinstance(value, Continuation):
        return 0
    asked = False
    for frame in frames(value.root):
        if frame.wait is not None and frame.wait.kind == "day_budget":
            return 2
        asked = asked or bool(frame.turn.least)
    spent = value.spent
    return int(value.root.ended or asked or bool(value.prices or spent.estimated or spent.unpriced))
