"""Guardrails as rows: versions that only come, one history a name, and changes that no process misses."""

import asyncio

import pytest
from scripted_runs import enter

from sojourn.errors import NotFound, OverLimit
from sojourn.store import guardrails
from sojourn.store.audit.operator import operator
from sojourn.store.db import Database
from sojourn.store.guardrails.versions import GUARDRAILS_MAX
from sojourn.store.rows import Principal


async def put(database: Database, caller: Principal, name: str, spec: str) -> tuple[int, bool]:
    async with database.scoped(caller.handle) as conn:
        made, new = await guardrails.put(conn, caller.tenant, name, spec=spec, by=caller.user)
    return made.version, new


async def end(database: Database, caller: Principal, name: str) -> int:
    async with database.scoped(caller.handle) as conn:
        return (await guardrails.end(conn, caller.tenant, name, by=caller.user)).version


async def test_each_change_is_a_version_and_the_same_rules_are_none(database: Database) -> None:
    caller = await enter(database)
    assert [await put(database, caller, "g", spec) for spec in ("a", "a", "b", "a")] == [
        (1, True), (1, False), (2, True), (3, True),
    ]  # fmt: skip
    assert await end(database, caller, "g") == 4
    with pytest.raises(NotFound):
        await end(database, caller, "g")
    assert await put(database, caller, "g", "a") == (5, True), "it begins again where it ended"
    async with database.scoped(caller.handle) as conn:
        assert [one.spec for one in await guardrails.versions(conn, caller.tenant, "g")] == ["a", None, "a", "b", "a"]
        with pytest.raises(NotFound):
            await guardrails.versions(conn, caller.tenant, "h")


async def test_changes_at_the_same_moment_have_a_version_each(database: Database) -> None:
    caller = await enter(database)
    made = await asyncio.gather(*(put(database, caller, "g", f"rules {n}") for n in range(8)))
    assert sorted(made) == [(n, True) for n in range(1, 9)]


async def test_there_may_be_so_many_and_one_that_ended_makes_room(database: Database) -> None:
    caller = await enter(database)
    for n in range(GUARDRAILS_MAX):
        await put(database, caller, f"g{n}", "a")
    with pytest.raises(OverLimit):
        await put(database, caller, "more", "a")
    assert await put(database, caller, "g0", "b") == (2, True)
    await end(database, caller, "g0")
    assert await put(database, caller, "more", "a") == (1, True)
    with pytest.raises(OverLimit):
        await put(database, caller, "g0", "a")


async def test_of_many_that_come_at_once_no_more_than_the_limit_get_in(database: Database) -> None:
    caller = await enter(database)
    tried = [put(database, caller, f"g{n}", "a") for n in range(2 * GUARDRAILS_MAX)]
    made = await asyncio.gather(*tried, return_exceptions=True)
    assert made.count((1, True)) == GUARDRAILS_MAX
    assert sum(isinstance(one, OverLimit) for one in made) == GUARDRAILS_MAX


async def test_changes_are_the_latest_of_every_tenant_and_the_operators(database: Database) -> None:
    acme, rival = await enter(database), await enter(database, "rival")
    at, found = await guardrails.changes(database, None)
    assert found == []
    for caller in (acme, rival):
        await put(database, caller, "g", "old")
        await put(database, caller, "g", f"of {caller.tenant}")
    async with operator(database) as conn:
        await guardrails.put(conn, guardrails.EVERYBODY, "g", spec="all", by="root")
    await end(database, rival, "g")
    later, found = await guardrails.changes(database, at)
    assert sorted(map(tuple, found)) == [("*", "g", 1, "all"), ("acme", "g", 2, "of acme"), ("rival", "g", 3, None)]
    assert (await guardrails.changes(database, later))[1] == []


async def test_another_tenants_guardrail_is_one_that_does_not_exist(database: Database) -> None:
    acme, rival = await enter(database), await enter(database, "rival")
    await put(database, acme, "g", "a")
    async with database.scoped(rival.handle) as conn:
        for tenant in (acme.tenant, guardrails.EVERYBODY, rival.tenant):
            assert await guardrails.page(conn, tenant) == []
            with pytest.raises(NotFound):
                await guardrails.get(conn, tenant, "g")
