"""What may still be spent: one pool for the whole tree, and within it one for every sub-agent.

`machine.py` charges and bounds with it. The rule: what is spent and what is set aside for calls in flight never pass a
limit together, however many sub-agents run at once.
"""

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from functools import cached_property
from math import ceil, inf

from msgspec.structs import replace

from sojourn.loop import events as ev
from sojourn.loop.budget import DEPTH_MAX, Held, Limits, Pin, Room, Spent, exhausted
from sojourn.loop.budget import charge as charged
from sojourn.loop.continuation import Call, Continuation, Failure, Frame, frames, path
from sojourn.loop.step import calls
from sojourn.loop.step.calls import Agents, Nest
from sojourn.loop.step.ending import failed, settle
from sojourn.loop.step.pauses import asks
from sojourn.loop.step.tree import at_frame, depth, put
from sojourn.loop.step.waits import ask_frame


class Pool:
    """The limits of one frame and all below it, and what is left of them while effects are handed out.

    It is made for every event; what only some ask for is counted when they do.
    """

    def __init__(self, frame: Frame, limits: Limits, spent: Spent, *, since: datetime) -> None:
        self.frame, self.limits, self.spent, self.since = frame, limits, spent, since

    @cached_property
    def held(self) -> Held:
        return sum((one.turn.held for one in frames(self.frame) if one.turn.sent), Held())

    @cached_property
    def steps(self) -> float:
        asked = sum(one.turn.sent for one in frames(self.frame))
        return inf if self.limits.steps is None else self.limits.steps - self.spent.steps - asked

    @cached_property
    def tool_calls(self) -> float:
        return inf if self.limits.tool_calls is None else self.limits.tool_calls - self.spent.tool_calls

    def room(self, room: Room) -> Room:
        """The room that this pool leaves of `room`."""
        limits = self.limits
        if limits.input_tokens is None and limits.output_tokens is None and limits.usd_micros is None:
            return room
        return room.under(self.limits, self.spent, self.held)


Pools = tuple[Pool, ...]


def walk(continuation: Continuation) -> Iterator[tuple[Frame, Pools]]:
    """Every frame, parents first, with the pools that it draws from."""

    def visit(frame: Frame, pools: Pools) -> Iterator[tuple[Frame, Pools]]:
        if frame.limits is not None:
            pools = (*pools, Pool(frame, frame.limits, frame.spent, since=began(continuation, frame)))
        yield frame, pools
        for call in frame.calls:
            if call.child is not None:
                yield from visit(call.child, pools)

    root = continuation.root
    since = began(continuation, root) if root.since is not None else continuation.created_at
    return visit(root, (Pool(root, continuation.limits, continuation.spent, since=since),))


def began(continuation: Continuation, frame: Frame) -> datetime:
    """What a frame's wall time counts from; nothing of a run that was imported or forked began before that."""
    return continuation.created_at if frame.since is None else max(frame.since, continuation.created_at)


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


def busy(frame: Frame) -> bool:
    """Whether anything is in flight in the frame or below it."""
    return any(
        (one.turn.sent and not one.ended) or any(call.state == "intent" for call in one.calls) for one in frames(frame)
    )


# ---- charging --------------------------------------------------------------------------------


def aged(continuation: Continuation, at: datetime) -> Continuation:
    """The run, and every sub-agent that is busy, with its active time up to `at`; a clock that goes back adds none."""
    passed_ms = (at - continuation.updated_at) // timedelta(milliseconds=1)
    if passed_ms <= 0 or not busy(continuation.root):
        return continuation
    root = _aged(continuation.root, passed_ms)
    return replace(continuation, root=root, spent=_older(continuation.spent, passed_ms))


def _aged(frame: Frame, passed_ms: int) -> Frame:
    for call in frame.calls:
        if call.child is not None and busy(call.child):
            child = replace(call.child, spent=_older(call.child.spent, passed_ms))
            frame = put(frame, replace(call, child=_aged(child, passed_ms)))
    return frame


def _older(spent: Spent, passed_ms: int) -> Spent:
    return replace(spent, active_ms=spent.active_ms + passed_ms)


def deadline(continuation: Continuation) -> datetime | None:
    """When time runs out that ends something, or has somebody asked though nothing else happens.

    Active time that runs out ends what is in flight; where the limit suspends, what is in flight goes on.
    """
    times: list[datetime] = []
    for pool in _open(continuation):
        limits, fails = pool.limits, pool.limits.on_exhaust == "fail"
        if fails and limits.active_s is not None and busy(pool.frame):
            left_ms = max(0.0, limits.active_s * 1000 - pool.spent.active_ms)
            times.append(continuation.updated_at + timedelta(milliseconds=ceil(left_ms)))
        if limits.wall_s is not None and (fails or _unasked(pool.frame)):
            times.append(pool.since + timedelta(seconds=limits.wall_s))
    return min(times, default=None)


def overdue(continuation: Continuation, at: datetime) -> bool:
    """Whether time is over that ends something, or that somebody is to be asked about."""
    for pool in _open(continuation):
        over = exhausted(pool.limits, pool.spent, since=pool.since, at=at)
        fails = pool.limits.on_exhaust == "fail"
        if (fails and "active_s" in over) or ("wall_s" in over and (fails or _unasked(pool.frame))):
            return True
    return False


def _unasked(frame: Frame) -> bool:
    """Whether the frame can be asked about its wall time: it waits for its calls, or would ask its model."""
    return asks(frame) or (frame.state == "acting" and frame.wait is None)


def _open(continuation: Continuation) -> Iterator[Pool]:
    """Every pool of a frame that goes on, parents first."""
    return (pools[-1] for frame, pools in walk(continuation) if frame is pools[-1].frame and not frame.ended)


def charge(continuation: Continuation, event: ev.Event) -> Continuation:
    """The run, and the sub-agents round the place of the event, once it is paid for."""
    match event:
        case ev.Replied() | ev.ModelErred() | ev.ModelLost() | ev.Compacted() | ev.Consulted():
            if (bill := ev.bill(event)) is not None:
                steps = int(isinstance(event, ev.Replied))
                return _charged(continuation, event.frame, lambda spent: charged(spent, bill, steps=steps))
        case ev.Intended(attempt=1, call=uid):
            place = uid.rpartition("/")[0] or "/"
            return _charged(continuation, place, lambda spent: replace(spent, tool_calls=spent.tool_calls + 1))
    return continuation


def _charged(continuation: Continuation, place: str, pay: Callable[[Spent], Spent]) -> Continuation:
    root = continuation.root
    for frame in path(root, place)[1:]:
        root = at_frame(root, frame.id, lambda f: replace(f, spent=pay(f.spent))) or root
    return replace(continuation, root=root, spent=pay(continuation.spent))


def pinned(continuation: Continuation, event: ev.ModelAsked) -> Continuation:
    """The run with the price of a model that it asks for the first time."""
    if event.tariff is None or any(pin.model == event.model for pin in continuation.prices):
        return continuation
    return replace(continuation, prices=(*continuation.prices, Pin(event.model, event.tariff)))


# ---- bounding --------------------------------------------------------------------------------


def bound(continuation: Continuation, at: datetime) -> Continuation:
    """The run, settled, with every pool that has no room for what comes next failed, or asking for more."""
    while True:
        root = settle(continuation.root)
        continuation = continuation if root is continuation.root else replace(continuation, root=root)
        after = _bind_one(continuation, at)
        if after is continuation:
            return continuation
        continuation = after  # a sub-agent that failed is yet to be told to its parent


def _bind_one(continuation: Continuation, at: datetime) -> Continuation:
    for pool in _open(continuation):
        for limit in exhausted(pool.limits, pool.spent, since=pool.since, at=at):
            after = _exhaust(continuation, pool, limit, at)
            if after is not continuation:
                return after
    return continuation


def _exhaust(continuation: Continuation, pool: Pool, limit: str, at: datetime) -> Continuation:
    starved = [f for f in frames(pool.frame) if asks(f) or (limit in ("tool_calls", "wall_s") and _starves(f))]
    if limit == "wall_s" and not starved and _unasked(pool.frame):
        starved = [pool.frame]  # it sleeps, and somebody should know
    if starved or (limit in ("active_s", "wall_s") and pool.limits.on_exhaust == "fail"):
        return _stop(continuation, pool, limit, starved=starved, at=at)
    return continuation


def _stop(continuation: Continuation, pool: Pool, limit: str, *, starved: list[Frame], at: datetime) -> Continuation:
    """Fail a pool's frame, or have those ask that cannot go on, as its limits say."""
    root, id = continuation.root, pool.frame.id
    who = _who(pool)
    if pool.limits.on_exhaust == "fail":
        detail = f"{who} has used all of its {limit} ({getattr(pool.limits, limit)}). Start it with more."
        root = at_frame(root, id, lambda f: failed(f, Failure("budget.exhausted", detail))) or root
        return replace(continuation, root=root)
    title = f"{who} has used all of its {limit}. Raise it?"
    for frame in starved:
        root = at_frame(root, frame.id, lambda f: ask_frame(f, "budget", at=at, title=title, about=id)) or root
    return replace(continuation, root=root)


def _who(pool: Pool) -> str:
    return "The run" if pool.frame.id == "/" else f"The sub-agent {pool.frame.agent.name}"


def announced(continuation: Continuation, event: ev.ModelAsked, frame: Frame) -> Continuation | None:
    """What becomes of a model call that there is no room for; the run itself where there is room.

    None where room may come back with the calls that are in flight; else the pool is exhausted.
    """
    if event.held == Held():
        return continuation
    pools = next(pools for one, pools in walk(continuation) if one.id == frame.id)
    for pool in pools:
        limit = pool.room(Room()).lacks(event.held)
        if limit is not None:
            return _stop(continuation, pool, limit, starved=[frame], at=event.at) if pool.held == Held() else None
    return continuation


def room(continuation: Continuation, frame: str) -> Room:
    """What another call to a model may cost in a frame, whatever it is for."""
    left = Room()
    for pool in next((pools for one, pools in walk(continuation) if one.id == frame), ()):
        left = pool.room(left)
    return left


def runs(call: Call) -> bool:
    """Whether the call's tool is to be run now, by a worker."""
    return call.state == "authorized" and call.tool.executor == "server"


def _starves(frame: Frame) -> bool:
    """Whether the frame has a call that never ran and would run now."""
    return frame.wait is None and any(runs(call) and not call.attempts for call in frame.calls)


# ---- sub-agents ------------------------------------------------------------------------------


def launch(agents: Agents, continuation: Continuation, at: datetime) -> Continuation:
    """Begin the calls that may run and that no worker runs."""
    for frame in frames(continuation.root):
        if any(calls.launches(call) for call in frame.calls):
            continuation = _launch(agents, continuation, frame.id, at)
    return continuation


def _launch(agents: Agents, continuation: Continuation, place: str, at: datetime) -> Continuation:
    """Begin those of one frame, and count its sub-agents; none is given back when it ends."""
    before, pools = next((frame, pools) for frame, pools in walk(continuation) if frame.id == place)
    nest = min(_nest(pool, depth(place) + 1) for pool in pools)
    after = calls.launch(agents, before, at, nest=nest)
    root = at_frame(continuation.root, place, lambda _: after) or continuation.root
    begun = sum(call.child is not None for call in after.calls) - sum(call.child is not None for call in before.calls)
    continuation = replace(continuation, root=root)
    if not begun:
        return continuation
    return _charged(continuation, place, lambda spent: replace(spent, children=spent.children + begun))


def judged(continuation: Continuation, root: Frame, uid: str) -> Continuation:
    """The run with a call judged; a sub-agent that was to begin with it, and is called back, did not begin."""
    after = replace(continuation, root=root)
    if not path(continuation.root, uid) or path(root, uid):
        return after
    return _charged(after, uid.rpartition("/")[0] or "/", lambda s: replace(s, children=max(0, s.children - 1)))


def _nest(pool: Pool, below: int) -> Nest:
    """What one pool leaves for sub-agents with so many frames above them."""
    instead = "This one was not begun: do its task yourself, or say what is left undone."
    deepest = min(DEPTH_MAX, pool.limits.depth + depth(pool.frame.id))
    if below > deepest:
        return Nest(0, f"Sub-agents may be nested {deepest} deep (the limit `depth`), and no deeper. {instead}")
    most = pool.limits.children
    text = f"{_who(pool)} may begin {most} sub-agents in all (the limit `children`), and has. {instead}"
    return Nest(max(0, most - pool.spent.children), text)
