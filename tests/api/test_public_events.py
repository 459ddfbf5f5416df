"""The projection of the journal, row by row, and the tape that a live stream is cut from."""

from datetime import UTC, datetime
from typing import Any

import msgspec

from sojourn.api.events.public import project
from sojourn.api.events.sse import CATCH_UP_BYTES_MAX, Tape
from sojourn.loop import events as ev
from sojourn.loop.agent import Agent, Tool
from sojourn.loop.continuation import Failure, Wait
from sojourn.loop.messages import Message, Reasoning, Text, ToolCall
from sojourn.loop.policy import Policy, Rule
from sojourn.store.rows import DeltaRow

AT = datetime(2026, 1, 1, tzinfo=UTC)
AGENT = Agent(
    name="boss",
    models=("sim:a",),
    tools=(Tool(name="shell"), Tool(name="mail"), Tool(name="read"), Tool(name="aide", executor="agent", agent="x")),
    policy=Policy(rules=(Rule("mail", "deny"), Rule("shell", "ask"))),
)
ASKED = ev.ModelAsked(at=AT, frame="/", step=0, attempt=1, model="sim:a")


def seen(event: ev.Event, agent: Agent | None = AGENT) -> list[dict[str, Any]]:
    """The public events of a row, without what all have."""
    found = msgspec.to_builtins(list(project("run_1", agent, 7, event)))
    assert all((one.pop("seq"), one.pop("at")) == (7, "2026-01-01T00:00:00Z") for one in found)
    return found


def reply(*parts: Any, frame: str = "/") -> ev.Replied:
    message = Message(id="m", role="assistant", parts=parts, stop="end")
    return ev.Replied(at=AT, frame=frame, step=2, attempt=1, message=message)


def test_a_reply_is_told_in_its_order_with_what_the_policy_says() -> None:
    calls = [ToolCall(f"c{n}", name, "{}") for n, name in enumerate(("shell", "mail", "read", "nothing"))]
    found = seen(reply(Reasoning("Hm."), Reasoning(signature="s"), Text("So."), *calls))
    kinds = ["model.request_finished", "agent.thinking", "agent.message", *["agent.tool_use"] * 4]
    assert [one["type"] for one in found] == kinds
    assert [(one["call"], one.get("evaluated_permission")) for one in found[3:]] == [
        ("/2.0", "ask"),
        ("/2.1", "deny"),
        ("/2.2", "allow"),
        ("/2.3", None),
    ]


def test_a_sub_agent_begins_with_its_call_and_ends_with_its_answer() -> None:
    assert seen(reply(ToolCall("c", "aide", "{}")))[-1] == {
        "type": "agent.frame_started",
        "frame": "/2.0",
        "tool": "aide",
    }
    assert seen(reply(Text("Found."), frame="/2.0"))[-1] == {"type": "agent.frame_finished", "frame": "/2.0"}
    inside = seen(reply(ToolCall("c", "shell", "{}"), frame="/2.0"))[-1]
    assert (inside["call"], "evaluated_permission" in inside) == ("/2.0/2.0", False)


def test_a_question_is_shown_when_it_is_asked_and_the_run_suspends_when_nothing_else_is_due() -> None:
    asked = Wait(
        id="/2.0?0",
        kind="approval",
        frame="/",
        call="/2.0",
        title="May it?",
        display="{}",
        allowed=("approve",),
        created_at=AT,
    )
    (found,) = seen(ev.Asked(at=AT, waits=(asked,)))
    assert (found["type"], found["approval"], found["kind"]) == ("approval.requested", "run_1.LzIuMD8w", "approval")
    assert (found["title"], found["display"], found["call"]) == ("May it?", "{}", "/2.0")
    (found,) = seen(ev.Turned(at=AT, phase="suspended", waits=("/2.0?0",)))
    assert (found["type"], found["waits"]) == ("run.suspended", ("/2.0?0",))


def test_every_turn_of_a_run_has_its_event() -> None:
    turned = {"running": "run.started", "completed": "run.completed", "cancelled": "run.cancelled"}
    for phase, kind in turned.items():
        assert [one["type"] for one in seen(ev.Turned(at=AT, phase=phase))] == [kind]  # type: ignore[arg-type]
    assert seen(ev.Turned(at=AT, phase="running", resumed=True))[0]["type"] == "run.resumed"
    spent = seen(ev.Turned(at=AT, phase="failed", error=Failure("budget.exhausted", "All steps.")))
    assert [one["type"] for one in spent] == ["budget.exhausted", "run.failed"]
    assert spent[1]["error"] == {"code": "budget.exhausted", "detail": "All steps."}


def test_what_was_lost_with_a_worker_is_said() -> None:
    model = seen(ev.ModelLost(at=AT, frame="/", step=0, attempt=1))
    call = seen(ev.CallLost(at=AT, call="/0.0", attempt=1))
    assert [one["type"] for one in (*model, *call)] == ["error", "error"]
    assert call[0]["error"]["code"] == "worker.lost"


def test_what_concerns_nobody_outside_is_left_out() -> None:
    hidden = (ev.Ticked(at=AT), ev.Cancelled(at=AT, by="ann"))
    assert [seen(event) for event in hidden] == [[], []]
    assert seen(ev.Noted(at=AT, kind="sandbox.restored"))[0]["type"] == "sandbox.restored"


def test_a_decision_names_its_wait_and_who_made_it() -> None:
    (found,) = seen(ev.Decided(at=AT, wait="/2.0?0", by="ann", decision="reject", reason="no"))
    assert (found["wait"], found["by"], found["decision"], found["reason"]) == ("/2.0?0", "ann", "reject", "no")


# ---- the tape --------------------------------------------------------------------------------


def deltas(text: str, *, id: int = 1, attempt: int = 1, step: int = 0, **more: Any) -> DeltaRow:
    items = msgspec.json.encode([{"type": "message", "text": text, **more}])
    return DeltaRow(id=id, frame="/", step=step, attempt=attempt, items=items)


def names(data: bytes) -> list[str]:
    return [line.removeprefix(b"event: ").decode() for line in data.splitlines() if line.startswith(b"event: ")]


def test_deltas_stand_before_the_row_that_ends_their_attempt_and_after_that_are_dropped() -> None:
    tape = Tape("run_1", AGENT, 1, ())
    out = tape.take([deltas("a")], [(2, ASKED), (3, reply(Text("a")))])
    assert names(out)[0] == "model.request_started"
    tape = Tape("run_1", AGENT, 1, [("/", 2, 1)])
    out = tape.take([deltas("a", step=2)], [(2, reply(Text("a")))])
    assert names(out) == ["delta.message", "model.request_finished", "agent.message"]
    assert tape.take([deltas("late", step=2, id=2)], []) == b""
    assert (tape.seq, tape.delta) == (2, 2)


def test_deltas_of_a_call_are_shown_while_it_runs() -> None:
    tape = Tape("run_1", AGENT, 1, [("/0.0", -1, 1)])
    batch = deltas("out", call="/0.0")
    assert tape.knows(batch)
    assert names(tape.take([batch], [])) == ["delta.message"]
    assert names(tape.catch_up()) == ["delta.reset", "delta.message"]
    assert b'{"frame":"/","step":0,"attempt":1,"call":"/0.0"}' in tape.catch_up()
    tape.take([], [(2, ev.CallLost(at=AT, call="/0.0", attempt=1))])
    assert not tape.knows(batch)
    assert tape.catch_up() == b""


def test_too_much_to_catch_up_on_is_not_shown_again() -> None:
    tape = Tape("run_1", AGENT, 1, [("/", 0, 1)])
    assert tape.take([deltas("x" * CATCH_UP_BYTES_MAX)], []) != b""
    assert tape.catch_up() == b""
    tape.take([], [(2, ev.ModelLost(at=AT, frame="/", step=0, attempt=1))])
    again = ev.ModelAsked(at=AT, frame="/", step=0, attempt=2, model="sim:a")
    assert names(tape.take([], [(3, again)])) == ["delta.reset", "model.request_started"]
