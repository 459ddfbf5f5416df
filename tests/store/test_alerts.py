"""Alerts open once and close when it is over, whoever looks, however many at a time and whatever dies."""

import asyncio
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import asyncpg
import pytest
from msgspec.structs import replace
from scripted_runs import enter, hired, new_id, submit, webhook

from sojourn.errors import NotFound, SojournError
from sojourn.settings import Settings
from sojourn.store.budgets import pools
from sojourn.store.budgets.pools import Bounds, Defaults
from sojourn.store.db import Database
from sojourn.store.notices import alerts, webhooks
from sojourn.store.notices.alerts import AlertRow
from sojourn.store.notices.rules import RULES, Thresholds
from sojourn.store.rows import Principal
from sojourn.store.sharing.limits import set_limits
from sojourn.worker.notices.sending import thresholds

NOON = datetime(2026, 5, 20, 12, tzinfo=UTC)
DAY = timedelta(days=1)
USD = 1_000_000
BOUNDS = replace(thresholds(Settings()), errors_min=4)
PAID = """
insert into ledger (tenant, run_id, seq, at, user_id, agent_name, provider, model, attempt, input, cache_read,
    cache_write, output, reasoning, usd_micros)
values ($1, $2, 1, $3, $4, $5, 'sim', 'a', 1, 0, 0, 0, 0, 0, $6)
"""
SPENT = """
insert into day_account (tenant, day, user_id, usd_micros, tokens)
select 'acme', (now() at time zone 'UTC')::date, id, $2, $3 from unnest(array['', $1]) as who (id)
"""
HELD = """
insert into reservation (tenant, run_id, call, user_id, day, usd_micros)
values ('acme', 'run_1', '/#1@1', $1, (now() at time zone 'UTC')::date, $2)
"""
ENDED = """
update run set status = $2, finished_at = $3, started_at = $3, due_at = null, ready = false where id = $1
"""


async def paid(database: Database, usd: float, at: datetime, *, user: str = "ann", agent: str = "clerk") -> None:
    async with database.engine() as engine:
        await engine.execute(PAID, "acme", new_id("run"), at, user, agent, int(usd * USD))


async def look(database: Database, at: datetime, bounds: Thresholds = BOUNDS) -> None:
    """Make a round, although the last one was a moment ago."""
    async with database.engine() as engine:
        await engine.execute("update alert_round set due_at = '-infinity'")
    assert await alerts.round(database, at, bounds, every_s=60)


async def seen(database: Database, caller: Principal, *, closed: bool = False) -> list[AlertRow]:
    async with database.scoped(caller.handle) as conn:
        return await alerts.page(conn, closed=closed)


def named(found: Iterable[AlertRow]) -> set[tuple[str, str, str]]:
    return {(one.kind, one.what, one.subject) for one in found}


async def ended(database: Database, caller: Principal, status: str, at: datetime, n: int = 1) -> None:
    """Runs that ended so."""
    ids = [await submit(database, caller) for _ in range(n)]
    async with database.engine() as engine:
        for run_id in ids:
            await engine.execute(ENDED, run_id, status, at)


# ---- spending --------------------------------------------------------------------------------


async def test_a_day_over_twice_the_usual_is_told_once_for_each_user_agent_and_tenant(database: Database) -> None:
    caller = await enter(database)
    for n in range(1, 8):
        await paid(database, 10, NOON - n * DAY, user="bob", agent="scout")
        await paid(database, 10, NOON - n * DAY)
    await paid(database, 19, NOON)
    await paid(database, 12, NOON, user="bob", agent="scout")
    await look(database, NOON + timedelta(hours=1))
    assert await seen(database, caller) == []
    await paid(database, 2, NOON)
    for minute in range(3):
        await look(database, NOON + timedelta(hours=2, minutes=minute))
    found = await seen(database, caller)
    assert named(found) == {("spend", "user", "ann"), ("spend", "agent", "clerk")}
    assert {(one.value, one.bound) for one in found} == {(21 * USD, 20 * USD)}
    assert found[0].detail == "$21.00 were spent today, and $10.00 a day in the 7 days before"
    await paid(database, 30, NOON, user="eve", agent="scout")
    await look(database, NOON + timedelta(hours=3))
    assert ("spend", "tenant", "") in named(await seen(database, caller))
    assert len(await seen(database, caller)) == 5, "and of bob's agent, and of eve"


async def test_little_is_never_told_and_what_is_new_is_told_over_the_floor(database: Database) -> None:
    caller = await enter(database)
    await paid(database, 1, NOON - DAY)
    await paid(database, 9.99, NOON)
    await look(database, NOON)
    assert await seen(database, caller) == []
    await paid(database, 0.02, NOON)
    await look(database, NOON)
    assert len(await seen(database, caller)) == 3


async def test_days_are_those_of_utc_and_an_alert_closes_with_its_day(database: Database) -> None:
    caller = await enter(database)
    midnight = datetime(2026, 5, 21, tzinfo=UTC)
    await paid(database, 20, midnight - timedelta(microseconds=1))
    await paid(database, 9, midnight)
    east = (midnight - timedelta(seconds=1)).astimezone(timezone(timedelta(hours=9)))
    await look(database, east)
    assert len(await seen(database, caller)) == 3
    await look(database, midnight)
    assert await seen(database, caller) == [], "the new day has spent 9"
    closed = await seen(database, caller, closed=True)
    assert len(closed) == 3 and {one.closed_at for one in closed} == {midnight}
    await paid(database, 20, midnight + timedelta(hours=23, minutes=59, seconds=59))
    await look(database, midnight + timedelta(hours=23, minutes=59, seconds=59))
    assert len(await seen(database, caller)) == 3, "once a day, and this is another day"
    assert len(await seen(database, caller, closed=True)) == 6


async def test_a_day_is_compared_with_the_seven_before_and_no_others(database: Database) -> None:
    caller = await enter(database)
    await paid(database, 1000, NOON - 8 * DAY)
    await paid(database, 70, NOON - 7 * DAY)
    await paid(database, 21, NOON)
    await look(database, NOON)
    assert {one.bound for one in await seen(database, caller)} == {20 * USD}


@pytest.mark.usefixtures("whole_day")
async def test_a_pool_that_is_nearly_spent_is_told_once_a_day(database: Database) -> None:
    caller = await enter(database)
    now = datetime.now(UTC)
    await set_limits(database, "acme", {"usd_day_micros": 10 * USD, "user_tokens_day": 0})
    async with database.scoped(caller.handle) as conn:
        hook = (await webhooks.create(conn, webhook("https://example.org", "alert.budget"), secret=bytes(32))).id
    async with database.engine() as engine:
        await engine.execute(SPENT, "ann", 8 * USD - 1, 89)
        await look(database, now)
        assert await seen(database, caller) == [], "and nothing is told of a pool that lets nothing begin"
        await set_limits(database, "acme", {"user_tokens_day": None, "user_usd_day_micros": 100 * USD})
        async with database.scoped(caller.handle) as conn:
            await pools.set_bounds(conn, "users", "", wanted=Bounds(tokens=100), defaults=Defaults())
        await look(database, now)
        assert named(await seen(database, caller)) == {("budget", "user", "ann")}, "the tokens of a user"
        await engine.execute(HELD, "ann", 1)
        for second in range(3):
            await look(database, now + timedelta(seconds=second))
    whole, own = await seen(database, caller)
    assert (whole.what, whole.value, whole.bound) == ("tenant", 8 * USD, 10 * USD)
    assert whole.detail == "$8.00 of $10.00 of the day's budget are spent"
    assert own.detail == "89 of 100 tokens of the day's budget are spent"
    assert await told(database, caller, hook) == ["alert.budget"] * 2
    await set_limits(database, "acme", {"usd_day_micros": 11 * USD})
    await look(database, now)
    assert named(await seen(database, caller)) == {("budget", "user", "ann")}, "there is room again"
    await set_limits(database, "acme", {"usd_day_micros": 10 * USD})
    await look(database, now)
    assert len(await told(database, caller, hook)) == 2, "it was told today"
    await look(database, now + DAY)
    assert await seen(database, caller) == []


# ---- what lasts ------------------------------------------------------------------------------


async def test_an_agent_that_fails_is_told_once_until_it_has_recovered(database: Database) -> None:
    caller = await enter(database)
    await ended(database, caller, "completed", NOON, 3)
    await ended(database, caller, "failed", NOON, 3)
    await look(database, NOON)
    assert await seen(database, caller) == [], "three are too few"
    await ended(database, caller, "failed", NOON, 1)
    for minute in (1, 2):
        await look(database, NOON + timedelta(minutes=minute))
    (alert,) = await seen(database, caller)
    assert (alert.kind, alert.subject, alert.value, alert.bound) == ("errors", "clerk", 4, 7)
    await ended(database, caller, "completed", NOON + timedelta(minutes=3), 2)
    await look(database, NOON + timedelta(minutes=3))
    assert len(await seen(database, caller)) == 1, "4 of 9 is not recovered"
    await look(database, NOON + timedelta(minutes=61))
    assert await seen(database, caller) == []
    await ended(database, caller, "failed", NOON + timedelta(hours=5), 4)
    await look(database, NOON + timedelta(hours=5))
    assert len(await seen(database, caller)) == 1
    assert len(await seen(database, caller, closed=True)) == 2


async def test_a_cancelled_run_is_no_failure(database: Database) -> None:
    caller = await enter(database)
    await ended(database, caller, "cancelled", NOON, 9)
    await look(database, NOON)
    assert await seen(database, caller) == []


async def test_a_queue_that_stands_is_told_until_it_moves(database: Database) -> None:
    caller = await enter(database)
    await submit(database, caller)
    now = datetime.now(UTC)
    await look(database, now + timedelta(seconds=290))
    assert await seen(database, caller) == []
    for second in (310, 400):
        await look(database, now + timedelta(seconds=second))
    (alert,) = await seen(database, caller)
    assert (alert.kind, alert.what, alert.bound) == ("queue", "tenant", 300)
    async with hired(database) as worker:
        await worker.take_one()
        await look(database, now + timedelta(seconds=500))
        assert await seen(database, caller) == []


async def test_a_webhook_that_is_disabled_for_its_failures_is_told_to_the_others(database: Database) -> None:
    caller = await enter(database)
    async with database.scoped(caller.handle) as conn:
        broken, other = [
            (await webhooks.create(conn, webhook("https://example.org", events), secret=bytes(32))).id
            for events in ("*", "alert.webhook")
        ]
    async with database.engine() as engine:
        await engine.execute("update webhook set disabled_code = 'failing', disabled_at = now() where id = $1", broken)
    for _ in range(2):
        await look(database, NOON)
    assert named(await seen(database, caller)) == {("webhook", "webhook", broken)}
    async with database.scoped(caller.handle) as conn:
        assert [one.type for one in await webhooks.history(conn, other)] == ["alert.webhook"]
        assert await webhooks.history(conn, broken) == []
        await webhooks.change(conn, broken, disabled_code=None, disabled_at=None)
    await look(database, NOON)
    assert await seen(database, caller) == []


async def test_a_webhook_with_too_much_waiting_is_told(database: Database) -> None:
    caller = await enter(database)
    async with database.scoped(caller.handle) as conn:
        hook = (await webhooks.create(conn, webhook("https://example.org", "run.failed"), secret=bytes(32))).id
        await conn.execute(
            "insert into webhook_delivery (tenant, id, webhook_id, type, body, due_at)"
            " select 'acme', fresh_id('msg'), $1, 'run.failed', '{}', now() from generate_series(1, $2)",
            hook,
            webhooks.WAITING_MAX,
        )
    await look(database, NOON)
    assert named(await seen(database, caller)) == {("backlog", "webhook", hook)}


# ---- once, whatever happens ------------------------------------------------------------------


async def all_at_once(database: Database, caller: Principal) -> str:
    """Let something be wrong of three kinds, and a webhook hear of it."""
    async with database.scoped(caller.handle) as conn:
        hook = await webhooks.create(conn, webhook("https://example.org", "alert.*"), secret=bytes(32))
    await paid(database, 21, NOON)
    await ended(database, caller, "failed", NOON, 4)
    await submit(database, caller)
    return hook.id


async def told(database: Database, caller: Principal, hook: str) -> list[str]:
    async with database.scoped(caller.handle) as conn:
        return sorted(one.type for one in await webhooks.history(conn, hook))


EACH = ["alert.errors", "alert.spend", "alert.spend", "alert.spend"]


async def test_many_processes_look_at_once_and_each_alert_opens_once(database: Database) -> None:
    caller = await enter(database)
    hook = await all_at_once(database, caller)
    rounds = await asyncio.gather(*(alerts.round(database, NOON, BOUNDS, every_s=60) for _ in range(8)))
    assert sum(rounds) == 1
    assert not await alerts.round(database, NOON, BOUNDS, every_s=60), "it is not yet time"
    for _ in range(2):
        await look(database, NOON)
    assert await told(database, caller, hook) == EACH


async def test_two_who_look_at_the_same_time_open_each_alert_once(database: Database) -> None:
    caller = await enter(database)
    hook = await all_at_once(database, caller)
    async with database.engine() as engine, engine.transaction():
        for kind in RULES:
            await alerts._look(engine, kind, NOON, BOUNDS)  # it has not committed when the other one looks
        other = asyncio.create_task(_looks(database))
        await asyncio.sleep(0)
    await other
    assert await told(database, caller, hook) == EACH


async def _looks(database: Database) -> None:
    async with database.engine() as engine, engine.transaction():
        for kind in RULES:
            await alerts._look(engine, kind, NOON, BOUNDS)


class Axe:
    """Cuts a connection before its statement number `at`, or after it where that one was done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, *, after: bool) -> None:
        self.at, self.after, self.count, self.fell = at, after, 0, False
        for name in ("execute", "fetch", "fetchrow", "fetchval"):
            monkeypatch.setattr(asyncpg.Connection, name, self.wrapped(getattr(asyncpg.Connection, name)))

    def wrapped(self, method: Any) -> Any:
        async def call(connection: Any, *arguments: Any, **more: Any) -> Any:
            self.count += 1
            falls = self.count == self.at
            if falls and not self.after:
                self.fell = True
                connection.terminate()
            answer = await method(connection, *arguments, **more)
            if falls and self.after:
                self.fell = True
                connection.terminate()
            return answer

        return call


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_death_between_any_two_statements_neither_loses_nor_doubles_an_alert(
    database: Database, after: bool
) -> None:
    caller = await enter(database)
    hook = await all_at_once(database, caller)
    deaths = 0
    while True:
        with pytest.MonkeyPatch.context() as patch:
            axe = Axe(patch, deaths + 1, after=after)
            with suppress(SojournError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                await alerts.round(database, NOON, BOUNDS, every_s=0)
        if not axe.fell:
            break
        deaths += 1
        assert not Counter(await told(database, caller, hook)) - Counter(EACH), "none opens twice"
    assert deaths >= 10
    assert await told(database, caller, hook) == EACH


async def test_a_rule_that_breaks_stops_no_other(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    caller = await enter(database)
    await all_at_once(database, caller)
    monkeypatch.setattr(alerts, "RULES", {**RULES, "spend": "select 1 / 0", "errors": RULES["errors"]})
    await look(database, NOON)
    assert named(await seen(database, caller)) == {("errors", "agent", "clerk")}


async def test_who_has_seen_an_alert_first_is_written_down_and_another_tenant_sees_none(database: Database) -> None:
    caller, other = await enter(database), await enter(database, "rival", "eve")
    await all_at_once(database, caller)
    await look(database, NOON)
    alert = (await seen(database, caller))[0]
    assert await seen(database, other) == []
    with pytest.raises(NotFound):
        async with database.scoped(other.handle) as conn:
            await alerts.ack(conn, alert.id)
    async with database.scoped(caller.handle) as conn:
        first = await alerts.ack(conn, alert.id)
        assert first.acked_by == "ann"
        assert await alerts.ack(conn, alert.id) == first
        assert replace(first, acked_at=None, acked_by=None) == alert
    assert await alerts.open_now(database) == {"spend": 3, "errors": 1}
