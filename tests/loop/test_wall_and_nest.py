"""Wall time, which passes while a run sleeps; and how deep and how many sub-agents may be begun."""

from datetime import timedelta
from typing import Any

import pytest
from msgspec.structs import replace
from tests.loop.exported_runs import home
from tests.loop.run_kit import AGENT, HELPER, T0, Run, call

from sojourn.loop import events as ev
from sojourn.loop.agent import Agent, Tool, digest
from sojourn.loop.budget import DEPTH_MAX, Limits, Spent
from sojourn.loop.continuation import Failure, Signal, frames, path
from sojourn.loop.machine import begin, due, wake_at
from sojourn.loop.messages import Text
from sojourn.loop.moving.adoption import forked, imported
from sojourn.loop.moving.levels import LEVEL, needed
from sojourn.loop.policy import Policy, Rule
from sojourn.loop.step.decisions import refusal

END = T0 + timedelta(seconds=600)
SLEEPER = replace(AGENT, tools=(*AGENT.tools, Tool(name="await_event", executor="event")))
SLEEPS = ("approval", "event", "client_tool", "day_budget", "hold", "backoff", "child")


def asleep(sleep: str, limits: Limits) -> Run:
    """A run with nothing to do: it waits for somebody, or for the next try."""
    run = Run(SLEEPER, limits)
    match sleep:
        case "approval":
            run.reply(call("wire"))
        case "event":
            run.reply(call("await_event", '{"name":"paid"}'))
        case "client_tool":
            run.reply(call("hand"), call("hand"))
        case "day_budget":
            error = Failure("budget.day_exhausted", "There is no room today.")
            unfunded = {"pool": "user", "error": error, "until": T0 + timedelta(days=1), "later": limits == FAILS}
            assert run.tell(ev.Unfunded(at=run.at(), frame="/", step=0, attempt=1, **unfunded))  # type: ignore[arg-type]
        case "hold":
            assert run.tell(ev.Paused(at=run.at(), by="boss"))
        case "backoff":
            assert run.fail(retry=True, after_s=300)
            run.state = replace(run.state, root=replace(run.root, turn=replace(run.root.turn, not_before=END)))
        case "child":
            run.reply(call("help"))
            run.reply(Text("done"), frame="/0.0")
            assert run.tell(ev.Paused(at=run.at(), by="boss"))
    return run


def tick(run: Run, at: Any) -> bool:
    run.second = int((at - T0).total_seconds())
    return run.tell(ev.Ticked(at=at))


FAILS = Limits(wall_s=600)
ASKS = Limits(wall_s=600, on_exhaust="suspend")


@pytest.mark.parametrize("sleep", SLEEPS)
def test_a_run_that_sleeps_ends_when_its_wall_time_does(sleep: str) -> None:
    run = asleep(sleep, FAILS)
    while (wake := wake_at(run.state)) is not None and wake < END:
        assert tick(run, wake)  # the pool of the day is asked again and again, and refuses
        run.state = replace(run.state, root=replace(run.root, turn=replace(run.root.turn, not_before=END)))
    assert wake == END
    run.moved()
    assert not tick(run, END - timedelta(microseconds=1)) and run.root.error is None
    assert tick(run, END) and (run.phase, run.pending(), wake_at(run.state)) == ("failed", [], None)
    detail = "The run has used all of its wall_s (600.0). Start it with more."
    assert run.root.error == Failure("budget.exhausted", detail)
    assert all(one.state == "cancelled" for one in run.root.calls)


@pytest.mark.parametrize("sleep", SLEEPS)
def test_a_run_that_may_ask_is_woken_once_and_goes_on_exactly_with_more(sleep: str) -> None:
    run = asleep(sleep, ASKS)
    before = due(run.agents, run.state), [wait.id for wait in run.pending()]
    frame_waits = run.root.wait is not None
    wake = wake_at(run.state)
    assert (wake is not None and wake > END) if frame_waits else wake == END
    assert tick(run, END) == (not frame_waits), "what waits already is not woken to wait"
    if frame_waits:
        assert run.decide(run.pending()[0].id, "approve")
    (wait,) = run.pending("budget")
    assert (wait.frame, wait.about, run.phase) == ("/", "/", "suspended")
    assert wake_at(run.state) is None and not tick(run, END + timedelta(days=1)), "it does not wake again"
    run.moved()
    assert run.refused(wait.id, "extend", limits=Limits(wall_s=601)) == "approval.no_limits"
    assert run.decide(wait.id, "extend", limits=replace(ASKS, wall_s=100_000))
    if not frame_waits and sleep != "backoff":
        assert (due(run.agents, run.state), [wait.id for wait in run.pending()]) == before
    else:
        assert run.pending() == [] and len(due(run.agents, run.state)) == 1
    assert run.state.limits.wall_s == 100_000


def test_what_is_approved_over_the_wall_time_waits_for_more_of_it() -> None:
    run = asleep("approval", ASKS)
    (asked,) = run.pending()
    assert tick(run, END) and run.decide(asked.id, "approve")
    (wait,) = run.pending()
    assert due(run.agents, run.state) == () and run.phase == "suspended"
    assert run.decide(wait.id, "extend", limits=Limits(wall_s=700))
    assert [effect.call for effect in run.announce()] == ["/0.0"]


def test_what_is_approved_below_waits_too_and_goes_on_with_the_same_answer() -> None:
    helper = replace(HELPER, tools=(Tool(name="wire"),), policy=Policy(rules=(Rule("wire", "ask"),)))
    run = Run(parent(helper), ASKS, others=(helper,))
    run.reply(call("help"))
    run.reply(call("wire"), frame="/0.0")
    assert tick(run, END) and [wait.frame for wait in run.pending("budget")] == ["/"]
    assert run.decide(run.pending("approval")[0].id, "approve") and due(run.agents, run.state) == ()
    assert [wait.frame for wait in run.pending()] == ["/", "/0.0"]
    assert run.decide(run.pending()[0].id, "extend", limits=Limits(wall_s=700))
    assert [effect.call for effect in run.announce()] == ["/0.0/0.0"] and run.pending() == []


def test_an_approval_that_is_the_first_to_come_after_the_end_begins_nothing() -> None:
    run = asleep("approval", ASKS)
    run.second = 600
    assert run.decide(run.pending()[0].id, "approve")
    assert [wait.kind for wait in run.pending()] == ["budget"] and due(run.agents, run.state) == ()


def test_what_is_in_flight_ends_with_a_limit_that_fails_and_goes_on_with_one_that_asks() -> None:
    for limits, phase in ((FAILS, "failed"), (ASKS, "running")):
        run = Run(limits=limits)
        run.reply(call("look"))
        run.announce()
        assert wake_at(run.state) == END and tick(run, END) and run.phase == phase
    run.returned("/0.0")
    assert run.phase == "suspended" and [wait.title for wait in run.pending()] == [
        "The run has used all of its wall_s. Raise it?"
    ]
    run = Run(limits=ASKS)
    run.announce()
    assert wake_at(run.state) is None, "its reply comes anyway"
    run.second = 700
    run.reply(call("wire"))
    assert [wait.kind for wait in run.pending()] == ["budget", "approval"]


def test_whoever_raises_it_hears_how_long_it_has_been() -> None:
    run = asleep("approval", ASKS)
    tick(run, END)
    event = run.decided(run.pending("budget")[0].id, "extend", limits=Limits(wall_s=600))
    failure = refusal(run.agents, run.state, event)
    assert failure is not None and failure.detail.endswith("raise wall_s. It began 601 s ago.")


# ---- where it counts from --------------------------------------------------------------------


def parent(helper: Agent, **more: Any) -> Agent:
    tools = (Tool(name="wire"), Tool(name="help", executor="agent", agent=digest(helper)))
    return Agent(name="above", models=("sim:a",), tools=tools, **more)


def test_a_sub_agents_wall_time_is_its_own_and_counts_from_when_it_began() -> None:
    ask = Policy(rules=(Rule("wire", "ask"),))
    helper = replace(HELPER, tools=(Tool(name="wire"),), policy=ask, limits=Limits(wall_s=100))
    run = Run(parent(helper), others=(helper,))
    run.second = 1000
    run.reply(call("help"))
    began = run.state.updated_at
    run.reply(call("wire"), frame="/0.0")
    assert run.phase == "suspended" and wake_at(run.state) == began + timedelta(seconds=100)
    run.moved()
    assert tick(run, began + timedelta(seconds=100)) and run.pending() == []
    assert run.last().endswith("The sub-agent helper has used all of its wall_s (100.0). Start it with more.")
    assert run.phase == "running" and len(due(run.agents, run.state)) == 1


def test_a_sub_agent_that_may_ask_is_given_more_alone() -> None:
    ask = Policy(rules=(Rule("wire", "ask"),))
    helper = replace(HELPER, tools=(Tool(name="wire"),), policy=ask, limits=Limits(wall_s=100, on_exhaust="suspend"))
    run = Run(parent(helper), others=(helper,))
    run.reply(call("help"))
    began = run.state.updated_at
    run.reply(call("wire"), frame="/0.0")
    assert tick(run, began + timedelta(seconds=100))
    (wait,) = run.pending("budget")
    assert (wait.frame, wait.about) == ("/0.0", "/0.0")
    assert run.refused(wait.id, "extend", limits=Limits(wall_s=101)) == "approval.no_limits"
    assert run.decide(wait.id, "extend", limits=Limits(wall_s=500))
    assert [wait.kind for wait in run.pending()] == ["approval"]
    assert wake_at(run.state) == began + timedelta(seconds=500)


def test_the_wall_time_of_a_delayed_run_counts_from_when_it_was_to_begin() -> None:
    run = Run(limits=FAILS)
    later = T0 + timedelta(days=1)
    first = ev.Began(
        at=T0,
        run_id="run_1",
        tenant="t",
        session_id="ses_1",
        principal=run.state.principal,
        agent=run.root.agent,
        limits=FAILS,
        start_at=later,
    )
    run.state = begin(first)
    assert wake_at(run.state) == later + timedelta(seconds=600)


def test_the_wall_time_of_a_run_that_was_made_of_another_counts_anew() -> None:
    helper = replace(HELPER, limits=Limits(wall_s=100))
    run = Run(parent(helper, policy=Policy(rules=(Rule("wire", "ask"),))), FAILS, others=(helper,))
    run.reply(call("help"))
    later = T0 + timedelta(days=1)
    for made in (imported, forked):
        new = made(run.agents, run.state, home(at=later)).continuation
        assert wake_at(new) == later + timedelta(seconds=100)
        assert new.spent.children == 1


# ---- sub-agents ------------------------------------------------------------------------------


def test_sub_agents_are_counted_one_by_one_and_none_is_given_back() -> None:
    run = Run(limits=Limits(children=3))
    run.reply(call("help"), call("help"))
    assert run.state.spent.children == 2
    for frame in ("/0.0", "/0.1"):
        run.reply(Text("done"), frame=frame)
    run.moved()
    run.reply(call("help"), call("help"), call("look"))
    assert [one.child is not None for one in run.root.calls] == [True, False, False]
    assert (run.state.spent.children, run.root.calls[1].state) == (3, "failed")
    run.announce()
    run.returned("/1.2")
    run.reply(Text("done"), frame="/1.0")
    told = run.texts()[-2]
    assert told == (
        "The run may begin 3 sub-agents in all (the limit `children`), and has. "
        "This one was not begun: do its task yourself, or say what is left undone."
    )
    assert run.reply(Text("all done")) and run.phase == "completed"


@pytest.mark.parametrize("verdict", ["ask", "deny"])
def test_a_sub_agent_that_is_called_back_before_it_begins_is_not_counted(verdict: Any) -> None:
    run = Run(limits=Limits(children=1))
    run.reply(call("help"), call("look"))
    judged = ev.Judged(at=run.at(), call="/0.0", waits=0, verdict=verdict, by="g@1", reason="It is judged.")
    assert run.state.spent.children == 1 and run.tell(judged) and run.state.spent.children == 0
    if verdict == "ask":
        assert run.decide(run.pending()[0].id, "approve") and run.state.spent.children == 1
        assert path(run.root, "/0.0")
        assert run.tell(replace(judged, call="/0.1")) and run.state.spent.children == 1, "it is no sub-agent"


def test_sub_agents_of_sub_agents_count_for_all_above_them() -> None:
    leaf = replace(HELPER, name="leaf")
    middle = Agent(
        name="middle",
        models=("sim:m",),
        tools=(Tool(name="leaf", executor="agent", agent=digest(leaf)),),
        limits=Limits(children=2),
    )
    root = Agent(name="root", models=("sim:r",), tools=(Tool(name="go", executor="agent", agent=digest(middle)),))
    run = Run(root, Limits(children=5), others=(middle, leaf))
    run.reply(call("go"), call("go"))
    run.reply(call("leaf"), call("leaf"), call("leaf"), frame="/0.0")
    run.reply(call("leaf"), call("leaf"), frame="/0.1")
    first, second = (one.child for one in run.root.calls)
    assert first is not None and second is not None
    assert (run.state.spent.children, first.spent.children, second.spent.children) == (5, 2, 1)
    assert "The sub-agent middle may begin 2" in str(first.calls[2].result)
    assert "The run may begin 5" in str(second.calls[1].result)


def test_no_sub_agent_begins_where_none_may() -> None:
    for limits in (Limits(depth=0), Limits(children=0)):
        run = Run(limits=limits)
        assert run.reply(call("help")) and [one.id for one in frames(run.root)] == ["/"]
        assert "This one was not begun" in run.last() and run.state.spent.children == 0


def test_a_sub_agent_counts_depth_from_itself() -> None:
    again = Tool(name="again", executor="agent", agent="self")
    loop = Agent(name="again", models=("sim:a",), tools=(again,), limits=Limits(depth=1))
    run = Run(loop, Limits(depth=DEPTH_MAX))
    run.agents["self"] = loop
    frame = "/"
    for place in ("/0.0", "/0.0/0.0"):
        run.reply(call("again"), frame=frame)
        frame = place
    assert run.reply(call("again"), frame=frame) and frame in [one.id for one in frames(run.root)]
    assert "nested 2 deep" in str(list(frames(run.root))[-1].messages[-1])


# ---- releases --------------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [Limits(wall_s=1), Limits(depth=7), Limits(children=99)])
def test_older_releases_leave_alone_what_they_cannot_bound(limits: Limits) -> None:
    assert needed(Run(limits=limits).state) == needed(replace(AGENT, limits=limits)) == 5 <= LEVEL
    decided = ev.Decided(at=T0, wait="w", by="u", decision="extend", limits=limits)
    assert [needed(one) for one in (decided, replace(decided, limits=Limits(steps=9)))] == [5, 0]
    run = Run(parent(replace(HELPER, limits=limits)), others=(replace(HELPER, limits=limits),))
    run.reply(call("help"))
    assert needed(replace(run.state, spent=Spent())) == 5, "begun by an older release, and given limits since"


def test_a_run_within_the_default_needs_nothing_new_until_a_sub_agent_is_counted() -> None:
    run = Run()
    run.reply(call("look"))
    assert (needed(run.state), needed(AGENT)) == (1, 0)
    run.announce()
    run.returned("/0.0")
    run.reply(call("help"))
    assert needed(run.state) == 5
    signal = Signal(id="s", name="n", taints=("private",))
    assert needed(replace(run.state, spent=Spent(), signals=(signal,))) == 4
