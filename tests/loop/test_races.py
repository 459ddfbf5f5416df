"""Crashes and races, as the machine sees them: what comes late, twice, early, out of order or from the dead."""

from datetime import timedelta
from typing import Any

import pytest
from msgspec.structs import replace
from tests.loop.run_kit import AGENT, T0, Run, call

from sojourn.loop import events as ev
from sojourn.loop.agent import Agent, EffectClass, Tool
from sojourn.loop.continuation import Signal, pending
from sojourn.loop.machine import SIGNALS_MAX, due, in_flight, wake_at
from sojourn.loop.messages import Text, said

CLASSES: tuple[EffectClass, ...] = (
    "read", "idempotent", "transactional", "verifiable", "at_least_once", "at_most_once",
)  # fmt: skip
WAITER = replace(
    AGENT,
    tools=(
        *AGENT.tools,
        Tool(name="await_event", executor="event"),
        Tool(name="sleep", executor="clock"),
        Tool(name="ask_user", executor="person"),
    ),
)


def signal(run: Run, id: str, name: str = "paid", data: str = "") -> bool:
    return run.tell(ev.Signalled(at=run.at(), signal=Signal(id=id, name=name, data=data or id)))


def test_crash_between_intent_and_send() -> None:
    run = Run()
    run.reply(call("look"), call("pay"))
    run.announce()
    run.moved()
    assert [effect.call for effect in run.announce()] == ["/0.0"], "what only reads is read again"
    (wait,) = run.pending("outcome_unknown")
    assert wait.call == "/0.1", "nobody can know whether it was sent"
    assert run.decide(wait.id, "retry") and [effect.attempt for effect in run.announce()] == [2]


@pytest.mark.parametrize("effect", CLASSES)
def test_crash_between_effect_and_result_for_each_effect_class(effect: EffectClass) -> None:
    run = Run(Agent(name="a", models=("sim:a",), tools=(Tool(name="do", effect=effect),)))
    run.reply(call("do"))
    (first,) = run.announce()
    run.moved()
    assert not run.returned("/0.0"), "the dead worker's result comes too late"
    if effect == "at_most_once":
        assert run.phase == "suspended" and run.decide(run.pending()[0].id, "mark_done", text="receipt 7")
    else:
        (again,) = run.announce()
        assert (again.key, again.attempt, again.effect) == (first.key, 2, effect)
        run.moved()
        (again,) = run.announce()
        assert (again.key, again.attempt) == (first.key, 3)
        assert run.returned("/0.0", "receipt 7", attempt=3)
    assert run.last() == "receipt 7" and run.state.spent.tool_calls == 1


def test_cancel_races_with_tool_start() -> None:
    run = Run()
    run.reply(call("pay"), call("pay"))
    first, second = due(run.agents, run.state)
    assert run.tell(ev.Intended(at=run.at(), call=first.call, attempt=1))
    assert run.tell(ev.Cancelled(at=run.at(), by="u"))
    assert not run.tell(ev.Intended(at=run.at(), call=second.call, attempt=1)), "nothing begins after it"
    assert not run.returned(first.call) and in_flight(run.state, T0) == (), "nobody waits for what had begun"


def test_event_before_its_wait_is_kept_and_matched() -> None:
    run = Run(WAITER)
    run.announce()
    assert signal(run, "s1") and signal(run, "s2", name="other")
    run.moved()
    run.reply(call("await_event", '{"name":"paid","timeout_s":0}'))
    assert run.last() == "s1" and run.phase == "running"
    assert [one.id for one in run.state.signals] == ["s2"]


def test_webhook_twice_or_out_of_order() -> None:
    run = Run(WAITER)
    run.reply(call("await_event", '{"name":"b"}'), call("await_event", '{"name":"a"}'), call("hand"))
    assert signal(run, "s1", "a") and not signal(run, "s1", "a") and not signal(run, "s1", "b")
    assert signal(run, "s2", "a") and signal(run, "s3", "b")
    run.decide(run.pending("client_tool")[0].id, "answer", text="x")
    assert run.texts()[-3:] == ["s3", "s1", "x"]
    run.reply(call("await_event", '{"name":"a"}'), call("await_event", '{"name":"a"}'))
    assert len(run.pending()) == 1, "the second one was kept"
    assert not signal(run, "s2", "a") and len(run.pending()) == 1


def test_the_oldest_wait_hears_an_event_first() -> None:
    helper = Agent(name="helper", models=("sim:h",), tools=(Tool(name="await_event", executor="event"),))
    agent = replace(WAITER, tools=(*WAITER.tools[:-1], Tool(name="ask", executor="agent", agent="h")))
    run = Run(agent, others=(helper,))
    run.agents["h"] = helper
    run.reply(call("ask"), call("ask"))
    run.reply(call("await_event", '{"name":"paid"}'), frame="/0.1")
    run.reply(call("await_event", '{"name":"paid"}'), frame="/0.0")
    assert signal(run, "s1")
    assert [wait.frame for wait in run.pending("event")] == ["/0.0"]


def test_only_so_many_events_are_kept_and_the_oldest_go_first() -> None:
    run = Run(WAITER)
    run.announce()
    for n in range(SIGNALS_MAX + 3):
        assert signal(run, f"s{n}")
    assert len(run.state.signals) == len(run.state.heard) == SIGNALS_MAX
    run.reply(call("await_event", '{"name":"paid"}'))
    assert run.last() == "s3"


def test_an_event_that_does_not_come_is_told_and_a_late_one_is_kept() -> None:
    run = Run(WAITER)
    run.reply(call("await_event", '{"name":"paid","timeout_s":60}'), call("hand"))
    run.second = 100
    assert signal(run, "late") and len(run.pending("event")) == 1
    assert run.tell(ev.Ticked(at=run.at())) and run.pending("event") == []
    run.decide(run.pending()[0].id, "answer", text="x")
    assert run.texts()[-2] == "No event paid came in time." and [one.id for one in run.state.signals] == ["late"]


@pytest.mark.parametrize(
    "args",
    [
        "{}", '{"name":""}', '{"name":1}', '{"name":"a","timeout_s":-1}', '{"name":"a","timeout_s":true}',
        '{"name":"a","timeout_s":"9"}', '{"name":"a","timeout_s":1e999}',
    ],
)  # fmt: skip
def test_an_event_without_a_name_or_with_no_time_is_an_error(args: str) -> None:
    run = Run(WAITER)
    run.reply(call("await_event", args))
    assert "Say which event" in run.last() and run.phase == "running"


@pytest.mark.parametrize("args", ['{"seconds":60}', '{"until":"2026-01-01T00:01:02Z"}', '{"seconds":60,"x":1}'])
def test_a_timer_wakes_the_run_at_its_time(args: str) -> None:
    run = Run(WAITER)
    run.reply(call("sleep", args))
    assert run.phase == "suspended" and wake_at(run.state) == T0 + timedelta(seconds=62)
    assert not run.tell(ev.Ticked(at=T0 + timedelta(seconds=61)))
    assert run.tick() and run.last() == "It is 2026-01-01T00:01:02+00:00 now."


@pytest.mark.parametrize(
    "args",
    [
        "{}", '{"seconds":-1}', '{"seconds":true}', '{"seconds":1e999}', '{"seconds":31622401}', '{"until":"soon"}',
        '{"until":"2025-12-31T00:00:00Z"}', '{"until":"2026-06-01T00:00:00"}', '{"until":"2028-01-01T00:00:00Z"}',
        '{"until":7}', '{"until":null}',
    ],
)  # fmt: skip
def test_a_timer_without_a_time_to_come_is_an_error(args: str) -> None:
    run = Run(WAITER)
    run.reply(call("sleep", args))
    assert "at most 366 days ahead" in run.last() and wake_at(run.state) is None


def test_a_person_may_end_a_timer() -> None:
    run = Run(WAITER)
    run.reply(call("sleep", '{"seconds":60}'), call("sleep", '{"seconds":0}'))
    first, second = run.pending("timer")
    assert second.expires_at == run.state.updated_at, "no time is a time, too"
    assert run.decide(first.id, "approve") and run.tick()
    assert run.texts()[-2] == "A person said to go on now." and run.phase == "running"


def test_a_question_of_the_agent_is_answered_by_a_person_alone() -> None:
    run = Run(WAITER)
    run.reply(call("ask_user", '{"question":"Which\\u202e one?"}'), call("ask_user", '{"question":" "}'))
    (wait,) = run.pending()
    assert wait.kind == "answer" and "\\u202e" in wait.display
    run.tell(ev.Said(at=run.at(), message=said("m", "The left one.")))
    assert run.pending() == [wait]
    assert run.decide(wait.id, "answer", text="The left one.")
    assert run.texts()[-3:] == [
        "The left one.",
        "Say what you want to know, as `question`. Nobody was asked.",
        "The left one.",
    ]


def test_a_hold_lets_end_what_is_in_flight_and_nothing_begin() -> None:
    run = Run(WAITER)
    run.reply(call("look"), call("wire"), call("help"), call("await_event", '{"name":"paid","timeout_s":60}'))
    run.announce()
    assert run.tell(ev.Paused(at=run.at(), by="boss", reason="lunch"))
    assert not run.tell(ev.Paused(at=run.at(), by="boss")), "one hold is enough"
    assert run.phase == "running", "what is in flight comes home"
    assert run.returned("/0.0") and run.decide("/0.1?0", "approve")
    assert run.reply(call("look"), frame="/0.2")
    assert run.tick() and run.pending("event") == [], "time goes on"
    assert due(run.agents, run.state) == () and run.phase == "suspended"
    assert not run.tell(ev.Intended(at=run.at(), call="/0.1", attempt=1))
    (hold,) = run.pending()
    assert (hold.kind, hold.title) == ("hold", "boss put the run on hold. lunch")
    assert run.refused(hold.id, "reject") == "approval.not_allowed"
    assert run.decide(hold.id, "approve") and len(run.announce()) == 2


def test_on_hold_no_client_is_asked_no_sub_agent_begins_and_no_clock_starts() -> None:
    run = Run(WAITER)
    run.announce()
    run.tell(ev.Paused(at=run.at(), by="boss"))
    run.reply(call("hand"), call("help"), call("sleep", '{"seconds":60}'), call("wire"))
    assert {wait.kind for wait in run.pending()} == {"hold", "approval"} and wake_at(run.state) is None
    run.second = 1000
    assert run.decide("run?0", "approve")
    assert {wait.kind for wait in run.pending()} == {"client_tool", "timer", "approval"}
    assert wake_at(run.state) == run.state.updated_at + timedelta(seconds=60)
    assert [effect.frame for effect in due(run.agents, run.state)] == ["/0.1"]


def test_a_hold_outlasts_a_pause_of_the_model() -> None:
    run = Run()
    run.fail(retry=True)
    run.tell(ev.Paused(at=run.at(), by="boss"))
    assert run.phase == "suspended" and wake_at(run.state) is None
    place: dict[str, Any] = {"frame": "/", "step": 0, "model": "sim:a"}
    assert not run.tell(ev.ModelAsked(at=run.at(), attempt=2, **place)), "it is not asked before its time"
    run.decide("run?0", "approve")
    assert run.phase == "running" and run.tick() and len(run.announce()) == 1


def test_an_announcement_of_what_may_not_begin_changes_nothing() -> None:
    run = Run()
    place: dict[str, Any] = {"frame": "/", "model": "sim:a"}
    for step, attempt in ((1, 1), (0, 2), (0, 0)):
        assert not run.tell(ev.ModelAsked(at=run.at(), step=step, attempt=attempt, **place))
    run.tell(ev.Paused(at=run.at(), by="boss"))
    assert not run.tell(ev.ModelAsked(at=run.at(), step=0, attempt=1, **place))


def test_interrupt_at_every_point() -> None:
    def interrupt(run: Run) -> bool:
        return run.tell(ev.Said(at=run.at(), message=said(f"i{run.second}", "stop that"), interrupt=True))

    run = Run()
    assert interrupt(run) and run.root.turn.attempt == 1, "nothing is in flight"
    run.announce()
    assert interrupt(run) and run.root.turn.attempt == 2
    run.fail(retry=True)
    assert interrupt(run) and run.root.turn.not_before is not None
    run.tick()
    run.reply(call("look"), call("wire"))
    run.announce()
    assert interrupt(run) and len(run.root.inbox) == 1, "tools are not interrupted"
    run.returned("/0.0")
    run.decide(run.pending()[0].id, "reject")
    assert run.texts()[-1] == "stop that" and len(run.announce()) == 1
    run.tell(ev.Paused(at=run.at(), by="boss"))
    assert interrupt(run) and pending(run.state)[0].kind == "hold" and due(run.agents, run.state) == ()
    run.decide("run?0", "approve")
    run.reply(Text("well"))
    assert run.phase == "completed" and not interrupt(run)
