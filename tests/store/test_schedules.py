"""Schedules in the database: who may act as whom, what the door lends, and that a fire cannot be written twice."""

import asyncio
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from scripted_runs import AT, enter, new_id, scheduled, submit

from sojourn.errors import Conflict, Forbidden, NotFound
from sojourn.store import runs
from sojourn.store.db import Database
from sojourn.store.rows import Due, Principal, RunFilter
from sojourn.store.tenant import keys, schedules


async def due(database: Database, caller: Principal, name: str = "nightly", *, ago_s: float = 1) -> None:
    """Make a schedule that is due."""
    at = datetime.now(UTC) - timedelta(seconds=ago_s)
    async with database.scoped(caller.handle) as conn:
        await schedules.create(conn, scheduled(caller, name, due_at=at), most=100)


async def lent(database: Database) -> Due | None:
    async with schedules.lent(database) as found:
        return found[1] if found else None


async def colleague(database: Database, caller: Principal, user: str = "bob") -> Principal:
    """Give another user of the caller's tenant."""
    async with database.scoped(caller.handle) as conn:
        _, token = await keys.create(conn, user=user, name="key", scopes=["*"])
    return await keys.authenticate(database, token)


async def test_the_door_lends_the_scope_of_who_made_what_is_due_and_of_nobody_else(database: Database) -> None:
    caller, other = await enter(database, "acme"), await enter(database, "rival")
    assert await lent(database) is None
    await due(database, other, ago_s=5)
    await due(database, caller, ago_s=9)
    async with schedules.lent(database) as found:
        assert found is not None
        conn, what = found
        assert (what.tenant, what.user_id, what.key_id, what.scopes) == ("acme", "ann", caller.key_id, caller.scopes)
        assert await conn.fetchval("select array_agg(tenant) from schedule") == ["acme"]
        with pytest.raises(Forbidden):
            async with conn.transaction():
                await keys.create(conn, user="eve", name="key", scopes=["*"])
        assert (await next_due(database)).tenant == "rival"
    async with database.api() as conn:
        assert not await conn.fetchval("select current_setting('app.scope', true)")


async def next_due(database: Database) -> Due:
    """What a second process finds while the first one still works."""
    found = await asyncio.wait_for(lent(database), 10)
    assert found is not None
    return found


async def test_what_is_not_due_is_lent_to_nobody(database: Database) -> None:
    caller, at = await enter(database), datetime.now(UTC) + timedelta(hours=1)
    async with database.scoped(caller.handle) as conn:
        await schedules.create(conn, scheduled(caller, due_at=at), most=1)
        await schedules.create(conn, scheduled(caller, "paused"), most=2)
    assert await lent(database) is None
    assert await schedules.next_at(database) == at


@pytest.mark.parametrize("how", ["revoked", "expired"])
async def test_a_schedule_whose_key_has_ended_is_paused_and_lends_nothing(database: Database, how: str) -> None:
    caller = await enter(database)
    bob = await colleague(database, caller)
    await due(database, bob)
    async with database.scoped(caller.handle) as conn:
        if how == "revoked":
            await keys.revoke(conn, bob.key_id)
    if how == "expired":
        async with database.migrator() as owner, owner.transaction():
            await owner.execute("set local role sojourn_keyring")
            await owner.execute("update api_key set expires_at = now() where id = $1", bob.key_id)
    found = await lent(database)
    assert found is not None and (found.handle, found.scopes) == (None, frozenset())
    assert await lent(database) is None
    async with database.scoped(caller.handle) as conn:
        row = await schedules.get(conn, "nightly")
        assert (row.due_at, row.paused_at is not None, row.error_code) == (None, True, "schedule.key_ended")
        assert row.error_detail and bob.key_id in row.error_detail
        await schedules.take(conn, "nightly")
        row = await schedules.get(conn, "nightly")
        assert (row.user_id, row.key_id) == (caller.user, caller.key_id)


async def test_only_a_living_key_takes_a_schedule_over_and_only_in_its_tenant(database: Database) -> None:
    caller, other = await enter(database, "acme"), await enter(database, "rival")
    bob = await colleague(database, caller)
    await due(database, caller)
    async with database.scoped(caller.handle) as conn:
        await keys.revoke(conn, bob.key_id)
    for stranger in (bob, other):
        async with database.scoped(stranger.handle) as conn:
            with pytest.raises(NotFound):
                await schedules.take(conn, "nightly")
    async with database.scoped(caller.handle) as conn:
        assert (await schedules.get(conn, "nightly")).key_id == caller.key_id


async def test_a_time_is_fired_once_and_a_deleted_schedule_leaves_its_runs(database: Database) -> None:
    caller, other = await enter(database, "acme"), await enter(database, "rival")
    for one in (caller, other):
        await due(database, one)
    first, second, theirs = [await submit(database, one) for one in (caller, caller, other)]
    async with database.scoped(other.handle) as conn:
        await schedules.made(conn, "nightly", theirs, AT)
    async with database.scoped(caller.handle) as conn:
        await schedules.made(conn, "nightly", first, AT)
        with pytest.raises(Conflict):
            async with conn.transaction():
                await schedules.made(conn, "nightly", second, AT)
        with pytest.raises(asyncpg.ForeignKeyViolationError):
            async with conn.transaction():
                await schedules.made(conn, "nightly", new_id("run"), None)
        await schedules.delete(conn, "nightly")
        assert [run.id for run in (await runs.page(conn, RunFilter(schedule="nightly"))).rows] == [first]


async def test_nobody_waits_for_a_schedule_that_another_process_fires(database: Database) -> None:
    caller = await enter(database)
    for n in range(20):
        await due(database, caller, f"n{n}")
    seen: list[str] = []

    async def process() -> None:
        while True:
            async with schedules.lent(database) as found:
                if found is None:
                    return
                seen.append(found[1].name)
                await schedules.change(found[0], found[1].name, due_at=None)

    await asyncio.wait_for(asyncio.gather(*(process() for _ in range(5))), 30)
    assert sorted(seen) == sorted(f"n{n}" for n in range(20))
