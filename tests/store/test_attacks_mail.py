"""Floods of mail: an inbox and a snapshot do not grow without bound, and what ends or decides a run always arrives."""

import pytest
from msgspec.structs import replace
from scripted_runs import AT, enter, hired, submit

from sojourn.errors import OverLimit, Unreadable
from sojourn.loop import events as ev
from sojourn.loop.continuation import Signal
from sojourn.loop.messages import said
from sojourn.store import runs
from sojourn.store.db import Database
from sojourn.store.rows import Principal, Release
from sojourn.store.runs import mailing

CANCELLED = ev.Cancelled(at=AT, by="ann")


def signalled(n: int, data: str = "") -> ev.Signalled:
    return ev.Signalled(at=AT, signal=Signal(id=f"s{n}", name="paid", data=data))


async def post(database: Database, caller: Principal, run_id: str, *events: ev.Event) -> None:
    async with database.scoped(caller.handle) as conn:
        for event in events:
            await runs.post(conn, run_id, event)


async def test_a_flood_of_signals_to_a_run_that_nobody_drives_ends_at_a_bound(database: Database) -> None:
    caller = await enter(database)
    run_id, other = await submit(database, caller), await submit(database, caller)
    await post(database, caller, run_id, *map(signalled, range(mailing.MAIL_MAX)))
    for one in (signalled(-1), ev.Said(at=AT, message=said("u", "hurry")), ev.Paused(at=AT, by="ann")):
        with pytest.raises(OverLimit) as caught:
            await post(database, caller, run_id, one)
        assert (caught.value.code, caught.value.http_status) == ("limit.reached", 429)
    await post(database, caller, other, signalled(0))
    await post(database, caller, run_id, ev.Decided(at=AT, wait="/0.0?0", by="ann", decision="approve"), CANCELLED)


async def test_a_few_large_letters_are_a_flood_too(database: Database) -> None:
    caller = await enter(database)
    run_id = await submit(database, caller)
    large = "x" * (mailing.MAIL_BYTES_MAX // 4)
    await post(database, caller, run_id, *(signalled(n, large) for n in range(3)))
    with pytest.raises(OverLimit):
        await post(database, caller, run_id, signalled(3, large))
    await post(database, caller, run_id, signalled(4), CANCELLED)


async def test_a_run_that_carries_much_that_it_has_not_heard_takes_no_more_words(database: Database) -> None:
    caller = await enter(database)
    run_id = await submit(database, caller)
    async with hired(database) as worker:
        hand = await worker.take_one()
        large = "x" * (mailing.SNAPSHOT_BYTES_MAX // 2)
        await hand.commit(signalled(0, large), signalled(1, large), release=Release(status="suspended"))
    with pytest.raises(OverLimit):
        await post(database, caller, run_id, signalled(2))
    await post(database, caller, run_id, CANCELLED)


async def test_mail_of_a_newer_release_is_no_bug_for_who_decides(database: Database) -> None:
    caller = await enter(database)
    run_id = await submit(database, caller)
    async with database.scoped(caller.handle) as conn:
        insert = "insert into inbox (tenant, run_id, event) values (scope_tenant(), $1, $2)"
        await conn.execute(insert, run_id, b'{"type":"of tomorrow"}')
        with pytest.raises(Unreadable):
            await runs.asked(conn, run_id)


async def test_what_was_decided_on_other_questions_is_not_read(database: Database) -> None:
    caller = await enter(database)
    run_id = await submit(database, caller)
    mine = ev.Decided(at=AT, wait='/0.0?1"é', by="ann", decision="answer", text='"wait":"/9.9?0"')
    others = [replace(mine, wait=f"/0.{n}?1") for n in range(5)]
    insert = "insert into journal (tenant, run_id, seq, at, kind, event) values ($1, $2, $3, now(), 'decided', $4)"
    async with database.engine() as engine:
        for seq, event in enumerate([*others, mine], 2):
            await engine.execute(insert, caller.tenant, run_id, seq, ev.encode(event))
    async with database.scoped(caller.handle) as conn:
        assert await runs.decided(conn, run_id, mine.wait) == (mine,)
        assert await runs.decided(conn, run_id, "/9.9?0") == ()
        assert await runs.decided(conn, run_id, "/0.3?") == (others[3],)
