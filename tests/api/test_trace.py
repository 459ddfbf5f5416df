"""The trace of a run's waits, summaries and adopted parts, read off its journal alone."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from msgspec.structs import replace
from tests.loop.company import AGENTS
from tests.loop.test_random_explorer import wild

from sojourn.api.runs.trace import Book, Span
from sojourn.loop import events as ev
from sojourn.loop.agent import AgentRef
from sojourn.loop.budget import Limits
from sojourn.loop.continuation import Call, Compaction, Continuation, Frame, Lineage, Principal, Signal, ToolRef, Wait
from sojourn.loop.continuation import pending as open_waits
from sojourn.loop.machine import apply, begin
from sojourn.loop.messages import Usage
from sojourn.loop.policy import Asking

T0 = datetime(2026, 1, 1, tzinfo=UTC)
AGENT = AgentRef("clerk", "sha256:0", 1)
BEGAN = ev.Began(
    at=T0, run_id="run_1", tenant="t", session_id="ses_1", principal=Principal("ann"), agent=AGENT, limits=Limits()
)
ASKED = ev.ModelAsked(at=T0, frame="/", step=0, attempt=1, model="sim:one")


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def wait(number: int, kind: str = "approval", **more: object) -> Wait:
    fields = {"frame": "/", "call": f"/0.{number}", "title": "?", "allowed": ("approve",), "created_at": at(1), **more}
    return Wait(id=f"/0.{number}?0", kind=kind, **fields)  # type: ignore[arg-type]


def decided(wait_id: str, seconds: float, by: str = "ann", decision: str = "approve", **more: object) -> ev.Decided:
    return ev.Decided(at=at(seconds), wait=wait_id, by=by, decision=decision, **more)  # type: ignore[arg-type]


def spans(*events: ev.Event, first: ev.Event = BEGAN) -> dict[str, Span]:
    book = Book()
    for event in (first, *events):
        book.take(event)
    return {span.id: span for span in book.close()}


def test_a_wait_lasts_from_the_question_to_the_answer_and_names_who_gave_it() -> None:
    found = spans(ASKED, ev.Asked(at=at(2), waits=(wait(0),)), decided("/0.0?0", 60, "boss", "reject"))
    one = found["/0.0?0"]
    assert (one.parent, one.kind, one.wait, one.started_at, one.ended_at) == ("/#0", "wait", "approval", at(1), at(60))
    assert (one.status, one.decision, one.by) == ("ok", "reject", "boss")


def test_of_several_yes_the_last_one_ends_the_wait_and_all_are_named() -> None:
    asked = ev.Asked(at=at(2), waits=(wait(0, ask=Asking(need=2)),))
    assert spans(ASKED, asked, decided("/0.0?0", 3))["/0.0?0"].ended_at is None
    found = spans(ASKED, asked, decided("/0.0?0", 3), decided("/0.0?0", 5, "bob"))["/0.0?0"]
    assert (found.ended_at, found.by) == (at(5), "ann, bob")


def test_a_signal_ends_the_oldest_wait_for_its_name_and_no_other() -> None:
    waits = (
        wait(0, "event", about="other"),
        wait(1, "event", about="paid", created_at=at(2)),
        wait(2, "event", about="paid"),
    )
    heard = ev.Signalled(at=at(9), signal=Signal(id="s", name="paid"))
    found = spans(ASKED, ev.Asked(at=at(2), waits=waits), heard)
    assert [(found[one.id].ended_at, found[one.id].status) for one in waits] == [
        (None, "open"), (None, "open"), (at(9), "ok"),
    ]  # fmt: skip


def test_a_time_that_comes_ends_a_timer_and_lets_a_question_expire() -> None:
    waits = (
        wait(0, "timer", expires_at=at(10), ask=Asking(on_expire="resume")),
        wait(1, expires_at=at(10)),
        wait(2, expires_at=at(10), ask=Asking(on_expire="keep")),
        wait(3, expires_at=at(10)),
    )
    later = decided("/0.3?0", 3, decision="extend", expires_at=at(99))
    found = spans(ASKED, ev.Asked(at=at(2), waits=waits), later, ev.Ticked(at=at(10)))
    assert [found[one.id].status for one in waits] == ["ok", "expired", "open", "open"]


def test_a_raised_budget_ends_every_wait_for_it() -> None:
    waits = tuple(wait(number, "budget", call=None, about=about) for number, about in enumerate(("/", "/", "/0.0")))
    found = spans(ASKED, ev.Asked(at=at(2), waits=waits), decided("/0.0?0", 5, decision="extend"))
    assert [found[one.id].ended_at for one in waits] == [at(5), at(5), None]


def test_a_summary_is_a_row_of_its_own_with_what_it_cost() -> None:
    summed = ev.Compacted(
        at=at(4), frame="/", step=0, attempt=1, compaction=Compaction(upto=9, summary="all"), model="sim:one",
        usage=Usage(input=900, output=80), usd_micros=1200,
    )  # fmt: skip
    one = spans(ASKED, summed)["/#0/model.1/summary"]
    assert (one.kind, one.name, one.parent, one.started_at, one.ended_at) == (
        "summary", "sim:one", "/#0/model.1", T0, at(4),
    )  # fmt: skip
    assert one.usage and one.usage.input_tokens == 900
    assert one.cost and one.cost.usd == "0.001200"
    assert "/#0/model.1/summary" not in spans(ASKED, replace(summed, usage=None, usd_micros=None))


def test_an_adopted_run_begins_with_its_open_questions_and_knows_its_calls() -> None:
    tools = [ToolRef(name, "", "read", "server") for name in ("shell", "fetch")]
    calls = (
        Call(uid="/3.0", provider_id="a", index=0, tool=tools[0], args="{}", state="waiting",
             wait=replace(wait(0), id="/3.0?0", call="/3.0", created_at=at(-500))),
        Call(uid="/3.1", provider_id="b", index=1, tool=tools[1], args="{}", state="authorized"),
    )  # fmt: skip
    adopted = ev.Adopted(
        at=T0, run_id="run_2", tenant="t", session_id="ses_2", principal=Principal("ann"), limits=Limits(),
        lineage=Lineage(how="fork", run_id="run_1", rev=9, head=""),
        root=Frame(id="/", agent=AGENT, state="acting", step=4, calls=calls), bodies="",
    )  # fmt: skip
    found = spans(ev.Intended(at=at(1), call="/3.1", attempt=1), decided("/3.0?0", 6), first=adopted)
    assert (found["run"].name, found["/#3"].name, found["/3.1/tool.1"].name) == ("clerk", "step 3", "fetch")
    assert (found["/3.0?0"].started_at, found["/3.0?0"].ended_at, found["/3.0?0"].parent) == (T0, at(6), "/#3")


def with_questions(journal: Iterable[ev.Event]) -> Iterable[tuple[Continuation, ev.Event]]:
    """Each event with the state after it; what it opens is asked right behind it, as a worker does it."""
    first, *rest = journal
    state = begin(first)  # type: ignore[arg-type]
    yield state, first
    for event in rest:
        before = {wait.id for wait in open_waits(state)}
        state = apply(AGENTS, state, event)
        yield state, event
        if new := tuple(wait for wait in open_waits(state) if wait.id not in before):
            state = apply(AGENTS, state, asked := ev.Asked(at=event.at, waits=new))
            yield state, asked


def test_in_runs_at_random_no_open_question_is_ever_shown_as_over_and_few_stay_open_too_long() -> None:
    ended = late = 0
    for seed in range(25):
        book, was_late = Book(), set[str]()
        for state, event in with_questions(wild(seed).audit.journal):
            book.take(event)
            due, shown = {wait.id for wait in open_waits(state)}, set(book.waits)
            if isinstance(event, ev.Asked):
                assert due <= shown
            was_late |= shown - due
        late += len(was_late)
        ended += sum(span.kind == "wait" for span in book.spans.values())
        known: set[str | None] = {None}
        for span in book.close():
            assert span.parent in known, "each comes after the one that holds it"
            known.add(span.id)
    assert ended > 200
    assert late < ended / 20
