"""Sub-agents, budgets, cancellation, and what a row holds."""

from datetime import timedelta

import pytest
from msgspec.structs import replace
from tests.loop.run_kit import AGENT, T0, Run, call

from sojourn.loop import events as ev
from sojourn.loop.agent import Agent, Tool, digest, ref
from sojourn.loop.budget import Limits
from sojourn.loop.continuation import (
    Failure,
    Principal,
    Segment,
    attach,
    detach,
    frames,
    fresh,
    pending,
)
from sojourn.loop.effects import CallTool
from sojourn.loop.machine import begin, due, in_flight, wake_at
from sojourn.loop.messages import Message, Text, said
from sojourn.loop.policy import Asking


def test_a_sub_agent_answers_in_the_calls_place() -> None:
    run = Run()
    run.reply(call("help", '{"input":"find it"}'), call("help", '{"q":1}'))
    assert [frame.id for frame in frames(run.root)] == ["/", "/0.0", "/0.1"]
    assert run.root.calls[0].child is not None and run.root.calls[0].child.messages[0].text == "find it"
    assert run.root.calls[1].child is not None and run.root.calls[1].child.messages[0].text == '{"q":1}'
    run.reply(call("look"), frame="/0.0")
    run.reply(Text("nothing"), frame="/0.1")
    run.announce()
    run.returned("/0.0/0.0", "found")
    run.reply(Text("here"), frame="/0.0")
    assert [message.parts[0].text for message in run.root.messages[-2:]] == ["here", "nothing"]  # type: ignore[union-attr]


def test_what_is_told_of_a_frame_that_is_not_there_changes_nothing() -> None:
    run = Run()
    run.reply(call("help"))
    error = Failure("model.x", "No model.")
    assert not run.tell(ev.ModelErred(at=run.at(), frame="/0.7", step=0, attempt=1, error=error))


def test_child_fails_parent_sees_error_siblings_unaffected() -> None:
    run = Run()
    run.reply(call("help"), call("look"))
    run.announce()
    error = ev.ModelErred(
        at=run.at(), frame="/0.0", step=0, attempt=1, error=Failure("model.x", "No model."), retry=False
    )
    assert run.tell(error)
    run.returned("/0.1", "seen")
    assert "helper did not finish. No model." in run.root.messages[-2].parts[0].text  # type: ignore[union-attr]
    assert run.last() == "seen" and run.phase == "running"


def test_cancel_reaches_grandchildren_in_flight() -> None:
    run = Run()
    run.reply(call("help"), call("wire"), call("look"))
    run.announce()
    run.returned("/0.2")
    run.reply(call("look"), frame="/0.0")
    run.announce()
    assert run.tell(ev.Cancelled(at=run.at(), by="u"))
    assert run.phase == "cancelled"
    assert in_flight(run.state, T0) == () and pending(run.state) == () and due(run.agents, run.state) == ()
    assert not run.returned("/0.0/0.0")
    assert run.tell(ev.Turned(at=run.at(), phase="cancelled"))


def test_a_child_that_was_cancelled_alone_is_an_observation() -> None:
    run = Run()
    run.reply(call("help"))
    (asking,) = run.root.calls
    assert asking.child is not None
    child = replace(asking.child, state="cancelled")
    run.state = replace(run.state, root=replace(run.root, calls=(replace(asking, child=child),)))
    run.tell(ev.Noted(at=run.at(), kind="sandbox.opened"))
    assert "It was cancelled." in run.last()


def test_user_message_while_calls_are_open_is_heard_before_the_next_model_call() -> None:
    run = Run()
    run.reply(call("look"))
    run.announce()
    assert run.tell(ev.Said(at=run.at(), message=said("u2", "hurry")))
    assert run.root.inbox
    run.returned("/0.0")
    assert [message.role for message in run.root.messages] == ["user", "assistant", "tool", "user"]
    assert not run.root.inbox


def test_a_message_during_the_last_reply_keeps_the_run_going() -> None:
    run = Run()
    run.announce()
    run.tell(ev.Said(at=run.at(), message=said("u2", "and?")))
    run.reply(Text("done"))
    assert run.phase == "running" and run.root.messages[-1].text == "and?"
    assert not run.tell(ev.Said(at=run.at(), message=None))


def test_steps_are_a_hard_limit_also_for_parallel_children() -> None:
    run = Run(limits=Limits(steps=2))
    run.reply(call("help"), call("help"), call("help"))
    assert len(run.announce()) == 1, "one step is left, so one child may ask"
    run.reply(Text("one"), frame="/0.0")
    assert run.phase == "failed"
    assert run.root.error is not None and run.root.error.code == "budget.exhausted"
    assert run.state.spent.steps == 2


def test_raised_budget_resumes_at_the_same_point() -> None:
    run = Run(limits=Limits(steps=1, on_exhaust="suspend"))
    run.reply(call("look"))
    run.announce()
    run.returned("/0.0")
    assert run.phase == "suspended"
    (wait,) = pending(run.state)
    assert wait.kind == "budget"
    assert not run.decide(wait.id, "extend"), "an extension names the new limits"
    assert run.decide(wait.id, "extend", limits=Limits(steps=5))
    assert run.phase == "running" and run.announce()[0].step == 1


def test_a_declined_budget_ends_the_run() -> None:
    run = Run(limits=Limits(steps=1, on_exhaust="suspend"))
    run.reply(call("look"))
    run.announce()
    run.returned("/0.0")
    (wait,) = pending(run.state)
    assert not run.decide(wait.id, "approve")
    assert run.decide(wait.id, "reject")
    assert run.phase == "failed"


def test_active_seconds_versus_wall_deadline() -> None:
    run = Run(limits=Limits(active_s=100, steps=None))
    run.reply(call("wire"))
    run.second = 5000
    run.decide(pending(run.state)[0].id, "approve")
    assert run.state.spent.active_ms < 10_000, "waiting for a person is not active"
    run.announce()
    deadline = wake_at(run.state)
    assert deadline is not None and run.tell(ev.Ticked(at=deadline))
    assert run.phase == "failed" and in_flight(run.state, T0) == ()


def test_an_active_limit_that_suspends_lets_finish_what_is_in_flight() -> None:
    run = Run(limits=Limits(active_s=100, on_exhaust="suspend"))
    run.reply(call("look"))
    run.announce()
    run.second = 5000
    assert wake_at(run.state) is None and not run.tell(ev.Ticked(at=run.at()))
    assert run.returned("/0.0")
    assert run.phase == "suspended" and pending(run.state)[0].kind == "budget"


def test_a_wait_that_is_kept_past_its_time_wakes_nobody() -> None:
    run = Run()
    run.reply(call("wire"))
    (asking,) = run.root.calls
    assert asking.wait is not None
    wait = replace(asking.wait, expires_at=T0 + timedelta(hours=1), ask=Asking(on_expire="keep"))
    run.state = replace(run.state, root=replace(run.root, calls=(replace(asking, wait=wait),)))
    assert wake_at(run.state) is None
    assert not run.tell(ev.Ticked(at=T0 + timedelta(hours=2)))


def test_tool_calls_are_a_hard_limit_also_within_one_reply() -> None:
    run = Run(limits=Limits(tool_calls=2, on_exhaust="suspend"))
    run.reply(*(call("look") for _ in range(50)))
    assert len(run.announce()) == 2
    run.returned("/0.0")
    assert run.phase == "running", "what is in flight comes home first"
    run.returned("/0.1")
    assert run.phase == "suspended" and run.state.spent.tool_calls == 2
    (wait,) = pending(run.state)
    assert run.decide(wait.id, "extend", limits=Limits(tool_calls=60))
    assert len(run.announce()) == 48
    run = Run(limits=Limits(tool_calls=1))
    run.reply(call("look"), call("look"))
    assert [effect.call for effect in due(run.agents, run.state)] == ["/0.0"]
    assert run.tell(ev.Intended(at=run.at(), call="/0.0", attempt=1))
    assert run.phase == "failed" and run.root.error is not None and "tool_calls" in run.root.error.detail


def test_a_spent_budget_of_calls_lets_the_last_ones_come_home() -> None:
    run = Run(limits=Limits(tool_calls=2))
    run.reply(call("look"), call("look"))
    run.announce()
    run.returned("/0.0")
    assert run.phase == "running"
    run.returned("/0.1")
    assert run.phase == "failed"


@pytest.mark.parametrize(("limits", "deepest"), [(Limits(), 8), (Limits(depth=2), 2), (Limits(depth=99), 16)])
def test_agents_are_nested_as_deep_as_their_limits_say_and_no_deeper(limits: Limits, deepest: int) -> None:
    again = Tool(name="again", executor="agent", agent="self")
    loop = Agent(name="again", models=("sim:a",), tools=(again,), limits=Limits(depth=99))
    run = Run(loop, limits)
    run.agents = {digest(loop): loop, "self": loop}
    frame = "/"
    for depth in range(deepest + 1):
        run.reply(call("again"), frame=frame)
        frame = "/".join([*frame.rstrip("/").split("/"), "0.0"])
        assert (frame in [one.id for one in frames(run.root)]) == (depth < deepest)
    told = list(frames(run.root))[-1].messages[-1].parts[0].text  # type: ignore[union-attr]
    assert told.startswith(f"Sub-agents may be nested {deepest} deep (the limit `depth`), and no deeper.")


def test_a_run_that_no_worker_can_go_on_with_fails() -> None:
    run = Run()
    run.announce()
    assert run.tell(ev.GaveUp(at=run.at(), error=Failure("run.not_driven", "8 workers tried.")))
    assert run.phase == "failed" and in_flight(run.state, T0) == ()


def test_clock_jumps_do_not_expire_or_unexpire() -> None:
    run = Run()
    run.announce()
    assert run.tell(ev.ModelLost(at=T0 - timedelta(days=1), frame="/", step=0, attempt=1))
    assert run.state.updated_at > T0 and run.state.spent.active_ms == 0


def test_events_for_places_that_are_not_there_change_nothing() -> None:
    run = Run()
    run.reply(call("help"), call("look"))
    for frame in ("/9.9", "/0.0/1.1", "/0.1"):
        assert not run.tell(ev.ModelAsked(at=run.at(), frame=frame, step=0, attempt=1, model="m"))
    for uid in ("/9.9", "/0.0/0.0", "nonsense"):
        assert not run.tell(ev.Intended(at=run.at(), call=uid, attempt=1))
    assert not run.tell(run_again(run))


def run_again(run: Run) -> ev.Event:
    return ev.Began(
        at=T0, run_id="r", tenant="t", session_id="s", principal=Principal("u"), agent=ref(AGENT), limits=Limits()
    )


def test_a_row_holds_no_bodies_and_every_body_is_written_once() -> None:
    run = Run()
    written: dict[tuple[str, int], Message] = {}
    before = None

    def keep() -> None:
        nonlocal before
        for frame, slot, message in fresh(before, run.state):
            assert (frame, slot) not in written
            written[frame, slot] = message
        before = run.state
        row = detach(run.root)
        assert attach(row, written) == run.root
        assert all(not frame.messages for frame in frames(row))

    keep()
    run.reply(call("look"), call("help"), call("wire"))
    keep()
    run.announce()
    run.returned("/0.0")
    keep()
    run.reply(Text("child"), frame="/0.1")
    keep()
    run.decide(pending(run.state)[0].id, "reject")
    keep()
    run.reply(Text("end"))
    keep()
    assert sorted(slot for frame, slot in written if frame == "/") == [0, 1, 2, 3, 4, 5]


def test_a_conversation_goes_on_after_the_messages_of_earlier_runs() -> None:
    first = ev.Began(
        at=T0,
        run_id="run_2",
        tenant="t",
        session_id="ses_1",
        principal=Principal("u"),
        agent=ref(AGENT),
        limits=Limits(),
        history=(Segment("run_1", 0, 4),),
        message=said("in", "more"),
    )
    state = begin(first)
    assert list(fresh(None, state)) == [("/", 4, said("in", "more"))]
    assert detach(state.root).stored == 5
    silent = begin(replace(first, message=None))
    assert silent.root.messages == () and silent.root.length == 4


def test_events_survive_their_encoding_and_unknown_fields_are_refused() -> None:
    event = ev.Intended(at=T0, call="/0.0", attempt=1)
    assert ev.decode(ev.encode(event)) == event
    with pytest.raises(Exception, match="unknown field"):
        ev.decode(ev.encode(event)[:-1] + b',"x":1}')


def test_a_call_runs_with_what_a_tool_needs_to_know() -> None:
    run = Run()
    run.reply(call("pay", '{"to":"a"}', id="prov-1"))
    (effect,) = due(run.agents, run.state)
    assert isinstance(effect, CallTool)
    assert (effect.key, effect.provider_id, effect.args, effect.effect) == (
        "run_1/0.0", "prov-1", '{"to":"a"}', "at_most_once",
    )  # fmt: skip
