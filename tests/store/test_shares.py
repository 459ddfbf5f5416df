"""Shares of a provider's calls: level, never more than the limit together, free once their worker is gone."""

import asyncio
import random
from datetime import UTC, datetime, timedelta

import pytest

from sojourn.store.db import Database
from sojourn.store.sharing import slots
from sojourn.store.sharing.slots import Asked, Stake, split

AT = datetime(2026, 1, 1, tzinfo=UTC)
TOGETHER = "select coalesce(sum(slots), 0) from call_share where until > now()"


def stake(worker: str, needs: int, has: int = 0, fed_s: float = 0) -> Stake:
    return Stake(worker=worker, needs=needs, slots=has, fed_at=AT + timedelta(seconds=fed_s))


@pytest.mark.parametrize("seed", range(200))
def test_all_slots_are_shared_out_as_level_as_the_needs_are(seed: int) -> None:
    dice = random.Random(seed)
    calls_max = dice.randint(1, 40)
    stakes = [stake(f"w{n}", dice.choice([0, 1, 3, 50]), dice.choice([0, 2]), n) for n in range(dice.randint(1, 9))]
    given = split(calls_max, stakes)
    assert sum(given.values()) == calls_max
    lacking = [one for one in stakes if given[one.worker] < one.needs]
    if lacking:
        least = min(given[one.worker] for one in lacking)
        assert all(given[one.worker] <= min(one.needs, least + 1) for one in stakes), "nobody has what another lacks"


def test_where_slots_are_too_few_whoever_waits_longest_is_next() -> None:
    assert split(1, [stake("a", 9, has=1), stake("b", 9, fed_s=5), stake("c", 9, fed_s=3)]) == {"a": 0, "b": 0, "c": 1}


def test_what_nobody_needs_is_kept_ready_by_all() -> None:
    assert split(10, [stake("a", 1), stake("b", 0)]) == {"a": 6, "b": 4}


async def test_the_sum_of_all_shares_stays_within_the_limit(database: Database) -> None:
    """Workers that ask at random, at once, keep what they have on their way, and die without a word."""
    dice, most = random.Random(5), 0

    async def worker(name: str) -> None:
        nonlocal most
        target = 0
        for _ in range(25):
            calls = dice.randint(0, target)
            asked = Asked(name, needs=dice.choice([0, 1, 4, 30]) + calls, floor=max(calls, target))
            share = await slots.settle(database, "sim", asked, calls_max=7, for_s=60)
            assert share.target <= share.slots
            target = share.target
            async with database.engine() as engine:
                most = max(most, await engine.fetchval(TOGETHER))

    await asyncio.gather(*(worker(f"w{n}") for n in range(6)))
    assert most == 7, "all are used, and none is there twice"


async def test_a_dead_workers_share_is_free_once_it_ran_out(database: Database) -> None:
    async def settle(name: str, needs: int) -> int:
        return (await slots.settle(database, "sim", Asked(name, needs, 0), calls_max=4, for_s=60)).slots

    assert await settle("dead", 4) == 4
    assert await settle("w1", 2) == 0
    async with database.engine() as engine:
        await engine.execute("update call_share set until = now() - interval '1 ms' where worker = 'dead'")
    assert await settle("w1", 2) == 4
    await slots.give_up(database, "w1")
    assert await settle("w2", 1) == 4
