"""API keys that are replaced: two keys for a while, then one, and never more than was asked for."""

import asyncio
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from scripted_runs import enter

from sojourn.errors import Conflict, Forbidden, NotFound, Unauthenticated
from sojourn.store.db import Database
from sojourn.store.rows import KeyRow, Principal
from sojourn.store.tenant import keys

DAY = timedelta(days=1)


@pytest.fixture
async def manager(database: Database) -> Principal:
    return await enter(database)


async def made(database: Database, manager: Principal, *, lives: timedelta | None = None) -> tuple[KeyRow, str]:
    async with database.scoped(manager.handle) as conn:
        expires_at = datetime.now(UTC) + lives if lives else None
        return await keys.create(conn, user="bob", name="ci", scopes=["runs:read"], expires_at=expires_at)


async def replaced(database: Database, manager: Principal, key_id: str, overlap: timedelta) -> tuple[KeyRow, str]:
    async with database.scoped(manager.handle) as conn:
        return await keys.replace(conn, key_id, overlap)


async def read(database: Database, manager: Principal, key_id: str) -> KeyRow:
    async with database.scoped(manager.handle) as conn:
        return await keys.get(conn, key_id)


async def test_both_keys_are_good_during_the_overlap(database: Database, manager: Principal) -> None:
    old, old_token = await made(database, manager)
    new, new_token = await replaced(database, manager, old.id, DAY)
    assert (new.name, new.user_id, new.scopes, new.expires_at) == ("ci", "bob", ("runs:read",), None)
    for token, key in ((old_token, old), (new_token, new)):
        caller = await keys.authenticate(database, token)
        assert (caller.key_id, caller.user, caller.scopes) == (key.id, "bob", {"runs:read"})
    old = await read(database, manager, old.id)
    assert old.replaced_by == new.id
    assert old.expires_at is not None
    assert DAY - timedelta(minutes=5) < old.expires_at - datetime.now(UTC) <= DAY


async def test_without_an_overlap_the_key_ends_at_once(database: Database, manager: Principal) -> None:
    old, old_token = await made(database, manager)
    _, new_token = await replaced(database, manager, old.id, timedelta(0))
    with pytest.raises(Unauthenticated):
        await keys.authenticate(database, old_token)
    assert await keys.authenticate(database, new_token)


async def test_no_key_lives_longer_because_it_was_replaced(database: Database, manager: Principal) -> None:
    old, _ = await made(database, manager, lives=timedelta(hours=1))
    new, _ = await replaced(database, manager, old.id, DAY)
    assert (await read(database, manager, old.id)).expires_at == old.expires_at
    assert new.expires_at is not None and old.expires_at is not None
    assert new.expires_at - new.created_at == old.expires_at - old.created_at
    third, _ = await replaced(database, manager, new.id, timedelta(seconds=1))
    assert third.expires_at is not None
    assert third.expires_at - third.created_at == old.expires_at - old.created_at, "nor shorter, however often"


async def test_a_key_has_one_successor_whoever_asks_at_once(database: Database, manager: Principal) -> None:
    old, _ = await made(database, manager)
    asked = (replaced(database, manager, old.id, DAY) for _ in range(5))
    answers = await asyncio.gather(*asked, return_exceptions=True)
    (new,) = [answer[0] for answer in answers if isinstance(answer, tuple)]
    refusals = [answer for answer in answers if not isinstance(answer, tuple)]
    assert all(isinstance(one, Conflict) and new.id in str(one) and one.code == "key.ended" for one in refusals)
    async with database.scoped(manager.handle) as conn:
        assert len((await keys.page(conn))[0]) == 3


async def test_a_key_that_has_ended_has_no_successor(database: Database, manager: Principal) -> None:
    revoked, _ = await made(database, manager)
    async with database.scoped(manager.handle) as conn:
        await keys.revoke(conn, revoked.id)
    expired, _ = await made(database, manager, lives=-DAY)
    for key, why in ((revoked, "was revoked"), (expired, "has expired")):
        with pytest.raises(Conflict, match=why):
            await replaced(database, manager, key.id, DAY)


async def test_a_foreign_key_is_not_there(database: Database, manager: Principal) -> None:
    foreign = await enter(database, "rival")
    for key_id in (foreign.key_id, "key_none", "", "x' or true --"):
        with pytest.raises(NotFound):
            await replaced(database, manager, key_id, DAY)
    assert (await read(database, foreign, foreign.key_id)).replaced_by is None


async def test_only_a_key_manager_replaces_keys(database: Database, manager: Principal) -> None:
    old, token = await made(database, manager)
    narrow = await keys.authenticate(database, token)
    with pytest.raises(Forbidden):
        await replaced(database, narrow, old.id, DAY)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with database.scoped(manager.handle) as conn:
            await conn.execute("update api_key set replaced_by = null, expires_at = null")


async def test_a_replacement_that_does_not_commit_changes_nothing(database: Database, manager: Principal) -> None:
    old, token = await made(database, manager)
    with pytest.raises(RuntimeError):
        async with database.scoped(manager.handle) as conn:
            await keys.replace(conn, old.id, timedelta(0))
            raise RuntimeError
    assert await keys.authenticate(database, token)
    assert (await read(database, manager, old.id)).replaced_by is None


async def test_schedules_act_as_the_successor(database: Database, manager: Principal) -> None:
    old, token = await made(database, manager)
    bob = await keys.authenticate(database, token)
    async with database.scoped(bob.handle) as conn:
        await conn.execute(
            "insert into schedule (tenant, name, user_id, key_id, spec, since)"
            " values ('acme', 'nightly', 'bob', $1, '{}', now())",
            old.id,
        )
    new, _ = await replaced(database, manager, old.id, timedelta(0))
    async with database.scoped(manager.handle) as conn:
        assert await conn.fetchval("select key_id from schedule") == new.id
