"""Tenants take turns, and hold no more than they may: against a real database, with many claimers at once."""

import asyncio
import random
from collections import Counter

import pytest
from msgspec.structs import replace
from scripted_runs import AGENT, Hand, Worker, asked, enter, hired, new_run, soon, submit, words

from sojourn.errors import NotFound, QueueFull
from sojourn.loop.agent import Agent
from sojourn.loop.moving.levels import LEVEL
from sojourn.store import health, queue, runs
from sojourn.store.db import Database
from sojourn.store.rows import Principal, Release
from sojourn.store.sharing import limits
from sojourn.store.tenant import catalog, sessions

HELD = "select count(*) from run where lease_worker is not null"
OVER = Release(status="failed")


async def held(database: Database) -> int:
    async with database.engine() as engine:
        return int(await engine.fetchval(HELD))


async def line_up(database: Database, sizes: dict[str, int]) -> dict[str, Principal]:
    """Make tenants with so many runs each."""
    callers = {tenant: await enter(database, tenant) for tenant in sizes}
    for tenant, size in sizes.items():
        for _ in range(size):
            await submit(database, callers[tenant])
    return callers


async def limited(database: Database, caller: Principal, agent: Agent, runs_max: int | None) -> None:
    """Put an agent into the catalog and limit it."""
    async with database.scoped(caller.handle) as conn:
        await catalog.create(conn, agent, by="ann")
        await catalog.limit(conn, agent.name, runs_max)


async def end(worker: Worker, hands: list[Hand]) -> None:
    for hand in hands:
        await hand.commit(asked(0), release=OVER)


# ---- turns -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
async def test_whoever_waits_is_served_within_one_round(database: Database, seed: int) -> None:
    dice = random.Random(seed)
    names = [f"t{n}" for n in range(dice.randint(2, 5))]
    sizes = {name: dice.randint(1, 9) for name in names}
    await line_up(database, sizes)
    late = await enter(database, dice.choice(["a", "t2x", "z"]))
    async with hired(database) as worker:
        line = queue.Line(database, worker.id)
        await line.claim(dice.randint(1, 4))
        await submit(database, late)
        for _ in range(len(names) + 1):
            claimed = await line.claim(dice.randint(1, 3))
            if late.tenant in {one.tenant for one in claimed}:
                return
    pytest.fail(f"{late.tenant} was not served, with {sizes} in line")


async def test_a_small_tenant_is_in_the_first_turn_beside_a_large_one(database: Database) -> None:
    await line_up(database, {"large": 30, "small": 1, "tiny": 1})
    async with hired(database) as worker:
        served = Counter(one.tenant for one in await queue.Line(database, worker.id).claim(6))
        assert served == {"large": 4, "small": 1, "tiny": 1}, "what the small ones leave is given out too"


async def test_tenants_that_wait_get_equal_shares(database: Database) -> None:
    await line_up(database, dict.fromkeys(("a", "b", "c"), 8))
    async with hired(database) as worker:
        line = queue.Line(database, worker.id)
        turns = [await line.claim(2) for _ in range(9)]
        served = Counter(one.tenant for turn in turns for one in turn)
        assert sorted(served.values()) == [6, 6, 6]


async def test_priority_orders_the_runs_of_a_tenant_and_not_the_tenants(database: Database) -> None:
    mine, other = await enter(database, "a"), await enter(database, "b")
    for priority in (9, 9, 9):
        await submit(database, mine, priority=priority)
    low, high = await submit(database, other, priority=1), await submit(database, other, priority=2)
    async with hired(database) as worker:
        line = queue.Line(database, worker.id)
        order = [(await line.claim(1))[0] for _ in range(4)]
        assert [one.tenant for one in order] == ["a", "b", "a", "b"]
        assert [one.run_id for one in order if one.tenant == "b"] == [high, low]


async def test_timers_wake_and_stand_in_line_as_all_others_do(database: Database) -> None:
    caller = await enter(database)
    async with hired(database) as worker, database.engine() as engine:
        for _ in range(3):
            await submit(database, caller)
        for hand in await worker.take(3):
            await hand.commit(release=Release(status="suspended", due_at=soon()))
        line = queue.Line(database, worker.id)
        assert (await line.claim(9), line.held_back) == ([], False)
        await engine.execute("update run set due_at = now() - interval '1 s'")
        assert len(await line.claim(2)) == 2
        assert await engine.fetchval("select status from run where lease_worker is null") == "queued"
        assert (len(await line.claim(2)), line.next_at) == (1, None)


async def test_a_run_is_left_to_workers_that_can_read_it(database: Database) -> None:
    caller = await enter(database)
    newer, older = await submit(database, caller, priority=9), await submit(database, caller)
    async with database.migrator() as owner:
        await owner.execute("alter table run no force row level security")
        await owner.execute("update run set needs = $2 where id = $1", newer, LEVEL + 1)
    async with hired(database) as worker, database.engine() as engine:
        assert [one.run_id for one in await queue.claim(database, worker.id, 2)] == [older]
        assert await engine.fetchval("select reads from worker") == LEVEL


# ---- limits ----------------------------------------------------------------------------------


async def test_a_limit_is_exact_with_eight_claimers_at_once(database: Database) -> None:
    """Each claims what it can, looks, and ends its runs; a ninth tenant has no limit and must not wait for it."""
    callers = await line_up(database, {"few": 30, "free": 4})
    await limited(database, callers["few"], AGENT, 3)
    await limits.set_limits(database, "few", {"runs_max": 5})
    most, done = 0, 0
    async with hired(database) as worker:

        async def claimer(dice: random.Random) -> None:
            nonlocal most, done
            while done < 34:
                hands = await worker.take(dice.randint(1, 6))
                async with database.engine() as engine:
                    few = await engine.fetchval(f"{HELD} and tenant = 'few'")
                most = max(most, few)
                await end(worker, hands)
                done += len(hands)
                await asyncio.sleep(0)

        async with asyncio.timeout(60):
            await asyncio.gather(*(claimer(random.Random(n)) for n in range(8)))
    assert most == 3, "the agent's limit is the tighter one"


async def test_the_settings_limit_holds_where_the_tenant_says_nothing(database: Database) -> None:
    await line_up(database, {"a": 4, "b": 4})
    await limits.set_limits(database, "b", {"runs_max": 3})
    async with hired(database) as worker:
        line = queue.Line(database, worker.id, tenant_runs_max=1)
        claimed = await line.claim(8)
        assert Counter(one.tenant for one in claimed) == {"a": 1, "b": 3}
        assert line.held_back
        await limits.set_limits(database, "b", {"runs_max": None})
        assert await line.claim(8) == []


async def test_an_agents_limit_holds_over_its_versions_and_lets_others_pass(database: Database) -> None:
    caller = await enter(database)
    await limited(database, caller, AGENT, 2)
    for version in (1, 2, 3):
        await submit(database, caller, agent=replace(AGENT, version=version), priority=9)
    other = await submit(database, caller, agent=replace(AGENT, name="other"))
    async with hired(database) as worker:
        hands = await worker.take(9)
        assert Counter(hand.state.root.agent.name for hand in hands) == {"clerk": 2, "other": 1}
        assert hands[-1].run_id == other
        await end(worker, hands[:1])
        assert (await worker.take_one()).state.root.agent.version == 3


async def test_runs_of_a_killed_worker_count_no_more(database: Database) -> None:
    await line_up(database, {"a": 4})
    await limits.set_limits(database, "a", {"runs_max": 2})
    async with hired(database) as worker:
        life = await queue.register(database, "dead", host="here", pid=2, version="0")
        assert len(await queue.claim(database, "dead", 4)) == 2
        assert await worker.take(4) == []
        await life.close()
        async with asyncio.timeout(30):
            while not await queue.steal(database, 3600):  # noqa: ASYNC110 (the server ends the connection)
                await asyncio.sleep(0.01)
        assert len(await worker.take(4)) == 2


async def test_a_limit_that_is_lowered_stops_new_runs_and_ends_none(database: Database) -> None:
    await line_up(database, {"a": 5})
    async with hired(database) as worker:
        hands = await worker.take(3)
        await limits.set_limits(database, "a", {"runs_max": 2})
        assert await worker.take(2) == []
        await end(worker, hands[:1])
        assert (await worker.take(2), await held(database)) == ([], 2)
        await end(worker, hands[1:2])
        assert len(await worker.take(2)) == 1
        await limits.set_limits(database, "a", {"runs_max": 0})
        await end(worker, hands[2:])
        assert await worker.take(2) == []


async def test_a_run_that_goes_back_to_the_queue_makes_room(database: Database) -> None:
    callers = await line_up(database, {"a": 2})
    await limits.set_limits(database, "a", {"runs_max": 1})
    async with hired(database) as worker:
        first = await worker.take_one()
        await first.commit(release=Release(status="suspended"))
        second = await worker.take_one()
        async with database.scoped(callers["a"].handle) as conn:
            await runs.post(conn, first.run_id, words())
            why = await limits.held_back(conn, first.run_id, tenant_runs_max=None)
        assert (await worker.take(2), why) == ([], "tenant_runs_max")
        await end(worker, [second])
        assert (await worker.take_one()).run_id == first.run_id


# ---- what is told ----------------------------------------------------------------------------


async def test_what_could_be_claimed_is_told_from_what_is_held_back(database: Database) -> None:
    callers = await line_up(database, {"a": 6, "b": 3, "c": 2})
    await limited(database, callers["a"], AGENT, 4)
    await limits.set_limits(database, "b", {"runs_max": 1})
    async with hired(database) as worker:
        counts = await health.counts(database, tenant_runs_max=5)
        assert (counts.claimable, counts.held_back) == (4 + 1 + 2, 2 + 2)
        assert len(await queue.Line(database, worker.id, tenant_runs_max=5).claim(3)) == 3
        counts = await health.counts(database, tenant_runs_max=5)
        assert (counts.claimable, counts.held_back) == (4, 4)
        async with database.scoped(callers["a"].handle) as conn:
            queued = (await runs.page(conn)).rows[0].id
            assert await limits.held_back(conn, queued, tenant_runs_max=5) is None
            assert await limits.held_back(conn, queued, tenant_runs_max=1) == "tenant_runs_max"
            await catalog.limit(conn, "clerk", 1)
            assert await limits.held_back(conn, queued, tenant_runs_max=5) == "agent_runs_max"


async def test_the_operator_sees_every_tenant_and_its_limits(database: Database) -> None:
    await line_up(database, {"a": 2, "b": 1})
    await limits.set_limits(database, "a", {"runs_max": 1, "queued_max": 7})
    async with hired(database) as worker:
        await worker.take(1)
        found = {row.id: (row.queued, row.running, row.limits) for row in await limits.tenants(database)}
    assert found == {
        "a": (1, 1, {**dict.fromkeys(limits.LIMITS), "runs_max": 1, "queued_max": 7}),
        "b": (1, 0, dict.fromkeys(limits.LIMITS)),
    }
    with pytest.raises(NotFound):
        await limits.set_limits(database, "nobody", {"runs_max": 1})


async def test_a_full_queue_says_when_to_come_back_and_is_passed_by_no_more_than_come_at_once(
    database: Database,
) -> None:
    caller = (await line_up(database, {"a": 1}))["a"]
    await limits.set_limits(database, "a", {"queued_max": 3})

    async def one(number: int) -> bool:
        try:
            await create(database, caller, f"ses_{number}")
        except QueueFull:
            return False
        return True

    made = sum(await asyncio.gather(*(one(number) for number in range(40))))
    assert 2 <= made <= 2 + 9, "as many as there are connections, less one"
    with pytest.raises(QueueFull, match="3 runs of this tenant") as refused:
        await create(database, caller, "ses_now")
    assert refused.value.retry_after_s == 1
    async with database.engine() as engine:
        await engine.execute("update run set due_at = now() - interval '300 s'")
    with pytest.raises(QueueFull) as refused:
        await create(database, caller, "ses_later")
    assert refused.value.retry_after_s == pytest.approx(30, abs=1)


async def create(database: Database, caller: Principal, session_id: str) -> None:
    async with database.scoped(caller.handle) as conn:
        await sessions.create(conn, session_id)
        await runs.create(conn, new_run(caller, session_id), queued_max=1)
