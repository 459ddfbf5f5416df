"""What the routes of stops take and give. The reference is made of it."""

from datetime import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from sojourn.api.http.pages import Page
from sojourn.store import stops

What = Literal["run", "session", "agent", "user", "tenant"]


class CreateStop(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is to be stopped."""

    what: What
    id: Annotated[str, Meta(max_length=200)] = ""
    """The id of the run or session, the name of the agent, or the user; not needed for the tenant, which is yours."""
    mode: Literal["cancel", "hold"] = "cancel"
    """`cancel` ends runs; `hold` lets them stand still until the stop is lifted."""
    reason: Annotated[str, Meta(max_length=1000)] = ""


class ListQuery(Page, frozen=True, forbid_unknown_fields=True, kw_only=True):
    all: Annotated[bool, Meta(description="Those that were lifted, too.")] = False


class LeftSeen(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is left."""

    kind: str
    id: str
    why: str


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far the stop has come, counted in the tables now."""

    settled: bool
    """Nothing is left: all of the numbers below are 0."""
    hit: dict[str, int]
    """The runs that it hit, by their present status."""
    runs: int
    """Runs that it names and that have not ended; under a hold, those that do not stand still."""
    leases: int
    """Those of them that a worker holds."""
    calls: int
    """Model and tool calls that these workers have begun and not finished."""
    sandboxes: int
    """Open sandboxes of the sessions that it names."""
    left: tuple[LeftSeen, ...]
    """Some of what is left, and why."""


class StopSeen(msgspec.Struct, frozen=True, kw_only=True):
    """A stop. It stays in force until it is lifted."""

    id: str
    object: Literal["stop"] = "stop"
    what: str
    target: str
    mode: str
    reason: str
    operator: bool
    """The operator made it, and alone can lift it."""
    made_by: str
    created_at: datetime
    lifted_by: str | None
    lifted_at: datetime | None
    progress: Progress | None = None
    """Null in lists, and once the stop is lifted."""


class StopsPage(msgspec.Struct, frozen=True, kw_only=True):
    """Stops, the newest first."""

    data: tuple[StopSeen, ...]
    has_more: bool
    next: str | None


class StoppedRun(msgspec.Struct, frozen=True, kw_only=True):
    """A run that the stop hit."""

    run_id: str
    status: str
    """How it stands now; it may have ended by itself before it heard."""
    hit_at: datetime


class StoppedRunsPage(msgspec.Struct, frozen=True, kw_only=True):
    """Runs, the oldest first."""

    data: tuple[StoppedRun, ...]
    has_more: bool
    next: str | None


def seen(stop: stops.Stop, report: stops.Report | None = None) -> StopSeen:
    """Show a stop."""
    shown = {name: getattr(stop, name) for name in StopSeen.__struct_fields__ if hasattr(stop, name)}
    return StopSeen(**shown, progress=_progress(report) if report and stop.lifted_at is None else None)


def _progress(report: stops.Report) -> Progress:
    return Progress(
        settled=report.settled,
        hit=report.hit,
        runs=report.runs,
        leases=report.leases,
        calls=report.calls,
        sandboxes=report.sandboxes,
        left=tuple(LeftSeen(kind=one.kind, id=one.id, why=one.why) for one in report.left),
    )
