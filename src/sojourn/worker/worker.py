"""A worker process: it claims runs, drives each in a task, and gives them back when it is told to stop.

`wiring` starts it. Four small loops run side by side: claim, read mail, beat, tidy. The rules: what happens to one run
never stops another; while the database is away the worker waits and tries again; once it is told to stop it claims
nothing new, and every run is finished or handed back.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

from sojourn import __version__
from sojourn.errors import LeaseLost, StoreUnavailable
from sojourn.loop.agent import Agent
from sojourn.store import deltas, queue
from sojourn.store.db import Connection
from sojourn.store.doorbell import Subscription
from sojourn.store.rows import Claimed
from sojourn.store.tenant import idempotency
from sojourn.worker.drive import Drive
from sojourn.worker.parts import Parts
from sojourn.worker.sessions import put_away_idle

log = logging.getLogger("sojourn.worker")

CLAIM_MAX = 50
POLL_S = 1.0
"""How long a missed doorbell can go unnoticed."""
RETRY_S = 0.5
TIDY_S = 20.0
DELTAS_KEPT_S = 600.0
AGENTS_MAX = 1000
"""Agent versions that are kept in memory."""
HAND_BACK_S = 5.0
"""How long handing back may take once the time to finish is over."""


class Worker:
    """The runs that one process holds, by run id."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.drives: dict[str, Drive] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        self.unread = False
        """A run began to be driven whose mail may have come between its opening and now."""
        self.read_at = parts.now()
        self.idle: frozenset[str] = frozenset()
        """Runs that the last beat found leased to us and driven by no task: failed, or claimed by a lost answer."""
        self.agents: dict[str, Agent] = {}
        self.room = asyncio.Event()
        self.life: Connection = None

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set, then drain."""
        self.life = await self._register()
        bell = self.parts.doorbell
        with bell.subscribe("sojourn_work") as work, bell.subscribe("sojourn_inbox") as mail:
            loops = [
                asyncio.create_task(self._repeat(self._claim, work)),
                asyncio.create_task(self._repeat(self._read_mail, mail)),
                asyncio.create_task(self._repeat(self._beat, mail)),
                asyncio.create_task(self._repeat(self._tidy, mail)),
            ]
            try:
                await stop.wait()
                loops[0].cancel()
                await self._drain()
            finally:
                for task in loops:
                    task.cancel()
                await asyncio.gather(*loops, return_exceptions=True)
                await self.life.close()

    async def _register(self) -> Connection:
        """Tell the others that this worker lives for as long as the connection does."""
        return await queue.register(
            self.parts.database,
            self.parts.worker_id,
            host=socket.gethostname(),
            pid=os.getpid(),
            version=__version__,
        )

    async def _repeat(self, step: Callable[[Subscription], Awaitable[None]], ear: Subscription) -> None:
        """Do one loop's step for ever; what the database refuses now it may allow later."""
        while True:
            try:
                await step(ear)
            except StoreUnavailable as error:
                log.warning("worker.store_away", extra={"loop": step.__name__, "detail": str(error)})
                await asyncio.sleep(RETRY_S)
            except Exception:
                log.exception("worker.bug", extra={"loop": step.__name__})
                await asyncio.sleep(RETRY_S)

    # ---- the four loops ----

    async def _claim(self, work: Subscription) -> None:
        """Claim what there is room for, then wait for the doorbell, the next timer or the slow poll."""
        room = min(self.parts.settings.worker_runs_max - len(self.tasks), CLAIM_MAX)
        if room <= 0:
            self.room.clear()
            await self.room.wait()
            return
        try:
            claimed = await queue.claim(self.parts.database, self.parts.worker_id, room)
        except LeaseLost:  # the others took this worker for dead
            await self.life.close()
            self.life = await self._register()
            return
        for one in claimed:
            self._begin(one)
        if len(claimed) < room:
            await work.wait(self._until(await queue.next_due(self.parts.database)))

    async def _read_mail(self, mail: Subscription) -> None:
        """Bring inbox rows to the runs that they are for: when the doorbell names one of ours, and all now and then."""
        rung = await mail.wait(POLL_S)
        everything = not rung or self.unread or self.parts.now() - self.read_at > timedelta(seconds=POLL_S)
        if everything:
            self.unread, self.read_at = False, self.parts.now()
        ours = [drive.place for run_id, drive in self.drives.items() if everything or run_id in rung]
        if not ours:
            return
        found = await queue.mail(self.parts.database, [(place.tenant, place.run_id) for place in ours])
        for run_id, rows in found.items():
            if drive := self.drives.get(run_id):
                drive.deliver(rows)

    async def _beat(self, _: Subscription) -> None:
        """Renew the lease, let go of what was stolen, and take the runs of dead workers away from them."""
        if self.life.is_closed():
            self.life = await self._register()
        driven, tasks = dict(self.drives), self._driving()
        held = await queue.beat(self.parts.database, self.parts.worker_id)
        for run_id in driven.keys() - held:
            driven[run_id].leave("lost")
        idle = held - tasks - self._driving()
        if stranded := idle & self.idle:
            await queue.give_back(self.parts.database, self.parts.worker_id, stranded)
        self.idle = idle
        stolen = await queue.steal(self.parts.database, self.parts.settings.lease_s)
        if stolen:
            log.warning("worker.stole", extra={"runs": len(stolen)})
            self.parts.doorbell.ring("sojourn_work", ())
        await asyncio.sleep(self.parts.settings.beat_s)

    async def _tidy(self, _: Subscription) -> None:
        """Put idle sandboxes away, and forget what nobody can ask for any more."""
        await asyncio.sleep(TIDY_S)
        await put_away_idle(self.parts)
        await deltas.prune(self.parts.database, DELTAS_KEPT_S)
        await idempotency.prune(self.parts.database)

    def _until(self, due: datetime | None) -> float:
        """Seconds to sleep when the queue is empty, at most the slow poll."""
        return POLL_S if due is None else min(POLL_S, max(0.001, (due - self.parts.now()).total_seconds()))

    # ---- one run ----

    def _driving(self) -> frozenset[str]:
        return frozenset(task.get_name() for task in self.tasks)

    def _begin(self, claimed: Claimed) -> None:
        task = asyncio.create_task(self._drive(claimed), name=claimed.run_id)
        self.tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        self.room.set()

    async def _drive(self, claimed: Claimed) -> None:
        """Drive one run; one that cannot be driven is given back, and claimed again after a pause."""
        drive: Drive | None = None
        try:
            known = self.agents if len(self.agents) < AGENTS_MAX else {}
            opened = await queue.open(self.parts.database, claimed, known=known)
            self.agents = agents = {**known, **opened.agents}
            drive = self.drives[claimed.run_id] = Drive(self.parts, claimed, opened, agents)
            self.unread = True
            await drive.run()
        except Exception as error:
            log.exception("run.not_driven", extra={"run": claimed.run_id, "error": type(error).__name__})
        finally:
            if self.drives.get(claimed.run_id) is drive:
                self.drives.pop(claimed.run_id, None)

    async def _drain(self) -> None:
        """Finish what is in flight, then hand back the rest to other workers."""
        log.info("worker.draining", extra={"runs": len(self.tasks)})
        for drive in self.drives.values():
            drive.leave("soon")
        await self._gone(self.parts.settings.drain_s)
        for drive in self.drives.values():
            drive.leave("now")
        await self._gone(HAND_BACK_S)
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def _gone(self, within_s: float) -> None:
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=within_s)
