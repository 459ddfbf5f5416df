"""How long a worker may act on its leases: it stops by its own clock, before any other worker may take its runs over.

`worker.py` renews it with every beat, `drive.py` and `perform.py` ask it before anything leaves the process. The rule:
what the world can see is begun only while no other worker can have the run, however long this process was stopped, cut
off or asleep. Commits and deltas need no clock: the database checks their fence.
"""

import asyncio
import time
from collections.abc import Callable

from sojourn.errors import LeaseLost

SHARE = 0.8
"""Of `lease_s`: the rest is for ending what is in flight, and for clocks that do not run alike."""


def clock() -> float:
    """Seconds that nobody sets, and that go on while the machine sleeps, where it has such a clock."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Tenure:
    """The time until which this worker's last beat is good."""

    def __init__(self, lease_s: float, *, now_s: Callable[[], float] = clock) -> None:
        self.now_s = now_s
        self._acts_s = lease_s * SHARE
        self._until_s = 0.0
        self._in_doubt = True
        self._renewed = asyncio.Event()

    @property
    def holds(self) -> bool:
        """Whether something may begin now."""
        return not self._in_doubt and self.now_s() < self._until_s

    def renew(self, asked_at_s: float) -> None:
        """A beat that was asked for at that time of `now_s` went through."""
        self._until_s, self._in_doubt = asked_at_s + self._acts_s, False
        self._renewed.set()

    def doubt(self) -> None:
        """The connection that others know us to live by has gone: begin nothing before the next beat."""
        self._in_doubt = True

    def check(self) -> None:
        """Raise LeaseLost unless something may begin now."""
        if not self.holds:
            raise LeaseLost("This worker was cut off for too long to begin anything.")

    async def held(self) -> None:
        """Wait until something may begin: a beat says so, or ends whoever waits because its run is another's."""
        while not self.holds:
            self._renewed.clear()
            await self._renewed.wait()

    async def over(self) -> None:
        """Wait until what is in flight must end."""
        while (left_s := self._until_s - self.now_s()) > 0:  # noqa: ASYNC110 (the clock does it)
            await asyncio.sleep(left_s)
