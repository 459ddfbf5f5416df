"""Runs as callers create and read them, through a scoped connection."""

import asyncio

import pytest
from msgspec.structs import replace
from scripted_runs import AGENT, AT, asked, enter, hired, new_run, replied, submit

from sojourn.errors import BadSeal, Conflict, NotFound, QueueFull, UnknownFormat, Unreadable
from sojourn.loop import events as ev
from sojourn.loop.continuation import Segment
from sojourn.loop.machine import begin
from sojourn.loop.messages import Text, said
from sojourn.loop.policy import Policy
from sojourn.store import health, runs
from sojourn.store.db import Database
from sojourn.store.rows import Principal, Release, RunFilter, RunPage
from sojourn.store.runs import snapshots
from sojourn.store.tenant import sessions

CALLER = Principal(tenant="acme", user="ann", key_id="key_1", scopes=frozenset(), handle="", expires_at=AT)


async def test_a_new_run_is_there_as_a_whole(database: Database) -> None:
    caller = await enter(database)
    async with database.scoped(caller.handle) as conn:
        await sessions.create(conn, "ses_1")
        new = new_run(caller, "ses_1", "look " * 200, priority=3, labels={"team": "a"})
        await runs.create(conn, new, queued_max=5)
    run_id = new.event.run_id
    async with database.scoped(caller.handle) as conn:
        row = await runs.get(conn, run_id)
        assert (row.status, row.seq, row.priority, row.labels) == ("queued", 1, 3, {"team": "a"})
        assert row.input == ("look " * 200)[:500]
        assert (row.agent, row.limits, row.user_id) == (new.event.agent, AGENT.limits, "ann")
        assert (row.result, row.error, row.started_at, row.finished_at, row.waits) == (None, None, None, None, ())
        assert await runs.events(conn, run_id) == [(1, new.event)]
        assert await runs.transcript(conn, run_id) == new.continuation
        assert (await runs.continuation(conn, run_id)).root.messages == ()
        assert await runs.verify_chain(conn, run_id)


async def test_a_run_without_words_can_begin_too(database: Database) -> None:
    caller = await enter(database)
    async with database.scoped(caller.handle) as conn:
        await sessions.create(conn, "ses_1")
        new = new_run(caller, "ses_1", "")
        event = replace(new.event, message=None)
        await runs.create(conn, replace(new, event=event, continuation=begin(event)), queued_max=5)
        assert await runs.events(conn, event.run_id) == [(1, event)]


async def test_a_session_has_one_run_at_a_time(database: Database) -> None:
    caller = await enter(database)
    async with hired(database) as worker:
        await submit(database, caller)
        hand = await worker.take_one()
        session_id = hand.state.session_id
        with pytest.raises(Conflict) as refused:
            await submit(database, caller, session_id=session_id)
        assert refused.value.code == "session.busy"
        await hand.finish(0)
        with pytest.raises(Conflict) as refused:
            await submit(database, caller, session_id=session_id, history=())
        assert refused.value.code == "session.busy", "it would forget what was said"
        answers = await asyncio.gather(
            *(submit(database, caller, session_id=session_id) for _ in range(8)), return_exceptions=True
        )
        assert sum(isinstance(answer, str) for answer in answers) == 1
        assert {getattr(answer, "code", None) for answer in answers} == {None, "session.busy"}


async def test_a_run_needs_an_open_session_and_a_new_id(database: Database) -> None:
    caller = await enter(database)
    with pytest.raises(NotFound, match="ses_none"):
        await submit(database, caller, session_id="ses_none")
    async with database.scoped(caller.handle) as conn:
        await sessions.create(conn, "ses_1")
        await sessions.create(conn, "ses_2")
        await sessions.close(conn, "ses_1")
        with pytest.raises(Conflict) as refused:
            await runs.create(conn, new_run(caller, "ses_1"), queued_max=5)
        assert refused.value.code == "session.closed"
        new = new_run(caller, "ses_2")
        await runs.create(conn, new, queued_max=5)
    with pytest.raises(Conflict) as refused:
        async with database.scoped(caller.handle) as conn:
            await sessions.create(conn, "ses_3")
            again = replace(new, event=replace(new.event, session_id="ses_3"))
            await runs.create(conn, again, queued_max=5)
    assert refused.value.code == "run.exists"


async def test_a_full_queue_refuses_one_tenant_and_no_other(database: Database) -> None:
    caller, other = await enter(database, "acme"), await enter(database, "rival")
    for _ in range(3):
        await submit(database, caller)
    async with database.scoped(caller.handle) as conn:
        await sessions.create(conn, "ses_1")
        with pytest.raises(QueueFull, match="3 runs"):
            await runs.create(conn, new_run(caller, "ses_1"), queued_max=3)
    async with database.scoped(other.handle) as conn:
        await sessions.create(conn, "ses_1")
        await runs.create(conn, new_run(other, "ses_1"), queued_max=3)
    async with hired(database) as worker:
        await worker.take(1)
    async with database.scoped(caller.handle) as conn:
        await runs.create(conn, new_run(caller, "ses_1"), queued_max=3)


async def test_pages_go_from_the_newest_to_the_oldest(database: Database) -> None:
    caller, other = await enter(database, "acme"), await enter(database, "rival")
    made = [await submit(database, caller, agent=replace(AGENT, name=f"a{n % 2}")) for n in range(7)]
    await submit(database, other)
    async with database.scoped(caller.handle) as conn:
        found, after = [], None
        while True:
            page = await runs.page(conn, after=after, limit=3)
            found += [row.id for row in page.rows]
            if (after := page.next) is None:
                break
        assert found == made[::-1]
        odd = await runs.page(conn, RunFilter(agent="a1", status="queued", user_id="ann"))
        assert [row.id for row in odd.rows] == made[5::-2]
        session_id = odd.rows[0].session_id
        assert [row.id for row in (await runs.page(conn, RunFilter(session_id=session_id))).rows] == [made[5]]
        for nothing in (RunFilter(status="failed"), RunFilter(user_id="bob"), RunFilter(agent="a2")):
            assert await runs.page(conn, nothing) == RunPage(())


async def test_another_tenants_run_is_not_there(database: Database) -> None:
    caller, other = await enter(database, "acme"), await enter(database, "rival")
    run_id = await submit(database, caller)
    async with database.scoped(other.handle) as conn:
        for ask in (runs.get, runs.continuation, runs.transcript, runs.verify_chain):
            with pytest.raises(NotFound):
                await ask(conn, run_id)
        with pytest.raises(NotFound):
            await runs.post(conn, run_id, ev.Cancelled(at=AT, by="eve"))
        assert await runs.events(conn, run_id) == []


async def test_two_tenants_may_use_the_same_ids(database: Database) -> None:
    for tenant in ("acme", "rival"):
        caller = await enter(database, tenant)
        async with database.scoped(caller.handle) as conn:
            await sessions.create(conn, "ses_1")
            new = new_run(caller, "ses_1", tenant)
            event = replace(new.event, run_id="run_1")
            await runs.create(conn, replace(new, event=event, continuation=begin(event)), queued_max=5)
            assert (await runs.get(conn, "run_1")).input == tenant


async def test_events_are_read_from_any_place(database: Database) -> None:
    caller = await enter(database)
    async with hired(database) as worker:
        await submit(database, caller)
        hand = await worker.take_one()
        for number in range(3):
            await hand.step(number, f"seen {number}")
    async with database.scoped(caller.handle) as conn:
        whole = await runs.events(conn, hand.run_id)
        assert [seq for seq, _ in whole] == list(range(1, hand.state.rev + 1))
        assert await runs.events(conn, hand.run_id, after=4, limit=3) == whole[4:7]
        assert await runs.events(conn, hand.run_id, after=4, limit=3, bytes_max=1 << 20) == whole[4:7]
        assert await runs.events(conn, hand.run_id, after=4, limit=3, bytes_max=1) == whole[4:5]
        assert await runs.events(conn, hand.run_id, after=10**12) == []
        texts = [event.message.parts[0].text for _, event in whole if isinstance(event, ev.Returned) and event.message]
        assert texts == ["seen 0", "seen 1", "seen 2"]


async def test_open_questions_show_in_the_inbox_of_approvals(database: Database) -> None:
    caller = await enter(database)
    asks = replace(AGENT, policy=Policy(otherwise="ask"))
    async with hired(database) as worker:
        run_id = await submit(database, caller, agent=asks)
        await submit(database, caller)
        for hand in await worker.take(2):
            await hand.commit(asked(0))
            await hand.commit(replied(0, calls=2), release=Release(status="suspended"))
    async with database.scoped(caller.handle) as conn:
        (row,) = (await runs.waiting(conn)).rows
        assert (row.id, [wait.id for wait in row.waits]) == (run_id, ["/0.0?0", "/0.1?0"])


async def test_a_broken_chain_is_seen(database: Database) -> None:
    caller = await enter(database)
    async with hired(database) as worker:
        await submit(database, caller)
        hand = await worker.take_one()
        await hand.step(0)
    async with database.migrator() as owner:
        await owner.execute("alter table message disable trigger append_only, no force row level security")
        await owner.execute(
            "update message set body = convert_to(replace(convert_from(body, 'UTF8'), 'seen', 'SEEN'), 'UTF8')"
        )
    async with database.scoped(caller.handle) as conn:
        assert not await runs.verify_chain(conn, hand.run_id)


async def test_a_missing_body_is_named(database: Database) -> None:
    caller = await enter(database)
    run_id = await submit(database, caller)
    async with database.migrator() as owner:
        await owner.execute("alter table message disable trigger append_only, no force row level security")
        await owner.execute("delete from message")
    async with database.scoped(caller.handle) as conn:
        with pytest.raises(BadSeal, match=run_id):
            await runs.transcript(conn, run_id)


async def test_what_a_newer_release_wrote_is_told_from_rubbish() -> None:
    new = replace(begin(new_run(CALLER, "ses_1").event), version=2)
    for newer in (b'{"version":2,"new":[]}', snapshots.freeze(new)):
        with pytest.raises(UnknownFormat, match="version 2"):
            snapshots.thaw(newer)
    for rubbish in (
        b"",
        b"[",
        b"{}",
        b"[]",
        b'{"version":"x"}',
        b"[" * 10**6,
        b'{"format":"other","version":9}',
        b"\xff",
    ):
        with pytest.raises(Unreadable) as refused:
            snapshots.thaw(rubbish)
        assert type(refused.value) is Unreadable


async def test_a_history_begins_empty(database: Database) -> None:
    caller = await enter(database)
    async with hired(database) as worker:
        run_id = await submit(database, caller)
        hand = await worker.take_one()
        session_id = hand.state.session_id
        async with database.scoped(caller.handle) as conn:
            assert (await runs.conversation(conn, session_id)).segments == ()
            assert (await runs.conversation(conn, "ses_none")).segments == ()
        await hand.finish(0)
    async with database.scoped(caller.handle) as conn:
        assert (await runs.conversation(conn, session_id)).segments == (Segment(run_id, 0, 2),)


async def test_a_message_that_is_heard_later_is_read_once(database: Database) -> None:
    caller = await enter(database)
    async with hired(database) as worker:
        await submit(database, caller)
        hand = await worker.take_one()
        await hand.commit(asked(0))
        await hand.commit(ev.Said(at=AT, message=said("late", "one more thing")))
        await hand.commit(replied(0, "done"))
    async with database.scoped(caller.handle) as conn:
        transcript = await runs.transcript(conn, hand.run_id)
        assert [message.parts for message in transcript.root.messages][2] == (Text("one more thing"),)
        assert transcript == hand.state
        assert await runs.verify_chain(conn, hand.run_id)


async def test_the_server_counts_what_goes_on(database: Database) -> None:
    caller = await enter(database)
    await health.ping(database)
    async with hired(database) as worker:
        for _ in range(4):
            await submit(database, caller)
        first, second = await worker.take(2)
        await first.commit(release=Release(status="suspended"))
        await second.finish(0)
        counts = await health.counts(database)
        assert (counts.runs, counts.workers) == ({"queued": 2, "suspended": 1}, 1)
        assert counts.oldest_due_at is not None
