"""A blob goes once nothing names it, and is never lost to whoever names it at that moment."""

import asyncio
import hashlib

import pytest
from aged_runs import age, expire, there
from msgspec.structs import replace
from scripted_runs import AT, blocked, enter, hired, new_id, new_run, post

from sojourn.errors import BudgetSpent
from sojourn.loop import events as ev
from sojourn.loop.machine import begin
from sojourn.loop.messages import File, said
from sojourn.store import queue, runs
from sojourn.store.db import Connection, Database
from sojourn.store.retention import deletion, expiry
from sojourn.store.rows import Principal
from sojourn.store.tenant import blobs, sessions


def name(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


async def upload(database: Database, caller: Principal, data: bytes, *, keep_s: float = 0.0) -> str:
    async with database.scoped(caller.handle) as conn:
        digest = await blobs.put(conn, data, bytes_max=100)
        await blobs.hold(conn, digest, keep_s=keep_s)
    return digest


async def begin_with(database: Database, caller: Principal, digest: str) -> tuple[str, str]:
    """A run whose first message has a file; its id and its session's."""
    async with database.scoped(caller.handle) as conn:
        session_id = new_id("ses")
        await sessions.create(conn, session_id)
        new = new_run(caller, session_id)
        began = replace(new.event, message=said("in", "look", File(digest, "text/plain")))
        await runs.create(conn, replace(new, event=began, continuation=begin(began)), queued_max=10)
    return began.run_id, session_id


async def left(database: Database) -> set[str]:
    """Sweep, and name the blobs that are left."""
    await expiry.blobs(database)
    return (await there(database))["blob"]


async def test_an_upload_that_nothing_names_goes_after_its_time(database: Database) -> None:
    caller = await enter(database)
    at_once, later = await upload(database, caller, b"1"), await upload(database, caller, b"2", keep_s=3600)
    assert at_once not in await left(database)
    assert await left(database) == {later}
    await age(database, 1)
    assert not await left(database)


async def test_a_repeated_upload_begins_its_time_anew(database: Database) -> None:
    caller = await enter(database)
    digest = await upload(database, caller, b"1", keep_s=3600)
    await age(database, 1)
    await upload(database, caller, b"1", keep_s=3600)
    assert await left(database) == {digest}


async def test_what_is_said_to_a_run_keeps_its_blobs_for_as_long_as_the_run(database: Database) -> None:
    caller = await enter(database)
    first, second, both = [await upload(database, caller, data) for data in (b"1", b"2", b"3")]
    run_id, _ = await begin_with(database, caller, first)
    letter = said("more", "and", File(second, "text/plain"), File(both, "text/plain"))
    await post(database, caller, run_id, ev.Said(at=AT, message=letter))
    other, _ = await begin_with(database, caller, both)
    for _ in range(2):
        assert await left(database) == {first, second, both}
        await age(database, 8)
    async with hired(database) as worker:
        for hand in await worker.take(2):
            mail = (await mail_of(database, hand.claimed.tenant, hand.run_id)) if hand.run_id == run_id else []
            await hand.commit(*(event for _, event in mail), inbox=[row for row, _ in mail])
            await hand.finish(0)
    async with database.scoped(caller.handle) as conn:
        await deletion.run(conn, run_id)
    assert await left(database) == {both}, "the other run names it, too"
    async with database.scoped(caller.handle) as conn:
        await deletion.run(conn, other)
    assert not await left(database)


async def mail_of(database: Database, tenant: str, run_id: str) -> list[tuple[int, ev.Event]]:
    return (await queue.mail(database, [(tenant, run_id)]))[run_id]


async def test_the_blobs_of_a_session_that_expired_go_with_it(database: Database) -> None:
    caller = await enter(database)
    digest = await upload(database, caller, b"1")
    await begin_with(database, caller, digest)
    async with hired(database) as worker:
        await (await worker.take_one()).finish(0)
    await age(database, 31)
    assert await left(database) == {digest}, "it is looked at again in a week"
    gone = await expire(database, days=30)
    assert (gone["sessions"], gone["blobs"]) == (1, 1)


async def test_a_deleted_run_does_not_take_a_fresh_upload_along(database: Database) -> None:
    caller = await enter(database)
    digest = await upload(database, caller, b"1", keep_s=3600)
    run_id, _ = await begin_with(database, caller, digest)
    async with hired(database) as worker:
        await (await worker.take_one()).finish(0)
    async with database.scoped(caller.handle) as conn:
        await deletion.run(conn, run_id)
    assert await left(database) == {digest}
    await age(database, 1)
    assert not await left(database)


async def test_one_tenants_blob_is_not_kept_or_lost_by_another(database: Database) -> None:
    caller, other = await enter(database), await enter(database, "rival")
    digest = await upload(database, caller, b"1")
    await begin_with(database, caller, digest)
    await upload(database, other, b"1")
    await left(database)
    async with database.scoped(caller.handle) as conn:
        assert await blobs.get(conn, digest) == b"1"
    async with database.scoped(other.handle) as conn:
        assert not await blobs.about(conn, [digest])


async def test_only_the_last_archive_of_a_session_stays_and_goes_with_it(database: Database) -> None:
    caller, session_id = await enter(database), new_id("ses")
    async with database.scoped(caller.handle) as conn:
        await sessions.create(conn, session_id)

    async def put_away(data: bytes | None) -> str | None:
        async with database.scoped(caller.handle) as conn:
            digest = await blobs.put(conn, data, bytes_max=100) if data else None
            await sessions.save_workspace(conn, session_id, digest=digest)
        return digest

    await put_away(b"first")
    assert await left(database) == {name(b"first")}
    assert await put_away(b"second")
    assert await left(database) == {name(b"second")}
    await put_away(b"second")
    await put_away(None)
    assert await left(database) == {name(b"second")}
    async with database.scoped(caller.handle) as conn:
        await sessions.close(conn, session_id)
        await deletion.session(conn, session_id)
    assert not await left(database)


async def test_a_blob_of_older_code_stays(database: Database) -> None:
    caller = await enter(database)
    async with database.scoped(caller.handle) as conn:
        await conn.execute(
            "insert into blob (tenant, digest, bytes, data) values ('acme', $1, 1, 'x') on conflict do nothing",
            name(b"x"),
        )
    await upload(database, caller, b"x")
    await age(database, 1000)
    assert await left(database) == {name(b"x")}


async def test_a_sweep_takes_no_more_than_it_is_told(database: Database) -> None:
    caller = await enter(database)
    for n in range(5):
        await upload(database, caller, bytes([n]) * 10)
    async with database.engine() as engine:
        assert tuple(await engine.fetchrow("select * from sweep_blobs(2, 1000)")) == (2, 2)
        assert tuple(await engine.fetchrow("select * from sweep_blobs(10, 15)")) == (2, 2)
    assert not await left(database)


async def test_what_a_tenant_keeps_is_counted_as_blobs_come_and_go(database: Database) -> None:
    caller, other = await enter(database), await enter(database, "rival")
    await upload(database, other, b"x" * 50)
    for n in range(120):
        await upload(database, caller, b"%03d" % n, keep_s=3600 if n < 20 else 0)
    await upload(database, caller, b"000")
    assert await kept_bytes(database, caller) == 360
    for _ in range(2):
        assert len(await left(database)) >= 20
    assert await kept_bytes(database, caller) == 60
    assert await kept_bytes(database, other) == 0
    async with database.scoped(caller.handle) as conn:
        assert await conn.fetchval("select count(*) from blob_tally") < 120
        with pytest.raises(BudgetSpent):
            await blobs.put(conn, b"more", bytes_max=100, tenant_bytes_max=63)


async def kept_bytes(database: Database, caller: Principal) -> int:
    async with database.scoped(caller.handle) as conn:
        return int(await conn.fetchval(blobs.ALL_BYTES))


# ---- races -----------------------------------------------------------------------------------


async def sweep(engine: Connection) -> int:
    return int(await engine.fetchval("select gone from sweep_blobs(100, 1000000)"))


async def test_an_upload_at_the_moment_of_the_deletion_is_kept(database: Database) -> None:
    caller = await enter(database)
    digest = await upload(database, caller, b"1")
    async with database.engine() as engine, engine.transaction():
        assert await sweep(engine) == 1
        again = asyncio.create_task(upload(database, caller, b"1", keep_s=3600))
        await blocked(database)
    assert await again == digest
    assert await left(database) == {digest}
    async with database.scoped(caller.handle) as conn:
        assert await blobs.get(conn, digest) == b"1"


async def test_an_upload_that_is_not_committed_yet_is_not_swept(database: Database) -> None:
    caller = await enter(database)
    digest = await upload(database, caller, b"1")
    async with database.scoped(caller.handle) as conn:
        await blobs.put(conn, b"1", bytes_max=100)
        async with database.engine() as engine:
            assert await sweep(engine) == 0
        await blobs.hold(conn, digest, keep_s=3600)
    assert await left(database) == {digest}


async def test_what_is_looked_up_to_be_named_is_not_swept_before(database: Database) -> None:
    caller = await enter(database)
    digest = await upload(database, caller, b"1")
    async with database.scoped(caller.handle) as conn:
        assert await blobs.about(conn, [digest], keep=True)
        async with database.engine() as engine:
            assert await sweep(engine) == 0
        await blobs.use(conn, digest, run_id="run_1")
    assert await left(database) == {digest}


async def test_what_is_being_swept_is_not_found(database: Database) -> None:
    caller = await enter(database)
    digest = await upload(database, caller, b"1")

    async def look() -> bool:
        async with database.scoped(caller.handle) as conn:
            return digest in await blobs.about(conn, [digest], keep=True)

    async with database.engine() as engine, engine.transaction():
        assert await sweep(engine) == 1
        looking = asyncio.create_task(look())
        await blocked(database)
    assert not await looking


@pytest.mark.parametrize("first", ["use", "archive"])
async def test_a_name_that_comes_while_it_is_swept_is_refused_and_never_dangles(database: Database, first: str) -> None:
    caller, session_id = await enter(database), new_id("ses")
    digest = await upload(database, caller, b"1")
    async with database.scoped(caller.handle) as conn:
        await sessions.create(conn, session_id)

    async def naming() -> None:
        async with database.scoped(caller.handle) as conn:
            if first == "use":
                await blobs.use(conn, digest, run_id="run_1")
            else:
                await sessions.save_workspace(conn, session_id, digest=digest)

    async with database.engine() as engine, engine.transaction():
        assert await sweep(engine) == 1
        task = asyncio.create_task(naming())
        await blocked(database)
    with pytest.raises(Exception, match="foreign key"):
        await task
    assert not (await there(database))["blob_use"]


async def test_everything_at_once_comes_to_rest(database: Database) -> None:
    caller = await enter(database)
    digests = [await upload(database, caller, bytes([n])) for n in range(8)]
    names = [(await begin_with(database, caller, digest))[0] for digest in digests]
    async with hired(database) as worker:
        for hand in await worker.take(8):
            await hand.finish(0)

    async def delete(run_id: str) -> None:
        async with database.scoped(caller.handle) as conn:
            await deletion.run(conn, run_id)

    again = [upload(database, caller, bytes([n]), keep_s=3600) for n in range(4)]
    await asyncio.gather(*map(delete, names), *again, *(expire(database) for _ in range(6)))
    assert await left(database) == set(digests[:4])
