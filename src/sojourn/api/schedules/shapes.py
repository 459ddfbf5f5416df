"""What callers send to and get from /v1/schedules. The other files here use them; a Plan is stored as its JSON."""

from datetime import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from sojourn.api.agents.shapes import LimitsSpec, Name, VersionNumber
from sojourn.api.patterns import ID, whole
from sojourn.api.runs.shapes import Instant, Labels, Priority, Trouble

EVERY_MIN_S, EVERY_MAX_S, JITTER_MAX_S = 60, 366 * 86400, 86400

Line = Annotated[str, Meta(min_length=1, max_length=200, examples=["30 2 * * mon-fri"])]
Every = Annotated[int, Meta(ge=EVERY_MIN_S, le=EVERY_MAX_S)]
Zone = Annotated[str, Meta(max_length=64, examples=["Europe/Berlin"])]
Jitter = Annotated[int, Meta(ge=0, le=JITTER_MAX_S)]
Missed = Literal["skip", "once", "all"]
Overlap = Literal["allow", "skip", "wait"]
Session = Annotated[str, Meta(pattern=whole(f"(new|kept|ses_{ID})"))]


class ScheduledRun(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The run that each fire makes."""

    agent: Name
    version: VersionNumber | None = None
    """None is the version that is live when it fires."""
    input: Annotated[str, Meta(min_length=1, max_length=65_536)]
    """What to do, in words. Files belong into a kept session."""
    session: Session = "new"
    """`new` for each run, `kept` for one of the schedule's own, or the id of a session."""
    limits: LimitsSpec = LimitsSpec()
    labels: Labels = {}
    priority: Priority = 0


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """When to fire, and what a fire makes."""

    cron: Line | None = None
    """Minute, hour, day of month, month, day of week; with names of days and months, or `@daily` and the like."""
    every_s: Every | None = None
    """In place of cron: a period, counted from `start_at`, or from when the schedule was made."""
    timezone: Zone = "UTC"
    """What cron's clock shows, by its IANA name."""
    start_at: Instant | None = None
    end_at: Instant | None = None
    jitter_s: Jitter = 0
    """Each fire comes later by a part of this; the part is the schedule's own and always the same."""
    missed: Missed = "once"
    """Of fires that nobody could make in time: none, the last one, or all of the last week, at most 100."""
    overlap: Overlap = "skip"
    """While the run before goes on: fire nevertheless, leave this fire out, or let it wait."""
    run: ScheduledRun


class CreateSchedule(Plan, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A new schedule. It acts as the key that makes it."""

    name: Name
    paused: bool = False


class ChangeSchedule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is to be different; null takes a field away. The schedule acts as the key that changes it."""

    cron: Line | UnsetType | None = UNSET
    every_s: Every | UnsetType | None = UNSET
    timezone: Zone | UnsetType = UNSET
    start_at: Instant | UnsetType | None = UNSET
    end_at: Instant | UnsetType | None = UNSET
    jitter_s: Jitter | UnsetType = UNSET
    missed: Missed | UnsetType = UNSET
    overlap: Overlap | UnsetType = UNSET
    run: ScheduledRun | UnsetType = UNSET


class Fires(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the fires so far."""

    made: int
    """They made a run."""
    missed: int
    """Nobody could make them in time, and the policy leaves them out."""
    skipped: int
    """The run before went on."""
    refused: int
    """The run was refused; `last_error` says why."""


class LastError(Trouble, frozen=True, kw_only=True):
    """Why the last fire came to nothing, or waits to be tried again."""

    at: datetime


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """A schedule: when it fires, what it makes, and how it went."""

    object: Literal["schedule"] = "schedule"
    name: str
    status: Literal["active", "paused", "ended"]
    """Ended: no fire is to come."""
    cron: str | None
    every_s: int | None
    timezone: str
    start_at: datetime | None
    end_at: datetime | None
    jitter_s: int
    missed: Missed
    overlap: Overlap
    run: ScheduledRun
    user_id: str
    """Whom its runs belong to."""
    key_id: str
    """The key that it acts as, and stops with."""
    created_at: datetime
    paused_at: datetime | None
    next_at: datetime | None
    """The next fire, before its jitter."""
    last_fire_at: datetime | None
    last_run_id: str | None
    last_error: LastError | None
    """Of the fires since the last run."""
    fires: Fires


class SchedulesPage(msgspec.Struct, frozen=True, kw_only=True):
    """Schedules, by name."""

    data: tuple[Schedule, ...]
    has_more: bool
    next: str | None


class NextFires(msgspec.Struct, frozen=True, kw_only=True):
    """The times at which it would fire next."""

    data: tuple[datetime, ...]
    """In UTC, without the jitter."""
    timezone: str
