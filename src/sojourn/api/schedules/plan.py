"""What is due of a schedule, and what becomes of the fires that were missed. Called by the routes and by the clock.

The rule: all of it follows from the plan, from the time up to which fires are dealt with, and from the time now; nobody
has to have been awake at the right moment.
"""

import hashlib
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

import msgspec

from sojourn.api.runs.shapes import CreateRun
from sojourn.api.schedules.shapes import Plan, ScheduledRun
from sojourn.api.schedules.timing import MOMENT, Timing
from sojourn.errors import Invalid

LATE = timedelta(seconds=60)
"""So late a fire may come and is not missed."""
MADE_UP_MAX, MADE_UP_AGE = 100, timedelta(days=7)
"""How many missed fires are made up for at most, and how old they may be."""
LOOK_AGAIN = timedelta(days=1)
"""A fire that is farther away is found anew, so that new rules of a time zone come into force."""

EARLIEST, FARTHEST = datetime(2000, 1, 1, tzinfo=UTC), timedelta(days=50 * 365)


class Pick(NamedTuple):
    """What to do now: the fire to make, if any, and how many are left out; all up to `since` are then dealt with."""

    fire_at: datetime | None
    missed: int
    since: datetime


def read(spec: bytes) -> Plan:
    """A plan as it was stored."""
    return msgspec.json.decode(spec, type=Plan)


def wanted(run: ScheduledRun) -> CreateRun:
    """What a fire asks for."""
    return CreateRun(
        agent=run.agent,
        version=run.version,
        input=run.input,
        session=None if run.session == "new" else run.session,
        limits=run.limits,
        labels=run.labels,
        priority=run.priority,
    )


def timing(plan: Plan, created_at: datetime) -> Timing:
    """The plan's fire times. Raises Invalid with a pointer."""
    if (plan.cron is None) == (plan.every_s is None):
        raise Invalid("Say either `cron` or `every_s`.", pointer="/cron")
    return Timing(
        cron=plan.cron,
        every_s=plan.every_s,
        zone=_zone(plan.timezone),
        anchor=_utc(plan.start_at) or created_at,
        start_at=_utc(plan.start_at),
        end_at=_utc(plan.end_at),
    )


def checked(plan: Plan, created_at: datetime, now: datetime) -> Timing:
    """The same, for a plan that a caller wants now. Raises Invalid where it could never fire, or not as it says."""
    for pointer, at in (("/start_at", plan.start_at), ("/end_at", plan.end_at)):
        if at is not None and not EARLIEST <= at <= now + FARTHEST:
            raise Invalid("Say a time from 2000 on, and within 50 years from now.", pointer=pointer)
    made = timing(plan, created_at)
    if plan.start_at is not None and plan.end_at is not None and plan.end_at < plan.start_at:
        raise Invalid("It ends before it starts.", pointer="/end_at")
    if made.after(now) is None:
        where = "/cron" if plan.end_at is None else "/end_at"
        raise Invalid("It would never fire: no such time comes within 50 years, or before its end.", pointer=where)
    if plan.overlap == "allow" and plan.run.session != "new":
        raise Invalid("A session has one run at a time, so its runs cannot overlap.", pointer="/overlap")
    return made


def pick(plan: Plan, times: Timing, since: datetime, until: datetime) -> Pick | None:
    """What is due of the fires after `since`, up to and with `until`; None where nothing is."""
    late = times.backlog(since, until, MADE_UP_MAX + 1)
    if not late:
        return None
    match plan.missed:
        case "all":
            kept = [one for one in late if one >= until - MADE_UP_AGE][-MADE_UP_MAX:]
            fire_at = kept[0] if kept else None
            return Pick(fire_at, len(late) - len(kept), fire_at or late[-1])
        case "skip" if late[-1] < until - LATE:
            return Pick(None, len(late), late[-1])
        case _:
            return Pick(late[-1], len(late) - 1, late[-1])


def jitter(plan: Plan, owner: str) -> timedelta:
    """How much later than said the fires of a schedule come."""
    if not plan.jitter_s:
        return timedelta()
    part = int.from_bytes(hashlib.sha256(owner.encode()).digest()[:8])
    return timedelta(seconds=part % (plan.jitter_s * 1000) / 1000)


def due_at(next_at: datetime | None, later: timedelta, now: datetime) -> datetime | None:
    """When to look at a schedule whose next fire is known."""
    return None if next_at is None else min(next_at + later, now + LOOK_AGAIN)


def first_since(plan: Plan, now: datetime) -> datetime:
    """From when on a schedule's fires count, if it becomes active now."""
    return now if plan.start_at is None else max(now, plan.start_at.astimezone(UTC) - MOMENT)


def _utc(at: datetime | None) -> datetime | None:
    return None if at is None else at.astimezone(UTC)


def _zone(name: str) -> ZoneInfo:
    """A time zone. Raises Invalid."""
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, LookupError):  # whatever a name that is none leads to
        raise Invalid(
            f"There is no time zone {name!r}; say its IANA name, such as Europe/Berlin.", pointer="/timezone"
        ) from None
