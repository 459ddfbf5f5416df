"""What a model may say, and what users say to it while it works."""

from datetime import timedelta

import msgspec
import pytest
from msgspec.structs import replace
from tests.loop.run_kit import AGENT, T0, Run, call

from sojourn.loop import events as ev
from sojourn.loop.agent import Suspend
from sojourn.loop.continuation import Compaction, Continuation, detach, fresh
from sojourn.loop.machine import due
from sojourn.loop.messages import Message, Reasoning, Text, Usage, said
from sojourn.loop.policy import Asking, Condition, Policy, Rule
from sojourn.loop.step.calls import CALLS_MAX


def test_user_message_while_suspended_goes_to_the_inbox() -> None:
    run = Run()
    run.reply(call("wire"))
    assert run.phase == "suspended"
    assert run.tell(ev.Said(at=run.at(), message=said("m", "And quickly.")))
    assert [message.text for message in run.root.inbox] == ["And quickly."] and run.phase == "suspended"
    run.moved()
    run.decide(run.pending()[0].id, "reject")
    assert run.root.inbox == () and run.texts()[-1] == "And quickly."


def test_user_message_during_a_pause_is_heard_and_answers_nothing() -> None:
    run = Run(replace(AGENT, suspend=Suspend(every_turns=1)))
    run.reply(call("nosuch"))
    (wait,) = run.pending("turns")
    assert run.tell(ev.Said(at=run.at(), message=said("m", "go on")))
    assert run.pending() == [wait] and run.texts()[-1] == "go on" and due(run.agents, run.state) == ()


def test_interrupt_mid_stream() -> None:
    run = Run()
    run.announce()
    assert run.tell(ev.Said(at=run.at(), message=said("m", "No, the other one."), interrupt=True))
    half = Message(id="h", role="assistant", parts=(Text("The first"),), stop="end")
    (effect,) = due(run.agents, run.state)
    assert (effect.attempt, effect.messages[-1].text) == (2, "No, the other one.")
    assert not run.tell(ev.Replied(at=run.at(), frame="/", step=0, attempt=1, message=half)), "that reply is given up"
    run.reply(Text("The other one."))
    assert run.root.result == "The other one." and run.state.spent.steps == 1


def test_a_message_that_does_not_interrupt_waits_for_the_reply() -> None:
    run = Run()
    run.announce()
    assert run.tell(ev.Said(at=run.at(), message=said("m", "Also that.")))
    assert run.root.turn.attempt == 1 and due(run.agents, run.state) == ()
    run.reply(Text("Done."))
    assert run.texts()[1:] == ["Done.", "Also that."] and run.phase == "running"


@pytest.mark.parametrize("arguments", ["", '{"to":"ann"', '{"to":'])
def test_a_call_that_was_cut_off_at_its_beginning_does_not_run_without_arguments(arguments: str) -> None:
    run = Run()
    run.reply(call("look", '{"whole":1}'), call("pay", arguments), stop="length")
    assert [effect.tool for effect in due(run.agents, run.state)] == ["look"]
    cut = run.root.calls[1].result
    assert cut is not None and "cut off at the output limit" in cut.parts[0].text  # type: ignore[union-attr]


def test_surrogates_nul_nan_bigint_in_args_and_results() -> None:
    run = Run(replace(AGENT, policy=Policy(rules=(Rule("wire", "ask"),))))
    bad = (
        '{"a":"\\ud800"}',
        '{"a":"\ud800"}',
        '{"\\udfff":1}',
        '{"a":NaN}',
        '{"a":-Infinity}',
        '{"a":' + "9" * 5000 + "}",
    )
    fine = (
        '{"a":"\\u0000"}',
        '{"a":12345678901234567890123}',
        '{"a":1e999}',
        '{"a":"\\ud83d\\ude00"}',
        '{"a":"\x7f\u2028"}',
    )
    for name in ("help", "wire"):
        events = run.root.step
        run.reply(*(call(name, args) for args in (*bad[:1], *bad[2:], *fine)))
        assert [one.state for one in run.root.calls[: len(bad) - 1]] == ["failed"] * (len(bad) - 1)
        assert all(one.state in ("authorized", "waiting") for one in run.root.calls[len(bad) - 1 :])
        again = msgspec.json.decode(msgspec.json.encode(run.state), type=Continuation)
        assert again == run.state and run.root.step == events + 1
        for wait in run.pending():
            run.decide(wait.id, "reject")
        for n in range(len(fine)):
            if name == "help":
                run.reply(Text("x\x00\u2028\U0001f600"), frame=f"/0.{len(bad) - 1 + n}")
    assert run.root.step == 2 and run.root.state == "ready"


def test_constructor_keys_in_json_are_inert() -> None:
    args = '{"__class__":"os.system","__proto__":{"a":1},"$type":"Frame","py/object":"x","type":"approve"}'
    run = Run()
    run.reply(call("look", args), call("help", args))
    (effect,) = [effect for effect in run.announce() if hasattr(effect, "args")]
    assert effect.args == args
    run.moved()
    assert run.root.calls[0].args == args


def test_opaque_reasoning_items_preserved_byte_for_byte() -> None:
    thought = Reasoning(text="", signature="EqQB+/=\u2028 ", redacted="\x00opaque\U0001f600")
    run = Run()
    run.reply(thought, call("look"))
    run.moved()
    assert run.root.messages[1].parts[0] == thought


def test_two_hundred_turns_grow_linearly() -> None:
    policy = Policy(
        rules=(Rule("wire", "ask", ask=Asking(expires_s=60), when=(Condition(argument="a", one_of=(1,)),)),)
    )
    run = Run(replace(AGENT, policy=policy), replace(AGENT.limits, steps=500))
    rows: list[int] = []
    bodies: list[int] = []
    for n in range(200):
        before = run.state
        run.reply(Text("x" * 500), call("look", f'{{"n":{n}}}'))
        run.announce()
        run.returned(f"/{n}.0", f"{n} " + "y" * 20_000)
        rows.append(len(msgspec.json.encode(replace(run.state, root=detach(run.root)))))
        bodies.append(sum(len(msgspec.json.encode(message)) for _, _, message in fresh(before, run.state)))
    assert max(rows) <= 1.1 * rows[0] and max(bodies) <= 1.02 * bodies[0]


def test_a_compaction_belongs_to_one_attempt_and_is_paid_for_once() -> None:
    run = Run()
    run.announce()
    shorter = Compaction(upto=1, summary="It began.")
    event = ev.Compacted(
        at=run.at(), frame="/", step=0, attempt=1, compaction=shorter, usage=Usage(input=5, output=2), usd_micros=9
    )
    assert run.tell(event) and not run.tell(event) and not run.tell(replace(event, attempt=2))
    assert (run.state.spent.input_tokens, run.state.spent.usd_micros, run.state.spent.steps) == (5, 9, 0)
    run.moved()
    (effect,) = run.announce()
    assert effect.compaction == shorter and not run.tell(event)


def test_a_result_without_a_message_is_an_empty_observation() -> None:
    run = Run()
    run.reply(call("look"))
    run.announce()
    assert run.tell(ev.Returned(at=run.at(), call="/0.0", attempt=1, message=None, failed=True))
    assert [message.role for message in run.root.messages] == ["user", "assistant", "tool"]
    assert run.state.updated_at < T0 + timedelta(seconds=9)


def test_a_reply_with_hundreds_of_calls_runs_so_many_of_them() -> None:
    run = Run()
    run.reply(*(call("look", id=f"c{n}") for n in range(CALLS_MAX + 3)))
    assert [one.state for one in run.root.calls] == ["authorized"] * CALLS_MAX + ["failed"] * 3
    result = run.root.calls[-1].result
    assert result is not None and "At most 128 calls" in result.parts[0].text  # type: ignore[union-attr]


def test_the_reason_of_a_hold_hides_nothing() -> None:
    run = Run()
    assert run.tell(ev.Paused(at=run.at(), by="ann", reason="see \u202egnp.exe"))
    assert run.state.wait is not None and run.state.wait.title == "ann put the run on hold. see \\u202egnp.exe"
