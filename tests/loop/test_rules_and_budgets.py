"""When an agent stops by rule, what a run may spend, and who counts it."""

from datetime import timedelta
from typing import Any

import pytest
from msgspec.structs import replace
from tests.loop.run_kit import AGENT, HELPER, T0, Run, call

from sojourn.loop import events as ev
from sojourn.loop.agent import Agent, Suspend, Tool, digest
from sojourn.loop.budget import Held, Limits, Room
from sojourn.loop.machine import due, wake_at
from sojourn.loop.messages import Text, Usage, said
from sojourn.loop.policy import Asking, Policy, Rule
from sojourn.loop.step.pauses import WARNING


def step(run: Run, tool: str = "look", result: str = "ok", args: str = "{}") -> None:
    """One step of the root with one call, from the model to the observation."""
    n = run.root.step
    run.reply(call(tool, args))
    run.announce()
    run.returned(f"/{n}.0", result)


def asked(run: Run, frame: str, held: Held, attempt: int = 1) -> bool:
    """Announce a frame's model call that may cost so much."""
    place = next(effect for effect in due(run.agents, run.state) if effect.frame == frame)
    assert place.attempt == attempt
    return run.tell(ev.ModelAsked(at=run.at(), frame=frame, step=place.step, attempt=attempt, model="sim:h", held=held))


def test_every_n_turns_rearms_in_a_new_process() -> None:
    run = Run(replace(AGENT, suspend=Suspend(every_turns=2)))
    for stop in (1, 2):
        step(run, args=f'{{"n":{stop}}}')
        assert run.phase == "running"
        run.moved()
        step(run, args=f'{{"m":{stop}}}')
        (wait,) = run.pending("turns")
        assert wait.title == "a made 2 turns. Go on?" and run.phase == "suspended"
        run.moved()
        assert run.decide(wait.id, "approve") and run.phase == "running"


def test_a_rule_of_the_run_is_for_its_root_alone() -> None:
    run = Run(suspend=Suspend(every_turns=1))
    run.reply(call("help"))
    run.reply(call("look"), frame="/0.0")
    run.announce()
    run.returned("/0.0/0.0")
    assert run.phase == "running"
    run.reply(Text("seen"), frame="/0.0")
    (wait,) = run.pending("turns")
    assert run.decide(wait.id, "reject") and run.root.error is not None and run.root.error.code == "run.stopped"


def test_active_seconds_count_anew_from_the_answer() -> None:
    run = Run(replace(AGENT, suspend=Suspend(after_active_s=30)))
    run.second = 1000
    step(run)
    assert run.phase == "running", "a run that nobody took up was not active"
    run.announce()
    run.second += 40
    run.reply(call("look"), call("help"))
    run.announce()
    run.returned("/1.0")
    run.second += 60
    run.reply(Text("late"), frame="/1.1")
    (wait,) = run.pending("seconds")
    run.second += 5000
    assert run.decide(wait.id, "approve") and run.phase == "running" and run.pending() == []


def test_seconds_that_pass_while_a_question_is_open_do_not_ask_it_again_at_once() -> None:
    helper = replace(HELPER, suspend=Suspend(after_active_s=30))
    agent = replace(AGENT, tools=(Tool(name="look"), Tool(name="help", executor="agent", agent=digest(helper))))
    run = Run(agent, others=(helper,))
    run.reply(call("help"), call("look"))
    run.announce()
    run.second += 40
    run.reply(call("look"), frame="/0.0")
    run.announce()
    run.returned("/0.0/0.0")
    (wait,) = run.pending("seconds")
    run.second += 100
    assert run.decide(wait.id, "approve") and run.pending() == [], "the sibling ran on; that was answered, too"


def test_a_first_step_that_fails_again_and_again_is_counted() -> None:
    run = Run(replace(AGENT, suspend=Suspend(after_active_s=30, at=T0)))
    run.announce()
    run.second += 40
    assert run.fail(retry=True) and run.tick()
    assert [wait.kind for wait in run.pending()] == ["seconds"]


def test_a_wall_time_stops_once_at_the_end_of_a_step() -> None:
    run = Run(replace(AGENT, suspend=Suspend(at=T0 + timedelta(seconds=60))))
    step(run)
    assert run.phase == "running"
    run.second = 100
    step(run)
    (wait,) = run.pending("timer")
    assert "It is past 2026-01-01T00:01:00+00:00" in wait.title
    assert run.decide(wait.id, "approve")
    step(run, args='{"n":1}')
    assert run.phase == "running"


def test_a_pause_that_comes_with_another_frames_announcement_keeps_the_model_unasked() -> None:
    helper = replace(HELPER, suspend=Suspend(at=T0 + timedelta(seconds=50)))
    agent = replace(AGENT, tools=(Tool(name="help", executor="agent", agent=digest(helper)),))
    run = Run(agent, others=(helper,))
    run.reply(call("help"), call("help"))
    for frame in ("/0.0", "/0.1"):
        run.reply(call("look"), frame=frame)
    run.announce()
    for frame in ("/0.0", "/0.1"):
        run.returned(f"{frame}/0.0")
    first, second = due(run.agents, run.state)
    run.second = 60
    assert run.tell(first.announced(run.at()))
    assert run.pending("timer") and not run.tell(second.announced(run.at()))


def test_rule_firing_on_a_resume_with_an_approved_call_keeps_it() -> None:
    run = Run(replace(AGENT, suspend=Suspend(every_turns=1, after_active_s=1, at=T0 + timedelta(seconds=1))))
    run.reply(call("wire"))
    run.second = 100
    (wait,) = run.pending()
    assert run.decide(wait.id, "approve") and run.pending() == [], "the call comes first"
    run.moved()
    (effect,) = run.announce()
    assert effect.tool == "wire" and run.returned("/0.0", "wired")
    for kind in ("turns", "timer"):
        (pause,) = run.pending(kind)
        run.moved()
        assert run.decide(pause.id, "approve")
    (effect,) = run.announce()
    assert [message.role for message in effect.messages] == ["user", "assistant", "tool"]


# ---- circles ---------------------------------------------------------------------------------


def test_loop_guard_counts_across_suspends() -> None:
    run = Run(replace(AGENT, suspend=Suspend(every_turns=2)))
    for n in range(6):
        assert run.pending("loop_guard") == []
        step(run)
        run.moved()
        for wait in run.pending("turns"):
            run.decide(wait.id, "approve")
        assert run.texts().count(WARNING) == (n >= 2)
    (wait,) = run.pending("loop_guard")
    assert run.phase == "suspended" and run.decide(wait.id, "approve") and run.phase == "running"
    for _ in range(3):
        step(run)
        for pause in run.pending("turns"):
            run.decide(pause.id, "approve")
    assert run.texts().count(WARNING) == 2, "after a yes it is told again first"


@pytest.mark.parametrize(
    "rounds",
    [
        [("look", "{}", f"{n} %") for n in range(9)],
        [("look", f'{{"page":{n}}}', "same") for n in range(9)],
        [("look", "{}", "a"), ("look", "{}", "a"), ("pay", "{}", "a")] * 3,
        [("look", "{}", "a"), ("pay", "{}", "a"), ("wire", "{}", "a")] * 3,
        [("look", "{}", "a"), ("pay", "{}", "b")] * 2,
    ],
)
def test_what_changes_is_no_circle(rounds: list[tuple[str, str, str]]) -> None:
    run = Run(replace(AGENT, policy=Policy()))
    for tool, args, result in rounds:
        step(run, tool, result, args)
    assert run.pending() == [] and WARNING not in run.texts()


def test_two_steps_in_turn_are_a_circle_the_third_time() -> None:
    run = Run()
    for n in range(6):
        assert WARNING not in run.texts()
        step(run, ("look", "pay")[n % 2])
    assert run.texts()[-1] == WARNING and len(run.announce()) == 1


def test_steps_whose_messages_are_not_here_are_no_circle() -> None:
    run = Run()
    step(run)
    run.state = replace(run.state, root=replace(run.root, step=9))
    run.tell(ev.Noted(at=run.at(), kind="sandbox.opened"))
    assert WARNING not in run.texts()


def test_an_agent_may_go_without_the_guard() -> None:
    run = Run(replace(AGENT, policy=Policy(loop_guard=False)))
    for _ in range(9):
        step(run)
    assert run.phase == "running" and WARNING not in run.texts()


# ---- budgets ---------------------------------------------------------------------------------


def family(limits: Limits) -> Run:
    """Two sub-agents in parallel, ready to ask their models."""
    run = Run(limits=limits)
    run.reply(call("help"), call("help"))
    return run


def test_parallel_children_cannot_jointly_overspend() -> None:
    run = family(Limits(usd_micros=100, on_exhaust="suspend"))
    assert all(effect.room == Room(usd_micros=100) for effect in due(run.agents, run.state))
    assert asked(run, "/0.0", Held(usd_micros=70))
    (effect,) = due(run.agents, run.state)
    assert effect.room == Room(usd_micros=30)
    assert not asked(run, "/0.1", Held(usd_micros=40)), "it waits for what is in flight, and asks nobody"
    assert run.phase == "running" and run.pending() == []
    replied(run, "/0.0", usd_micros=65)
    assert run.state.spent.usd_micros == 65
    assert asked(run, "/0.1", Held(usd_micros=40)), "nothing is in flight any more: somebody is asked"
    (wait,) = run.pending("budget")
    assert wait.title == "The run has used all of its usd_micros. Raise it?" and run.phase == "suspended"
    assert run.refused(wait.id, "extend", limits=Limits(usd_micros=65)) == "approval.no_limits"
    assert run.decide(wait.id, "extend", limits=Limits(usd_micros=110, on_exhaust="suspend"))
    assert asked(run, "/0.1", Held(usd_micros=40), attempt=2)
    replied(run, "/0.1", attempt=2, usd_micros=40)
    assert run.state.spent.usd_micros == 105


def replied(run: Run, frame: str, *, attempt: int = 1, usd_micros: int) -> None:
    message = ev.Replied(
        at=run.at(),
        frame=frame,
        step=0,
        attempt=attempt,
        message=replace(said("m", "done"), role="assistant", stop="end", usage=Usage(input=7, output=3)),
        usd_micros=usd_micros,
    )
    assert run.tell(message)


def test_a_call_that_never_fits_ends_a_run_that_may_not_ask() -> None:
    run = Run(limits=Limits(input_tokens=10))
    assert asked(run, "/", Held(input_tokens=11))
    assert run.phase == "failed" and run.root.error is not None and "input_tokens (10)" in run.root.error.detail


def test_aborted_stream_settles_its_reservation() -> None:
    for end in ("lost", "erred", "interrupted"):
        run = family(Limits(output_tokens=100, on_exhaust="suspend"))
        assert asked(run, "/0.0", Held(output_tokens=100)) and not asked(run, "/0.1", Held(output_tokens=1))
        place: dict[str, Any] = {"frame": "/0.0", "step": 0, "attempt": 1}
        if end == "lost":
            assert run.tell(ev.ModelLost(at=run.at(), **place))
        elif end == "erred":
            error = ev.Failure("model.stream_broken", "It broke off.")
            assert run.tell(ev.ModelErred(at=run.at(), error=error, retry=True, **place))
        else:
            run = Run(limits=Limits(output_tokens=100))
            assert asked(run, "/", Held(output_tokens=100))
            assert run.tell(ev.Said(at=run.at(), message=said("m", "stop"), interrupt=True))
        effect = due(run.agents, run.state)[-1]
        assert effect.room == Room(output_tokens=100), "it is free again"


def test_the_tightest_limit_above_a_frame_is_its_room() -> None:
    helper = replace(HELPER, limits=Limits(output_tokens=50))
    agent = replace(AGENT, tools=(Tool(name="help", executor="agent", agent=digest(helper)),))
    run = Run(agent, Limits(output_tokens=70, input_tokens=9), others=(helper,))
    run.reply(call("help"), call("help"))
    assert [effect.room for effect in due(run.agents, run.state)] == [Room(output_tokens=50, input_tokens=9)] * 2
    assert asked(run, "/0.0", Held(output_tokens=45))
    assert [effect.room.output_tokens for effect in due(run.agents, run.state)] == [25]


def test_time_that_runs_out_ends_the_run_though_another_limit_is_used_up_too() -> None:
    run = Run(limits=Limits(steps=1, tool_calls=1, active_s=100))
    run.reply(call("look"))
    run.announce()
    assert run.tick() and run.phase == "failed"
    assert run.root.error is not None and "active_s (100)" in run.root.error.detail


def test_a_tick_that_nothing_waits_for_changes_nothing() -> None:
    run = Run(limits=Limits(active_s=100))
    run.reply(call("wire"))
    for later_s in (1, 10_000):
        assert not run.tick(later_s)


def test_a_tool_that_was_approved_over_the_budget_waits_with_its_frame() -> None:
    policy = Policy(rules=(Rule("wire", "ask", ask=Asking(expires_s=9999)),))
    run = Run(replace(AGENT, policy=policy), Limits(tool_calls=1, on_exhaust="suspend"))
    run.reply(call("look"), call("wire"))
    run.announce()
    run.decide(run.pending()[0].id, "approve")
    (wait,) = run.pending("budget")
    assert not run.tell(ev.Intended(at=run.at(), call="/0.1", attempt=1))
    run.returned("/0.0")
    run.decide(wait.id, "extend", limits=Limits(tool_calls=5))
    assert [effect.call for effect in run.announce()] == ["/0.1"]


def test_an_agent_of_limits_that_are_none_has_no_bound() -> None:
    free = Limits(steps=None, active_s=None)
    run = Run(Agent(name="free", models=("sim:f",), tools=(Tool(name="look"),)), free)
    for n in range(100):
        step(run, args=f'{{"n":{n}}}')
    assert run.phase == "running" and wake_at(run.state) is None
