"""What the machine says about single events; the explorer shows that it holds together."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from sojourn.loop import events as ev
from sojourn.loop.agent import Agent, Tool, digest, ref
from sojourn.loop.budget import Limits
from sojourn.loop.continuation import (
    Continuation,
    Failure,
    Frame,
    Principal,
    Segment,
    attach,
    detach,
    frames,
    fresh,
    pending,
)
from sojourn.loop.effects import CallModel, CallTool
from sojourn.loop.machine import apply, begin, due, in_flight, phase, wake_at
from sojourn.loop.messages import Message, Part, Text, ToolCall, Usage, observed, said
from sojourn.loop.policy import Policy, Rule
from sojourn.loop.steps import BACKOFF_MAX_S, TRIES

T0 = datetime(2026, 1, 1, tzinfo=UTC)
HELPER = Agent(name="helper", models=("sim:h",), tools=(Tool(name="look", effect="read"),))
AGENT = Agent(
    name="a",
    models=("sim:a", "sim:b"),
    tools=(
        Tool(name="look", effect="read"),
        Tool(name="pay"),
        Tool(name="wire"),
        Tool(name="hand", executor="client"),
        Tool(name="help", executor="agent", agent=digest(HELPER)),
    ),
    policy=Policy(rules=(Rule("wire", "ask"), Rule("pa*", "allow")), otherwise="allow"),
)


class Run:
    """A run in the hands of a test: it announces what is due and answers by name."""

    def __init__(self, agent: Agent = AGENT, limits: Limits | None = None) -> None:
        self.agents = {digest(one): one for one in (agent, HELPER)}
        self.second = 0
        self.journal: list[ev.Event] = []
        first = ev.Began(
            at=T0,
            run_id="run_1",
            tenant="t",
            session_id="ses_1",
            principal=Principal("u"),
            agent=ref(agent),
            limits=limits or Limits(),
            message=said("in", "go"),
        )
        self.state: Continuation = begin(first)

    def at(self) -> datetime:
        self.second += 1
        return T0 + timedelta(seconds=self.second)

    def tell(self, event: ev.Event) -> bool:
        before, self.state = self.state, apply(self.agents, self.state, event)
        return self.state is not before

    def announce(self) -> tuple[Any, ...]:
        effects = due(self.agents, self.state)
        for effect in effects:
            if isinstance(effect, CallModel):
                asked = ev.ModelAsked(
                    at=self.at(), frame=effect.frame, step=effect.step, attempt=effect.attempt, model=effect.model
                )
                assert self.tell(asked)
            else:
                assert self.tell(ev.Intended(at=self.at(), call=effect.call, attempt=effect.attempt))
        return effects

    def reply(self, *parts: Part, stop: str = "end", frame: str = "/", **more: Any) -> bool:
        """Announce what is due, then answer the model call of `frame`."""
        self.announce()
        place = next(f for f in frames(self.state.root) if f.id == frame)
        message = Message(id=f"{frame}#{place.step}", role="assistant", parts=parts, stop=stop, **more)
        return self.tell(
            ev.Replied(at=self.at(), frame=frame, step=place.step, attempt=place.turn.attempt, message=message)
        )

    def fail(self, *, retry: bool, after_s: float | None = None) -> bool:
        self.announce()
        frame = self.state.root
        return self.tell(
            ev.ModelErred(
                at=self.at(),
                frame="/",
                step=frame.step,
                attempt=frame.turn.attempt,
                error=Failure("model.overloaded", "busy"),
                retry=retry,
                retry_after_s=after_s,
            )
        )

    def returned(self, call: str, text: str = "ok", attempt: int = 1, failed: bool = False) -> bool:
        message = observed(call, "p", text, error=failed)
        return self.tell(ev.Returned(at=self.at(), call=call, attempt=attempt, message=message, failed=failed))

    def decide(self, wait: str, decision: Any, **more: Any) -> bool:
        return self.tell(ev.Decided(at=self.at(), wait=wait, by="boss", decision=decision, **more))

    @property
    def root(self) -> Frame:
        return self.state.root

    @property
    def phase(self) -> str:
        return phase(self.agents, self.state)

    def last(self) -> str:
        """The text of the last observation."""
        return self.root.messages[-1].parts[0].text  # type: ignore[union-attr]


def call(name: str, args: str = "{}", id: str = "p") -> ToolCall:
    return ToolCall(id, name, args)


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
        ("reject", "", "rejected"),
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
        wait = replace(asking.wait, expires_at=soon, on_expire=on_expire)
        run.state = replace(run.state, root=replace(run.root, calls=(replace(asking, wait=wait),)))
        assert wake_at(run.state) == soon
        assert not run.tell(ev.Decided(at=soon, wait=wait.id, by="b", decision="approve"))
        assert run.tell(ev.Ticked(at=soon))
        assert pending(run.state) == ()
        assert run.phase == ("running" if on_expire == "reject" else "failed")


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
    run.tell(ev.Noted(at=run.at(), kind="run.claimed"))
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
    wait = replace(asking.wait, expires_at=T0 + timedelta(hours=1))
    run.state = replace(run.state, root=replace(run.root, calls=(replace(asking, wait=wait),)))
    assert wake_at(run.state) is None
    assert not run.tell(ev.Ticked(at=T0 + timedelta(hours=2)))


def test_a_spent_budget_lets_siblings_in_flight_come_home_where_nobody_is_about_to_ask() -> None:
    run = Run(limits=Limits(tool_calls=1))
    run.reply(call("look"), call("look"))
    run.announce()
    run.returned("/0.0")
    assert run.phase == "running"
    run.returned("/0.1")
    assert run.phase == "failed"


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
