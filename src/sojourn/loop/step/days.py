"""A pool of the day has no room for a model call: the run fails, waits for another day, or tries again soon.

`machine.py` calls it for Unfunded. The rule: the machine keeps no pool and knows no price; whoever keeps them says
whether there is room, and is asked anew for every attempt.
"""

from datetime import timedelta

from msgspec.structs import replace

from sojourn.loop.continuation import Continuation, Frame
from sojourn.loop.events import ModelErred, Unfunded
from sojourn.loop.step.calls import Agents
from sojourn.loop.step.ending import failed
from sojourn.loop.step.replies import again, backoff_s, retry
from sojourn.loop.step.tree import at_frame
from sojourn.loop.step.waits import ask_frame

DAY = timedelta(days=1)
SPREAD = 1440
"""Who was refused in the course of a day wakes in that order in the course of a minute: a day in minutes."""


def unfunded(agents: Agents, continuation: Continuation, frame: Frame, event: Unfunded) -> Continuation:
    """The run without the call of a frame that was due."""
    if not event.later and event.until is not None and continuation.limits.on_exhaust == "fail":
        return replace(continuation, root=failed(continuation.root, event.error))
    after = _passed_on(agents, frame, event) if event.until is None else _put_off(frame, event)
    return replace(continuation, root=at_frame(continuation.root, frame.id, lambda _: after) or continuation.root)


def _passed_on(agents: Agents, frame: Frame, event: Unfunded) -> Frame:
    """Ask the next model of the chain, or give up: the price of this one is not known tomorrow either."""
    return retry(
        agents,
        frame,
        ModelErred(at=event.at, frame=event.frame, step=event.step, attempt=event.attempt, error=event.error),
    )


def _put_off(frame: Frame, event: Unfunded) -> Frame:
    assert event.until is not None
    frame = again(frame)
    if event.later:
        not_before = event.at + timedelta(seconds=backoff_s(frame, min(event.attempt, 10)))
        return replace(frame, turn=replace(frame.turn, not_before=not_before))
    frame = ask_frame(frame, "day_budget", at=event.at, title=event.error.detail, about=event.pool)
    assert frame.wait is not None
    passed = min(max(event.at - (event.until - DAY), timedelta()), DAY)
    return replace(frame, wait=replace(frame.wait, expires_at=event.until + passed / SPREAD))
