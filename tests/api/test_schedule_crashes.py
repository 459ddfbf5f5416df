"""Whatever dies, and however many processes race: a time is fired once."""

import asyncio
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from served_api import Served, serve
from wound_clock import HOUR, furnished, made, runs_of, seen, stand_still, ticked, wind

from sojourn.api.schedules import clock
from sojourn.errors import SojournError
from sojourn.store.db import Database

STATEMENTS = ("execute", "fetch", "fetchrow", "fetchval")


@pytest.fixture
async def still(api: Served) -> Served:
    return await furnished(api)


class Axe:
    """Cuts a connection before its statement number `at`, or after it where that one is a COMMIT that was done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, *, after: bool) -> None:
        self.at, self.count, self.fell = at, 0, False
        for name in STATEMENTS:
            monkeypatch.setattr(asyncpg.Connection, name, self.wrapped(getattr(asyncpg.Connection, name), after))

    def wrapped(self, method: Any, after: bool) -> Any:
        async def call(connection: Any, *arguments: Any, **more: Any) -> Any:
            self.count += 1
            falls = self.count == self.at
            if falls and not after:
                self.fell = True
                connection.terminate()
            answer = await method(connection, *arguments, **more)
            if falls and after:
                self.fell = True
                connection.terminate()
            return answer

        return call


@pytest.fixture
async def due_now(still: Served, database: Database) -> Served:
    await made(still)
    await wind(database, HOUR)
    return still


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_death_between_any_two_statements_neither_loses_nor_doubles_a_fire(
    due_now: Served, database: Database, after: bool
) -> None:
    deaths = 0
    while True:
        with pytest.MonkeyPatch.context() as patch:
            axe = Axe(patch, deaths + 1, after=after)
            with suppress(SojournError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                await clock.fire_next(due_now.parts)
        if not axe.fell:
            break
        deaths += 1
        found, schedule = await runs_of(due_now), await seen(due_now)
        assert len(found) == schedule["fires"]["made"] <= 1
        if not found:
            assert datetime.fromisoformat(schedule["next_at"]) < datetime.now(UTC), "it is still due"
    assert deaths > 10
    assert len(await runs_of(due_now)) == 1


async def test_many_processes_race_and_every_time_is_fired_once(still: Served, database: Database) -> None:
    for n in range(20):
        await made(still, name=f"n{n}", missed="all", overlap="allow")
    await wind(database, timedelta(hours=3, minutes=1))
    async with serve(database, tenants=()) as second:
        await stand_still()
        await asyncio.gather(*(ticked(api) for api in (still, second) for _ in range(3)))
    for n in range(20):
        fires = [run["fire_at"] for run in await runs_of(still, f"n{n}")]
        assert len(fires) == len(set(fires)) == 3
    assert await ticked(still) == 0


async def test_a_schedule_that_is_paused_deleted_or_changed_meanwhile_fires_before_or_not_at_all(
    still: Served, database: Database
) -> None:
    for name in ("paused", "deleted", "changed"):
        await made(still, name=name)
    await wind(database, HOUR)
    await asyncio.gather(
        ticked(still),
        still.post("/v1/schedules/paused/pause"),
        still.call("DELETE", "/v1/schedules/deleted"),
        still.call("PATCH", "/v1/schedules/changed", json={"every_s": 7200}),
        ticked(still),
    )
    assert await ticked(still) == 0
    paused, changed = await seen(still, "paused"), await seen(still, "changed")
    assert (paused["next_at"], paused["fires"]["made"]) == (None, len(await runs_of(still, "paused")))
    assert (changed["every_s"], changed["fires"]["made"]) == (7200, len(await runs_of(still, "changed")))
    assert len(await runs_of(still, "deleted")) <= 1


async def test_the_api_returns_and_fires_what_came_due_while_it_was_away(database: Database) -> None:
    async with serve(database) as api:
        await furnished(api)
        await made(api)
        token = api.key
    await wind(database, HOUR)
    async with serve(database, tenants=()) as back:
        back.key = token
        async with asyncio.timeout(20):
            while not await runs_of(back):
                pass
