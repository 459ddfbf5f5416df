"""Who gets which scope: callers for their keys, workers for their leases."""

from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from msgspec.structs import replace
from scripted_runs import enter, furnish, hired, submit

from sojourn.errors import Forbidden, LeaseLost, NotFound, Unauthenticated
from sojourn.store import queue
from sojourn.store.db import Database
from sojourn.store.rows import Principal, Release
from sojourn.store.tenant import blobs, keys, sessions


@pytest.fixture
async def two(database: Database) -> tuple[Principal, Principal]:
    return await furnish(database, "acme"), await furnish(database, "rival")


# ---- keys ------------------------------------------------------------------------------------


async def test_a_key_opens_its_tenant_until_it_is_revoked(database: Database) -> None:
    caller = await enter(database)
    async with database.scoped(caller.handle) as conn:
        row, token = await keys.create(conn, user="bob", name="laptop", scopes=["runs:write"])
    bob = await keys.authenticate(database, token)
    assert (bob.tenant, bob.user, bob.key_id, bob.scopes) == ("acme", "bob", row.id, {"runs:write"})
    assert token.startswith(row.prefix)
    assert len(row.prefix) < 12
    assert timedelta(0) < bob.expires_at - datetime.now(UTC) <= timedelta(minutes=5)
    assert bob.handle not in repr(bob)
    with pytest.raises(Forbidden):
        async with database.scoped(bob.handle) as conn:
            await keys.create(conn, user="bob", name="more", scopes=["*"])
    with pytest.raises(Forbidden):
        async with database.scoped(bob.handle) as conn:
            await keys.revoke(conn, caller.key_id)
    async with database.scoped(caller.handle) as conn:
        await keys.revoke(conn, row.id)
        found = {key.id: key for key in (await keys.page(conn))[0]}
        assert found[row.id].revoked_at is not None
        assert found[row.id].last_used_at is not None
        with pytest.raises(NotFound):
            await keys.revoke(conn, "key_none")
    for unknown in (token, "", "sj_", "\0", "\ud800", "x" * 10_000):
        with pytest.raises(Unauthenticated):
            await keys.authenticate(database, unknown)


async def test_a_revoked_manager_manages_no_longer(database: Database) -> None:
    caller = await enter(database)
    async with database.scoped(caller.handle) as conn:
        await keys.revoke(conn, caller.key_id)
    with pytest.raises(Forbidden):
        async with database.scoped(caller.handle) as conn:
            await keys.create(conn, user="ann", name="again", scopes=["*"])


async def test_another_tenants_key_is_not_there(database: Database, two: tuple[Principal, Principal]) -> None:
    mine, other = two
    async with database.scoped(mine.handle) as conn:
        with pytest.raises(NotFound):
            await keys.revoke(conn, other.key_id)
        assert {key.id for key in (await keys.page(conn))[0]} == {mine.key_id}


async def test_the_first_key_is_made_once(database: Database) -> None:
    assert await keys.bootstrap(database) is not None
    assert await keys.bootstrap(database) is None


# ---- the engine's role -----------------------------------------------------------------------


async def test_the_engine_sees_no_blob_and_no_key(database: Database, two: tuple[Principal, Principal]) -> None:
    async with database.engine() as engine:
        assert await engine.fetchval("select count(*) from blob") == 0
        assert await engine.execute("update session set workspace = 'x'") == "UPDATE 0"
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await blobs.put(engine, b"x", bytes_max=1)
        for table in ("api_key", "tenant", "scope_key", "agent", "agent_version"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await engine.fetch(f"select * from {table}")
        for statement in ("select authenticate('')", "select scope_mint('acme', 'ann', '', now())"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await engine.execute(statement)


async def test_a_lease_lends_the_scope_of_its_run(database: Database, two: tuple[Principal, Principal]) -> None:
    mine, other = two
    async with database.scoped(mine.handle) as conn:
        mine_blob = await conn.fetchval("select digest from blob")
    run_id = await submit(database, mine)
    async with hired(database) as worker, hired(database, "w2") as stranger:
        hand = await worker.take_one()
        session_id = hand.state.session_id
        async with queue.lent(database, worker.id, hand.claimed) as conn:
            assert await blobs.get(conn, mine_blob) == b"secret of acme"
            digest = await blobs.put(conn, b"files", bytes_max=10)
            await sessions.save_workspace(conn, session_id, digest=digest, host="here")
            assert await conn.execute("update session set closed_at = now() where tenant = 'rival'") == "UPDATE 0"
        async with database.engine() as engine:
            assert await engine.fetchval("select count(*) from blob") == 0, "the scope ends with the transaction"
        for borrower, claimed in (
            (stranger.id, hand.claimed),
            (worker.id, replace(hand.claimed, fence=hand.claimed.fence - 1)),
            (worker.id, replace(hand.claimed, fence=hand.claimed.fence + 1)),
            (worker.id, replace(hand.claimed, tenant=other.tenant)),
            (worker.id, replace(hand.claimed, run_id="run_none")),
        ):
            with pytest.raises(LeaseLost):
                async with queue.lent(database, borrower, claimed):
                    pass
        await hand.commit(release=Release(status="queued"))
        with pytest.raises(LeaseLost):
            async with queue.lent(database, worker.id, hand.claimed):
                pass
    async with database.scoped(mine.handle) as conn:
        assert await sessions.workspace(conn, session_id) == digest
        assert await blobs.get(conn, digest) == b"files"
    assert run_id == hand.run_id


async def test_an_idle_session_is_lent_to_the_host_of_its_sandbox(database: Database) -> None:
    caller = await enter(database)
    await submit(database, caller)
    async with hired(database) as worker, hired(database, "w2") as other:
        hand = await worker.take_one()
        session_id = hand.state.session_id
        async with queue.lent(database, worker.id, hand.claimed) as conn:
            await sessions.place(conn, session_id, host="here", backend="bwrap", enforced=b'{"memory":true}')
        with pytest.raises(LeaseLost):
            async with queue.lent_session(database, other.id, "acme", session_id):
                pass
        assert await sessions.idle(database, host="here", older_than_s=0) == []
        await hand.commit(release=Release(status="suspended"))
        (idle,) = await sessions.idle(database, host="here", older_than_s=0)
        assert (idle.tenant, idle.id) == ("acme", session_id)
        assert await sessions.idle(database, host="there", older_than_s=0) == []
        assert await sessions.idle(database, host="here", older_than_s=3600) == []
        async with queue.lent_session(database, other.id, "acme", session_id) as conn:
            digest = await blobs.put(conn, b"files", bytes_max=10)
            await sessions.save_workspace(conn, session_id, digest=digest)
        assert await sessions.idle(database, host="here", older_than_s=0) == []
        with pytest.raises(LeaseLost):
            async with queue.lent_session(database, other.id, "acme", session_id):
                pass
    async with database.scoped(caller.handle) as conn:
        row = await sessions.get(conn, session_id)
        assert (row.workspace, row.host, row.backend, row.enforced) == (digest, None, "bwrap", b'{"memory":true}')
