"""When a schedule fires: a cron line in a time zone, or every so many seconds. Called by `plan`.

    Timing     all its fire times, as instants
    after      the first one after an instant
    backlog    the last ones of a span

The rule: a fire time follows from the timing and an instant alone, so every process finds the same ones. `cronsim` says
which readings of a wall clock a line names; what a change of the clock does to them is decided here, as in Debian's
cron. A line with a fixed time fires once: right after a gap that holds its time, and at the first of two. A line whose
minute or hour begins with `*` fires whenever the clock shows it, twice in an hour that comes twice.
Source: cron(8) of Debian 12.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from sojourn.errors import Invalid

ALIASES = {
    "@hourly": "0 * * * *", "@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *", "@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *",
}  # fmt: skip
LOOK = timedelta(days=2)
"""How far a change of the clock is looked for at once; zones change theirs months apart."""
GAP_MAX = timedelta(hours=3)
"""A longer gap is a day that a country left out, and its fires are left out with it. Source: as above."""
MOMENT = timedelta(microseconds=1)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """A cron line in a zone, or a period from `anchor` on; nothing before `start_at` or after `end_at`."""

    cron: str | None
    every_s: int | None
    zone: ZoneInfo
    anchor: datetime
    start_at: datetime | None
    end_at: datetime | None

    @cached_property
    def _line(self) -> "_Line":
        return _Line(self.cron or "", self.zone)

    def after(self, instant: datetime) -> datetime | None:
        """The first fire after an instant; None where there is none for 50 years."""
        if self.start_at is not None:
            instant = max(instant, self.start_at - MOMENT)
        if self.every_s is not None:
            period = timedelta(seconds=self.every_s)
            found: datetime | None = self.anchor + ((instant - self.anchor) // period + 1) * period
        else:
            found = self._line.after(instant)
        return found if found is not None and (self.end_at is None or found <= self.end_at) else None

    def fires(self, since: datetime, until: datetime) -> Iterator[datetime]:
        """All fires after `since`, up to and with `until`."""
        found = self.after(since)
        while found is not None and found <= until:
            yield found
            found = self.after(found)

    def backlog(self, since: datetime, until: datetime, most: int) -> list[datetime]:
        """The last fires of a span: all of them, or `most` and perhaps some more; a long span is not walked through."""
        span = timedelta(hours=1)
        while since < until - span:
            found = list(self.fires(until - span, until))
            if len(found) >= most:
                return found
            span *= 2
        return list(self.fires(since, until))


class _Line:
    """One cron line in a zone."""

    def __init__(self, text: str, zone: ZoneInfo) -> None:
        self.text = ALIASES.get(text.strip().lower(), text)
        self.zone = zone
        fields = self.text.split()
        if len(fields) != 5:
            raise Invalid(
                "A cron line has five fields: minute, hour, day of month, month, day of week.", pointer="/cron"
            )
        self.fixed = not fields[0].startswith("*") and not fields[1].startswith("*")
        try:
            self._matched(datetime(2000, 1, 1))  # noqa: DTZ001 (what a clock shows)
        except CronSimError as error:
            raise Invalid(f"{text!r} is no cron line: {str(error).lower()}.", pointer="/cron") from None

    def after(self, instant: datetime) -> datetime | None:
        """The first instant after another at which the line fires."""
        return self._fixed_after(instant) if self.fixed else self._shown_after(instant)

    def _fixed_after(self, instant: datetime) -> datetime | None:
        """For a line with a fixed time."""
        match = self._matched(self._shown(instant))
        while match is not None:
            found = self._instant(match)
            if found is not None and found > instant:
                return found
            match = self._matched(match)
        return None

    def _instant(self, shown: datetime) -> datetime | None:
        """When a clock first shows a time; where it jumps over it, the moment after the jump."""
        first, second = (shown.replace(tzinfo=self.zone, fold=fold).astimezone(UTC) for fold in (0, 1))
        if self._shown(first) == shown:
            return first
        # In a gap the first reading lies after the change, and the second one before it.
        return self._change(second, first) if first - second <= GAP_MAX else None

    def _shown_after(self, instant: datetime) -> datetime | None:
        """For a line that fires whenever the clock shows it: from one change of the clock to the next."""
        shown, offset = self._shown(instant), self._offset(instant)
        while (match := self._matched(shown)) is not None:
            found = (match - offset).replace(tzinfo=UTC)
            horizon = min(found, instant + LOOK)
            if self._offset(horizon) != offset:
                instant = self._change(instant, horizon)
                shown, offset = self._shown(instant) - MOMENT, self._offset(instant)
            elif horizon == found:
                return found
            else:  # nothing matches before: go where the match is near
                instant = max(horizon, found - LOOK)
                shown, offset = self._shown(instant), self._offset(instant)
        return None

    def _change(self, before: datetime, after: datetime) -> datetime:
        """The second at which the zone's offset changes between two instants."""
        old = self._offset(before)
        low, high = before.replace(microsecond=0), after
        while high - low > timedelta(seconds=1):
            middle = (low + (high - low) / 2).replace(microsecond=0)
            low, high = (middle, high) if self._offset(middle) == old else (low, middle)
        return high

    def _offset(self, instant: datetime) -> timedelta:
        return instant.astimezone(self.zone).utcoffset() or timedelta()

    def _shown(self, instant: datetime) -> datetime:
        """What a clock of the zone shows."""
        return instant.astimezone(self.zone).replace(tzinfo=None, fold=0)

    def _matched(self, shown: datetime) -> datetime | None:
        """The next reading of a clock that the line names; None where there is none for 50 years."""
        return next(CronSim(self.text, shown), None)
