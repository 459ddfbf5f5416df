"""What callers say to a run that goes on is heard, whenever it comes: against a real database."""

import asyncio
import random

import pytest
from msgspec.structs import replace
from scripted_runs import Hand, asked, blocked, enter, hired, post, soon, status, submit, words

from sojourn.errors import Conflict, LeaseLost, NotFound, Unreadable
from sojourn.store import commits, queue, runs
from sojourn.store.db import Database
from sojourn.store.rows import Release


async def test_mail_wakes_a_run_that_nobody_holds(database: Database) -> None:
    caller = await enter(database)
    async with hired(database) as worker:
        run_id = await submit(database, caller)
        await (await worker.take_one()).commit(release=Release(status="suspended", due_at=soon()))
        await post(database, caller, run_id, words())
        assert await status(database, caller, run_id) == "queued"
        claimed = (await queue.claim(database, worker.id, 1))[0]
        opened = await queue.open(database, claimed)
        assert [event for _, event in opened.inbox] == [words()]
        hand = Hand(worker.committer, claimed, opened.continuation, opened.agents)
        await hand.commit(words(), inbox=[opened.inbox[0][0]], release=Release(status="suspended"))
        assert await status(database, caller, run_id) == "suspended"
        assert await queue.mail(database, [(caller.tenant, run_id)]) == {}


async def test_mail_for_a_run_that_is_held_is_read_by_its_holder(database: Database) -> None:
    caller = await enter(database)
    async with hired(database) as worker:
        run_id, other = await submit(database, caller), await submit(database, caller)
        hands = await worker.take(2)
        await post(database, caller, run_id, words("a"))
        await post(database, caller, run_id, words("b"))
        found = await queue.mail(database, [(caller.tenant, run_id), (caller.tenant, other)])
        assert {name: [event for _, event in mail] for name, mail in found.items()} == {
            run_id: [words("a"), words("b")]
        }
        assert await worker.take() == []
        await hands[0].commit(words("a"), inbox=[found[run_id][0][0]], release=Release(status="queued"))
        assert (await worker.take_one()).run_id == run_id


@pytest.mark.parametrize("status_", ["suspended", "completed", "failed", "cancelled"])
async def test_no_run_ends_or_sleeps_over_mail(database: Database, status_: str) -> None:
    caller = await enter(database)
    async with hired(database) as worker:
        run_id = await submit(database, caller)
        hand = await worker.take_one()
        await post(database, caller, run_id, words("a"))
        await post(database, caller, run_id, words("b"))
        commit = hand.prepare(asked(0), release=Release(status=status_))
        (first, _), (second, _) = (await queue.mail(database, [(caller.tenant, run_id)]))[run_id]
        for read in ((), (first,)):
            with pytest.raises(commits.MailWaits):
                await worker.committer.commit(replace(commit, inbox_ids=read))
            assert await queue.beat(worker.life, worker.id) == {(run_id, hand.claimed.fence)}
            async with database.scoped(caller.handle) as conn:
                assert [seq for seq, _ in await runs.events(conn, run_id)] == [1], "nothing was written"
        await worker.committer.commit(replace(commit, inbox_ids=(first, second)))
        assert await status(database, caller, run_id) == status_
        await worker.committer.commit(replace(commit, inbox_ids=(first, second)))
        with pytest.raises(LeaseLost):
            await worker.committer.commit(replace(commit, events=(asked(7),)))


async def test_mail_holds_up_its_own_run_alone(database: Database) -> None:
    caller = await enter(database)
    async with hired(database) as worker:
        for _ in range(9):
            await submit(database, caller)
        hands = await worker.take(9)
        await post(database, caller, hands[4].run_id, words())
        ends = (worker.committer.commit(h.prepare(asked(0), release=Release(status="completed"))) for h in hands)
        answers = [type(answer) for answer in await asyncio.gather(*ends, return_exceptions=True)]
        assert (answers.pop(4), set(answers)) == (commits.MailWaits, {type(None)})


async def test_mail_that_races_with_a_release_is_never_missed(database: Database) -> None:
    caller, draw = await enter(database), random.Random(3)
    async with hired(database) as worker:
        run_id = await submit(database, caller)
        read = refused = 0
        for round_ in range(300):
            hand = await worker.take_one()
            mail = (await queue.mail(database, [(caller.tenant, run_id)])).get(run_id, [])
            read += len(mail)
            commit = hand.prepare(*(event for _, event in mail), inbox=[id for id, _ in mail])
            commit = replace(commit, release=Release(status="suspended", due_at=soon()))
            first, second = [worker.committer.commit(commit), post(database, caller, run_id, words(str(round_)))]
            if draw.random() < 0.5:
                first, second = second, first
            if any(
                isinstance(end, commits.MailWaits)
                for end in await asyncio.gather(first, second, return_exceptions=True)
            ):
                refused += 1
                await worker.committer.commit(replace(commit, release=Release(status="queued")))
            assert await status(database, caller, run_id) == "queued", f"the mail of round {round_} was missed"
        assert read == 299
        assert 0 < refused < 300, "it came before and after"


async def test_a_release_that_waited_for_mail_to_be_posted_sees_it(database: Database) -> None:
    caller = await enter(database)
    async with hired(database) as worker:
        run_id = await submit(database, caller)
        hand = await worker.take_one()
        async with database.scoped(caller.handle) as conn:
            await runs.post(conn, run_id, words())
            release = asyncio.create_task(hand.commit(asked(0), release=Release(status="completed")))
            await blocked(database)
        with pytest.raises(commits.MailWaits):
            await release


async def test_mail_of_a_newer_release_stops_its_own_run_alone(database: Database) -> None:
    caller = await enter(database)
    async with hired(database) as worker:
        bad, good = await submit(database, caller), await submit(database, caller)
        for run_id in (bad, good):
            await post(database, caller, run_id, words())
        async with database.scoped(caller.handle) as conn:
            await conn.execute(
                "insert into inbox (tenant, run_id, event) values ('acme', $1, $2)", bad, b'{"type":"new"}'
            )
        found = await queue.mail(database, [(caller.tenant, bad), (caller.tenant, good)])
        assert isinstance(found[bad], Unreadable), "the order of mail counts, so none of it is read"
        assert [event for _, event in found[good]] == [words()]
        opened = []
        for claimed in await queue.claim(database, worker.id, 2):
            if claimed.run_id == bad:
                with pytest.raises(Unreadable, match="cannot read"):
                    await queue.open(database, claimed)
            else:
                opened.append((await queue.open(database, claimed)).inbox)
        assert [[event for _, event in inbox] for inbox in opened] == [[words()]]


async def test_mail_that_waited_for_a_run_to_end_is_refused(database: Database) -> None:
    caller = await enter(database)
    async with hired(database) as worker:
        run_id = await submit(database, caller)
        hand = await worker.take_one()
        ending = [worker.id, *commits._arrays([hand.prepare(asked(0), release=Release(status="failed"))])]
        async with database.engine() as engine, engine.transaction():
            await engine.fetch(commits.COMMIT, *ending)
            posted = asyncio.create_task(post(database, caller, run_id, words()))
            await blocked(database)
        with pytest.raises(Conflict) as refused:
            await posted
        assert refused.value.code == "run.ended"


async def test_mail_needs_a_run_that_goes_on(database: Database) -> None:
    caller = await enter(database)
    async with hired(database) as worker:
        run_id = await submit(database, caller)
        await (await worker.take_one()).finish(0)
        with pytest.raises(Conflict) as refused:
            await post(database, caller, run_id, words())
        assert refused.value.code == "run.ended"
        with pytest.raises(NotFound):
            await post(database, caller, "run_none", words())
        async with database.engine() as engine:
            assert await engine.fetchval("select count(*) from inbox") == 0
