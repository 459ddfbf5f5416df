"""Claims, leases, mail and dead workers, against a real database."""

import asyncio
from collections import Counter

import pytest
from msgspec.structs import replace
from scripted_runs import AGENT, AT, asked, enter, hired, intended, replied, returned, soon, submit

from sojourn.errors import LeaseLost, MissingPin
from sojourn.loop import events as ev
from sojourn.loop.agent import Agent, Tool, digest
from sojourn.store import queue, runs
from sojourn.store.db import Database
from sojourn.store.rows import Release

# ---- claims ----------------------------------------------------------------------------------


async def test_no_run_is_claimed_twice_by_eight_claimers(database: Database) -> None:
    caller = await enter(database)
    for _ in range(200):
        await submit(database, caller)
    async with hired(database) as worker:
        found: list[str] = []

        async def claimer() -> None:
            while claimed := await queue.claim(database, worker.id, 3):
                found.extend(one.run_id for one in claimed)

        await asyncio.gather(*(claimer() for _ in range(8)))
        assert Counter(found).most_common(1)[0][1] == 1
        left = [hand.run_id for hand in await worker.take(200)]
        assert len(found) + len(left) == 200, "nothing that was skipped is lost"


async def test_the_urgent_come_first_and_then_the_oldest(database: Database) -> None:
    caller = await enter(database)
    made = [(await submit(database, caller, priority=priority), priority) for priority in (0, 9, 5, 0, 9, 5)]
    async with hired(database) as worker:
        order = [(await worker.take_one()).run_id for _ in made]
        assert order == [run_id for run_id, _ in sorted(made, key=lambda one: -one[1])]


async def test_a_batch_is_in_order_too(database: Database) -> None:
    caller = await enter(database)
    made = [(await submit(database, caller, priority=priority), priority) for priority in (0, 9, 5, 9)]
    async with hired(database) as worker:
        order = [hand.run_id for hand in await worker.take(3)]
        assert order == [run_id for run_id, priority in sorted(made, key=lambda one: -one[1]) if priority]


@pytest.mark.parametrize("given", ["queued", "suspended"])
async def test_a_run_is_not_claimed_before_its_time(database: Database, given: str) -> None:
    caller = await enter(database)
    async with hired(database) as worker:
        run_id = await submit(database, caller)
        due_at = soon()
        await (await worker.take_one()).commit(release=Release(status=given, due_at=due_at))
        line = queue.Line(database, worker.id)
        assert (await line.claim(1), line.next_at) == ([], due_at)
        async with database.engine() as engine:
            await engine.execute("update run set due_at = now() where id = $1", run_id)
        assert (await worker.take_one()).run_id == run_id
        assert (await line.claim(1), line.next_at) == ([], None)


async def test_a_run_that_waits_for_a_person_alone_is_never_claimed(database: Database) -> None:
    caller = await enter(database)
    async with hired(database) as worker:
        await submit(database, caller)
        await (await worker.take_one()).commit(release=Release(status="suspended"))
        line = queue.Line(database, worker.id)
        assert (await line.claim(1), line.next_at) == ([], None)


async def test_claims_without_progress_are_counted(database: Database) -> None:
    caller = await enter(database)
    async with hired(database) as worker:
        await submit(database, caller)
        for n in range(1, 4):
            hand = await worker.take_one()
            assert hand.claimed.claims == n
            await hand.commit(release=Release(status="queued"))
        hand = await worker.take_one()
        await hand.commit(asked(0), release=Release(status="queued"))
        hand = await worker.take_one()
        assert hand.claimed.claims == 5, "to announce a call is no progress: it would be paid for without end"
        await hand.commit(replied(0, calls=1), intended(0), release=Release(status="queued"))
        assert (await worker.take_one()).claimed.claims == 1


async def test_a_snapshot_of_a_newer_release_goes_back_untouched(database: Database) -> None:
    caller = await enter(database)
    async with hired(database) as worker, database.engine() as engine:
        newer, older = await submit(database, caller), await submit(database, caller)
        future = b'{"format":"sojourn.continuation","version":99,"what":"ever"}'
        await engine.execute("update run set snapshot = $2 where id = $1", newer, future)
        assert [hand.run_id for hand in await worker.take(5)] == [older]
        row = await engine.fetchrow("select snapshot, status, due_at > started_at from run where id = $1", newer)
        assert tuple(row) == (future, "queued", True)


async def test_a_run_that_cannot_be_driven_rests_longer_each_time(database: Database) -> None:
    caller = await enter(database)
    async with hired(database) as worker, hired(database, "w2") as other, database.engine() as engine:
        run_id = await submit(database, caller)
        rests = []
        for _ in range(8):
            lease = (run_id, (await worker.take_one()).claimed.fence)
            await queue.give_back(database, other.id, [lease])
            await queue.give_back(database, worker.id, [(run_id, lease[1] - 1)])
            assert await queue.beat(worker.life, worker.id) == {lease}, "only who holds it can give it back"
            await queue.give_back(database, worker.id, [lease])
            rests.append(await engine.fetchval("select extract(epoch from due_at - now()) from run"))
            await engine.execute("update run set due_at = now()")
        assert [round(rest) for rest in rests[:3]] == [2, 4, 8]
        assert max(rests) <= 60


# ---- open ------------------------------------------------------------------------------------


async def test_a_reopened_run_is_as_its_last_worker_left_it(database: Database) -> None:
    caller = await enter(database)
    async with hired(database) as worker:
        await submit(database, caller)
        hand = await worker.take_one()
        await hand.step(0)
        await hand.commit(asked(1))
        await hand.commit(replied(1, calls=2), intended(1, 0), intended(1, 1))
        await hand.commit(returned(1, 1))
        await hand.commit(release=Release(status="queued"))
        assert (await worker.take_one()).state == hand.state


async def test_a_session_goes_on_where_its_last_run_ended(database: Database) -> None:
    caller = await enter(database)
    async with hired(database) as worker:
        await submit(database, caller, "one")
        first = await worker.take_one()
        session_id = first.state.session_id
        await first.step(0)
        await first.finish(1, "first answer")
        await submit(database, caller, "two", session_id=session_id)
        second = await worker.take_one()
        assert [m.text for m in second.state.root.messages] == ["one", "", "", "first answer", "two"]
        await second.commit(asked(0))
        await second.commit(replied(0, calls=2), intended(0))
        await second.commit(ev.Cancelled(at=AT, by="ann"), release=Release(status="cancelled"))
        await submit(database, caller, "three", session_id=session_id)
        third = await worker.take_one()
        texts = [message.text for message in third.state.root.messages]
        assert texts == ["one", "", "", "first answer", "two", "three"], "a step cut short is no conversation"
        async with database.scoped(caller.handle) as conn:
            assert (await runs.transcript(conn, third.run_id)).root == third.state.root
            assert (await runs.transcript(conn, second.run_id)).root.state == "cancelled"


async def test_agents_come_with_those_that_their_tools_start(database: Database) -> None:
    caller = await enter(database)
    leaf = Agent(name="leaf", models=("m",), system="NUL \0 and \u2028")
    middle = Agent(name="middle", models=("m",), tools=(Tool(name="t", executor="agent", agent=digest(leaf)),))
    root = replace(AGENT, tools=(Tool(name="t", executor="agent", agent=digest(middle)), Tool(name="u")))
    async with hired(database) as worker:
        await submit(database, caller, agent=root, agents=(middle, leaf))
        (claimed,) = await queue.claim(database, worker.id, 1)
        whole = (await queue.open(database, claimed)).agents
        assert whole == {digest(agent): agent for agent in (root, middle, leaf)}
        assert (await queue.open(database, claimed, known=whole)).agents == {}


async def test_a_missing_agent_is_named(database: Database) -> None:
    caller = await enter(database)
    async with hired(database) as worker:
        await submit(database, caller)
        (claimed,) = await queue.claim(database, worker.id, 1)
        root = claimed.snapshot.root
        lost = replace(claimed.snapshot, root=replace(root, agent=replace(root.agent, digest="sha256:no")))
        with pytest.raises(MissingPin, match="sha256:no"):
            await queue.open(database, replace(claimed, snapshot=lost))


# ---- leases ----------------------------------------------------------------------------------


async def test_a_dead_worker_is_seen_at_once(database: Database) -> None:
    caller = await enter(database)
    run_id = await submit(database, caller)
    async with hired(database, "dying") as dying, hired(database, "living") as living:
        await dying.take_one()
        assert await queue.steal(database, 3600) == []
        await dying.life.close()
        async with asyncio.timeout(30):
            while not (stolen := await queue.steal(database, 3600)):  # noqa: ASYNC110 (the server closes it)
                await asyncio.sleep(0.001)
        assert stolen == [run_id]
        fence = (await living.take_one()).claimed.fence
        assert await queue.beat(living.life, "dying") == frozenset()
        assert await queue.beat(living.life, "living") == {(run_id, fence)}


async def test_a_worker_that_is_cut_off_loses_its_runs_after_the_lease(database: Database) -> None:
    caller = await enter(database)
    run_id = await submit(database, caller)
    async with hired(database) as worker, database.engine() as engine:
        hand = await worker.take_one()
        await engine.execute("update worker set seen_at = now() - interval '20 seconds'")
        assert await queue.steal(database, 30) == []
        assert await queue.beat(worker.life, worker.id) == {(run_id, hand.claimed.fence)}
        assert await queue.steal(database, 15) == [], "a heartbeat renews the lease"
        await engine.execute("update worker set seen_at = now() - interval '20 seconds'")
        assert await queue.steal(database, 15) == [run_id]
        with pytest.raises(LeaseLost):
            await hand.commit(asked(0))


async def test_a_worker_takes_its_lock_again_after_its_connection_was_lost(database: Database) -> None:
    caller = await enter(database)
    run_id = await submit(database, caller)
    async with hired(database) as worker:
        hand = await worker.take_one()
        await worker.life.close()
        async with hired(database) as again:
            assert again.id == worker.id
            assert await queue.steal(database, 3600) == []
            assert await queue.beat(again.life, worker.id) == {(run_id, hand.claimed.fence)}
            await hand.commit(asked(0))


async def test_a_restart_of_the_server_kills_no_worker(database: Database) -> None:
    caller = await enter(database)
    await submit(database, caller)
    async with hired(database) as worker, database.engine() as engine:
        await worker.take_one()
        await worker.life.close()  # as if all connections had dropped with the server's restart, after we locked
        await engine.execute("update worker set locked_at = pg_postmaster_start_time() - interval '1 hour'")
        assert await queue.steal(database, 3600) == []


async def test_an_unknown_worker_may_not_claim(database: Database) -> None:
    caller = await enter(database)
    await submit(database, caller)
    with pytest.raises(LeaseLost, match="register it again"):
        await queue.claim(database, "nobody", 1)


async def test_workers_that_are_long_gone_are_forgotten_but_not_their_runs(database: Database) -> None:
    caller = await enter(database)
    await submit(database, caller)
    async with hired(database, "gone") as gone, database.engine() as engine:
        await gone.take_one()
        await engine.execute("update worker set seen_at = now() - interval '1 hour'")
        assert len(await queue.steal(database, 15)) == 1
        assert await engine.fetchval("select count(*) from worker") == 0


async def test_a_run_whose_workers_die_again_and_again_rests_at_random(database: Database) -> None:
    caller = await enter(database)
    for _ in range(30):
        await submit(database, caller)
    async with hired(database, "dead"), database.engine() as engine:
        for claims, soon in ((1, True), (2, True), (5, False)):
            await engine.execute("update run set due_at = now(), claims = $1", claims - 1)
            assert len(await queue.claim(database, "dead", 30)) == 30
            await engine.execute("update worker set seen_at = now() - interval '1 minute'")
            assert len(await queue.steal(database, 15)) == 30
            rests = await engine.fetchval("select array_agg(due_at - now() > interval '10 ms') from run")
            assert rests == [False] * 30 if soon else rests.count(True) > 15
            assert await engine.fetchval("select max(due_at - now()) < interval '33 seconds' from run")
