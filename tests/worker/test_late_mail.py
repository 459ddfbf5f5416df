"""Mail that comes between a worker's last look and the commit that would end its run: what is accepted is heard."""

import pytest
from tests.conftest import until
from tests.worker.inside import DONE, Caller, Late, Thinker, agent, now, working

from sojourn.loop import events as ev
from sojourn.store.db import Database
from sojourn.store.tenant import usage
from sojourn.worker.worker import Worker


def late(worker: Worker, status: str) -> Late:
    """The worker's committer, told when to let something happen."""
    committer = worker.parts.committer
    assert isinstance(committer, Late)
    committer.status = status
    return committer


@pytest.mark.parametrize("times", [1, 2])
async def test_a_message_to_a_run_that_is_just_about_to_complete_is_heard(database: Database, times: int) -> None:
    caller = await Caller.of(database)
    async with working(database, Thinker("first", "second"), None) as worker:
        words = [f"more {n}" for n in range(times)]
        late(worker, "completed").moments = [lambda run_id, word=word: caller.say(run_id, word) for word in words]
        run_id = await caller.run(agent(), worker)
        row = await caller.until(run_id, "completed")
    assert (row.result, row.steps) == (("first", "second", DONE)[times], times + 1)
    said = [message.text for message in (await caller.transcript(run_id)).root.messages]
    assert said == ["go", "first", "more 0", "second", "more 1", DONE][: 2 + 2 * times]
    turns = [event.phase for event in await caller.events(run_id) if isinstance(event, ev.Turned)]
    assert turns == ["running", "completed"], "it did not end before it ended"
    assert await caller.unread() == 0
    async with database.scoped(caller.principal.handle) as conn:
        assert len(await usage.ledger(conn, run_id)) == times + 1, "each reply is paid for once"


async def test_two_messages_at_the_last_moment_are_heard_in_order(database: Database) -> None:
    caller = await Caller.of(database)

    async def both(run_id: str) -> None:
        await caller.say(run_id, "one")
        await caller.say(run_id, "two")

    async with working(database, Thinker("first"), None) as worker:
        late(worker, "completed").moments = [both]
        run_id = await caller.run(agent(), worker)
        await caller.until(run_id, "completed")
    assert [m.text for m in (await caller.transcript(run_id)).root.messages] == ["go", "first", "one", "two", DONE]
    assert await caller.unread() == 0


async def test_a_run_that_is_cancelled_at_the_last_moment_is_cancelled_and_its_reply_paid_for(
    database: Database,
) -> None:
    caller = await Caller.of(database)
    async with working(database, Thinker("never heard"), None) as worker:
        cancelled = ev.Cancelled(at=now(), by="ann", reason="enough")
        late(worker, "completed").moments = [lambda run_id: caller.post(run_id, cancelled)]
        run_id = await caller.run(agent(), worker)
        row = await caller.until(run_id, "completed", "cancelled")
    assert (row.status, row.result, row.usd_micros) == ("cancelled", None, 7)
    kinds = [type(event) for event in await caller.events(run_id)]
    assert kinds[-2:] == [ev.Cancelled, ev.Turned] and ev.Replied not in kinds
    assert (await caller.transcript(run_id)).root.state == "cancelled"
    assert await caller.unread() == 0


async def test_a_message_and_then_a_cancellation_at_the_last_moments(database: Database) -> None:
    caller = await Caller.of(database)
    async with working(database, Thinker("first", "never heard"), None) as worker:
        cancelled = ev.Cancelled(at=now(), by="ann")
        late(worker, "completed").moments = [
            lambda run_id: caller.say(run_id, "more"),
            lambda run_id: caller.post(run_id, cancelled),
        ]
        run_id = await caller.run(agent(), worker)
        assert (await caller.until(run_id, "completed", "cancelled")).status == "cancelled"
    assert [m.text for m in (await caller.transcript(run_id)).root.messages] == ["go", "first", "more"]
    assert await caller.unread() == 0


ASKING = (("write_file", {"path": "a", "content": "b"}),)


async def test_a_message_to_a_run_that_is_just_about_to_sleep_is_taken_and_it_sleeps(database: Database) -> None:
    caller = await Caller.of(database)
    async with working(database, Thinker(ASKING), None) as worker:
        late(worker, "suspended").moments = [lambda run_id: caller.say(run_id, "hurry")]
        run_id = await caller.run(agent("write_file", ask="write_file"), worker)
        row = await caller.until(run_id, "suspended")
    assert len(row.waits) == 1
    assert [m.text for m in (await caller.transcript(run_id)).root.inbox] == ["hurry"]
    turns = [event.phase for event in await caller.events(run_id) if isinstance(event, ev.Turned)]
    assert turns == ["running", "suspended"], "nobody saw it wake"
    assert await caller.unread() == 0


async def test_an_approval_that_arrives_before_the_suspension_is_committed(database: Database) -> None:
    caller = await Caller.of(database)
    async with working(database, Thinker((("nothing", {}),)), None) as worker:
        decided = ev.Decided(at=now(), wait="/0.0?0", by="ann", decision="answer", text="as you wish")
        late(worker, "suspended").moments = [lambda run_id: caller.post(run_id, decided)]
        run_id = await caller.run(agent("nothing", ask="nothing"), worker)
        assert (await caller.until(run_id, "completed")).result == DONE
    turns = [event.phase for event in await caller.events(run_id) if isinstance(event, ev.Turned)]
    assert turns == ["running", "completed"]
    assert await caller.unread() == 0


async def test_mail_that_cannot_be_read_stops_its_own_run_alone(database: Database) -> None:
    caller = await Caller.of(database)

    spoilt: list[str] = []

    async def spoil(run_id: str) -> None:
        spoilt.append(run_id)
        async with database.scoped(caller.principal.handle) as conn:
            insert = "with i as (insert into inbox (tenant, run_id, event) values ('acme', $1, $2) returning id)"
            await conn.execute(
                insert + " update run set mail_last = i.id from i where run.id = $1", run_id, b'{"of": 2}'
            )

    async with working(database, Thinker("first"), None) as worker:
        late(worker, "completed").moments = [spoil]
        bad = await caller.run(agent(), worker)
        await until(lambda: spoilt == [bad])
        await caller.until(bad, "queued")
        good = await caller.run(agent(), worker)
        await caller.until(good, "completed")
        row = await caller.row(bad)
        assert (row.status, row.result) in (("queued", None), ("running", None)), "it waits for who can read its mail"
        async with database.engine() as engine:
            assert await engine.execute("delete from inbox where event = $1", b'{"of": 2}') == "DELETE 1"
            await engine.execute(
                "update run set mail_read = mail_last, due_at = case when status = 'queued' then now() end"
            )
        assert (await caller.until(bad, "completed")).result == "first"
