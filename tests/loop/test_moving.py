"""A run made of another one: what comes along, what does not, and what the new run is sealed over."""

from datetime import timedelta

import pytest
from msgspec.structs import replace
from tests.loop.exported_runs import ASKS, RUNS, T0, WIRE, Tree, agent, ended, every_wait, home, nested
from tests.loop.run_kit import Run, call

from sojourn.errors import Invalid
from sojourn.loop import events as ev
from sojourn.loop.agent import Tool, digest, ref
from sojourn.loop.budget import Spent
from sojourn.loop.continuation import Continuation, Marks, Principal, attach, frames, fresh, pending
from sojourn.loop.events import NewGrant
from sojourn.loop.machine import apply, begin, due, in_flight, phase
from sojourn.loop.messages import Text, said
from sojourn.loop.moving.adoption import Adoption, bodies, forked, imported
from sojourn.loop.moving.levels import LEVEL, needed
from sojourn.loop.policy import Policy

NOT_ITS_OWN = ("run_id", "tenant", "session_id", "principal", "rev", "head", "created_at", "updated_at", "lineage")


def as_it_was(continuation: Continuation) -> dict[str, object]:
    """All of a run but what a new run has of its own."""
    return {name: getattr(continuation, name) for name in continuation.__struct_fields__ if name not in NOT_ITS_OWN}


def whole(adoption: Adoption) -> Continuation:
    """The run as a worker opens it: what its event began, with the messages from beside it."""
    kept = {(frame, slot): message for frame, slot, message in fresh(None, adoption.continuation)}
    begun = begin(adoption.event)
    return replace(begun, root=attach(begun.root, kept))


def taken(run: Run, adoption: Adoption) -> Run:
    """The new run in the hands of a test."""
    run.state = adoption.continuation
    return run


@pytest.mark.parametrize("name", RUNS)
def test_an_import_begins_as_its_event_and_its_messages_say(name: str) -> None:
    run = RUNS[name]()
    adoption = imported(run.agents, run.state, home())
    assert whole(adoption) == adoption.continuation
    assert bodies(adoption.continuation.root) == adoption.event.bodies
    assert not any(frame.messages for frame in frames(adoption.event.root))
    moved = adoption.continuation
    assert (moved.run_id, moved.tenant, moved.session_id, moved.rev) == ("run_2", "t2", "ses_2", 1)
    assert moved.principal == Principal("v", "key_2")
    assert moved.lineage is not None
    assert (moved.lineage.run_id, moved.lineage.rev, moved.lineage.head) == ("run_1", run.state.rev, run.state.head)


def test_a_run_that_nobody_allowed_anything_in_is_imported_as_it_is() -> None:
    run = every_wait()
    first = imported(run.agents, run.state, home()).continuation
    assert as_it_was(first) == as_it_was(run.state)
    again = imported(run.agents, first, home("run_3")).continuation
    assert as_it_was(again) == as_it_was(run.state)
    assert phase(run.agents, first) == "suspended" and due(run.agents, first) == ()


def test_votes_do_not_come_along_and_the_questions_keep_their_ids() -> None:
    run = nested()
    moved = imported(run.agents, run.state, home()).continuation
    ids = ["/0.1?0", "/0.0/0.0/0.0?0"]
    assert sorted(wait.id for wait in pending(moved)) == sorted(wait.id for wait in pending(run.state)) == sorted(ids)
    assert any(wait.votes for wait in pending(run.state)) and not any(wait.votes for wait in pending(moved))
    taken(run, imported(run.agents, run.state, home()))
    assert run.decide("/0.0/0.0/0.0?0", "approve") and run.phase == "suspended", "one of two"
    assert run.tell(ev.Decided(at=run.at(), wait="/0.0/0.0/0.0?0", by="ann", decision="approve"))
    assert [effect.call for effect in run.announce()] == ["/0.0/0.0/0.0"]  # type: ignore[union-attr]


def test_import_drops_approvals_grants_credentials() -> None:
    run = Tree(agent("one", WIRE, policy=Policy(otherwise="ask")))
    run.reply(call("wire", '{"to":"a"}'), call("wire", '{"to":"b"}'), call("wire", '{"to":"a"}'))
    assert run.tell(ev.Paused(at=run.at(), by="ann"))
    assert run.decide("/0.0?0", "approve", grant=NewGrant(count=5))
    assert run.decide("/0.1?0", "edit", args='{"to":"c"}')
    assert run.root.grants and [one.state for one in run.root.calls] == ["authorized", "authorized", "waiting"]
    moved = imported(run.agents, run.state, home()).continuation
    assert moved.root.grants == ()
    assert [one.state for one in moved.root.calls] == ["waiting"] * 3
    assert [one.wait and one.wait.id for one in moved.root.calls] == ["/0.0?1", "/0.1?1", "/0.2?0"]
    edited = moved.root.calls[1]
    assert edited.wait is not None and '"c"' in edited.wait.display and edited.args_effective == '{"to":"c"}'
    assert {wait.kind for wait in pending(moved)} == {"hold", "approval"}
    taken(run, imported(run.agents, run.state, home()))
    assert not run.decide("/0.0?0", "approve"), "an answer to the question that was put there"
    assert run.decide("run?0", "approve") and run.announce() == () and run.phase == "suspended"
    assert run.decide("/0.1?1", "approve")
    assert [effect.args for effect in run.announce()] == ['{"to":"c"}']  # type: ignore[union-attr]


def test_a_client_is_not_handed_what_was_approved_elsewhere() -> None:
    run = Tree(agent("one", Tool(name="hand", executor="client"), policy=Policy(otherwise="ask")))
    run.reply(call("hand"))
    assert run.decide("/0.0?0", "approve")
    assert [wait.kind for wait in pending(run.state)] == ["client_tool"]
    (wait,) = pending(imported(run.agents, run.state, home()).continuation)
    assert (wait.kind, wait.id) == ("approval", "/0.0?2")


def test_what_a_policy_does_not_allow_is_asked_about_whatever_was_written_down() -> None:
    run = Tree(agent("one", WIRE, policy=Policy(otherwise="allow")))
    run.reply(call("wire"))
    strict = agent("one", WIRE, policy=Policy(otherwise="deny"))
    forged = replace(run.root, agent=ref(strict), calls=(replace(run.root.calls[0], gate=None),))
    assert forged.calls[0].state == "authorized"
    (wait,) = pending(imported({digest(strict): strict}, replace(run.state, root=forged), home()).continuation)
    assert wait.kind == "approval"


def test_what_was_in_flight_is_taken_for_lost_by_its_effect_class() -> None:
    once = Tool(name="pay")
    run = Tree(agent("one", WIRE, once, policy=Policy(otherwise="allow")))
    run.reply(call("wire"), call("pay"), call("look"))
    run.announce()
    assert len(in_flight(run.state, T0)) == 3
    moved = imported(run.agents, run.state, home(at=T0 + timedelta(days=9))).continuation
    assert [one.state for one in moved.root.calls] == ["authorized", "unknown", "authorized"]
    assert [one.key for one in moved.root.calls] == ["run_1/0.0", "run_1/0.1", "run_1/0.2"], (
        "the same call to the world"
    )
    assert moved.spent.active_ms == run.state.spent.active_ms, "the days on its way were no work"
    assert {effect.attempt for effect in due(run.agents, moved)} == {2}


def test_a_model_that_was_being_asked_is_asked_again() -> None:
    run = Tree(agent("one"))
    run.announce()
    moved = imported(run.agents, run.state, home()).continuation
    assert not moved.root.turn.sent and due(run.agents, moved)[0].attempt == 2


def test_model_retired_while_suspended_falls_back_only_if_declared() -> None:
    gone = ev.Failure("model.not_found", "There is no such model.")
    for models, then in ((("sim:one", "sim:two"), "running"), (("sim:one",), "failed")):
        run = Tree(replace(agent("one"), models=models))
        run.tell(ev.Paused(at=run.at(), by="ann"))
        taken(run, imported(run.agents, run.state, home()))
        assert run.decide("run?0", "approve")
        (effect,) = run.announce()
        assert effect.model == "sim:one"  # type: ignore[union-attr]
        assert run.tell(effect.erred(run.at(), gone))  # type: ignore[union-attr]
        assert run.phase == then
        assert [one.model for one in run.announce()] == list(models[1:])  # type: ignore[union-attr]


def test_an_imported_run_that_has_ended_stays_so() -> None:
    run = ended()
    moved = imported(run.agents, run.state, home()).continuation
    assert as_it_was(moved) == as_it_was(run.state)
    assert phase(run.agents, moved) == "failed"
    assert apply(run.agents, moved, ev.Turned(at=T0, phase="failed")).rev == 2


# ---- forks -----------------------------------------------------------------------------------


def three_steps() -> Tree:
    """Two steps with tools, words in between, and an answer."""
    run = Tree(agent("one", WIRE, policy=ASKS))
    for step in range(2):
        run.reply(call("look", f'{{"n":{step}}}'))
        run.announce()
        run.tell(ev.Said(at=run.at(), message=said(f"u{step}", "go on")))
        run.returned(f"/{step}.0")
    run.reply(Text("the answer"))
    assert run.phase == "completed"
    return run


def roles(adoption: Adoption) -> str:
    return "".join(message.role[0] for message in adoption.continuation.root.messages)


@pytest.mark.parametrize(("step", "said_before"), [(0, "u"), (1, "uatu"), (2, "uatuatu")])
def test_another_try_begins_before_the_reply_of_its_step(step: int, said_before: str) -> None:
    run = three_steps()
    adoption = forked(run.agents, run.state, home(), step=step)
    assert roles(adoption) == said_before
    state = adoption.continuation
    assert (state.spent, state.root.step, state.root.state) == (Spent(), step, "ready")
    assert state.root.marks == Marks(turns=step, circle=step)
    taken(run, adoption)
    assert run.reply(call("look")) and run.root.calls[0].uid == f"/{step}.0"
    assert run.announce()[0].key == f"run_2/{step}.0"  # type: ignore[union-attr]


@pytest.mark.parametrize("step", [-1, 3, 99])
def test_a_step_that_the_run_has_not_is_refused(step: int) -> None:
    run = three_steps()
    with pytest.raises(Invalid, match="the steps 0 to 2") as refused:
        forked(run.agents, run.state, home(), step=step)
    assert (refused.value.code, refused.value.pointer) == ("fork.no_such_step", "/step")


def test_a_finished_run_goes_on_with_what_the_user_says_now() -> None:
    run = three_steps()
    with pytest.raises(Invalid) as refused:
        forked(run.agents, run.state, home())
    assert refused.value.code == "fork.ended"
    adoption = forked(run.agents, run.state, home(), message=said("u3", "and now?"))
    assert roles(adoption) == "uatuatuau"
    assert phase(run.agents, adoption.continuation) == "running"
    assert roles(forked(run.agents, run.state, home(), step=3, message=said("u3", "and now?"))) == "uatuatuau"


def test_a_failed_run_is_tried_again_from_its_last_step() -> None:
    run = ended()
    adoption = forked(run.agents, run.state, home())
    assert roles(adoption) == "uat" and adoption.continuation.root.step == 1
    assert due(run.agents, adoption.continuation)[0].step == 1
    with pytest.raises(Invalid, match="the steps 0 to 1"):
        forked(run.agents, run.state, home(), step=2)


def test_a_run_that_was_stopped_before_its_model_answered_is_asked_again() -> None:
    run = Tree(agent("one"))
    run.tell(ev.Cancelled(at=run.at(), by="u"))
    adoption = forked(run.agents, run.state, home())
    assert roles(adoption) == "u" and due(run.agents, adoption.continuation)


def test_a_fork_of_a_waiting_run_waits_for_the_same() -> None:
    run = nested()
    adoption = forked(run.agents, run.state, home(), message=said("u9", "faster"))
    state = adoption.continuation
    assert [wait.id for wait in pending(state)] == [wait.id for wait in pending(run.state)]
    assert [message.id for message in state.root.inbox] == ["u2", "u9"]
    assert state.lineage is not None and state.lineage.how == "fork"
    assert as_it_was(imported(run.agents, run.state, home()).continuation)["spent"] == state.spent


def test_the_words_of_earlier_runs_of_the_session_are_no_steps_of_this_one() -> None:
    run = three_steps()
    before = run.root.messages
    later = replace(run.state, root=replace(run.root, messages=(*before, *before)))
    assert roles(forked(run.agents, later, home(), step=0)) == "uatuatuau"
    short = replace(run.state, root=replace(run.root, messages=before[:2]))
    with pytest.raises(Invalid, match="no step to go back to"):
        forked(run.agents, short, home(), step=0)


def test_what_this_release_writes_needs_no_more_than_it_reads() -> None:
    run = Run()
    assert needed(run.state) == needed(agent("clerk")) == 0 <= LEVEL
