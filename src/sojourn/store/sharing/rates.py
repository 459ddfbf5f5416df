"""Rate limits: what they are, what is taken of them, and what an operator set for one tenant. Called by the API.

    Rate      so many in a window, and how many of them at once
    take      one of every limit of a request, or of none
    changed   the tenants whose limits an operator has set or changed

The rule: the database decides by its own clock, for all processes, in one statement that waits for no disk.
"""

import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated, Literal, NamedTuple, TypeAlias

import asyncpg  # type: ignore[import-untyped]
import msgspec
from msgspec import Meta
from msgspec.structs import replace

from sojourn.errors import Invalid, StoreUnavailable
from sojourn.store.db import Database

TAKE = "select outcome, debts_us from take_rates($1)"
CHANGED = """
select now() as read_at, t.id, t.rates from (values (1)) as look left join tenant t on t.rates_at >= $1
"""
OVERLAP = timedelta(seconds=30)
"""Whoever sets a limit says when, and commits later: so far before the last look the next one begins."""
EXPIRE, EXPIRE_MAX = "select expire_rates($1)", 5000

Class: TypeAlias = Literal["runs", "writes", "reads", "streams", "decisions"]
Subject: TypeAlias = Literal["tenant", "user", "agent"]
SUBJECTS: tuple[Subject, ...] = ("tenant", "user", "agent")
US = 1_000_000
TEXT = re.compile(r"([0-9]{1,7})/([0-9]{1,7})(?:/([0-9]{1,7}))?")


class Rate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A limit: `max` in every `window_s` in the long run, and `burst` at once.

    It is GCRA: one comes free every `window_s / max` seconds, up to `burst` of them. So any span of t seconds has at
    most `burst + t * max / window_s`.
    """

    max: Annotated[int, Meta(ge=1, le=10**6)]
    window_s: Annotated[int, Meta(ge=1, le=31 * 86400)] = 60
    burst: Annotated[int, Meta(ge=1, le=10**6)] | None = None
    """As many as `max`, if not given."""

    @property
    def at_once(self) -> int:
        return self.max if self.burst is None else self.burst

    @property
    def every_us(self) -> int:
        return max(1, round(self.window_s * US / self.max))

    def __str__(self) -> str:
        return "/".join(str(part) for part in (self.max, self.window_s, self.burst) if part is not None)


Limit: TypeAlias = Rate | Literal["off"]
Own: TypeAlias = dict[str, Limit]
"""The limits that a tenant has of its own, by CLASS.SUBJECT."""


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The limits of one class: of a tenant as a whole, of each user, and of each agent."""

    tenant: Limit = "off"
    user: Limit = "off"
    agent: Limit = "off"

    def by_subject(self) -> tuple[Rate | None, ...]:
        """Each limit in the order of SUBJECTS, None where there is none."""
        return tuple(None if one == "off" else one for one in (self.tenant, self.user, self.agent))

    def __str__(self) -> str:
        pairs = zip(SUBJECTS, self.by_subject(), strict=True)
        return ", ".join(f"{subject} {rate}" for subject, rate in pairs if rate) or "off"


class Rates(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The tables [rates.CLASS] of the settings file."""

    runs: Limits = Limits(user=Rate(20, 60, 5))
    """Requests that begin a run."""
    writes: Limits = Limits()
    """Other requests that change something."""
    reads: Limits = Limits()
    streams: Limits = Limits()
    """Event streams that are opened."""
    decisions: Limits = Limits()
    """Answers to what waits, and orders to end, hold or go on."""

    def of(self, class_: Class) -> Limits:
        limits: Limits = getattr(self, class_)
        return limits

    def under(self, own: Own) -> "Rates":
        """These limits, with a tenant's own in their place."""
        classes: dict[str, Limits] = {}
        for name in (name for name in NAMES if name in own):
            class_, _, subject = name.partition(".")
            classes[class_] = replace(classes.get(class_) or getattr(self, class_), **{subject: own[name]})
        return replace(self, **classes)


NAMES = tuple(f"{class_}.{subject}" for class_ in Rates.__struct_fields__ for subject in SUBJECTS)


class Taking(msgspec.Struct, frozen=True, kw_only=True, rename={"class_": "class"}):
    """A request as the database is asked about it. The limits stand in the order of SUBJECTS."""

    tenant: str
    user: str
    class_: Class
    every_us: tuple[int | None, ...]
    bursts: tuple[int | None, ...]
    agent: str | None = None
    key: str | None = None
    """Its Idempotency-Key, with its route and digest."""
    route: str | None = None
    digest: str | None = None


class Taken(NamedTuple):
    """What came of it, and for each limit how long it takes until nothing that was taken of it counts any more.

    None stands where there is no limit, or it does not count here.
    """

    outcome: Literal["taken", "refused", "replayed"]
    debts_us: tuple[int | None, ...]


def read(text: str) -> Limit:
    """Read MAX/WINDOW_S, MAX/WINDOW_S/BURST or `off`. Raises Invalid."""
    if text == "off":
        return "off"
    match = TEXT.fullmatch(text)
    parts = [int(part) for part in match.groups() if part] if match else []
    try:
        return msgspec.convert(dict(zip(Rate.__struct_fields__, parts, strict=False)), Rate)
    except msgspec.ValidationError:
        raise Invalid(
            f"{text!r} is no rate limit. One is MAX/WINDOW_S/BURST, as 20/60/5 for 20 a minute and 5 at once, or "
            "`off`. MAX and BURST are 1 to a million, WINDOW_S is up to 31 days.",
            code="settings.invalid",
        ) from None


async def take(db: Database, takings: Sequence[Taking]) -> list[Taken]:
    """Take one of each limit of each request, in their order, where all of its limits have one."""
    places = sorted(range(len(takings)), key=lambda n: (takings[n].tenant, takings[n].class_))
    async with db.engine() as engine:
        rows = await engine.fetch(TAKE, msgspec.json.encode([takings[n] for n in places]))
    found = {n: Taken(row["outcome"], tuple(row["debts_us"])) for n, row in zip(places, rows, strict=True)}
    return [found[n] for n in range(len(takings))]


async def changed(db: Database, since: datetime) -> tuple[dict[str, Own], datetime]:
    """The limits of the tenants whose own ones were changed since then, and the `since` of the next look.

    Raises StoreUnavailable.
    """
    async with db.engine() as engine:
        try:
            rows = await engine.fetch(CHANGED, since)
        except (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError):
            raise StoreUnavailable("The database has no schema yet, or an older one.") from None
    found = {row["id"]: msgspec.json.decode(row["rates"], type=Own) for row in rows if row["id"] is not None}
    return found, rows[0]["read_at"] - OVERLAP


async def prune(db: Database) -> None:
    """Forget the subjects of which nothing counts any more."""
    async with db.engine() as engine:
        while await engine.fetchval(EXPIRE, EXPIRE_MAX) == EXPIRE_MAX:
            pass
