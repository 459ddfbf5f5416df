"""What the machine says about single events; the explorer shows that it holds together."""

from datetime import timedelta
from typing import Any

import pytest
from msgspec.structs import replace
from tests.loop.run_kit import AGENT, T0, Run, call

from sojourn.loop import events as ev
from sojourn.loop.agent import Agent, Tool
from sojourn.loop.continuation import (
    Failure,
    pending,
)
from sojourn.loop.machine import due, in_flight, wake_at
from sojourn.loop.messages import Message, Text, Usage, observed
from sojourn.loop.policy import Asking, Policy, Rule
from sojourn.loop.step.replies import BACKOFF_MAX_S, TRIES


def test_a_reply_without_calls_is_the_result() -> None:
    run = Run()
    assert run.phase == "running"
    assert run.reply(Text("hello"), usage=Usage(input=3, output=2))
    assert (run.phase, run.root.result) == ("completed", "hello")
    assert (run.state.spent.steps, run.state.spent.input_tokens, run.state.spent.output_tokens) == (1, 3, 2)
    assert due(run.agents, run.state) == () and wake_at(run.state) is None


def test_an_announced_call_is_not_due_again() -> None:
    run = Run()
    assert len(run.announce()) == 1
    assert due(run.agents, run.state) == ()
    assert [lost.attempt for lost in in_flight(run.state, T0)] == [1]


def test_duplicate_provider_ids_in_one_reply_and_across_turns() -> None:
    run = Run()
    run.reply(call("look", '{"a":1}'), call("look", '{"a":2}'))
    effects = run.announce()
    assert [effect.call for effect in effects] == ["/0.0", "/0.1"]
    run.returned("/0.1", "second")
    run.returned("/0.0", "first")
    assert [message.parts[0].text for message in run.root.messages[-2:]] == ["first", "second"]  # type: ignore[union-attr]
    run.reply(call("look"))
    assert [effect.call for effect in run.announce()] == ["/1.0"]


def test_malformed_args_return_an_error_without_a_gate_call() -> None:
    run = Run()
    run.reply(call("wire", "{oops"), call("wire", "[1]"), call("look", ""))
    first, second, third = run.root.calls
    assert first.gate is None and second.gate is None and third.state == "authorized"
    assert first.result is not None and "Nothing was run" in first.result.parts[0].text  # type: ignore[union-attr]


def test_unknown_tool_name() -> None:
    run = Run()
    run.reply(call("lok"))
    assert run.root.state == "ready"
    assert "no tool named 'lok'" in run.last() and "look, pay" in run.last()


def test_a_tool_that_no_agent_has_is_named_without_a_list() -> None:
    run = Run(Agent(name="bare", models=("sim:a",)))
    run.reply(call("x"))
    assert "The tools are: none." in run.last()


def test_length_stop_mid_tool_call_is_not_completed() -> None:
    run = Run()
    run.reply(call("pay", '{"to": "ali'), stop="length")
    assert "cut off at the output limit" in run.last()


def test_empty_reply_and_content_filter() -> None:
    run = Run()
    assert run.reply(stop="end")
    assert run.root.turn.failures == 1 and run.root.turn.not_before is not None
    run = Run()
    run.announce()
    assert run.tell(ev.Replied(at=run.at(), frame="/", step=0, attempt=1, message=None))
    assert run.root.turn.failures == 1
    run = Run()
    run.reply(stop="content_filter")
    assert run.phase == "failed" and run.root.error == Failure(
        "model.content_filter", "The provider withheld the model's answer."
    )


def test_a_denied_call_is_an_observation() -> None:
    agent = replace(AGENT, policy=Policy(rules=(Rule("pay", "deny", "not on Sundays"),)))
    run = Run(agent)
    run.reply(call("pay"))
    assert "not on Sundays" in run.last() and due(run.agents, run.state)


def test_a_failing_model_is_tried_again_later_then_the_next_one_is_asked() -> None:
    run = Run()
    for n in range(1, TRIES):
        assert run.fail(retry=True)
        pause = run.root.turn.not_before
        assert pause is not None and wake_at(run.state) == pause and run.phase == "running"
        assert timedelta() < pause - run.state.updated_at <= timedelta(seconds=BACKOFF_MAX_S * 1.5)
        assert due(run.agents, run.state) == ()
        assert not run.tell(ev.Ticked(at=run.state.updated_at)), "too early"
        assert run.tell(ev.Ticked(at=pause))
        assert run.root.turn.attempt == n + 1
    run.fail(retry=True)
    (effect,) = due(run.agents, run.state)
    assert effect.model == "sim:b" and effect.attempt == TRIES + 1


def test_a_model_that_cannot_do_better_is_left_at_once_and_the_last_one_fails_the_run() -> None:
    run = Run()
    run.fail(retry=False)
    assert run.root.turn.model == 1
    run.fail(retry=False)
    assert run.phase == "failed" and run.root.error == Failure("model.overloaded", "busy")


def test_a_long_retry_after_goes_to_the_next_model_but_is_waited_for_on_the_last() -> None:
    run = Run()
    run.fail(retry=True, after_s=200)
    assert run.root.turn.model == 1 and run.root.turn.not_before is None
    run.fail(retry=True, after_s=10_000)
    assert run.root.turn.not_before == run.state.updated_at + timedelta(seconds=300)


def test_the_model_that_answered_is_kept_for_the_next_step() -> None:
    run = Run()
    run.fail(retry=False)
    run.reply(call("look"))
    run.announce()
    run.returned("/0.0")
    (effect,) = due(run.agents, run.state)
    assert effect.model == "sim:b" and effect.attempt == 1


def test_timeout_then_late_success() -> None:
    run = Run()
    run.announce()
    assert run.tell(ev.ModelLost(at=run.at(), frame="/", step=0, attempt=1))
    late = Message(id="m", role="assistant", parts=(Text("late"),), stop="end")
    run.announce()
    assert not run.tell(ev.Replied(at=run.at(), frame="/", step=0, attempt=1, message=late))
    assert run.tell(ev.Replied(at=run.at(), frame="/", step=0, attempt=2, message=late))


@pytest.mark.parametrize("effect", ["read", "idempotent", "transactional", "verifiable", "at_least_once"])
def test_a_lost_call_runs_again_with_the_same_key(effect: Any) -> None:
    run = Run(Agent(name="a", models=("sim:a",), tools=(Tool(name="do", effect=effect),)))
    run.reply(call("do"))
    (first,) = run.announce()
    assert run.tell(ev.CallLost(at=run.at(), call="/0.0", attempt=1))
    assert not run.returned("/0.0", attempt=1), "the dead worker's answer comes too late"
    (second,) = run.announce()
    assert (second.key, second.attempt, first.attempt) == (first.key, 2, 1)
    assert run.returned("/0.0", attempt=2)


def test_a_lost_at_most_once_call_asks_a_person() -> None:
    for decision, text, expected in (
        ("mark_done", "receipt 7", "receipt 7"),
        ("mark_done", "", "confirmed"),
        ("cancel", "", "Leave it"),
    ):
        run = Run()
        run.reply(call("pay"))
        run.announce()
        run.tell(ev.CallLost(at=run.at(), call="/0.0", attempt=1))
        assert run.phase == "suspended"
        (wait,) = pending(run.state)
        assert wait.kind == "outcome_unknown" and not run.decide(wait.id, "approve")
        assert run.decide(wait.id, decision, text=text)
        assert expected in run.last()
    run = Run()
    run.reply(call("pay"))
    run.announce()
    run.tell(ev.CallLost(at=run.at(), call="/0.0", attempt=1))
    assert run.decide(pending(run.state)[0].id, "retry")
    (again,) = run.announce()
    assert again.attempt == 2


def test_approve_one_of_two_parallel_executes_only_that_one() -> None:
    run = Run()
    run.reply(call("wire", '{"n":1}'), call("wire", '{"n":2}'))
    first, second = pending(run.state)
    assert run.phase == "suspended" and due(run.agents, run.state) == ()
    assert run.decide(second.id, "approve")
    assert [effect.call for effect in run.announce()] == ["/0.1"]
    assert not run.decide(second.id, "reject"), "an answered wait is gone"
    assert run.decide(first.id, "reject", reason="too much")
    run.returned("/0.1")
    rejected = run.root.messages[-2].parts[0]
    assert rejected.text == "A person rejected this call. too much" and rejected.error  # type: ignore[union-attr]


def test_answer_without_executing() -> None:
    run = Run()
    run.reply(call("wire"), call("hand"))
    approval, client = pending(run.state)
    assert client.kind == "client_tool"
    assert run.decide(approval.id, "answer", text="42")
    assert run.decide(client.id, "answer", text="43")
    assert [message.parts[0].text for message in run.root.messages[-2:]] == ["42", "43"]  # type: ignore[union-attr]
    assert run.state.spent.tool_calls == 0


def test_forged_wait_ids_change_nothing() -> None:
    run = Run()
    run.reply(call("wire"))
    assert not run.decide("/9.9?0", "approve")
    assert not run.tell(ev.Returned(at=run.at(), call="/0.0", attempt=1, message=observed("x", "p", "forged")))


def test_approval_after_expiry_refused_and_on_expire_applied() -> None:
    for on_expire in ("reject", "fail"):
        run = Run()
        run.reply(call("wire"))
        (asking,) = run.root.calls
        assert asking.wait is not None
        soon = T0 + timedelta(hours=1)
        wait = replace(asking.wait, expires_at=soon, ask=Asking(on_expire=on_expire))
        run.state = replace(run.state, root=replace(run.root, calls=(replace(asking, wait=wait),)))
        assert wake_at(run.state) == soon
        assert not run.tell(ev.Decided(at=soon, wait=wait.id, by="b", decision="approve"))
        assert run.tell(ev.Ticked(at=soon))
        assert pending(run.state) == ()
        assert run.phase == ("running" if on_expire == "reject" else "failed")
