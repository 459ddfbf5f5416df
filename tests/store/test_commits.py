"""Commits against a real database: durable, fenced, grouped, and never twice."""

import asyncio
import itertools
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import asyncpg
import pytest
from msgspec.structs import replace
from scripted_runs import AGENT, AT, Hand, asked, enter, hired, intended, replied, returned, submit

from sojourn.errors import Invalid, LeaseLost, StoreUnavailable
from sojourn.loop import events as ev
from sojourn.loop.budget import Limits
from sojourn.loop.machine import apply, begin
from sojourn.loop.messages import said
from sojourn.loop.policy import Policy
from sojourn.store import queue, runs
from sojourn.store.commits import Committer
from sojourn.store.db import Database
from sojourn.store.rows import Release
from sojourn.store.tenant import usage


async def test_a_run_is_driven_to_its_end_and_read_back_as_it_was(database: Database) -> None:
    caller = await enter(database)
    async with hired(database) as worker:
        run_id = await submit(database, caller)
        hand = await worker.take_one()
        assert hand.run_id == run_id
        for number in range(3):
            await hand.step(number)
        await hand.finish(3, "all seen")
    async with database.scoped(caller.handle) as conn:
        row = await runs.get(conn, run_id)
        assert (row.status, row.result, row.steps, row.seq) == ("completed", "all seen", 4, hand.state.rev)
        assert (row.usage.input, row.usage.cache_read, row.usage.output, row.usd_micros) == (40, 20, 8, 12)
        assert row.started_at is not None
        assert row.finished_at is not None
        assert [line.seq for line in await usage.ledger(conn, run_id)] == [3, 7, 11, 15]
        assert await runs.verify_chain(conn, run_id)
        assert await runs.transcript(conn, run_id) == hand.state


async def test_the_snapshot_is_the_fold_of_the_stored_journal(database: Database) -> None:
    caller, draw = await enter(database), random.Random(7)
    async with hired(database) as worker:
        for _ in range(20):
            await submit(database, caller)
        hands = await worker.take(20)
        for hand in hands:
            for number in range(draw.randrange(5)):
                await hand.step(number, "x" * draw.randrange(10_000))
            if draw.random() < 0.5:
                await hand.commit(ev.Said(at=AT, message=said("more", "and more")))
    async with database.scoped(caller.handle) as conn:
        for hand in hands:
            (_, first), *rest = await runs.events(conn, hand.run_id)
            assert isinstance(first, ev.Began)
            state = begin(first)
            for _, event in rest:
                state = apply(hand.agents, state, event)
            assert state == hand.state == await runs.transcript(conn, hand.run_id)


async def test_a_body_is_stored_once(database: Database) -> None:
    caller, mark = await enter(database), "m" * 5000
    async with hired(database) as worker:
        await submit(database, caller, mark)
        hand = await worker.take_one()
        await hand.step(0, mark)
        await hand.commit(asked(1))
        await hand.commit(replied(1, mark, calls=1))
    async with database.scoped(caller.handle) as conn:
        events = await runs.events(conn, hand.run_id)
        assert sum(mark in ev.encode(event).decode() for _, event in events) == 3
        stored = await conn.fetchval("select sum(length(event)) from journal")
        assert stored < len(mark)
        assert await conn.fetchval("select sum(length(body)) from message") < 3 * len(mark) + 2000


async def test_a_worker_that_lost_its_lease_commits_nothing(database: Database) -> None:
    caller = await enter(database)
    async with hired(database, "old") as old, hired(database, "new") as new:
        run_id = await submit(database, caller)
        zombie = await old.take_one()
        await zombie.commit(asked(0))
        await stale(database, "old")
        assert await queue.steal(database, 15) == [run_id]
        with pytest.raises(LeaseLost):
            await zombie.commit(replied(0, "never said"))
        heir = await new.take_one()
        assert heir.claimed.fence == zombie.claimed.fence + 1
        zombie.state = heir.state
        with pytest.raises(LeaseLost):
            await zombie.commit(ev.ModelLost(at=AT, frame="/", step=0, attempt=1))
        with pytest.raises(LeaseLost):
            await zombie.commit(release=Release(status="failed"))
        await heir.commit(ev.ModelLost(at=AT, frame="/", step=0, attempt=1))
    async with database.scoped(caller.handle) as conn:
        assert [event.__struct_config__.tag for _, event in await runs.events(conn, run_id)] == [
            "began", "model_asked", "model_lost",
        ]  # fmt: skip
        assert await runs.verify_chain(conn, run_id)


async def test_the_right_worker_with_an_old_fence_commits_nothing(database: Database) -> None:
    caller = await enter(database)
    async with hired(database) as worker:
        await submit(database, caller)
        first = await worker.take_one()
        await stale(database, worker.id)
        await queue.steal(database, 15)
        second = await worker.take_one()
        with pytest.raises(LeaseLost):
            await first.commit(asked(0))
        await second.commit(asked(0))


async def test_one_bad_member_does_not_fail_its_group(database: Database) -> None:
    caller = await enter(database)
    async with hired(database) as worker:
        for _ in range(30):
            await submit(database, caller)
        hands = await worker.take(30)
        commits = [hand.prepare(asked(0)) for hand in hands]
        commits[7] = replace(commits[7], fence=99)
        commits[13] = replace(commits[13], bodies=(("/", 0, said("again", "the place is taken")),))
        commits[21] = replace(commits[21], bodies=(("/", 2**40, said("huge", "no such slot")),))
        answers = await asyncio.gather(*map(worker.committer.commit, commits), return_exceptions=True)
    kinds = [type(answer) for answer in answers]
    assert (kinds.pop(21), kinds.pop(13), kinds.pop(7)) == (Invalid, LeaseLost, LeaseLost)
    assert set(kinds) == {type(None)}
    async with database.scoped(caller.handle) as conn:
        seqs = [(await runs.get(conn, hand.run_id)).seq for hand in hands]
        assert [n for n, seq in enumerate(seqs) if seq == 1] == [7, 13, 21]


async def test_a_second_try_of_the_same_commit_is_the_first(database: Database) -> None:
    caller = await enter(database)
    async with hired(database) as worker:
        await submit(database, caller)
        hand = await worker.take_one()
        first = hand.prepare(asked(0))
        await worker.committer.commit(first)
        await worker.committer.commit(first)
        last = hand.prepare(replied(0, "ok"), ev.Turned(at=AT, phase="completed"), release=Release(status="completed"))
        await worker.committer.commit(last)
        await worker.committer.commit(last)
        with pytest.raises(LeaseLost):
            await worker.committer.commit(replace(last, fence=0, events=(asked(0),)))
    async with database.scoped(caller.handle) as conn:
        row = await runs.get(conn, hand.run_id)
        assert (row.usd_micros, row.seq) == (3, 4)


@pytest.mark.parametrize("seed", range(3))
async def test_connections_that_die_in_the_middle_lose_and_double_nothing(database: Database, seed: int) -> None:
    caller, draw = await enter(database), random.Random(seed)
    async with hired(database) as worker:
        for _ in range(60):
            await submit(database, caller)
        hands = await worker.take(60)
        killed = list[int]()
        killer = asyncio.create_task(kill_engine_connections(database, draw, killed))

        async def drive(hand: Hand) -> None:
            number = 0
            while number < 8 or (not killer.done() and number < 70):
                await hand.step(number, "y" * draw.randrange(3000))
                number += 1
            await hand.finish(number)

        await asyncio.gather(*map(drive, hands))
        killer.cancel()  # a slow machine gets through its steps before there were so many
        assert killed
    async with database.scoped(caller.handle) as conn:
        for hand in hands:
            assert await runs.verify_chain(conn, hand.run_id)
            row = await runs.get(conn, hand.run_id)
            steps = hand.state.spent.steps
            assert (row.status, row.steps, row.usd_micros) == ("completed", steps, 3 * steps)
            assert len(await usage.ledger(conn, hand.run_id)) == steps
            assert await runs.transcript(conn, hand.run_id) == hand.state


async def kill_engine_connections(database: Database, draw: random.Random, killed: list[int]) -> None:
    """Kill eight connections that are at a commit."""
    while len(killed) < 8:
        async with database.engine() as conn:
            found = await conn.fetch(
                "select pid, pg_terminate_backend(pid) from pg_stat_activity where datname = current_database()"
                " and application_name = 'sojourn-engine' and state = 'active' and pid <> pg_backend_pid()"
            )
        killed += [row["pid"] for row in found]
        await asyncio.sleep(draw.random() / 50)


async def test_a_commit_whose_answer_is_lost_counts_once(database: Database) -> None:
    caller = await enter(database)
    async with hired(database) as worker:
        await submit(database, caller)
        hand = await worker.take_one()
        deaf = Deaf(database)
        committer = Committer(deaf, worker.id, lambda _channel, _ids: None)  # type: ignore[arg-type]
        await committer.commit(hand.prepare(asked(0)))
        await committer.commit(hand.prepare(replied(0, "yes"), ev.Turned(at=AT, phase="completed")))
        await committer.commit(hand.prepare(release=Release(status="completed")))
        assert deaf.lost == 3
    async with database.scoped(caller.handle) as conn:
        row = await runs.get(conn, hand.run_id)
        assert (row.status, row.seq, row.usd_micros) == ("completed", 4, 3)


class Deaf:
    """A database that carries out every statement, and loses the answer to every first one."""

    def __init__(self, database: Database) -> None:
        self._database, self._tries, self.lost = database, 0, 0

    @asynccontextmanager
    async def engine(self) -> AsyncIterator[asyncpg.Connection]:
        self._tries += 1
        async with self._database.engine() as connection:
            yield connection if self._tries % 2 == 0 else self
            assert self._tries % 2 == 0

    async def fetch(self, statement: str, *arguments: object, timeout: float) -> None:
        async with self._database.engine() as connection:
            await connection.fetch(statement, *arguments)
        self.lost += 1
        raise StoreUnavailable("The connection was lost.")


async def stale(database: Database, worker_id: str) -> None:
    """Make a worker look cut off for a minute."""
    async with database.engine() as engine:
        await engine.execute("update worker set seen_at = now() - interval '1 minute' where id = $1", worker_id)


async def test_strange_texts_are_kept_and_lists_show_them_in_a_readable_way(database: Database) -> None:
    caller, strange = await enter(database), 'NUL \0 quote " \\ \u2028 \U0001f600 \x7f'
    async with hired(database) as worker:
        await submit(database, caller, strange)
        hand = await worker.take_one()
        await hand.step(0, strange)
        await hand.finish(1, strange)
    async with database.scoped(caller.handle) as conn:
        row = await runs.get(conn, hand.run_id)
        assert row.result == row.input == strange.replace("\0", "\ufffd")
        assert await runs.transcript(conn, hand.run_id) == hand.state
        assert await runs.verify_chain(conn, hand.run_id)


async def test_a_lone_surrogate_is_refused_for_its_run_alone(database: Database) -> None:
    caller = await enter(database)
    async with hired(database) as worker:
        for _ in range(2):
            await submit(database, caller)
        bad, good = await worker.take(2)
        commit = bad.prepare(asked(0))
        commit = replace(commit, bodies=(("/", 1, said("half", "\ud800")),))
        answers = await asyncio.gather(worker.committer.commit(commit), good.commit(asked(0)), return_exceptions=True)
        assert [type(answer) for answer in answers] == [Invalid, type(None)]
        await worker.committer.commit(replace(commit, bodies=()))


async def test_a_result_of_five_megabytes_is_kept(database: Database) -> None:
    caller, huge = await enter(database), "z" * (5 << 20)
    async with hired(database) as worker:
        await submit(database, caller)
        hand = await worker.take_one()
        await hand.step(0, huge)
        await stale(database, worker.id)
        await queue.steal(database, 15)
        assert (await worker.take_one()).state == hand.state
    async with database.scoped(caller.handle) as conn:
        (_, last) = (await runs.events(conn, hand.run_id))[-1]
        assert isinstance(last, ev.Returned)
        assert last.message is not None
        assert await conn.fetchval("select length(snapshot) from run") < 5000


async def test_a_thousand_runs_at_once(database: Database) -> None:
    caller = await enter(database)
    async with hired(database) as worker:
        for _ in range(1000):
            await submit(database, caller)
        hands = [hand for _ in range(20) for hand in await worker.take(50)]
        assert len({hand.run_id for hand in hands}) == 1000

        async def drive(hand: Hand) -> None:
            await hand.step(0)
            await hand.finish(1)

        await asyncio.gather(*map(drive, hands))
    async with database.scoped(caller.handle) as conn:
        assert await conn.fetchval("select count(*) from run where status = 'completed' and steps = 2") == 1000
        assert await conn.fetchval("select count(*) from journal") == sum(hand.state.rev for hand in hands)
        assert await conn.fetchval("select count(*) from message") == sum(hand.state.root.length for hand in hands)


async def test_a_commit_costs_what_is_new_however_long_the_run_is(database: Database) -> None:
    caller = await enter(database)
    async with hired(database) as worker, database.engine() as engine:
        await submit(database, caller, agent=replace(AGENT, limits=Limits(steps=None), policy=Policy(loop_guard=False)))
        hand = await worker.take_one()
        marks = []
        for number in range(200):
            marks.append(int(await engine.fetchval("select pg_current_wal_insert_lsn() - '0/0'")))
            await hand.step(number, "r" * 20_000)
        marks.append(int(await engine.fetchval("select pg_current_wal_insert_lsn() - '0/0'")))
    written = [after - before for before, after in itertools.pairwise(marks)]
    assert sum(written[-20:]) <= 1.2 * sum(written[:20])
    assert 20_000 * 20 < sum(written[:20]) < 2 * 20_000 * 20


async def test_doorbells_ring_for_readers_and_for_work(database: Database) -> None:
    caller = await enter(database)
    async with hired(database) as worker:
        run_id = await submit(database, caller)
        hand = await worker.take_one()
        await hand.commit(asked(0))
        assert worker.rung == [("sojourn_run", (run_id,))]
        worker.rung.clear()
        await hand.commit(release=Release(status="queued", due_at=AT))
        assert worker.rung == [("sojourn_run", (run_id,)), ("sojourn_work", (run_id,))]
        worker.rung.clear()
        heir = await worker.take_one()
        await heir.commit(release=Release(status="suspended"))
        assert worker.rung == [("sojourn_run", (run_id,))]


async def test_an_unknown_price_makes_the_sum_unknown(database: Database) -> None:
    caller = await enter(database)
    async with hired(database) as worker:
        await submit(database, caller)
        hand = await worker.take_one()
        for number, price in enumerate((5, None, 7)):
            await hand.commit(asked(number))
            await hand.commit(replied(number, calls=1, usd_micros=price), intended(number))
            await hand.commit(returned(number))
    async with database.scoped(caller.handle) as conn:
        assert (await runs.get(conn, hand.run_id)).usd_micros is None
        assert [line.usd_micros for line in await usage.ledger(conn, hand.run_id)] == [5, None, 7]
        total, (group,) = await usage.totals(conn, usage.Span(AT, AT + timedelta(days=1)), by=("model",))
        assert (total.calls, total.unpriced_calls, total.usd_micros) == (3, 1, 12)
        assert group == replace(total, keys=("sim:a",))


async def test_extended_limits_show_in_lists(database: Database) -> None:
    caller = await enter(database)
    agent = replace(AGENT, limits=Limits(steps=1, on_exhaust="suspend"))
    async with hired(database) as worker:
        await submit(database, caller, agent=agent)
        hand = await worker.take_one()
        await hand.step(0)
        async with database.scoped(caller.handle) as conn:
            ((wait,),) = [row.waits for row in (await runs.waiting(conn)).rows]
        more = Limits(steps=9)
        await hand.commit(ev.Decided(at=AT, wait=wait.id, by="ann", decision="extend", limits=more))
    async with database.scoped(caller.handle) as conn:
        row = await runs.get(conn, hand.run_id)
        assert (row.limits, row.waits) == (more, ())
        assert (await runs.waiting(conn)).rows == ()
