"""What guardrails said, as the loop hears it: calls that do not begin, replies that nobody reads."""

from typing import Any

import pytest
from msgspec.structs import replace
from tests.loop.exported_runs import home
from tests.loop.run_kit import AGENT, HELPER, Run, call

from sojourn.loop import events as ev
from sojourn.loop.agent import Tool, digest
from sojourn.loop.effects import CallModel
from sojourn.loop.machine import due, in_flight
from sojourn.loop.messages import Message, Text
from sojourn.loop.moving.adoption import imported
from sojourn.loop.moving.levels import LEVEL, needed
from sojourn.loop.policy import Asking, Policy


def judged(run: Run, uid: str, verdict: Any = "deny", by: str = "g@1", waits: int | None = None) -> bool:
    now = next((one.waits for one in run.root.calls if one.uid == uid), 0)
    told = {"verdict": verdict, "by": by, "reason": f"{by} says {verdict}."}
    return run.tell(ev.Judged(at=run.at(), call=uid, waits=now if waits is None else waits, **told))


def tools(run: Run) -> list[str]:
    return [effect.call for effect in due(run.agents, run.state) if hasattr(effect, "call")]


def withheld(run: Run, why: str = "g refuses this reply.") -> bool:
    run.announce()
    root = run.root
    message = Message(id=f"/#{root.step}", role="assistant", parts=())
    told = {"frame": "/", "step": root.step, "attempt": root.turn.attempt, "message": message, "withheld": why}
    return run.tell(ev.Replied(at=run.at(), **told))


# ---- calls -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["look", "wire", "hand", "help"])
def test_a_call_that_is_denied_does_not_begin_whoever_would_run_it(name: str) -> None:
    run = Run()
    run.reply(call(name), call("pay"))
    assert judged(run, "/0.0")
    assert tools(run) == ["/0.1"] and run.pending() == []
    assert not judged(run, "/0.0") and not judged(run, "/0.0", "ask"), "it is settled"
    run.announce()
    run.returned("/0.1")
    assert run.texts()[2:] == ["g@1 says deny.", "ok"]
    assert run.root.state == "ready" and run.root.calls == ()


@pytest.mark.parametrize("name", ["look", "wire", "hand", "help"])
def test_a_call_that_is_asked_about_waits_for_a_yes(name: str) -> None:
    run = Run()
    run.reply(call(name))
    assert judged(run, "/0.0", "ask")
    (wait,) = run.pending()
    assert wait.kind == "approval" and tools(run) == []
    (one,) = run.root.calls
    assert one.child is None and one.gate is not None and one.gate.reason == "g@1 says ask."
    assert run.decide(wait.id, "approve")
    assert not judged(run, "/0.0", "ask"), "one question for each version that asks"
    assert {"look": tools(run) == ["/0.0"], "wire": tools(run) == ["/0.0"]}.get(name, tools(run) == [])
    (one,) = run.root.calls
    assert (one.child is not None, [wait.kind for wait in run.pending()]) == (
        name == "help", ["client_tool"] if name == "hand" else [],
    )  # fmt: skip


def test_policy_changed_between_approval_and_execution_blocks_again() -> None:
    for verdict in ("deny", "ask"):
        run = Run()
        run.reply(call("wire"))
        (first,) = run.pending()
        assert run.decide(first.id, "approve")
        assert judged(run, "/0.0", verdict, "g@2")
        assert tools(run) == []
        assert not run.tell(ev.Intended(at=run.at(), call="/0.0", attempt=1))
        assert [wait.id for wait in run.pending()] == (["/0.0?1"] if verdict == "ask" else [])
        assert not run.decide(first.id, "approve"), "the old yes is not one to the new question"


def test_an_old_judgement_does_not_answer_a_later_question() -> None:
    run = Run()
    run.reply(call("look"))
    assert judged(run, "/0.0", "ask")
    assert run.decide(run.pending()[0].id, "approve")
    assert judged(run, "/0.0", "ask", "g@2")
    assert run.decide(run.pending()[0].id, "approve")
    for by, waits in (("g@1", 0), ("g@1", 1), ("g@2", 1)):
        assert not judged(run, "/0.0", "ask", by, waits)
        assert not judged(run, "/0.0", "deny", by, waits)
    assert tools(run) == ["/0.0"]


def test_a_call_that_has_begun_goes_on() -> None:
    run = Run()
    run.reply(call("look"))
    run.announce()
    assert not judged(run, "/0.0") and not judged(run, "/0.0", "ask") and not judged(run, "/9.9")
    assert run.returned("/0.0")


def test_a_sub_agent_that_is_called_back_announces_no_attempt_twice() -> None:
    run = Run()
    run.reply(call("help"), call("help"))
    run.announce()
    (lost, _) = in_flight(run.state, run.at())  # the commit that said so was taken back: nothing has begun
    assert judged(run, "/0.0", "ask")
    assert run.decide(run.pending()[0].id, "approve")
    (again,) = due(run.agents, run.state)
    assert isinstance(again, CallModel) and (again.frame, again.step, again.attempt) == ("/0.0", 0, 2)
    run.announce()
    assert not run.tell(lost), "what was said of the first one is not about the second"
    assert run.reply(Text("seen"), frame="/0.0") and run.reply(Text("too"), frame="/0.1")
    assert run.texts()[2:] == ["seen", "too"]


def test_the_question_goes_to_whom_the_policy_asks() -> None:
    ask = Asking(need=2, approvers=("boss", "cfo"))
    run = Run(replace(AGENT, policy=Policy(ask=ask)))
    run.reply(call("look"))
    judged(run, "/0.0", "ask")
    (wait,) = run.pending()
    assert wait.ask == ask
    assert run.refused(wait.id, "approve", "eve") == "approval.not_yours"


def test_what_was_asked_for_a_guardrail_is_forgotten_where_the_run_moves() -> None:
    run = Run()
    run.reply(call("look"), call("help"))
    judged(run, "/0.0", "ask")
    run.decide(run.pending()[0].id, "approve")
    judged(run, "/0.1", "ask")
    run.decide(run.pending()[0].id, "approve")
    assert [one.judged for one in run.root.calls] == ["g@1", "g@1"]
    moved = imported(run.agents, run.state, home()).continuation
    assert [one.judged for one in moved.root.calls] == ["", ""]
    assert moved.root.calls[0].state == "waiting", "nor does the yes come along"


# ---- replies ---------------------------------------------------------------------------------


def test_a_withheld_reply_is_told_once_and_asked_again_as_another_attempt() -> None:
    run = Run()
    assert withheld(run)
    run.moved()
    (effect,) = due(run.agents, run.state)
    assert (effect.step, effect.attempt) == (0, 2)
    assert [message.role for message in run.root.messages] == ["user", "user"]
    assert run.texts()[1].startswith("g refuses this reply.")
    assert run.state.spent.steps == 1, "it is paid for"
    run.reply(Text("It is fine."))
    assert (run.phase, run.root.result) == ("completed", "It is fine.")


def test_the_second_reply_in_a_row_that_is_withheld_fails_the_frame() -> None:
    run = Run()
    withheld(run)
    withheld(run, "h refuses this reply.")
    error = run.root.error
    assert error is not None
    assert (run.phase, error.code, error.detail) == ("failed", "guardrail.output", "h refuses this reply.")


def test_a_reply_that_passes_counts_anew() -> None:
    run = Run()
    withheld(run)
    run.fail(retry=True)
    run.tick()
    run.reply(call("look"))
    run.announce()
    run.returned("/0.0")
    assert not run.root.turn.withheld
    assert withheld(run)
    assert run.phase == "running"


def test_a_sub_agent_that_is_withheld_twice_is_told_to_its_parent() -> None:
    helper = replace(HELPER, tools=())
    run = Run(replace(AGENT, tools=(Tool(name="help", executor="agent", agent=digest(helper)),)), others=(helper,))
    run.reply(call("help"))
    for attempt in (1, 2):
        run.announce()
        message = Message(id="x", role="assistant", parts=())
        reply = ev.Replied(at=run.at(), frame="/0.0", step=0, attempt=attempt, message=message, withheld="No.")
        assert run.tell(reply)
    assert "did not finish. No." in run.last()


# ---- levels ----------------------------------------------------------------------------------


def test_what_guardrails_did_needs_a_release_that_knows_them_and_nothing_else_does() -> None:
    run = Run()
    run.reply(call("look"))
    event = ev.Judged(at=run.at(), call="/0.0", waits=0, verdict="ask", by="g@1", reason="")
    assert (needed(run.state), needed(event)) == (1, 3)
    run.tell(event)
    assert needed(run.state) == 3 <= LEVEL
    quiet = Run()
    assert needed(quiet.state) == 0
    withheld(quiet)
    assert needed(quiet.state) == 3
    noted = ev.Noted(at=run.at(), kind="guardrail.acted")
    reply = ev.Replied(at=run.at(), frame="/", step=0, attempt=1, message=None)
    assert (needed(noted), needed(replace(noted, kind="sandbox.opened"))) == (3, 0)
    assert (needed(reply), needed(replace(reply, withheld="No."))) == (0, 3)
