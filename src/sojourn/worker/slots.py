"""The calls of limited providers that this worker may have on their way: perform.py and asking.py take a slot for each.

The rules: a call within the share asks nobody; one that waits holds nothing, is served in the order of its coming, and
stops waiting when its run does; and a share that could not be renewed in time ends the calls that it was for.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

from sojourn.models.model import ModelFailed
from sojourn.store.db import Database
from sojourn.store.sharing import slots

log = logging.getLogger("sojourn.worker")

HUNGRY_S = 0.2
"""How often a worker asks for more while calls wait."""
SAFE = 0.8
"""The part of a share's time after which it counts as over here: ending a call takes a moment."""


class Share:
    """One provider's slots in this worker."""

    def __init__(self, calls_max: int) -> None:
        self.calls_max = calls_max
        self.target = self.slots = self.calls = 0
        self.until = 0.0
        """When the share is over, in seconds of the loop's clock."""
        self.waiting: deque[asyncio.Future[None]] = deque()
        self.open: set[asyncio.Timeout] = set()

    @property
    def used(self) -> bool:
        return bool(self.slots or self.calls or self.waiting)

    @property
    def owes(self) -> bool:
        """Whether others wait for a slot that can be given up now."""
        return max(self.target, self.calls) < self.slots

    def over(self, now: float) -> bool:
        return now >= self.until

    def serve(self, now: float) -> None:
        """Let calls begin that fit."""
        while self.waiting and self.calls < self.target and not self.over(now):
            first = self.waiting.popleft()
            if not first.done():
                self.calls += 1
                first.set_result(None)

    def renew(self, share: slots.Share, until: float) -> None:
        self.slots, self.target, self.until = share.slots, share.target, until
        for timeout in self.open:
            if not timeout.expired():
                timeout.reschedule(until)


class CallSlots:
    """The shares of one worker, by provider; providers without a limit have none."""

    def __init__(self, db: Database, worker_id: str, limits: Mapping[str, int], *, lease_s: float) -> None:
        self._db, self._worker_id, self._lease_s = db, worker_id, lease_s
        self._shares = {provider: Share(calls_max) for provider, calls_max in limits.items()}
        self._wake = asyncio.Event()

    @asynccontextmanager
    async def slot(self, provider: str) -> AsyncIterator[None]:
        """Hold a slot for one call; wait for it. Raises ModelFailed when the share ends before the call does."""
        share = self._shares.get(provider)
        if share is None:
            yield
            return
        await self._enter(share)
        try:
            async with asyncio.timeout_at(share.until) as timeout:
                share.open.add(timeout)
                try:
                    yield
                finally:
                    share.open.discard(timeout)
        except TimeoutError:
            if not timeout.expired():
                raise
            told = f"The call to '{provider}' was given up: this worker could not renew its share of calls_max."
            raise ModelFailed("interrupted", told, retry=True) from None
        finally:
            self._leave(share)

    async def _enter(self, share: Share) -> None:
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        share.waiting.append(turn)
        share.serve(loop.time())
        if len(share.waiting) == 1:  # with more of them it is asked often enough
            self._wake.set()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._leave(share)
            with suppress(ValueError):
                share.waiting.remove(turn)
            raise

    def _leave(self, share: Share) -> None:
        share.calls -= 1
        share.serve(asyncio.get_running_loop().time())
        if share.owes:
            self._wake.set()

    async def settle(self, beat_s: float) -> None:
        """Renew the shares in use, then wait until the next beat; less where calls wait or slots are owed."""
        self._wake.clear()
        for provider, share in self._shares.items():
            while share.used:
                await self._renew(provider, share)
                if not share.owes:
                    break
        hungry = any(share.waiting for share in self._shares.values())
        with suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), min(HUNGRY_S, beat_s) if hungry else beat_s)

    async def _renew(self, provider: str, share: Share) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        if share.over(began):
            share.target = share.slots = 0
            if share.calls:  # they are being ended
                return
        asked = slots.Asked(self._worker_id, share.calls + len(share.waiting), max(share.target, share.calls))
        got = await slots.settle(self._db, provider, asked, calls_max=share.calls_max, for_s=self._lease_s)
        share.renew(got, began + SAFE * self._lease_s)
        share.serve(loop.time())

    async def close(self) -> None:
        """Give everything up, once no call is on its way."""
        if any(share.slots for share in self._shares.values()):
            await slots.give_up(self._db, self._worker_id)
