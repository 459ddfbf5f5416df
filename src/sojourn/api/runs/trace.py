"""Where a run's time, tokens and money went: spans read off its journal. Pure; `routes` answers with it.

The rule: a span is an attempt or holds attempts, and a retry, a failover or a takeover is a span of its own, so nothing
that was paid or waited for is hidden in another's time.

    run > step > model attempt > summary
          step > tool attempt, wait, judge
          step > frame (a sub-agent) > step, wait > ...
"""

import re
from collections.abc import Iterable
from datetime import datetime
from itertools import count
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from sojourn.api.events.public import is_end
from sojourn.api.runs.shapes import Cost, Trouble, Usage, cost, paid, usage
from sojourn.loop import events as ev
from sojourn.loop.continuation import Vote, Wait, frames, pending
from sojourn.loop.machine import begin
from sojourn.loop.step.decisions import over
from sojourn.store.rows import RunRow

Attempted = (
    ev.ModelAsked | ev.Compacted | ev.Replied | ev.ModelErred | ev.ModelLost | ev.Intended | ev.Returned | ev.CallLost
)
UID = re.compile(r"^(?P<frame>.*)/(?P<step>\d+)\.\d+$")
ROOT = "run"


class Span(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something that took time."""

    id: str
    parent: str | None
    kind: Literal["run", "frame", "step", "model", "summary", "tool", "wait", "judge"]
    name: str
    started_at: datetime
    ended_at: datetime | None = None
    status: Literal["open", "ok", "failed", "lost", "expired", "cancelled"] = "open"
    attempt: int | None = None
    wait: str | None = None
    """The kind of a wait."""
    decision: str | None = None
    """How it was answered, where a person or a client did that."""
    by: str | None = None
    """Who did."""
    provider: str | None = None
    first_token_ms: int | None = None
    usage: Usage | None = None
    cost: Cost | None = None
    error: Trouble | None = None


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """The whole run."""

    steps: int
    model_attempts: int
    tool_attempts: int
    usage: Usage
    cost: Cost


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """A run's spans, each after the one that holds it."""

    run_id: str
    spans: tuple[Span, ...]
    totals: Totals


def trace(run: RunRow, book: "Book") -> Trace:
    """Tell a run's spans, from a book that took all of its journal."""
    spans = tuple(book.close())
    totals = Totals(
        steps=run.steps,
        model_attempts=sum(span.kind == "model" for span in spans),
        tool_attempts=sum(span.kind == "tool" for span in spans),
        usage=usage(run.usage),
        cost=cost(run.usd_micros, estimated=run.estimated_calls > 0),
    )
    return Trace(run_id=run.id, spans=spans, totals=totals)


class Book:
    """The spans so far, by id, in the order in which they began."""

    def __init__(self) -> None:
        self.spans: dict[str, Span] = {}
        self.tools: dict[str, str] = {}
        """The tool of each call."""
        self.waits: dict[str, Wait] = {}
        """The open questions."""
        self.judges = count()
        self.ended_at: datetime | None = None

    def take(self, event: ev.Event) -> None:
        """Note what one journal row says."""
        match event:
            case ev.Began():
                self._open(Span(id=ROOT, parent=None, kind="run", name=event.agent.name, started_at=event.at))
            case ev.Adopted():
                self._adopted(event)
            case ev.ModelAsked():
                self._over(event.frame, event.at)
                self._attempt(event, "model", self._step(event.frame, event.step, event.at), event.model)
            case ev.Compacted() if event.usage is not None:
                self._summed_up(event)
            case ev.Replied():
                self._replied(event)
            case ev.ModelErred(error=error):
                trouble = Trouble(code=error.code, detail=error.detail)
                self._end(_id(event), event.at, "failed", error=trouble, **paid(event.bill))
            case ev.ModelLost():
                self._end(_id(event), event.at, "cancelled" if event.given_up else "lost", **paid(event.bill))
            case ev.Intended():
                self._attempt(event, "tool", self._above(event.call, event.at), self.tools.get(event.call, "tool"))
            case ev.Returned():
                self._end(_id(event), event.at, "failed" if event.failed else "ok")
            case ev.CallLost():
                self._end(_id(event), event.at, "lost")
            case ev.Asked(waits=waits):
                for wait in waits:
                    self._ask(wait, wait.created_at)
            case ev.Judged():
                self._judged(event)
            case ev.Consulted():
                self._consulted(event)
            case ev.Decided() if event.wait in self.waits:
                self._decided(self.waits[event.wait], event)
            case ev.Signalled(signal=signal):
                self._signalled(signal.name, event.at)
            case ev.Ticked():
                self._expired(event.at)
            case ev.Turned():
                self._turned(event)

    def close(self) -> Iterable[Span]:
        """End what the run's end ended; steps and frames last as long as what they hold."""
        held: dict[str | None, list[str]] = {}
        for id_, span in self.spans.items():
            held.setdefault(span.parent, []).append(id_)
        for id_, span in reversed(self.spans.items()):
            if span.kind in ("step", "frame"):
                self._enclose(span, [self.spans[one] for one in held.get(id_, ())])
            elif span.ended_at is None and self.ended_at is not None:
                self._end(id_, self.ended_at, "cancelled")
        return self.spans.values()

    def _replied(self, event: ev.Replied) -> None:
        message = event.message
        for i, call in enumerate(message.calls if message else ()):
            self.tools[f"{event.frame.rstrip('/')}/{event.step}.{i}"] = call.name
        self._end(
            _id(event),
            event.at,
            "ok",
            provider=message.source.provider if message and message.source else None,
            first_token_ms=event.first_token_ms,
            **paid(ev.bill(event)),
        )

    def _turned(self, event: ev.Turned) -> None:
        if event.phase == "suspended":
            for wait in [wait for id, wait in self.waits.items() if id not in event.waits]:
                self._answered(wait, event.at, "cancelled")
        if is_end(event):
            self.ended_at = event.at
            status: Any = {"completed": "ok"}.get(event.phase, event.phase)
            error = Trouble(code=event.error.code, detail=event.error.detail) if event.error else None
            self._end(ROOT, event.at, status, error=error)

    def _adopted(self, event: ev.Adopted) -> None:
        """A run that begins in the middle: its calls have names, and its questions are open from here on."""
        self._open(Span(id=ROOT, parent=None, kind="run", name=event.root.agent.name, started_at=event.at))
        self.tools = {call.uid: call.tool.name for frame in frames(event.root) for call in frame.calls}
        for wait in pending(begin(event)):
            self._ask(wait, event.at)

    def _summed_up(self, event: ev.Compacted) -> None:
        above = self.spans.get(_id(event))
        id_, begun = f"{_id(event)}/summary", above.started_at if above else event.at
        self._open(Span(id=id_, parent=_id(event), kind="summary", name=event.model, started_at=begun))
        self._end(id_, event.at, "ok", **paid(ev.bill(event)))

    def _consulted(self, event: ev.Consulted) -> None:
        """A judge's call stands in the step of what it judged, in which there may be many."""
        above, begun = self._step(event.frame, event.step, event.began_at), event.began_at
        id_ = f"{above}/judge.{next(self.judges)}"
        name = f"{event.guardrail}@{event.version}"
        self._open(Span(id=id_, parent=above, kind="judge", name=name, started_at=begun))
        error = Trouble(code=event.error, detail="The judge gave no verdict.") if event.error else None
        self._end(id_, event.at, "failed" if error else "ok", error=error, **paid(event.bill))

    # ---- waits: which one ends is said, or follows from the machine's rules -------------------

    def _ask(self, wait: Wait, at: datetime) -> None:
        self.waits[wait.id] = wait
        above = self._above(wait.call, at) if wait.call else self._frame(wait.frame, at)
        self._open(Span(id=wait.id, parent=above, kind="wait", name=wait.title, wait=wait.kind, started_at=at))

    def _answered(self, wait: Wait, at: datetime, status: Any, **more: Any) -> None:
        del self.waits[wait.id]
        self._end(wait.id, at, status, **more)

    def _decided(self, wait: Wait, event: ev.Decided) -> None:
        """End the wait, unless it only got a later end, or one yes of several that it needs."""
        votes = (*wait.votes, Vote(event.by, event.at)) if event.decision == "approve" else ()
        by, ended = dict.fromkeys(vote.by for vote in votes) or {event.by: None}, [wait]
        if event.decision == "extend":
            if wait.kind != "budget":
                self.waits[wait.id] = replace(wait, expires_at=event.expires_at)
                return
            ended = [one for one in self.waits.values() if one.kind == "budget" and one.about == wait.about]
        elif votes and len(by) < wait.ask.need:
            self.waits[wait.id] = replace(wait, votes=votes)
            return
        for one in ended:
            self._answered(one, event.at, "ok", decision=event.decision, by=", ".join(by))

    def _judged(self, event: ev.Judged) -> None:
        """A call that guardrails deny waits for nobody; one that they ask about waits for that yes alone."""
        for wait in [one for one in self.waits.values() if one.call == event.call or one.frame == event.call]:
            if event.verdict == "deny" or wait.kind != "approval":
                self._answered(wait, event.at, "cancelled")

    def _signalled(self, name: str, at: datetime) -> None:
        """A signal goes to the oldest wait for an event of its name."""
        waiting = [one for one in self.waits.values() if one.kind == "event" and one.about == name]
        heard = [one for one in waiting if (one.expires_at or at) >= at]
        if heard:
            self._answered(min(heard, key=lambda one: one.created_at), at, "ok")

    def _expired(self, at: datetime) -> None:
        for wait in [one for one in self.waits.values() if over(one, at) and one.ask.on_expire != "keep"]:
            self._answered(wait, at, "ok" if wait.kind in ("timer", "day_budget") else "expired")

    def _over(self, frame: str, at: datetime) -> None:
        """A frame that asks its model waits for nothing, and nothing below it does."""
        below = frame.rstrip("/") + "/"
        for wait in [one for one in self.waits.values() if one.kind != "hold"]:
            if wait.frame == frame or wait.frame.startswith(below):
                self._answered(wait, at, "cancelled")

    # ---- places -------------------------------------------------------------------------------

    def _step(self, frame: str, step: int, at: datetime) -> str:
        """The step's span, and its frame's."""
        id_ = f"{frame}#{step}"
        if id_ not in self.spans:
            parent = self._frame(frame, at)
            self._open(Span(id=id_, parent=parent, kind="step", name=f"step {step}", started_at=at))
        return id_

    def _frame(self, frame: str, at: datetime) -> str:
        if frame == "/":
            return ROOT
        if frame not in self.spans:
            above, tool = self._above(frame, at), self.tools.get(frame, "sub-agent")
            self._open(Span(id=frame, parent=above, kind="frame", name=tool, started_at=at))
        return frame

    def _above(self, call: str, at: datetime) -> str:
        """The step that asked for a call; it began elsewhere where the run was adopted."""
        match = UID.match(call)
        return self._step(match["frame"] or "/", int(match["step"]), at) if match else ROOT

    def _attempt(
        self, event: ev.ModelAsked | ev.Intended, kind: Literal["model", "tool"], parent: str, name: str
    ) -> None:
        id_ = _id(event)
        self._open(Span(id=id_, parent=parent, kind=kind, name=name, started_at=event.at, attempt=event.attempt))

    def _open(self, span: Span) -> None:
        self.spans.setdefault(span.id, span)

    def _end(self, id_: str, at: datetime, status: Any, **more: Any) -> None:
        span = self.spans.get(id_)
        if span is not None and span.ended_at is None:
            self.spans[id_] = replace(span, ended_at=max(at, span.started_at), status=status, **more)

    def _enclose(self, span: Span, held: list[Span]) -> None:
        ends = [one.ended_at for one in held if one.ended_at is not None]
        if held and len(ends) == len(held):
            last = next(one for one in reversed(held) if one.ended_at == max(ends))
            self.spans[span.id] = replace(span, ended_at=last.ended_at, status=last.status)


def _id(event: Attempted) -> str:
    """Name the attempt that an event begins or ends."""
    match event:
        case ev.Intended() | ev.Returned() | ev.CallLost():
            return f"{event.call}/tool.{event.attempt}"
        case _:
            return f"{event.frame}#{event.step}/model.{event.attempt}"
