"""What a confined user does with its own: runs, sessions, bytes, imports, as anybody does with theirs."""

import pytest
from msgspec.structs import replace
from scripted_runs import (
    AT,
    Hand,
    Worker,
    asked,
    confined,
    enter,
    furnish,
    hired,
    new_id,
    new_run,
    post,
    submit,
    words,
)

from sojourn.errors import BadSeal, Conflict, NotFound, QueueFull
from sojourn.loop import events as ev
from sojourn.loop.agent import digest
from sojourn.loop.continuation import Segment, fresh
from sojourn.loop.messages import said
from sojourn.store import runs
from sojourn.store.db import Database
from sojourn.store.rows import Principal
from sojourn.store.runs.snapshots import encode, freeze
from sojourn.store.tenant import blobs, idempotency, issuers, sessions, usage


@pytest.fixture
async def ann(database: Database) -> Principal:
    """The user who has everything, and a handle that sees it all."""
    return await furnish(database, "acme")


@pytest.fixture
async def bob(database: Database, ann: Principal) -> Principal:
    """Another user, who is confined."""
    return await confined(database, ann, "bob")


async def test_a_run_of_ones_own_is_read_and_answered_as_any(database: Database, bob: Principal) -> None:
    async with hired(database, "w2") as worker:
        run_id = await submit(database, bob, "hello")
        hand = await take(worker, run_id)
        await hand.step(0)
        await hand.finish(1)
        with pytest.raises(Conflict, match="has ended"):
            await post(database, bob, run_id, words())
        async with database.scoped(bob.handle) as conn:
            assert [row.id for row in (await runs.page(conn)).rows] == [run_id]
            assert len(await runs.events(conn, run_id)) > 4
            assert len((await runs.transcript(conn, run_id)).root.messages) > 2
            session_id = (await runs.get(conn, run_id)).session_id
            assert await usage.ledger(conn, run_id) == [], "its rows are the user's who paid: ann's, in these tests"
            assert (await sessions.page(conn, user_id="bob")).rows[0].id == session_id
        again = await submit(database, bob, "more", session_id=session_id)
        await (await take(worker, again)).finish(0)
        async with database.scoped(bob.handle) as conn:
            assert "hello" in str((await runs.transcript(conn, again)).root.messages)


async def take(worker: Worker, run_id: str) -> Hand:
    """Claim until the run is held."""
    for _ in range(20):
        for hand in await worker.take():
            if hand.run_id == run_id:
                return hand
    raise AssertionError(run_id)


async def test_in_a_session_of_another_user_there_is_nothing_of_ones_own(database: Database, ann: Principal) -> None:
    """An admin's run in a user's session stays the admin's, and the user's own run in another's is not shown."""
    async with database.scoped(ann.handle) as conn:
        session = await conn.fetchval("select id from session")
    async with database.migrator() as owner:
        await owner.execute("alter table run no force row level security")
        await owner.execute("update run set user_id = 'bob' where session_id = $1", session)
        await owner.execute("alter table run force row level security")
    bob = await confined(database, ann, "bob")
    for caller in (bob, await confined(database, ann, "ann")):
        async with database.scoped(caller.handle) as conn:
            assert await conn.fetch("select id from run union all select run_id from journal") == []


async def test_bytes_are_read_by_whom_they_were_brought(database: Database, ann: Principal, bob: Principal) -> None:
    data = b"secret of acme"
    digest = blobs.digest_of(data)
    async with database.scoped(bob.handle) as conn:
        with pytest.raises(NotFound):
            await blobs.get(conn, digest)
        assert await blobs.put(conn, data, bytes_max=100, tenant_bytes_max=1000) == digest
        await blobs.hold(conn, digest, keep_s=60)
        assert await blobs.get(conn, digest) == data
    eve = await confined(database, ann, "eve")
    async with database.scoped(eve.handle) as conn:
        assert await blobs.about(conn, [digest], keep=True) == {}
        new = b"mine"
        assert await blobs.get(conn, await blobs.put(conn, new, bytes_max=100)) == new
    async with database.scoped(ann.handle) as conn:
        assert await blobs.get(conn, digest) == data
    async with database.migrator() as owner:  # and with the bytes goes who brought them
        for table in ("blob", "upload", "blob_use"):
            await owner.execute(f"alter table {table} no force row level security")
        assert await owner.fetchval("select count(*) from upload") == 2
        await owner.execute("alter table blob disable trigger tally_blobs; delete from blob_use; delete from blob")
        assert await owner.fetchval("select count(*) from upload") == 0


async def test_naming_a_blob_does_not_open_it(database: Database, ann: Principal, bob: Principal) -> None:
    digest = blobs.digest_of(b"secret of acme")
    mine = await submit(database, bob, f"what is {digest}?")
    await post(database, bob, mine, ev.Said(at=AT, message=said("m", digest)))
    async with database.scoped(bob.handle) as conn:
        assert await blobs.about(conn, [digest]) == {}
        assert await conn.fetch("select digest from blob_use") == []


INSERT = """
insert into run (tenant, id, session_id, user_id, agent_name, agent_version, agent_digest, due_at, ready, seq, limits,
    labels, snapshot)
values ('acme', $1, $2, 'bob', 'clerk', 1, $3, now(), true, 1, '{}', '{}', $4)
"""


SPOKEN = "insert into message (tenant, run_id, frame_id, slot, body) values ('acme', $1, $2, $3, $4)"


async def test_a_worker_reads_no_history_of_another_session(database: Database, ann: Principal, bob: Principal) -> None:
    """Past the API, a snapshot may name any run as what was said before."""
    theirs = await submit(database, ann, "between ann and her doctor")
    async with database.scoped(bob.handle) as conn:
        await sessions.create(conn, session_id := new_id("ses"))
        crafted = new_run(bob, session_id, history=(Segment(theirs, 0, 1),))
        values = (crafted.event.run_id, session_id, digest(crafted.agent), freeze(crafted.continuation))
        await conn.execute(INSERT, *values)
        for frame, slot, message in fresh(None, crafted.continuation):
            await conn.execute(SPOKEN, crafted.event.run_id, frame, slot, encode(message))
    async with hired(database, "w4") as worker:
        with pytest.raises(BadSeal):
            await take(worker, crafted.event.run_id)


async def test_a_key_of_idempotency_is_ones_own(database: Database, bob: Principal) -> None:
    async with database.scoped(bob.handle) as conn:
        assert await idempotency.begin(conn, "once", route="r", request_digest="other", ttl_s=60) is None


async def test_an_import_of_another_user_is_neither_known_nor_in_the_way(
    database: Database, ann: Principal, bob: Principal
) -> None:
    eve = await confined(database, ann, "eve")
    mine = await submit(database, bob)
    async with database.scoped(bob.handle) as conn:
        from_elsewhere = await runs.continuation(conn, mine)
    elsewhere = replace(from_elsewhere, run_id="run_elsewhere")
    for caller in (bob, eve):
        async with database.scoped(caller.handle) as conn:
            await runs.arrive(conn, elsewhere, f"run_of_{caller.user}")
            with pytest.raises(Conflict, match=f"run_of_{caller.user}"):
                await runs.arrive(conn, elsewhere, "run_twice")
    async with database.scoped(bob.handle) as conn:
        assert {row[0] for row in await conn.fetch("select became from imported_run")} == {"run_of_bob"}


async def test_the_queue_of_the_tenant_is_full_for_all(database: Database) -> None:
    ann = await enter(database)
    await submit(database, ann)
    bob = await confined(database, ann, "bob")
    async with database.scoped(bob.handle) as conn:
        await sessions.create(conn, session_id := new_id("ses"))
        with pytest.raises(QueueFull):
            await runs.create(conn, new_run(bob, session_id), queued_max=1)


async def test_an_export_is_signed_for_a_confined_caller_too(database: Database, bob: Principal) -> None:
    async with database.scoped(bob.handle) as conn:
        assert (await issuers.sealing(conn, ("ed25519:" + "A" * 43, bytes(32))))[0].startswith("ed25519:")


async def test_events_that_a_worker_writes_are_seen_at_once(database: Database, bob: Principal) -> None:
    run_id = await submit(database, bob)
    async with hired(database, "w3") as worker:
        hand = await take(worker, run_id)
        async with database.scoped(bob.handle) as conn:
            before = len(await runs.events(conn, run_id))
            await hand.commit(asked(0))
            assert len(await runs.events(conn, run_id)) == before + 1
