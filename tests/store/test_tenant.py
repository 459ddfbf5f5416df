"""What a tenant has besides its runs: agents, sessions, blobs, idempotent answers."""

import asyncio
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from msgspec.structs import replace
from scripted_runs import AGENT, blocked, enter, hired, new_run, submit

from sojourn.errors import Conflict, IdempotencyReused, NotFound, StaleVersion, TooLarge
from sojourn.loop.agent import Agent, Tool, digest
from sojourn.store import runs
from sojourn.store.db import Database
from sojourn.store.rows import Principal, Stored
from sojourn.store.tenant import blobs, catalog, idempotency, sessions

DRAFT = replace(AGENT, version=0)

# ---- agents ----------------------------------------------------------------------------------


async def test_versions_are_numbered_and_never_change(database: Database) -> None:
    caller = await enter(database)
    better = replace(DRAFT, system="Be brief.")
    async with database.scoped(caller.handle) as conn:
        first = await catalog.create(conn, DRAFT, by="ann")
        assert (first.version, first.digest, first.created_by) == (1, digest(replace(DRAFT, version=1)), "ann")
        second, new = await catalog.add_version(conn, better, by="bob")
        assert (second.version, new) == (2, True)
        assert (await catalog.get(conn, "clerk")).live_version == 1
        assert await catalog.resolve(conn, "clerk") == replace(DRAFT, version=1)
        assert await catalog.resolve(conn, "clerk", 2) == replace(better, version=2)
        assert await catalog.spec(conn, second.digest) == replace(better, version=2)
        assert [row.version for row in await catalog.versions(conn, "clerk")] == [2, 1]
        assert [row.version for row in await catalog.versions(conn, "clerk", before=2, limit=1)] == [1]


async def test_what_is_live_already_is_no_new_version(database: Database) -> None:
    caller = await enter(database)
    async with database.scoped(caller.handle) as conn:
        first = await catalog.create(conn, DRAFT, by="ann")
        assert await catalog.add_version(conn, DRAFT, by="bob") == (first, False)
        second, _ = await catalog.add_version(conn, replace(DRAFT, system="x"), by="bob")
        await catalog.set_live(conn, "clerk", 2)
        third, new = await catalog.add_version(conn, DRAFT, by="bob")
        assert (third.version, new) == (3, True), "it is not live any more"
        assert third.digest != first.digest
        assert second.version == 2


async def test_the_live_pointer_moves_only_from_where_it_was_seen(database: Database) -> None:
    caller = await enter(database)
    async with database.scoped(caller.handle) as conn:
        await catalog.create(conn, DRAFT, by="ann")
        await catalog.add_version(conn, replace(DRAFT, system="x"), by="ann")
        assert (await catalog.set_live(conn, "clerk", 2, expected=1)).live_version == 2
        with pytest.raises(StaleVersion):
            await catalog.set_live(conn, "clerk", 1, expected=1)
        assert (await catalog.set_live(conn, "clerk", 1)).live_version == 1
        with pytest.raises(NotFound, match="no version 9"):
            await catalog.set_live(conn, "clerk", 9)


async def test_eight_versions_at_once_have_eight_numbers(database: Database) -> None:
    caller = await enter(database)
    async with database.scoped(caller.handle) as conn:
        await catalog.create(conn, DRAFT, by="ann")

    async def add(n: int) -> int:
        async with database.scoped(caller.handle) as conn:
            return (await catalog.add_version(conn, replace(DRAFT, system=str(n)), by="ann"))[0].version

    assert sorted(await asyncio.gather(*map(add, range(8)))) == list(range(2, 10))


async def test_an_archived_agent_starts_nothing_new(database: Database) -> None:
    caller = await enter(database)
    async with database.scoped(caller.handle) as conn:
        await catalog.create(conn, DRAFT, by="ann")
        assert (await catalog.archive(conn, "clerk")).archived_at is not None
        with pytest.raises(Conflict) as refused:
            await catalog.resolve(conn, "clerk")
        assert refused.value.code == "agent.archived"


async def test_agents_have_names_of_their_own(database: Database) -> None:
    caller, other = await enter(database, "acme"), await enter(database, "rival")
    for who in (caller, other):
        async with database.scoped(who.handle) as conn:
            await catalog.create(conn, replace(DRAFT, system=who.tenant), by="ann")
    with pytest.raises(Conflict) as refused:
        async with database.scoped(caller.handle) as conn:
            await catalog.create(conn, DRAFT, by="ann")
    assert refused.value.code == "agent.exists"
    async with database.scoped(other.handle) as conn:
        assert (await catalog.resolve(conn, "clerk")).system == "rival"
        for name in ("b", "a", "d"):
            await catalog.create(conn, replace(DRAFT, name=name), by="ann")
        assert [row.name for row in await catalog.page(conn, limit=2)] == ["a", "b"]
        assert [row.name for row in await catalog.page(conn, after="b")] == ["clerk", "d"]


async def test_agents_that_are_not_there_are_not_found(database: Database) -> None:
    caller = await enter(database)
    async with database.scoped(caller.handle) as conn:
        for ask in (catalog.get, partial(catalog.version, number=1), catalog.archive, catalog.resolve, catalog.spec):
            with pytest.raises(NotFound):
                await ask(conn, "nobody")
        with pytest.raises(NotFound):
            await catalog.add_version(conn, DRAFT, by="ann")
        with pytest.raises(NotFound):
            await catalog.set_live(conn, "nobody", 1)


async def test_a_closure_holds_all_that_tools_can_start(database: Database) -> None:
    caller = await enter(database)
    leaf = Agent(name="leaf", models=("m",))
    middle = Agent(name="middle", models=("m",), tools=(Tool(name="t", executor="agent", agent=digest(leaf)),))
    root = replace(DRAFT, tools=(Tool(name="t", executor="agent", agent=digest(middle)), Tool(name="plain")))
    async with database.scoped(caller.handle) as conn:
        row = await catalog.create(conn, root, by="ann", subs=(middle, leaf))
        found = await catalog.closure(conn, [row.digest])
    assert found == {digest(agent): agent for agent in (replace(root, version=1), middle, leaf)}


# ---- sessions --------------------------------------------------------------------------------


async def test_sessions_are_created_listed_and_closed(database: Database) -> None:
    caller = await enter(database)
    async with database.scoped(caller.handle) as conn:
        for n in range(5):
            row = await sessions.create(conn, f"ses_{n}")
        assert (row.user_id, row.closed_at, row.workspace) == ("ann", None, None)
        page = await sessions.page(conn, limit=3)
        assert [row.id for row in page.rows] == ["ses_4", "ses_3", "ses_2"]
        rest = await sessions.page(conn, after=page.next, limit=3)
        assert ([row.id for row in rest.rows], rest.next) == (["ses_1", "ses_0"], None)
        assert (await sessions.close(conn, "ses_0")).closed_at is not None
        for ask in (sessions.get, sessions.close, sessions.workspace):
            with pytest.raises(NotFound):
                await ask(conn, "ses_none")
        with pytest.raises(NotFound):
            await sessions.save_workspace(conn, "ses_none", digest="sha256:x")
    with pytest.raises(Conflict):
        async with database.scoped(caller.handle) as conn:
            await sessions.create(conn, "ses_1")


async def test_a_session_with_a_run_is_not_closed(database: Database) -> None:
    caller = await enter(database)
    async with hired(database) as worker:
        await submit(database, caller)
        hand = await worker.take_one()
        session_id = hand.state.session_id
        async with database.scoped(caller.handle) as conn:
            with pytest.raises(Conflict) as refused:
                await sessions.close(conn, session_id)
            assert refused.value.code == "session.busy"
        await hand.finish(0)
        async with database.scoped(caller.handle) as conn:
            await sessions.close(conn, session_id)


async def test_a_run_and_the_end_of_its_session_cannot_cross(database: Database) -> None:
    caller = await enter(database)

    async def close() -> None:
        async with database.scoped(caller.handle) as conn:
            await sessions.close(conn, "ses_1")

    async def create() -> None:
        async with database.scoped(caller.handle) as conn:
            await runs.create(conn, new_run(caller, "ses_1"), queued_max=5)

    async with database.scoped(caller.handle) as conn:
        await sessions.create(conn, "ses_1")
    for first, second, code in (("create", close, "session.busy"), ("close", create, "session.closed")):
        async with database.scoped(caller.handle) as conn:
            if first == "create":
                new = new_run(caller, "ses_1")
                await runs.create(conn, new, queued_max=5)
            else:
                await sessions.close(conn, "ses_1")
            waiting = asyncio.create_task(second())
            await blocked(database)
        with pytest.raises(Conflict) as refused:
            await waiting
        assert refused.value.code == code
        async with hired(database) as worker:
            for hand in await worker.take():
                await hand.finish(0)


async def test_a_session_that_is_used_is_not_idle(database: Database) -> None:
    caller = await enter(database)
    async with database.scoped(caller.handle) as conn:
        await sessions.create(conn, "ses_1")
        await sessions.place(conn, "ses_1", host="here", backend="bwrap", enforced=None)
        await conn.execute("update session set used_at = now() - interval '1 hour'")
    assert [one.id for one in await sessions.idle(database, host="here", older_than_s=60)] == ["ses_1"]
    async with database.scoped(caller.handle) as conn:
        await sessions.touch(conn, "ses_1")
    assert await sessions.idle(database, host="here", older_than_s=60) == []


# ---- blobs -----------------------------------------------------------------------------------


async def test_a_blob_is_kept_once_and_by_its_content(database: Database) -> None:
    caller = await enter(database)
    data = bytes(range(256)) * 10_000
    async with database.scoped(caller.handle) as conn:
        name = await blobs.put(conn, data, bytes_max=len(data))
        assert await blobs.put(conn, data, bytes_max=len(data)) == name
        assert await blobs.get(conn, name) == data
        assert await conn.fetchval("select count(*) from blob") == 1
        assert await blobs.get(conn, await blobs.put(conn, b"", bytes_max=0)) == b""
        with pytest.raises(TooLarge, match="more than the limit of 3"):
            await blobs.put(conn, b"four", bytes_max=3)
        for name in ("sha256:" + "0" * 64, "", "x"):
            with pytest.raises(NotFound):
                await blobs.get(conn, name)


async def test_the_same_bytes_in_two_tenants_are_two_blobs(database: Database) -> None:
    caller, other = await enter(database, "acme"), await enter(database, "rival")
    async with database.scoped(caller.handle) as conn:
        name = await blobs.put(conn, b"same", bytes_max=10)
    async with database.scoped(other.handle) as conn:
        with pytest.raises(NotFound):
            await blobs.get(conn, name)
        await blobs.put(conn, b"same", bytes_max=10)
        assert await blobs.get(conn, name) == b"same"


# ---- idempotency -----------------------------------------------------------------------------


async def begin(database: Database, caller: Principal, digest: str = "d", route: str = "r") -> Stored | None:
    async with database.scoped(caller.handle) as conn:
        return await idempotency.begin(conn, "key", route=route, request_digest=digest, ttl_s=60)


async def finish(database: Database, caller: Principal) -> None:
    async with database.scoped(caller.handle) as conn:
        await idempotency.finish(conn, "key", status=202, body=b'{"run":1}')


async def test_the_same_request_is_answered_the_same(database: Database) -> None:
    caller = await enter(database)
    assert await begin(database, caller) is None
    with pytest.raises(Conflict) as refused:
        await begin(database, caller)
    assert refused.value.code == "request.in_progress"
    with pytest.raises(IdempotencyReused):
        await begin(database, caller, "other")
    await finish(database, caller)
    assert await begin(database, caller) == Stored(202, b'{"run":1}')
    for other in ({"digest": "other"}, {"route": "other"}):
        with pytest.raises(IdempotencyReused):
            await begin(database, caller, **other)


async def test_one_of_many_at_once_goes_on(database: Database) -> None:
    caller = await enter(database)
    answers = await asyncio.gather(*(begin(database, caller) for _ in range(8)), return_exceptions=True)
    assert answers.count(None) == 1
    assert sum(isinstance(answer, Conflict) for answer in answers) == 7


async def test_a_key_belongs_to_one_user_of_one_tenant(database: Database) -> None:
    caller, other = await enter(database, "acme"), await enter(database, "rival")
    assert await begin(database, caller) is None
    assert await begin(database, other) is None


async def test_a_key_can_be_used_again_after_a_failure_a_crash_or_its_time(database: Database) -> None:
    caller = await enter(database)
    await begin(database, caller)
    async with database.scoped(caller.handle) as conn:
        await idempotency.forget(conn, "key")
    assert await begin(database, caller) is None
    async with database.scoped(caller.handle) as conn:
        await conn.execute("update idempotency set created_at = now() - interval '2 minutes'")
    with pytest.raises(IdempotencyReused):
        await begin(database, caller, "other")
    assert await begin(database, caller) is None, "whoever began has died"
    await finish(database, caller)
    async with database.scoped(caller.handle) as conn:
        await idempotency.forget(conn, "key")
        await conn.execute("update idempotency set created_at = now() - interval '2 minutes'")
    assert await begin(database, caller) is not None, "an answer stays"
    assert await idempotency.prune(database) == 0
    async with database.scoped(caller.handle) as conn:
        await conn.execute("update idempotency set expires_at = $1", datetime.now(UTC) - timedelta(seconds=1))
    assert await begin(database, caller, "other") is None
    async with database.scoped(caller.handle) as conn:
        await conn.execute("update idempotency set expires_at = $1", datetime.now(UTC) - timedelta(seconds=1))
    assert await idempotency.prune(database) == 1
