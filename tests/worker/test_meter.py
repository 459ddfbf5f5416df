"""What an attempt is billed with that gives no reply, from what was sent and heard of it."""

from datetime import UTC, datetime
from typing import Any

import pytest
from msgspec.structs import replace

from sojourn.errors import LeaseLost
from sojourn.loop.budget import Bill, Pin, Price, Tariff
from sojourn.loop.effects import CallModel
from sojourn.loop.events import CallLost, ModelLost
from sojourn.loop.messages import Message, Text, Usage, said
from sojourn.models.estimate import prompt_tokens
from sojourn.models.model import ArgumentsDelta, ModelFailed, ReasoningDelta, Request, TextDelta
from sojourn.worker.meter import Meter, seen

AT = datetime(2026, 1, 1, tzinfo=UTC)
TARIFF = Tariff(Price(1_000_000, 2_000_000, 0, 0))
REQUEST = Request(model="m", system="You are careful.", messages=(said("u", "Look around, and say what you see."),))
PROMPT = prompt_tokens(REQUEST)


def meter(tariff: Tariff | None = TARIFF) -> Meter:
    call = CallModel(frame="/", agent="a", step=0, attempt=1, model="p:m", messages=REQUEST.messages, tariff=tariff)
    return Meter(call)


def sending(**more: Any) -> Meter:
    made = meter(**more)
    made.begin(REQUEST, lambda: None)()
    return made


def whole(usage: Usage | None) -> Message:
    return Message(id="m", role="assistant", parts=(Text("x"),), usage=usage)


def test_what_was_never_sent_or_was_refused_costs_nothing() -> None:
    unsent, kept = meter(), meter()
    assert unsent.bill() is None and unsent.cut() is None
    kept.begin(REQUEST, lambda: None)
    assert kept.bill() is None, "it stands in line"

    def may_not() -> None:
        raise LeaseLost

    with pytest.raises(LeaseLost):
        kept.begin(REQUEST, may_not)()
    assert kept.cut() is None
    refused, failure = sending(), ModelFailed("rate_limited", "no", retry=True)
    refused.failed(failure)
    assert refused.bill() is not None, "an error inside the stream is no refusal"
    failure.refused = True
    refused.failed(failure)
    assert refused.bill() is None


def test_a_call_that_is_cut_costs_its_prompt_and_what_was_heard() -> None:
    cut = sending()
    assert cut.bill() == Bill(model="p:m", usage=Usage(input=PROMPT), usd_micros=PROMPT, estimated=True)
    for item in (TextDelta("four"), ReasoningDelta("\u00fc" * 4), ArgumentsDelta(0, "tool", "{}")):
        cut.hear(item)
    assert cut.usage == Usage(input=PROMPT, output=(4 + 8 + 2) // 4)
    assert cut.bill() == cut.cut()


def test_what_the_provider_counted_comes_before_the_estimate() -> None:
    cut = sending()
    cut.hear(TextDelta("before it counted"))
    cut.told(Usage(input=7, cache_read=3, output=2))
    assert cut.usage == Usage(input=7, cache_read=3, output=2)
    cut.hear(TextDelta("and after"))
    assert cut.usage.output == 2 + 9 // 4


def test_a_whole_reply_that_nobody_hears_costs_what_was_counted() -> None:
    late = sending()
    late.hear(TextDelta("x" * 400))
    late.hear(whole(Usage(input=5, output=6)))
    assert late.cut() == Bill(model="p:m", usage=Usage(input=5, output=6), usd_micros=17)
    uncounted = sending()
    uncounted.hear(whole(None))
    assert (bill := uncounted.cut()) is not None and bill.estimated


def test_a_summary_is_owed_until_the_journal_has_it() -> None:
    busy = sending()
    busy.hear(whole(Usage(input=5, output=6)))
    assert (notes := busy.close()) is not None and not notes.estimated
    assert busy.bill() is None and busy.cut() == notes
    busy.begin(REQUEST, lambda: None)()
    both = busy.cut()
    assert both is not None and both.usage == Usage(input=5 + PROMPT, output=6) and both.usd_micros == 17 + PROMPT
    assert busy.bill() == Bill(model="p:m", usage=Usage(input=PROMPT), usd_micros=PROMPT, estimated=True)
    busy.owed.pop()
    assert busy.cut() == busy.bill()


def test_without_a_price_the_cost_is_unknown() -> None:
    assert (bill := sending(tariff=None).bill()) is not None and bill.usd_micros is None


def test_what_readers_saw_is_added_to_what_a_dead_worker_left() -> None:
    least = Bill(model="p:m", usage=Usage(input=10), usd_micros=10, estimated=True)
    lost = ModelLost(at=AT, frame="/", step=2, attempt=3, bill=least)
    pins = (Pin("p:other", TARIFF), Pin("p:m", TARIFF))
    more = seen(lost, {("/", 2, 3): 41}, pins)
    assert more == replace(lost, bill=replace(least, usage=Usage(input=10, output=10), usd_micros=30))
    assert seen(lost, {}, pins) == lost
    assert seen(lost, {}, ()) == replace(lost, bill=replace(least, usd_micros=None))
    for other in (replace(lost, bill=None), CallLost(at=AT, call="/0.0", attempt=1)):
        assert seen(other, {("/", 2, 3): 41}, pins) == other
