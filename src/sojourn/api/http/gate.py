"""A gate before what is slow and scarce: so many are in at once, so many wait, and the next is turned away.

`app` makes one for the opening of sandboxes, and one for runs that move. The rule: who waits holds nothing, and nobody
waits for ever.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sojourn.errors import Unavailable

WAIT_S = 30.0
RETRY_S = 2.0


class Gate:
    """Lets `at_once` in, and `waiting_max` wait for their turn."""

    def __init__(
        self, what: str, *, at_once: int, waiting_max: int, wait_s: float = WAIT_S, code: str | None = None
    ) -> None:
        self._what, self._code = what, code
        self._room = asyncio.Semaphore(at_once)
        self._waiting, self._waiting_max, self._wait_s = 0, waiting_max, wait_s

    @asynccontextmanager
    async def entered(self) -> AsyncIterator[None]:
        """Wait for a place, and hold it. Raises Unavailable, saying when to come back."""
        await self._enter()
        try:
            yield
        finally:
            self._room.release()

    async def _enter(self) -> None:
        if self._room.locked() and self._waiting >= self._waiting_max:
            raise self._busy(f"{self._waiting} requests wait already for {self._what}.")
        self._waiting += 1
        try:
            async with asyncio.timeout(self._wait_s):
                await self._room.acquire()
        except TimeoutError:
            raise self._busy(f"There was no room within {self._wait_s:g} s for {self._what}.") from None
        finally:
            self._waiting -= 1

    def _busy(self, why: str) -> Unavailable:
        return Unavailable(f"{why} Try again in a moment.", code=self._code, retry_after_s=RETRY_S)
