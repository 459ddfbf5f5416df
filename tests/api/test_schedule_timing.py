"""When a schedule fires: cron lines over changes of the clock, periods, and what becomes of missed fires."""

import random
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim

from sojourn.api.schedules import plan as plans
from sojourn.api.schedules.shapes import Plan, ScheduledRun
from sojourn.api.schedules.timing import ALIASES, Timing
from sojourn.errors import Invalid

DAY, HOUR, MINUTE = timedelta(days=1), timedelta(hours=1), timedelta(minutes=1)
RUN = ScheduledRun(agent="clerk", input="go")


def timing(cron: str | None = None, zone: str = "UTC", **more: Any) -> Timing:
    given = {"every_s": None, "anchor": utc("2026-01-01"), "start_at": None, "end_at": None}
    return Timing(cron=cron, zone=ZoneInfo(zone), **{**given, **more})


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def shown(timing: Timing, since: str, until: str) -> list[str]:
    """The fires of a span, as a clock of the zone shows them."""
    return [f"{at.astimezone(timing.zone):%m-%d %H:%M %z}" for at in timing.fires(utc(since), utc(until))]


CLOCKS = {
    "berlin, in the gap: right after it": (
        "30 2 * * *",
        "Europe/Berlin",
        "2026-03-28",
        "2026-03-30T12:00",
        ["03-28 02:30 +0100", "03-29 03:00 +0200", "03-30 02:30 +0200"],
    ),
    "berlin, twice in the gap: one fire after it": (
        "0,30 2 * * *",
        "Europe/Berlin",
        "2026-03-28T12:00",
        "2026-03-29T12:00",
        ["03-29 03:00 +0200"],
    ),
    "berlin, an hour that comes twice: the first": (
        "30 2 * * *",
        "Europe/Berlin",
        "2026-10-24T12:00",
        "2026-10-26T12:00",
        ["10-25 02:30 +0200", "10-26 02:30 +0100"],
    ),
    "berlin, every 20 minutes through the gap": (
        "*/20 1-3 * * *",
        "Europe/Berlin",
        "2026-03-29T00:15",
        "2026-03-29T02:00",
        ["03-29 01:20 +0100", "03-29 01:40 +0100", "03-29 03:00 +0200", "03-29 03:20 +0200", "03-29 03:40 +0200"],
    ),
    "berlin, every half hour through an hour that comes twice": (
        "*/30 2 * * *",
        "Europe/Berlin",
        "2026-10-24T12:00",
        "2026-10-25T12:00",
        ["10-25 02:00 +0200", "10-25 02:30 +0200", "10-25 02:00 +0100", "10-25 02:30 +0100"],
    ),
    "new york, in the gap": (
        "15 2 * * *",
        "America/New_York",
        "2026-03-07T12:00",
        "2026-03-09T12:00",
        ["03-08 03:00 -0400", "03-09 02:15 -0400"],
    ),
    "new york, an hour that comes twice": (
        "15 1 * * sun",
        "America/New_York",
        "2026-10-31",
        "2026-11-09",
        ["11-01 01:15 -0400", "11-08 01:15 -0500"],
    ),
    "lord howe, in a gap of half an hour": (
        "15 2 * * *",
        "Australia/Lord_Howe",
        "2026-10-02T18:00",
        "2026-10-04T18:00",
        ["10-04 02:30 +1100", "10-05 02:15 +1100"],
    ),
    "lord howe, after that gap all quarters": (
        "*/15 2,3 * * *",
        "Australia/Lord_Howe",
        "2026-10-03T15:00",
        "2026-10-03T16:15",
        ["10-04 02:30 +1100", "10-04 02:45 +1100", "10-04 03:00 +1100", "10-04 03:15 +1100"],
    ),
    "lord howe, half an hour that comes twice": (
        "45 1 * * *",
        "Australia/Lord_Howe",
        "2026-04-04",
        "2026-04-05T18:00",
        ["04-05 01:45 +1100", "04-06 01:45 +1030"],
    ),
    "lord howe, every quarter of it": (
        "*/15 1 * * *",
        "Australia/Lord_Howe",
        "2026-04-04",
        "2026-04-05",
        [
            "04-05 01:00 +1100",
            "04-05 01:15 +1100",
            "04-05 01:30 +1100",
            "04-05 01:45 +1100",
            "04-05 01:30 +1030",
            "04-05 01:45 +1030",
        ],
    ),
    "sao paulo, midnight in the gap, and after the rules were given up": (
        "0 0 4 11 *",
        "America/Sao_Paulo",
        "2018-01-01",
        "2020-01-01",
        ["11-04 01:00 -0200", "11-04 00:00 -0300"],
    ),
    "cairo, which began again in 2023": (
        "30 0 28 4 *",
        "Africa/Cairo",
        "2022-01-01",
        "2024-01-01",
        ["04-28 00:30 +0200", "04-28 01:00 +0300"],
    ),
    "apia, a day that never came": (
        "0 9 * * *",
        "Pacific/Apia",
        "2011-12-28T12:00",
        "2012-01-01",
        ["12-28 09:00 -1000", "12-29 09:00 -1000", "12-31 09:00 +1400", "01-01 09:00 +1400"],
    ),
}


@pytest.mark.parametrize("what", CLOCKS)
def test_a_change_of_the_clock_is_met_as_people_expect(what: str) -> None:
    line, zone, since, until, fires = CLOCKS[what]
    assert shown(timing(line, zone=zone), since, until) == fires


def test_what_is_asked_in_the_middle_of_a_change_lies_ahead() -> None:
    """A schedule made in the second of two hours does not fire in the first one, which is over."""
    second = utc("2026-10-25T01:10")  # 02:10 for the second time
    found = timing("30 2 * * *", zone="Europe/Berlin").after(second)
    assert found == utc("2026-10-26T01:30")
    assert timing("*/30 2 * * *", zone="Europe/Berlin").after(second) == utc("2026-10-25T01:30")


ZONES = ("Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Antarctica/Troll", "Asia/Beirut", "Pacific/Apia")
SHOWN = ("*/17 * * * *", "*/15 0-3 * * *", "30 */2 * * *", "* 2 * * *", "0 * * * sun")


def test_a_line_with_a_star_fires_exactly_when_the_clock_shows_it() -> None:
    """Every minute round a change of the clock is looked at on its own."""
    dice = random.Random(3)
    for zone_name, line in ((zone, line) for zone in ZONES for line in dice.sample(SHOWN, 2)):
        zone = ZoneInfo(zone_name)
        year = 2011 if zone_name == "Pacific/Apia" else 2026
        for change in changes(zone, year):
            start = change - timedelta(minutes=dice.randrange(60, 300), seconds=dice.randrange(60))
            wanted, minute = [], start.replace(second=0) + MINUTE
            while minute <= change + 4 * HOUR:
                clock = minute.astimezone(zone).replace(tzinfo=None, fold=0)
                if next(CronSim(line, clock - timedelta(seconds=1)), None) == clock:
                    wanted.append(minute)
                minute += MINUTE
            found = list(timing(line, zone=zone_name).fires(start, change + 4 * HOUR))
            assert found == wanted, (zone_name, line, change)


def changes(zone: ZoneInfo, year: int) -> list[datetime]:
    """The days of a year at whose end the clock was changed."""
    days = [datetime(year, 1, 1, tzinfo=UTC) + n * DAY for n in range(366)]
    return [day for day in days if day.astimezone(zone).utcoffset() != (day + DAY).astimezone(zone).utcoffset()]


def test_a_fixed_time_fires_once_a_day_whatever_the_clock_does() -> None:
    for zone in (*ZONES[:5], "UTC"):
        for line in ("0 0 * * *", "15 1 * * *", "45 1 * * *", "30 2 * * *"):
            fires = list(timing(line, zone=zone).fires(utc("2026-01-01T12:00"), utc("2026-12-31T12:00")))
            days = [at.astimezone(ZoneInfo(zone)).date() for at in fires]
            assert days == sorted(set(days)) and len(days) == 364, (zone, line)


def test_a_period_is_counted_from_its_anchor_and_knows_no_clock() -> None:
    made = timing(zone="Europe/Berlin", every_s=3600, anchor=utc("2026-03-28T22:10"))
    assert shown(made, "2026-03-28T23:30", "2026-03-29T02:30") == [
        "03-29 01:10 +0100", "03-29 03:10 +0200", "03-29 04:10 +0200",
    ]  # fmt: skip
    begun = timing(every_s=3600, anchor=utc("2026-06-01"), start_at=utc("2026-06-01"), end_at=utc("2026-06-01T02:00"))
    assert list(begun.fires(utc("2020-01-01"), utc("2030-01-01"))) == [utc("2026-06-01") + n * HOUR for n in range(3)]


def test_every_alias_is_a_line() -> None:
    for alias in (*ALIASES, "@DAILY"):
        assert timing(alias).after(utc("2026-06-01T00:00")) is not None


def test_the_29th_of_february_is_waited_for_and_the_30th_is_not() -> None:
    assert timing("0 0 29 2 *").after(utc("2026-01-01")) == utc("2028-02-29")
    with pytest.raises(Invalid):
        timing("0 0 30 2 *").after(utc("2026-01-01"))
    assert timing("0 0 */20 * 1L").after(utc("2026-01-01")) is None


def test_no_text_makes_a_line_do_anything_but_fire_or_be_refused() -> None:
    dice = random.Random(5)
    letters = "0123456789*/-,#LW?@ monfrijan\t²ßİ٣"
    for _ in range(3000):
        text = "".join(dice.choices(letters, k=dice.randrange(1, 30)))
        if dice.random() < 0.7:
            text = " ".join("".join(dice.choices(letters, k=dice.randrange(1, 5))) for _ in range(5))
        with suppress(Invalid):
            timing(text).after(utc("2026-01-01"))


# ---- missed ----------------------------------------------------------------------------------


def pick(missed: str, line: str, since: str, until: str) -> plans.Pick | None:
    plan = Plan(cron=line, missed=missed, run=RUN)  # type: ignore[arg-type]
    return plans.pick(plan, plans.timing(plan, utc("2026-01-01")), utc(since), utc(until))


@pytest.mark.parametrize("missed", ["skip", "once", "all"])
def test_what_is_in_time_fires_whatever_the_policy_is(missed: str) -> None:
    assert pick(missed, "@hourly", "2026-06-01T09:00", "2026-06-01T09:59:59") is None
    for until in ("2026-06-01T10:00", "2026-06-01T10:00:45"):
        assert pick(missed, "@hourly", "2026-06-01T09:00", until) == (
            utc("2026-06-01T10:00"), 0, utc("2026-06-01T10:00"),
        )  # fmt: skip


def test_missed_fires_are_left_out_made_up_for_once_or_one_by_one() -> None:
    since, until = "2026-06-01T09:00", "2026-06-01T13:30"
    last = utc("2026-06-01T13:00")
    assert pick("skip", "@hourly", since, until) == (None, 4, last)
    assert pick("skip", "@hourly", since, "2026-06-01T13:00:30") == (last, 3, last)
    assert pick("once", "@hourly", since, until) == (last, 3, last)
    first = utc("2026-06-01T10:00")
    assert pick("all", "@hourly", since, until) == (first, 0, first)


def test_making_up_is_bounded_by_number_and_age() -> None:
    found = pick("all", "* * * * *", "2020-01-01", "2026-06-01T12:00")
    assert found is not None and found.fire_at == found.since == utc("2026-06-01T12:00") - 99 * MINUTE
    assert found.missed >= plans.MADE_UP_MAX - 99
    assert pick("all", "@monthly", "2026-02-02", "2026-06-20") == (None, 4, utc("2026-06-01"))
    assert pick("all", "@daily", "2026-06-01", "2026-06-20") == (utc("2026-06-13"), 11, utc("2026-06-13"))


def test_a_long_time_away_is_not_walked_through() -> None:
    made = timing("* * * * *")
    found = made.backlog(utc("1990-01-01"), utc("2026-06-01T12:00"), 101)
    assert found[-1] == utc("2026-06-01T12:00") and 101 <= len(found) <= 250
    assert timing("@yearly").backlog(utc("1990-01-01"), utc("2026-06-01"), 101)[0] == utc("1991-01-01")


def test_the_jitter_is_a_schedules_own_and_spreads_many() -> None:
    plan = Plan(cron="@daily", jitter_s=600, run=RUN)
    parts = [plans.jitter(plan, f"acme/{n}") for n in range(1000)]
    assert parts[7] == plans.jitter(plan, "acme/7")
    assert max(parts) < timedelta(seconds=600)
    quarters = [sum(n * 150 <= part.total_seconds() < n * 150 + 150 for part in parts) for n in range(4)]
    assert min(quarters) > 200, quarters
