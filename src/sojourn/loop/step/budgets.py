"""What may still be spent: one pool for the whole tree, and within it one for every sub-agent.

`machine.py` charges and bounds with it. The rule: what is spent and what is set aside for calls in flight never pass a
limit together, however many sub-agents run at once.
"""

from collections.abc import Iterator
from datetime import datetime
from math import inf

from msgspec.structs import replace

from sojourn.loop.budget import Held, Limits, Room, Spent, charge_step, exhausted
from sojourn.loop.continuation import Call, Continuation, Failure, Frame, frames, path
from sojourn.loop.events import Intended, ModelAsked, Replied
from sojourn.loop.messages import Usage
from sojourn.loop.step.ending import failed
from sojourn.loop.step.pauses import asks
from sojourn.loop.step.tree import at_frame
from sojourn.loop.step.waits import ask_frame


class Pool:
    """The limits of one frame and all below it, and what is left of them while effects are handed out."""

    def __init__(self, frame: Frame, limits: Limits, spent: Spent) -> None:
        self.frame, self.limits, self.spent = frame, limits, spent
        asked = [one.turn for one in frames(frame) if one.turn.sent]
        self.held = sum((turn.held for turn in asked), Held())
        self.steps = inf if limits.steps is None else limits.steps - spent.steps - len(asked)
        self.tool_calls = inf if limits.tool_calls is None else limits.tool_calls - spent.tool_calls

    def room(self, room: Room) -> Room:
        """The room that this pool leaves of `room`."""
        return room.under(self.limits, self.spent, self.held)


Pools = tuple[Pool, ...]


def walk(continuation: Continuation) -> Iterator[tuple[Frame, Pools]]:
    """Every frame, parents first, with the pools that it draws from."""

    def visit(frame: Frame, pools: Pools) -> Iterator[tuple[Frame, Pools]]:
        if frame.limits is not None:
            pools = (*pools, Pool(frame, frame.limits, frame.spent))
        yield frame, pools
        for call in frame.calls:
            if call.child is not None:
                yield from visit(call.child, pools)

    root = continuation.root
    return visit(root, (Pool(root, continuation.limits, continuation.spent),))


def take_step(pools: Pools) -> Room | None:
    """Take a model call out of every pool; the room that it has, None where one is empty."""
    if any(pool.steps <= 0 for pool in pools):
        return None
    room = Room()
    for pool in pools:
        pool.steps -= 1
        room = pool.room(room)
    return room


def take_call(pools: Pools, call: Call) -> bool:
    """Take a tool call out of every pool, but for another attempt; false where one is empty."""
    if call.attempts:
        return True
    if any(pool.tool_calls <= 0 for pool in pools):
        return False
    for pool in pools:
        pool.tool_calls -= 1
    return True


# ---- charging --------------------------------------------------------------------------------


def charge(continuation: Continuation, event: object) -> Continuation:
    """The run, and the sub-agents round the place of the event, once it is paid for."""
    match event:
        case Replied(frame=place, message=message):
            usage, cost = (message.usage if message else None) or Usage(), event.usd_micros or 0
            return _charged(continuation, place, lambda spent: charge_step(spent, usage, cost))
        case Intended(attempt=1, call=uid):
            place = uid.rpartition("/")[0] or "/"
            return _charged(continuation, place, lambda spent: replace(spent, tool_calls=spent.tool_calls + 1))
    return continuation


def _charged(continuation: Continuation, place: str, pay) -> Continuation:  # type: ignore[no-untyped-def]
    root = continuation.root
    for frame in path(root, place)[1:]:
        root = at_frame(root, frame.id, lambda f: replace(f, spent=pay(f.spent))) or root
    return replace(continuation, root=root, spent=pay(continuation.spent))


# ---- bounding --------------------------------------------------------------------------------


def bound(continuation: Continuation, at: datetime) -> Continuation:
    """The run, with every pool that has no room for what comes next failed, or asking for more."""
    for frame, pools in walk(continuation):
        pool = pools[-1]
        if frame is not pool.frame or frame.ended:
            continue
        spent_out = exhausted(pool.limits, pool.spent)
        if spent_out is not None and (after := _exhaust(continuation, pool, spent_out, at)) is not continuation:
            return bound(after, at)
    return continuation


def _exhaust(continuation: Continuation, pool: Pool, limit: str, at: datetime) -> Continuation:
    starved = [f for f in frames(pool.frame) if asks(f) or (limit == "tool_calls" and _starves(f))]
    if starved or (limit == "active_s" and pool.limits.on_exhaust == "fail"):
        return _stop(continuation, pool, limit, starved=starved, at=at)
    return continuation


def _stop(continuation: Continuation, pool: Pool, limit: str, *, starved: list[Frame], at: datetime) -> Continuation:
    """Fail a pool's frame, or have those ask that cannot go on, as its limits say."""
    root, id = continuation.root, pool.frame.id
    who = "The run" if id == root.id else f"The sub-agent {pool.frame.agent.name}"
    if pool.limits.on_exhaust == "fail":
        detail = f"{who} has used all of its {limit} ({getattr(pool.limits, limit)}). Start it with more."
        root = at_frame(root, id, lambda f: failed(f, Failure("budget.exhausted", detail))) or root
        return replace(continuation, root=root)
    title = f"{who} has used all of its {limit}. Raise it?"
    for frame in starved:
        root = at_frame(root, frame.id, lambda f: ask_frame(f, "budget", at=at, title=title, about=id)) or root
    return replace(continuation, root=root)


def announced(continuation: Continuation, event: ModelAsked, frame: Frame) -> Continuation | None:
    """What becomes of a model call that there is no room for; the run itself where there is room.

    None where room may come back with the calls that are in flight; else the pool is exhausted.
    """
    pools = next(pools for one, pools in walk(continuation) if one.id == frame.id)
    for pool in pools:
        limit = pool.room(Room()).lacks(event.held)
        if limit is not None:
            return _stop(continuation, pool, limit, starved=[frame], at=event.at) if pool.held == Held() else None
    return continuation


def runs(call: Call) -> bool:
    """Whether the call's tool is to be run now, by a worker."""
    return call.state == "authorized" and call.child is None


def _starves(frame: Frame) -> bool:
    """Whether the frame has a call that never ran and would run now."""
    return frame.wait is None and any(runs(call) and not call.attempts for call in frame.calls)
