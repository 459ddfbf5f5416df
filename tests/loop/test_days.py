"""A pool of the day has no room for a model call: what the run does about it."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from tests.loop.run_kit import T0, Run, call

from sojourn.loop import events as ev
from sojourn.loop.budget import Held, Limits
from sojourn.loop.continuation import Failure
from sojourn.loop.effects import CallModel
from sojourn.loop.machine import due, wake_at
from sojourn.loop.messages import Text
from sojourn.loop.moving.levels import LEVEL, needed

MIDNIGHT = T0 + timedelta(days=1)
SUSPEND = Limits(on_exhaust="suspend")
EMPTY = Failure("budget.day_exhausted", "The day's budget of user u has no room.")


def refused(run: Run, *, until: datetime | None = MIDNIGHT, frame: str = "/", **more: Any) -> ev.Unfunded:
    """What the worker says of the model call that is due in a frame."""
    effect = next(one for one in due(run.agents, run.state) if isinstance(one, CallModel) and one.frame == frame)
    place = {"frame": frame, "step": effect.step, "attempt": effect.attempt}
    return ev.Unfunded(at=run.at(), **place, pool="user", held=Held(usd_micros=5), error=EMPTY, until=until, **more)


def test_a_run_that_is_to_fail_fails_as_a_whole() -> None:
    run = Run()
    run.reply(call("help"))
    assert run.tell(refused(run, frame="/0.0"))
    assert run.phase == "failed" and run.root.error == EMPTY and run.root.calls[0].state == "cancelled"
    assert wake_at(run.state) is None


def test_a_run_that_is_to_suspend_waits_and_says_whose_pool_it_is() -> None:
    run = Run(limits=SUSPEND)
    event = refused(run)
    assert run.tell(event) and run.phase == "suspended"
    (wait,) = run.pending("day_budget")
    assert (wait.about, wait.title, wait.allowed) == ("user", EMPTY.detail, ("approve", "reject"))
    assert not run.tell(event), "the same refusal again"
    assert due(run.agents, run.state) == ()
    assert needed(run.state) == needed(event) == 2 <= LEVEL


def test_it_goes_on_when_the_day_ends_in_the_order_of_the_refusals() -> None:
    ends = []
    for hour in (1, 2, 23):
        run = Run(limits=SUSPEND)
        run.second = hour * 3600
        run.tell(refused(run))
        ends.append(wake_at(run.state))
        run.moved()
        assert not run.tell(ev.Ticked(at=MIDNIGHT))
        assert run.tell(ev.Ticked(at=ends[-1])) and run.phase == "running" and run.pending() == []
        assert [effect.attempt for effect in due(run.agents, run.state)] == [2]
    assert ends == sorted(set(ends)) and ends[0] > MIDNIGHT and ends[-1] < MIDNIGHT + timedelta(minutes=1)


@pytest.mark.parametrize("off", [timedelta(days=-3), timedelta(days=3)])
def test_a_clock_that_is_off_moves_the_end_of_the_day_by_no_more_than_a_minute(off: timedelta) -> None:
    run = Run(limits=SUSPEND)
    run.tell(refused(run, until=MIDNIGHT + off))
    (wait,) = run.pending("day_budget")
    assert wait.expires_at is not None
    assert timedelta() <= wait.expires_at - (MIDNIGHT + off) <= timedelta(minutes=1)


def test_a_yes_asks_the_pool_again_and_counts_no_turns_anew() -> None:
    run = Run(limits=SUSPEND)
    run.reply(call("look"))
    run.announce()
    run.returned("/0.0")
    marks = run.root.marks
    run.tell(refused(run))
    (first,) = run.pending("day_budget")
    assert run.decide(first.id, "approve") and run.root.marks == marks
    assert run.tell(refused(run)), "it is asked anew, and refused again"
    (second,) = run.pending("day_budget")
    assert second.id != first.id and run.refused(first.id, "approve") == "run.not_waiting"
    assert run.decide(second.id, "approve") and run.reply(Text("done")) and run.phase == "completed"


def test_a_no_ends_it() -> None:
    run = Run(limits=SUSPEND)
    run.tell(refused(run))
    (wait,) = run.pending("day_budget")
    assert run.refused(wait.id, "extend") == "approval.not_allowed"
    assert run.decide(wait.id, "reject", reason="Too dear.")
    assert run.root.error == Failure("budget.day_exhausted", "Too dear.")


@pytest.mark.parametrize("limits", [Limits(), SUSPEND])
def test_room_that_calls_in_flight_hold_is_waited_for_without_a_question(limits: Limits) -> None:
    run, rests = Run(limits=limits), []
    for attempt in range(1, 14):
        event = refused(run, later=True)
        assert event.attempt == attempt and run.tell(event) and not run.tell(event)
        assert run.pending() == [] and run.phase == "running" and due(run.agents, run.state) == ()
        until = wake_at(run.state)
        assert until is not None
        rests.append((until - event.at).total_seconds())
        assert run.tell(ev.Ticked(at=until))
        run.second = int((until - T0).total_seconds()) + 1
    assert rests[0] < 1 and 15 <= rests[-1] <= 45 and run.root.turn.failures == 0
    assert run.reply(Text("done"))


def test_the_next_model_of_the_chain_is_asked_where_a_price_is_not_known() -> None:
    run = Run(limits=SUSPEND)
    assert run.tell(refused(run, until=None))
    (effect,) = due(run.agents, run.state)
    assert (effect.model, effect.attempt) == ("sim:b", 2)
    assert run.tell(refused(run, until=None)) and run.root.error == EMPTY, "it was the last one"


def test_a_refusal_of_a_call_that_is_not_due_changes_nothing() -> None:
    run = Run(limits=SUSPEND)
    event = refused(run)
    run.announce()
    assert not run.tell(event)
    run.decide("run?0", "approve")
    run.tell(ev.Paused(at=run.at(), by="ann"))
    assert not run.tell(event)


def test_one_sub_agent_waits_and_the_other_goes_on() -> None:
    run = Run(limits=SUSPEND)
    run.reply(call("help"), call("help"))
    assert run.tell(refused(run, frame="/0.0")) and run.phase == "running"
    run.reply(Text("seen"), frame="/0.1")
    (wait,) = run.pending("day_budget")
    assert wait.frame == "/0.0" and run.phase == "suspended"
    run.moved()
    assert run.decide(wait.id, "approve") and run.reply(Text("too"), frame="/0.0")
    assert run.reply(Text("done")) and run.phase == "completed"
