"""What model calls cost that gave no reply, and at which price: each is paid for once, whatever ends it."""

from typing import Any

import pytest
from msgspec.structs import replace
from tests.loop.run_kit import AGENT, Run, call

from sojourn.loop import events as ev
from sojourn.loop.budget import Bill, Held, Limits, Price, Spent, Tariff
from sojourn.loop.effects import CallModel
from sojourn.loop.machine import apply, due, given_up, in_flight
from sojourn.loop.messages import Message, Source, Text, Usage, observed, said
from sojourn.loop.moving.levels import LEVEL, needed

DEAR, CHEAP = Tariff(Price(4_000_000, 8_000_000, 0, 0)), Tariff(Price(1, 1, 1, 1))
LEAST = Bill(model="sim:a", usage=Usage(input=10), usd_micros=40, estimated=True)
SEEN = Bill(model="sim:a", usage=Usage(input=12, output=5), usd_micros=88, estimated=True)


class Billed(Run):
    """A run whose calls say what they cost at least."""

    def ask(self, tariff: Tariff | None = DEAR, **more: Any) -> CallModel:
        """Announce every model call that is due, and give the first."""
        effects = [one for one in due(self.agents, self.state) if isinstance(one, CallModel)]
        for effect in effects:
            assert self.tell(effect.announced(self.at(), least=LEAST, tariff=tariff, **more))
        return effects[0]

    def cut(self, event: ev.Event, bill: Bill | None = None) -> tuple[ev.ModelLost, ...]:
        """Apply an event as whoever drives the run does, with the calls first that it gives up."""
        lost = given_up(self.state, apply(self.agents, self.state, event), event)
        for one in lost:
            assert self.tell(replace(one, bill=bill or one.bill))
        assert self.tell(event)
        return lost

    @property
    def spent(self) -> Spent:
        return self.state.spent


def test_a_lost_call_costs_what_its_request_does_and_no_step() -> None:
    run = Billed()
    run.ask()
    [lost] = in_flight(run.state, run.at())
    assert given_up(run.state, apply(run.agents, run.state, lost), lost) == (), "it says itself what it costs"
    run.moved()
    assert (run.spent.usd_micros, run.spent.input_tokens, run.spent.estimated, run.spent.steps) == (40, 10, 1, 0)
    assert run.root.turn.least is None and run.root.turn.attempt == 2
    assert in_flight(run.state, run.at()) == (), "nothing is lost a second time"
    run.reply(Text("done"), source=Source("sim", "sim", "a"), usage=Usage(input=10, output=1))
    assert (run.spent.steps, run.spent.estimated, run.spent.unpriced, run.spent.input_tokens) == (1, 1, 1, 20)


@pytest.mark.parametrize("bill", [None, SEEN])
def test_a_failed_call_costs_what_it_says(bill: Bill | None) -> None:
    run = Billed()
    effect = run.ask()
    error = ev.Failure("model.interrupted", "it broke off")
    erred = replace(effect.erred(run.at(), error, retry=True), bill=bill)
    assert given_up(run.state, run.state, erred) == (), "it is answered, and given up by nobody"
    assert run.tell(erred) and not run.tell(erred)
    assert run.spent.usd_micros == (88 if bill else 0)


def test_a_run_that_is_killed_again_and_again_spends_its_budget_and_no_more() -> None:
    run = Billed(limits=Limits(usd_micros=100))
    kills = 0
    while not run.root.ended:
        run.ask(held=Held(usd_micros=60))
        run.moved()
        kills += 1
        assert kills < 10 and run.spent.usd_micros <= 100
    assert run.root.error is not None and run.root.error.code == "budget.exhausted"
    assert (kills, run.spent.usd_micros) == (3, 80), "the third call found no room"


def ended_by(run: Run) -> dict[str, ev.Event]:
    return {
        "cancelled": ev.Cancelled(at=run.at(), by="boss"),
        "interrupted": ev.Said(at=run.at(), message=said("u", "wait"), interrupt=True),
        "given up": ev.GaveUp(at=run.at(), error=ev.Failure("run.not_driven")),
    }


@pytest.mark.parametrize("how", ["cancelled", "interrupted", "given up"])
def test_a_call_that_is_given_up_is_paid_for_by_an_event_of_its_own(how: str) -> None:
    run = Billed()
    run.ask()
    event = ended_by(run)[how]
    (lost,) = run.cut(event, SEEN)
    assert (lost.given_up, lost.bill) == (True, LEAST), "whoever knows no more says this"
    assert (run.spent.usd_micros, run.spent.estimated) == (88, 1)
    assert run.root.state == {"cancelled": "cancelled", "interrupted": "ready", "given up": "failed"}[how]


def test_a_call_that_runs_out_of_time_is_paid_for() -> None:
    run = Billed(limits=Limits(active_s=50))
    run.ask()
    (lost,) = run.cut(ev.Ticked(at=run.at().replace(minute=5)))
    assert lost.bill == LEAST and run.root.error is not None and run.root.error.code == "budget.exhausted"


def test_a_reply_that_ends_a_pool_gives_up_the_calls_of_those_beside_it() -> None:
    run = Billed(limits=Limits(usd_micros=200))
    run.reply(call("help", '{"input":"x"}', "1"), call("help", '{"input":"y"}', "2"))
    run.ask()
    assert len(in_flight(run.state, run.at())) == 2
    message = Message(id="m", role="assistant", parts=(call("look"),), stop="tool_calls", usage=Usage(input=1))
    run.cut(ev.Replied(at=run.at(), frame="/0.0", step=0, attempt=1, message=message, usd_micros=300))
    run.tell(ev.Intended(at=run.at(), call="/0.0/0.0", attempt=1))
    (lost,) = run.cut(ev.Returned(at=run.at(), call="/0.0/0.0", attempt=1, message=observed("/0.0/0.0", "p", "ok")))
    assert lost.frame == "/0.1" and run.root.state == "failed"
    assert run.spent.usd_micros == 300 + 40


def test_what_gives_a_call_up_is_not_forestalled_by_what_the_call_cost() -> None:
    run = Billed(limits=Limits(usd_micros=50))
    run.ask()
    run.cut(ev.Cancelled(at=run.at(), by="boss"), SEEN)
    assert run.root.state == "cancelled", "and not out of budget"


def test_a_price_is_pinned_with_the_first_call_and_stays() -> None:
    run = Billed()
    assert run.ask().tariff is None
    run.moved()
    assert run.ask(CHEAP).tariff == DEAR, "the second call knows it"
    assert [(pin.model, pin.tariff) for pin in run.state.prices] == [("sim:a", DEAR)]
    run.fail(retry=False)
    assert run.ask(CHEAP).model == "sim:b"
    assert [pin.model for pin in run.state.prices] == ["sim:a", "sim:b"], "the next of the chain has its own"


def test_a_price_that_nobody_knows_is_not_pinned() -> None:
    run = Billed()
    run.ask(None)
    assert run.state.prices == ()


def test_a_call_that_there_is_no_room_for_pins_nothing() -> None:
    run = Billed(limits=Limits(usd_micros=10))
    run.ask(held=Held(usd_micros=60))
    assert run.root.ended and run.state.prices == ()


def test_a_tariff_has_tiers_and_a_ceiling() -> None:
    tariff = Tariff(Price(1_000_000, 0, 0, 2_000_000), ((100, Price(3_000_000, 0, 0, 0)),))
    assert [tariff.cost_micros(Usage(input=n)) for n in (100, 101)] == [100, 303]
    assert tariff.ceiling_micros(input_tokens=10, output_tokens=0) == 20


def test_a_bill_is_read_off_whatever_ends_a_call() -> None:
    run = Run(AGENT)
    effect = next(one for one in due(run.agents, run.state) if isinstance(one, CallModel))
    silent = Message(id="m", role="assistant", parts=(Text("x"),), source=Source("d", "sim", "a"))
    guessed = effect.replied(run.at(), silent, usd_micros=7, estimate=Usage(input=3))
    assert ev.bill(guessed) == Bill(model="sim:a", usage=Usage(input=3), usd_micros=7, estimated=True)
    assert ev.bill(replace(guessed, message=None, estimate=None)) == Bill(model="", usd_micros=7)
    assert ev.bill(effect.announced(run.at())) is None


def test_a_run_needs_this_release_once_it_says_what_older_ones_cannot_read() -> None:
    run = Billed()
    assert needed(run.state) == needed(AGENT) == 0
    run.ask()
    assert needed(run.state) == 1 <= LEVEL
    cancelled = Run()
    cancelled.tell(ev.Cancelled(at=cancelled.at(), by="boss"))
    assert needed(cancelled.state) == 1, "its end says what it cost"
