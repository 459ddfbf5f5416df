"""That a process was told to stop, and whether it is to hurry. `wiring` sets it by signals; the worker drains by it."""

import asyncio
from collections.abc import Collection
from contextlib import suppress

AGAIN_S = 1.0


class Shutdown:
    """Told once to end in good order, and a second time to be quick about it."""

    def __init__(self) -> None:
        self.told = asyncio.Event()
        self.hastened = asyncio.Event()

    async def over(self, linger_s: float) -> None:
        """Wait until it is told, and then so long, unless it is hastened."""
        await self.told.wait()
        with suppress(TimeoutError):
            await asyncio.wait_for(self.hastened.wait(), linger_s)

    async def gone(self, tasks: Collection[asyncio.Task[None]], within_s: float) -> None:
        """Wait until tasks have ended; no longer than that, nor once it is hastened."""
        ways = {asyncio.create_task(self.hastened.wait()), asyncio.create_task(gone(tasks, within_s))}
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()


async def gone(tasks: Collection[asyncio.Task[None]], within_s: float) -> None:
    """Wait until tasks have ended; no longer than that."""
    if tasks:
        await asyncio.wait(tasks, timeout=within_s)


async def ended(tasks: Collection[asyncio.Task[None]]) -> None:
    """Cancel tasks until they have ended: `wait_for` of Python 3.11 loses a cancellation that meets an answer."""
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=AGAIN_S)
