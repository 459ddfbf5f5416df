"""Where a run's time, tokens and money went: spans read off its journal. Pure; `routes` answers with it.

The rule: a span is an attempt or holds attempts, and a retry, a failover or a takeover is a span of its own, so nothing
that was paid or waited for is hidden in another's time.

    run > step > model attempt, tool attempt, wait
          step > frame (a sub-agent) > step > ...
"""

import re
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from sojourn.api.events.public import is_end
from sojourn.api.runs.shapes import Cost, Trouble, Usage, cost, usage
from sojourn.loop import events as ev
from sojourn.store.rows import RunRow

Row = tuple[int, ev.Event]
Attempted = ev.ModelAsked | ev.Replied | ev.ModelErred | ev.ModelLost | ev.Intended | ev.Returned | ev.CallLost
UID = re.compile(r"^(?P<frame>.*)/(?P<step>\d+)\.\d+$")
ROOT = "run"


class Span(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something that took time."""

    id: str
    parent: str | None
    kind: Literal["run", "frame", "step", "model", "tool", "wait"]
    name: str
    started_at: datetime
    ended_at: datetime | None = None
    status: Literal["open", "ok", "failed", "lost", "cancelled"] = "open"
    attempt: int | None = None
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


def trace(run: RunRow, rows: Iterable[Row]) -> Trace:
    """Fold a run's journal into its spans."""
    book = Book(run)
    for _, event in rows:
        book.take(event)
    spans = tuple(book.close())
    totals = Totals(
        steps=run.steps,
        model_attempts=sum(span.kind == "model" for span in spans),
        tool_attempts=sum(span.kind == "tool" for span in spans),
        usage=usage(run.usage),
        cost=cost(run.usd_micros),
    )
    return Trace(run_id=run.id, spans=spans, totals=totals)


class Book:
    """The spans so far, by id, in the order in which they began."""

    def __init__(self, run: RunRow) -> None:
        self.spans: dict[str, Span] = {}
        self.tools: dict[str, str] = {}
        """The tool of each call."""
        self.titles = {wait.id: wait.title for wait in run.waits}
        self.ended_at: datetime | None = None

    def take(self, event: ev.Event) -> None:
        """Note what one journal row says."""
        match event:
            case ev.Began():
                self._open(Span(id=ROOT, parent=None, kind="run", name=event.agent.name, started_at=event.at))
            case ev.ModelAsked():
                self._attempt(event, "model", self._step(event.frame, event.step, event.at), event.model)
            case ev.Replied():
                self._replied(event)
            case ev.ModelErred(error=error):
                self._end(_id(event), event.at, "failed", error=Trouble(code=error.code, detail=error.detail))
            case ev.ModelLost():
                self._end(_id(event), event.at, "lost")
            case ev.Intended():
                self._attempt(event, "tool", self._above(event.call), self.tools.get(event.call, "tool"))
            case ev.Returned():
                self._end(_id(event), event.at, "failed" if event.failed else "ok")
            case ev.CallLost():
                self._end(_id(event), event.at, "lost")
            case ev.Decided():
                self._end(event.wait, event.at, "ok")
            case ev.Turned():
                self._turned(event)

    def close(self) -> Iterable[Span]:
        """End what the run's end ended; steps and frames last as long as what they hold."""
        for id_, span in reversed(self.spans.items()):
            if span.kind in ("step", "frame"):
                self._enclose(id_, span)
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
            usage=usage(message.usage) if message and message.usage else None,
            cost=cost(event.usd_micros),
        )

    def _turned(self, event: ev.Turned) -> None:
        for wait in event.waits:
            above, title = self._above(wait.rpartition("?")[0]), self.titles.get(wait, "wait")
            self._open(Span(id=wait, parent=above, kind="wait", name=title, started_at=event.at))
        if is_end(event):
            self.ended_at = event.at
            status: Any = {"completed": "ok"}.get(event.phase, event.phase)
            error = Trouble(code=event.error.code, detail=event.error.detail) if event.error else None
            self._end(ROOT, event.at, status, error=error)

    def _step(self, frame: str, step: int, at: datetime) -> str:
        """The step's span, and its frame's."""
        id_ = f"{frame}#{step}"
        if id_ not in self.spans:
            parent = ROOT if frame == "/" else frame
            if parent not in self.spans:
                above, tool = self._above(frame), self.tools.get(frame, "sub-agent")
                self._open(Span(id=frame, parent=above, kind="frame", name=tool, started_at=at))
            self._open(Span(id=id_, parent=parent, kind="step", name=f"step {step + 1}", started_at=at))
        return id_

    def _above(self, call: str) -> str:
        """The step that asked for a call; the run where it is no call."""
        match = UID.match(call)
        id_ = f"{match['frame'] or '/'}#{match['step']}" if match else ROOT
        return id_ if id_ in self.spans else ROOT

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
            self.spans[id_] = replace(span, ended_at=at, status=status, **more)

    def _enclose(self, id_: str, span: Span) -> None:
        held = [one for one in self.spans.values() if one.parent == id_]
        ends = [one.ended_at for one in held if one.ended_at is not None]
        if held and len(ends) == len(held):
            last = next(one for one in reversed(held) if one.ended_at == max(ends))
            self.spans[id_] = replace(span, ended_at=last.ended_at, status=last.status)


def _id(event: Attempted) -> str:
    """Name the attempt that an event begins or ends."""
    match event:
        case ev.Intended() | ev.Returned() | ev.CallLost():
            return f"{event.call}/tool.{event.attempt}"
        case _:
            return f"{event.frame}#{event.step}/model.{event.attempt}"
