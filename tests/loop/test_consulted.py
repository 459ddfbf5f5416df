"""What judges said, as the loop hears it: paid for, kept by the question, and never asked again."""

from typing import Any

import pytest
from msgspec.structs import replace
from tests.loop.exported_runs import home
from tests.loop.run_kit import Run, call

from sojourn.loop import events as ev
from sojourn.loop.budget import Bill, Limits, Room
from sojourn.loop.continuation import Failure, path
from sojourn.loop.messages import Usage
from sojourn.loop.moving.adoption import forked, imported
from sojourn.loop.moving.levels import LEVEL, needed
from sojourn.loop.step.budgets import room
from sojourn.loop.step.replies import OPINIONS_MAX
from sojourn.store.tenant.usage import entry

BILL = Bill(model="sim:judge", usage=Usage(input=30, output=2), usd_micros=9)


def consulted(run: Run, key: str = "k", verdict: Any = "passes", frame: str = "/", **more: Any) -> ev.Consulted:
    told: dict[str, Any] = {"step": 0, "on": "tool_arguments", "guardrail": "g", "version": 1, "rule": 1, "bill": BILL}
    return ev.Consulted(at=run.at(), began_at=run.at(), frame=frame, key=key, verdict=verdict, **told | more)


def test_a_judge_is_paid_by_the_run_and_by_every_frame_above_it() -> None:
    run = Run()
    run.reply(call("help"))
    before = run.state.spent
    assert run.tell(consulted(run, frame="/0.0"))
    spent, child = run.state.spent, path(run.state.root, "/0.0")[-1].spent
    assert (spent.steps, spent.usd_micros - before.usd_micros, spent.unpriced) == (1, 9, before.unpriced)
    assert (child.steps, child.usd_micros, child.input_tokens, child.output_tokens) == (0, 9, 30, 2)


def test_a_judge_that_cost_nothing_is_free_and_one_without_a_price_is_counted_as_such() -> None:
    run = Run()
    assert run.tell(consulted(run, verdict="failed", error="judge.too_long", bill=None))
    assert run.state.spent.usage == Usage() and run.state.spent.unpriced == 0
    assert run.tell(consulted(run, bill=replace(BILL, usd_micros=None)))
    assert run.state.spent.unpriced == 1


def test_its_row_in_the_ledger_is_marked_and_names_the_frames_agent() -> None:
    run = Run()
    run.reply(call("help"))
    row = entry(run.state, consulted(run, frame="/0.0"))
    assert row is not None
    assert (row.judge, row.agent_name, row.provider, row.model, row.usd_micros) == (True, "helper", "sim", "judge", 9)
    gone = entry(run.state, consulted(run, frame="/7.7"))
    assert gone is not None and gone.agent_name == "a", "its frame has ended meanwhile, and the run pays"
    assert entry(run.state, consulted(run, bill=None)) is None


def test_a_verdict_is_kept_in_its_frame_and_none_where_there_was_none() -> None:
    run = Run()
    for key, verdict in (("a", "passes"), ("b", "breaks"), ("c", "failed")):
        assert run.tell(consulted(run, key, verdict))
    assert run.root.opinions == {"a": False, "b": True}
    assert run.tell(consulted(run, "d", frame="/9.9")), "a frame that has ended: it is paid for all the same"
    assert run.root.opinions == {"a": False, "b": True}
    for n in range(OPINIONS_MAX):
        run.tell(consulted(run, f"n{n}"))
    assert len(run.root.opinions) == OPINIONS_MAX and "a" not in run.root.opinions


def test_a_verdict_goes_with_the_run_when_it_is_forked_imported_or_tried_again() -> None:
    run = Run()
    run.tell(consulted(run, "a"))
    run.reply(call("hand"))
    source = run.state
    for made in (
        imported(run.agents, source, home()),
        forked(run.agents, source, home()),
        forked(run.agents, source, home(), step=0),
    ):
        assert made.continuation.root.opinions == {"a": False}
        assert needed(made.continuation) == 6


def test_older_releases_leave_alone_what_judges_were_asked_about() -> None:
    run = Run()
    event = consulted(run)
    assert needed(event) == 6 <= LEVEL
    assert needed(run.state) < 6
    run.tell(event)
    assert needed(run.state) == 6
    assert needed(replace(run.state, spent=replace(run.state.spent, children=1))) == 6, "the highest of all"


def test_no_other_model_is_asked_what_a_judge_refused() -> None:
    run = Run()
    run.announce()
    turn = run.root.turn
    error = Failure("guardrail.input", "The guardrail g refuses what was said to the agent.")
    assert run.tell(ev.ModelErred(at=run.at(), frame="/", step=0, attempt=turn.attempt, error=error))
    assert (run.root.state, run.root.error) == ("failed", error)


@pytest.mark.parametrize("frame", ["/", "/0.0"])
def test_the_room_for_a_judge_is_what_all_pools_above_it_leave(frame: str) -> None:
    run = Run(limits=Limits(usd_micros=100))
    run.reply(call("help"))
    run.tell(consulted(run, frame="/0.0"))
    assert room(run.state, frame) == Room(usd_micros=91)
    assert room(run.state, "/9.9") == Room(), "there is no such frame"
