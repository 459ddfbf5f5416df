"""What /v1/usage takes and gives. The reference is made of it.

The rule: a page says which time it sums up, and the next page sums up the same.
"""

import base64
from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated, Any, Literal, NamedTuple, get_args

import msgspec
from msgspec import Meta

from sojourn.api.agents.shapes import dollars
from sojourn.api.http import parse
from sojourn.api.runs.shapes import Cost, Instant, Usage, cost, usage
from sojourn.errors import Invalid
from sojourn.store.tenant.usage import Key, UsageRow

DAYS, DAYS_MAX = 30, 366
ROWS_MAX = 1000
KEYS: tuple[Key, ...] = get_args(Key)


class UsageQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    since: Annotated[Instant | None, Meta(description="The 30 days up to `until` where it is not said.")] = None
    until: Annotated[
        Instant | None, Meta(description="Up to this time, and not with it; now where it is not said.")
    ] = None
    by: Annotated[str, Meta(max_length=60, description=f"Some of {', '.join(KEYS)}, with commas between.")] = ""
    after: Annotated[str, Meta(max_length=4000, description="The `next` of the page before.")] | None = None
    limit: Annotated[int, Meta(ge=1, le=ROWS_MAX, description="How many rows at most.")] = 100
    format: Annotated[Literal["json", "csv"], Meta(description="In the place of an Accept header.")] | None = None


class UsageSeen(msgspec.Struct, frozen=True, kw_only=True):
    """What was paid, for one group or all of them."""

    calls: int
    """Calls to models that cost something: replies, summaries, verdicts, and what was cut."""
    estimated_calls: int
    """Those of them that are in the sums by an estimate."""
    unpriced_calls: int
    """Those whose price is not known."""
    usage: Usage
    cost: Cost
    known_usd: str
    """US dollars, without the calls whose price is not known."""
    estimated_usd: str
    """The part of it that is an estimate."""


class UsageGroup(UsageSeen, frozen=True, kw_only=True, omit_defaults=True):
    """One group, with what it was grouped by."""

    tenant: str | None = None
    user: str | None = None
    agent: str | None = None
    model: str | None = None
    purpose: Literal["agent", "judge"] | None = None
    """What it was asked for: an agent's replies and summaries, or a verdict of a guardrail's judge."""
    day: date | None = None
    """In UTC."""


class UsagePage(msgspec.Struct, frozen=True, kw_only=True):
    """What was paid from `since` up to `until`, in the order of the groups."""

    object: Literal["usage"] = "usage"
    since: datetime
    until: datetime
    by: tuple[str, ...]
    complete_since: datetime | None
    """What was paid before is deleted, all or some of it; null where nothing ever was."""
    total: UsageSeen
    """All groups, those of other pages too."""
    data: tuple[UsageGroup, ...]
    has_more: bool
    next: str | None
    """Give this as `after` for the next page."""


class Question(NamedTuple):
    """Which sums are asked for, and beyond which group."""

    since: datetime
    until: datetime
    by: tuple[Key, ...]
    after: tuple[str | date, ...] = ()


class _Cursor(msgspec.Struct, frozen=True, array_like=True):
    since: Instant
    until: Instant
    by: tuple[Key, ...]
    after: tuple[str, ...]


def question(asked: UsageQuery, now: datetime) -> Question:
    """Read what is asked. Raises Invalid."""
    by: list[Key] = []
    for name in filter(None, asked.by.split(",")):
        key = next((key for key in KEYS if key == name.strip()), None)
        if key is None or key in by:
            raise Invalid(f"`by` names some of {', '.join(KEYS)}, each once.", pointer="/by")
        by.append(key)
    until = parse.in_utc(asked.until or now, "/until")
    found = Question(parse.in_utc(asked.since or _start(until), "/since"), until, tuple(by))
    if asked.after is not None:
        found = _continued(asked, found)
    if not timedelta(0) < found.until - found.since <= timedelta(days=DAYS_MAX):
        raise Invalid(f"`since` comes before `until`, by {DAYS_MAX} days at most.", pointer="/since")
    return found


def _start(until: datetime) -> datetime:
    """The start of a day (UTC), so that the last of DAYS days is that of `until`."""
    try:
        first = (until - timedelta(days=DAYS - 1)).date()
    except OverflowError:
        raise Invalid("`until` is too early.", pointer="/until") from None
    return datetime.combine(first, time(), UTC)


def _continued(asked: UsageQuery, found: Question) -> Question:
    """The question of the page before. Raises Invalid for a cursor that is none, or of another question."""
    try:
        data = base64.urlsafe_b64decode((asked.after or "").encode())
        cursor = msgspec.json.decode(data, type=_Cursor)
        after = tuple(
            date.fromisoformat(text) if key == "day" else text
            for key, text in zip(cursor.by, cursor.after, strict=True)
        )
    except (ValueError, msgspec.DecodeError, UnicodeError):
        raise Invalid("This is no cursor of such a page.", pointer="/after") from None
    same = cursor.by == found.by and asked.since in (None, cursor.since) and asked.until in (None, cursor.until)
    if not same or any("\0" in str(key) for key in after):
        raise Invalid("The cursor is of a page with other parameters.", pointer="/after")
    since, until = (parse.in_utc(at, "/after") for at in (cursor.since, cursor.until))
    return Question(since, until, cursor.by, after)


def cursor(asked: Question, last: UsageRow) -> str:
    """Name the place after a row."""
    after = tuple(map(str, last.keys))
    return base64.urlsafe_b64encode(msgspec.json.encode(_Cursor(asked.since, asked.until, asked.by, after))).decode()


def seen(row: UsageRow) -> UsageSeen:
    """Show the whole."""
    return UsageSeen(**_sums(row))


def group(row: UsageRow, by: Sequence[Key]) -> UsageGroup:
    """Show a group."""
    return UsageGroup(**_sums(row), **dict(zip(by, row.keys, strict=True)))


def _sums(row: UsageRow) -> dict[str, Any]:
    known = None if row.unpriced_calls else row.usd_micros
    return {
        "calls": row.calls,
        "estimated_calls": row.estimated_calls,
        "unpriced_calls": row.unpriced_calls,
        "usage": usage(row.usage),
        "cost": cost(known, estimated=row.estimated_calls > 0),
        "known_usd": dollars(row.usd_micros),
        "estimated_usd": dollars(row.estimated_usd_micros),
    }
