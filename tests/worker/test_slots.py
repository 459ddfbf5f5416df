"""Calls of a limited provider: never too many at once over all workers, and each gets its turn."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from tests.conftest import until

from sojourn.models.model import ModelFailed
from sojourn.store.db import Database
from sojourn.worker.slots import CallSlots


@asynccontextmanager
async def settling(slots: CallSlots) -> AsyncIterator[CallSlots]:
    """Slots that are settled as a worker does it."""

    async def settle() -> None:
        while True:
            await slots.settle(0.05)

    task = asyncio.create_task(settle())
    try:
        yield slots
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await slots.close()


class Provider:
    """Counts who calls at once."""

    def __init__(self) -> None:
        self.now = self.most = self.done = 0

    async def call(self, slots: CallSlots, for_s: float = 0.01) -> None:
        async with slots.slot("sim"):
            self.now += 1
            self.most = max(self.most, self.now)
            try:
                await asyncio.sleep(for_s)
            finally:
                self.now -= 1
        self.done += 1


@pytest.mark.parametrize("calls_max", [1, 2, 5])
async def test_three_workers_never_call_more_at_once_and_all_are_served(database: Database, calls_max: int) -> None:
    provider = Provider()
    names = ("w1", "w2", "w3")
    made = (CallSlots(database, name, {"sim": calls_max}, lease_s=60) for name in names)
    one, two, three = made
    async with settling(one), settling(two), settling(three), asyncio.timeout(60):
        await asyncio.gather(*(provider.call(slots) for slots in (one, two, three) for _ in range(8)))
    assert (provider.most, provider.done) == (calls_max, 24)


async def test_a_call_within_the_share_asks_nobody(database: Database) -> None:
    slots, provider = CallSlots(database, "w1", {"sim": 9}, lease_s=60), Provider()
    async with settling(slots):
        await provider.call(slots)
    again = asyncio.gather(*(provider.call(slots) for _ in range(9)))
    await again
    assert provider.most == 9, "nothing settles any more"


async def test_a_provider_without_a_limit_is_called_at_once(database: Database) -> None:
    async with CallSlots(database, "w1", {}, lease_s=60).slot("sim"):
        pass


async def test_a_call_that_is_given_up_while_it_waits_takes_no_slot(database: Database) -> None:
    slots, provider = CallSlots(database, "w1", {"sim": 1}, lease_s=60), Provider()
    async with settling(slots), asyncio.timeout(30):
        first = asyncio.create_task(provider.call(slots, 30))
        await until(lambda: provider.now == 1)
        second, third = asyncio.create_task(provider.call(slots)), asyncio.create_task(provider.call(slots))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.sleep(0)
        first.cancel()
        await third
        await asyncio.gather(first, second, return_exceptions=True)
    assert (provider.most, provider.done) == (1, 1)


async def test_a_share_that_cannot_be_renewed_ends_its_calls_before_others_get_it(database: Database) -> None:
    cut, provider = CallSlots(database, "cut", {"sim": 2}, lease_s=2.0), Provider()
    async with settling(cut):
        first = asyncio.create_task(provider.call(cut, 60))
        await until(lambda: provider.now == 1)
        cut.close = _nothing  # type: ignore[method-assign]
    other = CallSlots(database, "other", {"sim": 2}, lease_s=60)
    async with settling(other), asyncio.timeout(30):
        await asyncio.gather(*(provider.call(other) for _ in range(4)))
        with pytest.raises(ModelFailed) as failed:
            await first
    assert (failed.value.retry, provider.most) == (True, 2)
    again = asyncio.create_task(provider.call(cut))
    await asyncio.sleep(0)
    assert not again.done(), "nothing begins in a share that is over"
    again.cancel()


async def _nothing() -> None:
    """A process that was cut off gives nothing up."""
