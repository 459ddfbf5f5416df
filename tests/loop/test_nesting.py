"""Agents within agents: questions surface from any depth, and what befalls a child stays with the child."""

import itertools
from typing import Any

import pytest
from msgspec.structs import replace
from tests.loop.run_kit import HELPER, T0, Run, call

from sojourn.loop.agent import Agent, Suspend, Tool, digest
from sojourn.loop.budget import Limits
from sojourn.loop.continuation import frames
from sojourn.loop.effects import CallTool
from sojourn.loop.machine import due, in_flight, wake_at
from sojourn.loop.messages import Text
from sojourn.loop.policy import Policy, Rule
from sojourn.loop.step.waits import ARGS_DEPTH_MAX

ASKS = Policy(rules=(Rule("wire", "ask"),))


def above(child: Agent, **more: Any) -> Agent:
    """An agent that may run `wire`, and hand on to `child`."""
    tools = (
        Tool(name="wire"),
        Tool(name="look", effect="read"),
        Tool(name="help", executor="agent", agent=digest(child)),
    )
    return Agent(name="above", models=("sim:a",), tools=tools, **{"policy": ASKS, **more})


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_three_levels_two_pending_resolved_in_every_order(order: tuple[int, ...]) -> None:
    leaf = Agent(name="leaf", models=("sim:l",), tools=(Tool(name="wire"),), policy=ASKS)
    middle = above(leaf)
    run = Run(above(middle), others=(leaf, middle))
    run.reply(call("wire"), call("help"))
    run.reply(call("wire"), call("help"), frame="/0.1")
    run.reply(call("wire"), frame="/0.1/0.1")
    waits = run.pending()
    assert [wait.frame for wait in waits] == ["/", "/0.1", "/0.1/0.1"] and run.phase == "suspended"
    for n, place in enumerate(order):
        run.moved()
        assert run.decide(waits[place].id, "approve")
        begun = [effect.call for effect in run.announce() if isinstance(effect, CallTool)]
        assert begun == [waits[place].call], "and nothing else"
        run.returned(str(waits[place].call), f"did {place}")
        assert len(run.pending()) == 2 - n
    run.reply(Text("leaf done"), frame="/0.1/0.1")
    run.reply(Text("middle done"), frame="/0.1")
    assert run.texts()[-2:] == ["did 0", "middle done"]
    run.reply(Text("all done"))
    assert run.phase == "completed"


def test_same_subagent_twice_in_parallel() -> None:
    helper = replace(HELPER, tools=(Tool(name="wire"),), policy=ASKS)
    run = Run(above(helper), others=(helper,))
    run.reply(call("help", '{"input":"a"}'), call("help", '{"input":"b"}'))
    run.reply(call("wire"), frame="/0.0")
    run.reply(call("wire"), frame="/0.1")
    first, second = run.pending()
    assert run.decide(second.id, "approve")
    assert [effect.call for effect in run.announce()] == ["/0.1/0.0"] and run.pending() == [first]


def test_recursive_agent_calls_itself() -> None:
    tools = (Tool(name="again", executor="agent", agent="self"), Tool(name="look", effect="read"))
    loop = Agent(name="again", models=("sim:a",), tools=tools)
    run = Run(loop)
    run.agents["self"] = loop
    run.reply(call("again"))
    run.reply(call("again"), frame="/0.0")
    run.reply(Text("three"), frame="/0.0/0.0")
    run.reply(Text("two"), frame="/0.0")
    assert run.last() == "two"


def test_agents_sharing_a_name() -> None:
    one = Agent(name="twin", models=("sim:1",), tools=(Tool(name="wire"),), policy=ASKS)
    other = Agent(name="twin", models=("sim:2",), tools=(Tool(name="wire"),))
    tools = tuple(Tool(name=f"h{n}", executor="agent", agent=digest(twin)) for n, twin in enumerate((one, other)))
    run = Run(Agent(name="twin", models=("sim:0",), tools=tools), others=(one, other))
    run.reply(call("h0"), call("h1"))
    assert sorted(effect.model for effect in due(run.agents, run.state)) == ["sim:1", "sim:2"]
    run.reply(call("wire"), frame="/0.0")
    run.reply(call("wire"), frame="/0.1")
    assert [wait.call for wait in run.pending()] == ["/0.0/0.0"], "each twin has the policy of its own digest"


def test_agent_call_needs_approval_then_its_child_does() -> None:
    helper = replace(HELPER, tools=(Tool(name="wire"),), policy=ASKS, suspend=Suspend(every_turns=1))
    run = Run(above(helper, policy=Policy(otherwise="ask")), others=(helper,))
    run.reply(call("help"))
    (outer,) = run.pending()
    assert [frame.id for frame in frames(run.root)] == ["/"], "no child before the yes"
    run.decide(outer.id, "approve")
    run.reply(call("wire"), frame="/0.0")
    (inner,) = run.pending()
    assert (inner.call, inner.id) != (outer.call, outer.id)
    run.decide(inner.id, "reject")
    (pause,) = run.pending()
    assert pause.kind == "turns" and pause.id not in (inner.id, outer.id)
    assert run.refused(outer.id, "approve") == "run.not_waiting", "an old click answers no new question"


def test_child_suspends_for_turns_parent_for_approval() -> None:
    helper = replace(HELPER, suspend=Suspend(every_turns=1))
    run = Run(above(helper), others=(helper,))
    run.reply(call("help"), call("wire"))
    run.reply(call("look"), frame="/0.0")
    run.announce()
    run.returned("/0.0/0.0")
    assert {(wait.kind, wait.frame) for wait in run.pending()} == {("turns", "/0.0"), ("approval", "/")}
    assert run.phase == "suspended"
    run.decide(run.pending("turns")[0].id, "approve")
    run.reply(Text("seen"), frame="/0.0")
    assert run.phase == "suspended" and [wait.kind for wait in run.pending()] == ["approval"]
    run.decide(run.pending()[0].id, "approve")
    run.announce()
    run.returned("/0.1", "wired")
    assert run.texts()[-2:] == ["seen", "wired"]


@pytest.mark.parametrize("limits", [Limits(steps=1), Limits(tool_calls=0), Limits(input_tokens=0), Limits(active_s=0)])
def test_child_budget_exhausted_parent_continues(limits: Limits) -> None:
    helper = replace(HELPER, limits=limits)
    run = Run(above(helper), others=(helper,))
    run.reply(call("help"))
    if limits.steps == 1:
        run.reply(call("look"), frame="/0.0")
        run.announce()
        run.returned("/0.0/0.0")
    assert run.phase == "running" and len(due(run.agents, run.state)) == 1, "its parent is told at once"
    assert "The sub-agent helper did not finish. The sub-agent helper has used all of its" in run.last()
    run.reply(Text("then without it"))
    assert run.phase == "completed"


def test_a_sub_agents_active_time_is_its_own() -> None:
    helper = replace(HELPER, limits=Limits(active_s=100))
    run = Run(above(helper), others=(helper,))
    run.reply(call("wire"), call("help"))
    run.second = 5000
    run.announce()
    began = run.state.updated_at
    assert wake_at(run.state) is not None and run.tick()
    assert (run.state.updated_at - began).total_seconds() == 100
    assert run.phase == "suspended" and [wait.kind for wait in run.pending()] == ["approval"]
    assert run.root.calls[1].state == "failed" and in_flight(run.state, T0) == ()


def test_a_sub_agent_that_may_ask_for_more_stops_alone_until_it_has_it() -> None:
    helper = replace(HELPER, limits=Limits(steps=1, on_exhaust="suspend"))
    run = Run(above(helper), others=(helper,))
    run.reply(call("help"), call("help"), call("look"))
    for frame in ("/0.0", "/0.1"):
        run.reply(call("look"), frame=frame)
        run.announce()
        run.returned(f"{frame}/0.0")
    run.returned("/0.2")
    first, second = run.pending("budget")
    assert (first.frame, first.about) == ("/0.0", "/0.0") and run.phase == "suspended"
    assert run.refused(first.id, "extend", limits=Limits(steps=1)) == "approval.no_limits"
    assert run.refused(first.id, "extend") == "approval.no_limits"
    assert run.decide(first.id, "extend", limits=Limits(steps=3))
    assert [effect.frame for effect in run.announce()] == ["/0.0"]
    assert run.decide(second.id, "reject", reason="enough")
    assert run.root.calls[1].state == "failed"


def test_a_pool_of_the_run_that_is_raised_answers_everybody_below() -> None:
    run = Run(above(HELPER), Limits(steps=3, on_exhaust="suspend"))
    run.reply(call("help"), call("help"))
    for frame in ("/0.0", "/0.1"):
        run.reply(call("look"), frame=frame)
        run.announce()
        run.returned(f"{frame}/0.0")
    first, second = run.pending("budget")
    assert first.about == second.about == "/"
    assert run.decide(first.id, "extend", limits=Limits(steps=9))
    assert run.pending() == [] and len(due(run.agents, run.state)) == 2


@pytest.mark.parametrize("open", ["[", '{"a":'])
def test_depth_limit_and_json_depth_bomb_refused(open: str) -> None:
    close = "]" if open == "[" else "}"
    for depth in (ARGS_DEPTH_MAX, ARGS_DEPTH_MAX + 1, 900, 100_000):
        run = Run()
        inner = depth - 1  # the object of the arguments is one
        run.reply(
            call("look", '{"a":' + open * inner + "1" + close * inner + "}"), call("look", '{"b":"' + "[{" * 99 + '"}')
        )
        fits = depth == ARGS_DEPTH_MAX
        assert len(due(run.agents, run.state)) == 1 + fits
        assert run.root.calls[0].state == ("authorized" if fits else "failed")
        assert run.root.calls[1].state == "authorized", "brackets in a text are no depth"
