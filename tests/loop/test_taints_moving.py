"""Taints where a run is not alone: an operator says more of its tools, it moves, older releases stand beside it."""

from typing import Any

from msgspec.structs import replace
from tests.loop.exported_runs import home
from tests.loop.run_kit import T0, Run, call
from tests.loop.test_taints import BOTH, CRM, MAIL, SEND, WEB, WHY, clerk, read, reader, tools

from sojourn.loop import events as ev
from sojourn.loop.agent import Agent, Tool
from sojourn.loop.continuation import Floor, Flow, Signal
from sojourn.loop.moving.adoption import forked, imported
from sojourn.loop.moving.levels import LEVEL, needed
from sojourn.loop.policy import Policy
from sojourn.loop.step.taints import lacking, more_of, raised

# ---- the operator ----------------------------------------------------------------------------


def floor(run: Run, **more: Any) -> bool:
    return run.tell(ev.FloorRaised(at=run.at(), floor=Floor(**more)))


def test_the_operator_says_more_of_server_tools_and_the_run_cannot_weaken_it() -> None:
    plain = (Tool(name="crm", effect="read"), Tool(name="web", effect="read"), Tool(name="mail", effect="idempotent"))
    hand, event = Tool(name="hand", executor="client"), Tool(name="wait", executor="event")
    agent = Agent(name="clerk", models=("sim:c",), tools=(*plain, hand, event), policy=Policy(outward="allow"))
    named = {
        "crm": Flow(taints=("private",)),
        "wait": Flow(taints=("untrusted",)),
        "mail": Flow(outward=True),
        "hand": Flow(taints=("private", "untrusted"), outward=True),
    }
    run = Run(agent)
    assert floor(run, outward="ask", tools=named)
    assert not floor(run, outward="ask", tools=named) and not floor(run, tools={"crm": Flow()}), "nothing is new"
    assert floor(run, tools={"crm": Flow(outward=True)})
    assert run.state.floor == Floor(outward="ask", tools={**named, "crm": Flow(taints=("private",), outward=True)})
    run.reply(call("hand"))
    run.decide("/0.0?0", "answer", text="a page")
    assert read(run) == set(), "the caller's tools are not the operator's"
    run.tell(ev.Signalled(at=run.at(), signal=Signal(id="s", name="paid")))
    run.reply(call("crm"), call("wait", '{"name":"paid"}'))
    run.announce()
    run.returned("/1.0")
    run.reply(SEND, call("hand"))
    assert [wait.kind for wait in run.pending()] == ["approval", "client_tool"]


def test_a_floor_holds_for_a_call_that_has_not_begun() -> None:
    run = reader(clerk(policy=Policy(outward="allow")))
    run.reply(SEND)
    assert tools(run) == ["/1.0"]
    assert floor(run, outward="deny")
    assert tools(run) == [] and run.root.state == "ready"


def test_a_run_is_told_what_its_agents_do_not_say_themselves_and_nothing_else() -> None:
    server = {"crm": CRM, "web": WEB, "mail": MAIL, "look": Tool(name="look")}
    plain = Agent(name="b", models=(), tools=(Tool(name="mail"), Tool(name="web", executor="client"), Tool(name="x")))
    assert lacking([clerk()], "ask", server) == Floor()
    assert lacking([clerk(), plain], "deny", server) == Floor(outward="deny", tools={"mail": Flow(outward=True)})
    assert lacking([clerk(policy=Policy(outward="deny"))], "ask", server) == Floor()
    assert raised(None, Floor()) is None
    more = more_of(WEB, Flow(taints=("private", "untrusted"), outward=True))
    assert (more.taints, more.outward) == (("untrusted", "private"), True)


# ---- moving ----------------------------------------------------------------------------------


def test_taints_move_with_the_run_and_no_yes_does() -> None:
    run = reader()
    run.reply(SEND, SEND, call("crm"))
    run.decide("/1.0?0", "approve", grant=ev.NewGrant(count=9))
    moved = imported(run.agents, run.state, home()).continuation
    assert moved.root.taints == BOTH
    run.state = moved
    assert [(wait.call, wait.title) for wait in run.pending()] == [("/1.0", WHY), ("/1.1", WHY)]
    assert tools(run) == ["/1.2"]
    assert "/1.1?0" in {wait.id for wait in run.pending()}, "an open question keeps its name"
    for wait in run.pending():
        run.decide(wait.id, "approve")
    assert tools(run) == ["/1.0", "/1.1", "/1.2"]


def test_a_run_that_says_nobody_need_be_asked_is_not_believed() -> None:
    run = reader()
    run.reply(SEND)
    (one,) = run.root.calls
    lies = replace(one, sending="approved", state="authorized", wait=None, gate=None)
    forged = replace(run.state, root=replace(run.root, calls=(lies,)))
    for adoption in (imported(run.agents, forged, home()), forked(run.agents, forged, home())):
        run.state = adoption.continuation
        assert tools(run) == [] and [wait.title for wait in run.pending()] == [WHY]


def test_another_try_from_an_earlier_step_has_read_what_the_tree_had() -> None:
    run = reader()
    fork = forked(run.agents, run.state, home(), step=0).continuation
    assert (fork.root.taints, len(fork.root.messages)) == (BOTH, 1)


def test_what_is_tainted_needs_a_release_that_knows_it_and_nothing_else_does() -> None:
    assert [needed(clerk()), needed(Agent(name="a", models=()))] == [4, 0] and LEVEL >= 4
    assert needed(Agent(name="a", models=(), policy=Policy(outward="allow"))) == 4
    run = Run(Agent(name="a", models=("sim:a",), tools=(Tool(name="look"),)))
    assert needed(run.state) == 0
    floor(run, outward="ask")
    assert needed(run.state) == needed(ev.FloorRaised(at=T0, floor=Floor())) == 4
    heard = ev.Said(at=T0, message=None)
    signalled = ev.Signalled(at=T0, signal=Signal(id="s", name="n"))
    assert [needed(one) for one in (heard, replace(heard, taints=("private",)))] == [0, 4]
    tainted = replace(signalled, signal=replace(signalled.signal, taints=("private",)))
    assert [needed(one) for one in (signalled, tainted)] == [0, 4]
    run = Run(clerk())
    assert needed(run.state) == 0
    run.reply(call("crm"), call("web"))
    run.announce()
    run.returned("/0.0")
    assert run.root.taints == () and needed(run.state) == 4
    run.returned("/0.1")
    assert run.root.calls == () and needed(run.state) == 4
