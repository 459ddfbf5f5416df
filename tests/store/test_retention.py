"""What has expired goes as a whole, what is read by something that stays does not, and nobody waits for it."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from aged_runs import age, expire, there
from scripted_runs import Worker, blocked, enter, hired, new_id, new_run, post, submit, words

from sojourn.errors import Conflict, NotFound
from sojourn.store import queue, runs
from sojourn.store.db import Connection, Database
from sojourn.store.retention import deletion, expiry, sizes
from sojourn.store.rows import Principal
from sojourn.store.sharing.limits import set_limits
from sojourn.store.tenant import sessions, usage

EVER = datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)


async def finished(database: Database, worker: Worker, caller: Principal, session_id: str | None = None) -> str:
    """A run with one tool call that has ended."""
    run_id = await submit(database, caller, session_id=session_id)
    hand = await worker.take_one()
    assert hand.run_id == run_id
    await hand.step(0)
    await hand.finish(1)
    return run_id


async def session_of(database: Database, caller: Principal, run_id: str) -> str:
    async with database.scoped(caller.handle) as conn:
        return (await runs.get(conn, run_id)).session_id


DELTA = "insert into delta (tenant, run_id, frame_id, step, attempt, items) values ($1, $2, '/', 0, 1, '{}')"


async def test_a_session_goes_as_a_whole_and_its_bill_stays(database: Database) -> None:
    caller = await enter(database)
    async with hired(database) as worker:
        first = await finished(database, worker, caller)
        session_id = await session_of(database, caller, first)
        second = await finished(database, worker, caller, session_id)
        async with database.engine() as engine:
            await engine.execute(DELTA, caller.tenant, second)
        async with database.scoped(caller.handle) as conn:
            paid, _ = await usage.totals(conn, usage.Span(*EVER))
        await age(database, 31)
        kept = await finished(database, worker, caller)
    gone = await expire(database, days=30)
    assert (gone["sessions"], gone["runs"]) == (1, 2)
    found = await there(database)
    assert found.pop("ledger") == {first, second, kept}
    assert found.pop("session") == {await session_of(database, caller, kept)}
    assert found["journal"] == found["message"] == found["run"] == {kept}
    assert not found["purge"] | found["delta"] | found["inbox"]
    async with database.scoped(caller.handle) as conn:
        after, _ = await usage.totals(conn, usage.Span(*EVER))
        assert after.calls == paid.calls + 2
        with pytest.raises(NotFound):
            await runs.get(conn, first)
    assert (await sizes.progress(database)).gone["runs"] == 2


async def test_a_run_stays_while_a_later_one_reads_what_was_said_in_it(database: Database) -> None:
    caller = await enter(database)
    async with hired(database) as worker:
        old = await finished(database, worker, caller)
        session_id = await session_of(database, caller, old)
        await age(database, 31)
        young = await finished(database, worker, caller, session_id)
        assert (await expire(database, days=30))["runs"] == 0
        await submit(database, caller, session_id=session_id)
        hand = await worker.take_one()
        assert [segment.run_id for segment in hand.state.root.history] == [old, young]
        async with database.scoped(caller.handle) as conn:
            whole = await runs.transcript(conn, hand.run_id)
        assert len(whole.root.messages) == 9, "four of each run that ended, and what was asked now"
        await age(database, 31)
        assert (await expire(database, days=30))["runs"] == 0, "the last one goes on"
        await hand.finish(0)
        await age(database, 31)
        assert (await expire(database, days=30))["runs"] == 3


async def test_a_session_whose_files_were_used_stays(database: Database) -> None:
    caller = await enter(database)
    async with database.scoped(caller.handle) as conn:
        used, unused = new_id("ses"), new_id("ses")
        await sessions.create(conn, used)
        await sessions.create(conn, unused)
    await age(database, 31)
    async with database.scoped(caller.handle) as conn:
        await sessions.touch(conn, used)
    await expire(database, days=30)
    assert (await there(database))["session"] == {used}


async def test_by_default_nothing_goes(database: Database) -> None:
    caller = await enter(database)
    async with hired(database) as worker:
        await finished(database, worker, caller)
        before = await there(database)
        await age(database, 30_000)
        assert not any((await expire(database)).values())
    assert await there(database) == before


async def test_each_tenant_keeps_its_own_for_as_long_as_it_says(database: Database) -> None:
    callers = {name: await enter(database, name) for name in ("short", "ever", "unsaid")}
    await set_limits(database, "short", {"runs_kept_days": 10})
    await set_limits(database, "ever", {"runs_kept_days": 0})
    async with hired(database) as worker:
        made = {name: await finished(database, worker, caller) for name, caller in callers.items()}
    await age(database, 15)
    await expire(database, days=30)
    assert (await there(database))["run"] == {made["ever"], made["unsaid"]}
    await age(database, 20)
    await expire(database, days=30)
    assert (await there(database))["run"] == {made["ever"]}
    assert await sizes.expired(database, kept_days=30) == 0


async def test_the_ledger_goes_in_its_own_time(database: Database) -> None:
    caller = await enter(database)
    other = await enter(database, "rival")
    await set_limits(database, "rival", {"ledger_kept_days": 0})
    async with hired(database) as worker:
        await finished(database, worker, caller)
        stays = await finished(database, worker, other)
    async with database.migrator() as owner:  # what is paid is paid at the time that the test's events say
        days = (await owner.fetchval("select now()") - datetime(2026, 1, 1, tzinfo=UTC)) / timedelta(days=1)
        await owner.execute("alter table ledger no force row level security; alter table ledger disable trigger user")
        await owner.execute(f"update ledger set at = at + interval '{days - 40} days'")
        await owner.execute("alter table ledger force row level security; alter table ledger enable trigger user")
    assert (await expire(database, ledger_days=50))["ledger"] == 0
    assert (await expire(database, ledger_days=30))["ledger"] == 2
    found = await there(database)
    assert found["ledger"] == {stays}
    assert len(found["run"]) == 2, "the runs themselves stay"


async def test_of_a_long_session_the_newest_runs_go_first(database: Database) -> None:
    caller = await enter(database)
    async with hired(database) as worker:
        first = await finished(database, worker, caller)
        session_id = await session_of(database, caller, first)
        for _ in range(2):
            await finished(database, worker, caller, session_id)
    await age(database, 31)
    async with database.engine() as engine:
        assert tuple(await engine.fetchrow("select * from expire_sessions(30, 2)")) == (2, 0, 2)
    assert (await there(database))["run"] == {first}
    async with database.scoped(caller.handle) as conn:
        assert [segment.run_id for segment in (await runs.conversation(conn, session_id)).segments] == [first]
        assert len((await runs.transcript(conn, first)).root.messages) == 4
    async with database.engine() as engine:
        assert tuple(await engine.fetchrow("select * from expire_sessions(30, 2)")) == (1, 1, 1)
    assert not (await there(database))["session"]


async def test_the_rows_of_a_long_run_go_piece_by_piece(database: Database) -> None:
    caller = await enter(database)
    async with hired(database) as worker:
        run_id = await finished(database, worker, caller)
    await age(database, 31)
    await expiry.sessions(database, kept_days=30)
    found = await there(database)
    assert found["purge"] == found["journal"] == {run_id}
    async with database.engine() as engine:
        gone = 0
        while number := await engine.fetchval("select purge_runs(3)"):
            assert number <= 3
            gone += number
    assert gone > 6
    assert not any(rows for name, rows in (await there(database)).items() if name != "ledger")


# ---- beside others ---------------------------------------------------------------------------


async def test_workers_share_the_work_and_wait_for_nobody(database: Database) -> None:
    caller = await enter(database)
    async with hired(database) as worker:
        for _ in range(3):
            await finished(database, worker, caller)
    await age(database, 31)
    async with database.engine() as engine, engine.transaction():
        assert (await engine.fetchrow("select * from expire_sessions(30, 1)"))["runs"] == 1
        assert (await expiry.sessions(database, kept_days=30)).gone == {"sessions": 0, "runs": 0}, "it does not wait"
    assert (await expiry.sessions(database, kept_days=30)).gone["runs"] == 2
    async with database.engine() as engine, engine.transaction():
        assert await engine.fetchval("select purge_runs(1)") == 1
        gone = (await expiry.rows(database)).gone["rows"]
        assert gone == 2 * 12, "all of the two others"
    await expire(database, days=30)
    assert not (await there(database))["journal"]


async def test_a_batch_whose_worker_dies_has_done_nothing(database: Database) -> None:
    caller = await enter(database)
    async with hired(database) as worker:
        await finished(database, worker, caller)
    await age(database, 31)
    before = await there(database)
    async with database.engine() as engine:
        transaction = engine.transaction()
        await transaction.start()
        assert (await engine.fetchrow("select * from expire_sessions(30, 100)"))["runs"] == 1
        await engine.execute("select purge_runs(4)")
        engine.terminate()
    async with asyncio.timeout(30):
        while not (await expire(database, days=30))["runs"]:
            assert await there(database) == before
            await asyncio.sleep(0.01)
    assert not (await there(database))["journal"]


@pytest.mark.parametrize("holding", ["export", "create", "share"])
async def test_what_somebody_holds_is_passed_over(database: Database, holding: str) -> None:
    caller = await enter(database)
    async with hired(database) as worker:
        held = await finished(database, worker, caller)
        await finished(database, worker, caller)
    session_id = await session_of(database, caller, held)
    await age(database, 31)
    async with database.scoped(caller.handle) as conn:
        match holding:
            case "export":
                await runs.source(conn, held)
            case "create":
                await runs.conversation(conn, session_id)
            case "share":
                await sessions.still(conn, session_id)
        assert (await expire(database, days=30))["runs"] == 1
        assert len((await runs.transcript(conn, held)).root.messages) == 4
    assert (await expire(database, days=30))["runs"] == 1


# ---- at once ---------------------------------------------------------------------------------


async def delete(database: Database, caller: Principal, run_id: str) -> None:
    async with database.scoped(caller.handle) as conn:
        await deletion.run(conn, run_id)


async def test_a_caller_deletes_the_last_run_of_a_session(database: Database) -> None:
    caller, other = await enter(database), await enter(database, "rival")
    async with hired(database) as worker:
        first = await finished(database, worker, caller)
        session_id = await session_of(database, caller, first)
        second = await finished(database, worker, caller, session_id)
        with pytest.raises(NotFound):
            await delete(database, other, second)
        with pytest.raises(Conflict) as refused:
            await delete(database, caller, first)
        assert refused.value.code == "run.continued"
        await delete(database, caller, second)
        with pytest.raises(NotFound):
            await delete(database, caller, second)
        found = await there(database)
        assert found["journal"] == found["message"] == {first}
        assert found["ledger"] == {first, second}
        third = await submit(database, caller, session_id=session_id)
        with pytest.raises(Conflict) as refused:
            await delete(database, caller, third)
        assert refused.value.code == "run.unfinished"
        hand = await worker.take_one()
        assert [segment.run_id for segment in hand.state.root.history] == [first], "as if the second had never been"


async def test_a_run_that_is_deleted_while_another_one_begins_with_its_words(database: Database) -> None:
    caller = await enter(database)
    async with hired(database) as worker:
        first = await finished(database, worker, caller)
        session_id = await session_of(database, caller, first)
    async with database.scoped(caller.handle) as conn:
        history = (await runs.conversation(conn, session_id)).segments
        deleting = asyncio.create_task(delete(database, caller, first))
        await blocked(database)
        await runs.create(conn, new_run(caller, session_id, history=history), queued_max=10)
    with pytest.raises(Conflict) as refused:
        await deleting
    assert refused.value.code == "run.continued"


async def test_a_run_that_begins_while_the_last_one_is_deleted_does_not_read_it(database: Database) -> None:
    caller = await enter(database)
    async with hired(database) as worker:
        first = await finished(database, worker, caller)
        session_id = await session_of(database, caller, first)
        second = await finished(database, worker, caller, session_id)

        async def begin(conn: Connection) -> None:
            history = (await runs.conversation(conn, session_id)).segments
            await runs.create(conn, new_run(caller, session_id, history=history), queued_max=10)

        async with database.scoped(caller.handle) as conn, database.scoped(caller.handle) as late:
            await deletion.run(conn, second)
            beginning = asyncio.create_task(begin(late))
            await blocked(database)
            await conn.execute("commit; begin")
            await beginning
        hand = await worker.take_one()
    assert [segment.run_id for segment in hand.state.root.history] == [first]


async def test_a_caller_deletes_a_closed_session(database: Database) -> None:
    caller, other = await enter(database), await enter(database, "rival")
    async with hired(database) as worker:
        first = await finished(database, worker, caller)
        session_id = await session_of(database, caller, first)
        await finished(database, worker, caller, session_id)
    async with database.scoped(other.handle) as conn:
        with pytest.raises(NotFound):
            await deletion.session(conn, session_id)
    async with database.scoped(caller.handle) as conn:
        with pytest.raises(Conflict) as refused:
            await deletion.session(conn, session_id)
        assert refused.value.code == "session.open"
        await sessions.close(conn, session_id)
        await deletion.session(conn, session_id)
        with pytest.raises(NotFound):
            await deletion.session(conn, session_id)
    await expire(database)
    assert not any(rows for name, rows in (await there(database)).items() if name != "ledger")


async def test_mail_that_comes_for_a_run_that_is_gone_is_refused(database: Database) -> None:
    caller = await enter(database)
    async with hired(database) as worker:
        run_id = await finished(database, worker, caller)
        await delete(database, caller, run_id)
        with pytest.raises(NotFound):
            await post(database, caller, run_id, words())
        assert not await queue.claim(database, worker.id)
    assert not (await there(database))["inbox"]
