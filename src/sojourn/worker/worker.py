"""A worker process: it claims runs, drives each in a task, and gives them back when it is told to stop.

`wiring` starts it. Six small loops run side by side: claim, read mail, beat, tidy, share, expire. The rules: what
happens to one run never stops another; while the database is away the worker waits and tries again; a suspended run
holds nothing of it; once it is told to stop it claims nothing new, and every run is finished or handed back.
"""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Collection
from contextlib import ExitStack, suppress
from datetime import datetime, timedelta

from sojourn import __version__
from sojourn.errors import LeaseLost, StoreUnavailable, Unreadable
from sojourn.loop.agent import Agent
from sojourn.store import deltas, queue
from sojourn.store.db import Connection
from sojourn.store.doorbell import Subscription
from sojourn.store.queue import Lease
from sojourn.store.rows import Claimed, IdleSession
from sojourn.store.tenant import idempotency
from sojourn.worker.drive import Drive
from sojourn.worker.parts import Parts
from sojourn.worker.sessions import WANTED, clear, put_away, put_away_idle
from sojourn.worker.tidying import tidy

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
PUT_AWAY_S = 20.0
"""How long a worker that stops puts sandboxes away; its host's other workers, or its next one, do the rest."""


class Worker:
    """The runs that one process holds, by lease: the same run may be claimed again while its old drive still ends."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.drives: dict[Lease, Drive] = {}
        self.tasks: dict[Lease, asyncio.Task[None]] = {}
        self.leaving: set[asyncio.Task[None]] = set()
        """Sessions of suspended runs that are put away, or soon will be."""
        self.stop = asyncio.Event()
        self.unread = False
        """A run began to be driven whose mail may have come between its opening and now."""
        self.read_at = parts.now()
        self.idle: frozenset[Lease] = frozenset()
        """What the last beat found leased to us and driven by no task: failed, or claimed by a lost answer."""
        self.stale: frozenset[str] = frozenset()
        """Sessions whose files were found here and belong elsewhere."""
        self.tidied_at = parts.now()
        self.agents: dict[str, Agent] = {}
        self.room = asyncio.Event()
        limit = parts.settings.tenant_runs_max
        self.line = queue.Line(parts.database, parts.worker_id, tenant_runs_max=limit)
        self.work: Subscription | None = None
        self.ended = 0
        """Counts the runs that left: each may have been what a limit held another one back for."""
        self.life: Connection = None

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set, then drain."""
        self.stop = stop
        self.life = await self._register()
        bell = self.parts.doorbell
        ears = (bell.subscribe(name) for name in ("sojourn_work", "sojourn_inbox", WANTED))
        with ExitStack() as stack:
            work, mail, wanted = map(stack.enter_context, ears)
            self.work = work
            loops = [
                asyncio.create_task(self._repeat(self._claim, work)),
                asyncio.create_task(self._repeat(self._read_mail, mail)),
                asyncio.create_task(self._repeat(self._beat, mail)),
                asyncio.create_task(self._repeat(self._tidy, wanted)),
                asyncio.create_task(self._repeat(self._share, wanted)),
                asyncio.create_task(self._repeat(self._expire, wanted)),
            ]
            try:
                await stop.wait()
                loops[0].cancel()
                await self._drain()
            finally:
                for task in loops:
                    task.cancel()
                await asyncio.gather(*loops, return_exceptions=True)
                await self.parts.calls.close()
                await self.life.close()

    async def _register(self) -> Connection:
        """Tell the others that this worker lives for as long as the connection does."""
        return await queue.register(
            self.parts.database,
            self.parts.worker_id,
            host=self.parts.host,
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

    # ---- the loops ----

    async def _claim(self, work: Subscription) -> None:
        """Claim what there is room for, then wait for the doorbell, the next timer or the slow poll."""
        room = min(self.parts.settings.worker_runs_max - len(self.tasks), CLAIM_MAX)
        if room <= 0:
            self.room.clear()
            await self.room.wait()
            return
        ended = self.ended
        try:
            claimed = await self.line.claim(room)
        except LeaseLost:  # the others took this worker for dead
            await self.life.close()
            self.life = await self._register()
            return
        for one in claimed:
            self._begin(one)
        if len(claimed) < room and not (self.line.held_back and ended != self.ended):
            await work.wait(self._until(self.line.next_at))

    async def _read_mail(self, mail: Subscription) -> None:
        """Bring inbox rows to the runs that they are for: when the doorbell names one of ours, and all now and then."""
        rung = await mail.wait(POLL_S)
        everything = not rung or self.unread or self.parts.now() - self.read_at > timedelta(seconds=POLL_S)
        if everything:
            self.unread, self.read_at = False, self.parts.now()
        ours = [drive for (run_id, _), drive in self.drives.items() if everything or run_id in rung]
        if not ours:
            return
        found = await queue.mail(self.parts.database, [(drive.place.tenant, drive.place.run_id) for drive in ours])
        for drive in ours:
            letters = found.get(drive.place.run_id, [])
            if not isinstance(letters, Unreadable):
                drive.deliver(letters)
            elif drive.leaving is None:  # a newer worker can read it
                log.error("run.unreadable", extra={"run": drive.place.run_id, "detail": str(letters)})
                drive.leave("soon")

    async def _beat(self, _: Subscription) -> None:
        """Renew the lease, let go of what was stolen, and take the runs of dead workers away from them."""
        if self.life.is_closed():
            self.life = await self._register()
        driven, tasks = dict(self.drives), set(self.tasks)
        held = await queue.beat(self.parts.database, self.parts.worker_id)
        for lease in driven.keys() - held:
            driven[lease].leave("lost")
        idle = held - tasks - self.tasks.keys()
        if stranded := idle & self.idle:
            await queue.give_back(self.parts.database, self.parts.worker_id, stranded)
        self.idle = idle
        stolen = await queue.steal(self.parts.database, self.parts.settings.lease_s)
        if stolen:
            log.warning("worker.stole", extra={"runs": len(stolen)})
            self.parts.doorbell.ring("sojourn_work", ())
        await asyncio.sleep(self.parts.settings.beat_s)

    async def _tidy(self, wanted: Subscription) -> None:
        """Put sandboxes away that are wanted elsewhere or idle, and forget what nobody can ask for any more."""
        await wanted.wait(TIDY_S)
        await put_away_idle(self.parts)
        if self.parts.now() - self.tidied_at < timedelta(seconds=TIDY_S):
            return
        self.tidied_at = self.parts.now()
        self.stale = await clear(self.parts, self.stale)
        await deltas.prune(self.parts.database, DELTAS_KEPT_S)
        await idempotency.prune(self.parts.database)

    async def _share(self, _: Subscription) -> None:
        """Settle with the other workers how many calls of limited providers each may have on their way."""
        await self.parts.calls.settle(self.parts.settings.beat_s)

    async def _expire(self, _: Subscription) -> None:
        """Delete what is past its time; nobody waits for it."""
        if not await tidy(self.parts):
            await asyncio.sleep(TIDY_S)

    def _until(self, due: datetime | None) -> float:
        """Seconds to sleep when the queue is empty, at most the slow poll."""
        return POLL_S if due is None else min(POLL_S, max(0.001, (due - self.parts.now()).total_seconds()))

    # ---- one run ----

    def _begin(self, claimed: Claimed) -> None:
        lease = (claimed.run_id, claimed.fence)
        task = self.tasks[lease] = asyncio.create_task(self._drive(lease, claimed), name=claimed.run_id)
        task.add_done_callback(lambda _: self._ended(lease))

    def _ended(self, lease: Lease) -> None:
        del self.tasks[lease]
        self.ended += 1
        self.room.set()
        if self.work and self.line.held_back:
            self.work.hear(())

    async def _drive(self, lease: Lease, claimed: Claimed) -> None:
        """Drive one run; one that cannot be driven is given back, and claimed again after a pause."""
        try:
            known = self.agents if len(self.agents) < AGENTS_MAX else {}
            opened = await queue.open(self.parts.database, claimed, known=known)
            self.agents = agents = {**known, **opened.agents}
            drive = self.drives[lease] = Drive(self.parts, claimed, opened, agents)
            self.unread = True
            await drive.run()
            if drive.released and drive.released.status == "suspended" and drive.place.used:
                self._put_away(IdleSession(claimed.tenant, drive.place.session_id, drive.place.used[0]))
        except Unreadable as error:
            await queue.refuse(self.parts.database, self.parts.worker_id, lease, claims=claimed.claims, reason=error)
        except Exception as error:
            log.exception("run.not_driven", extra={"run": claimed.run_id, "error": type(error).__name__})
        finally:
            self.drives.pop(lease, None)

    def _put_away(self, session: IdleSession) -> None:
        """Put a suspended run's sandbox away, after a moment in which an answer that comes at once finds it warm."""

        async def leave() -> None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.stop.wait(), self.parts.settings.sandbox_suspend_s)
            await put_away(self.parts, session)

        task = asyncio.create_task(leave(), name=f"put away {session.id}")
        self.leaving.add(task)
        task.add_done_callback(self.leaving.discard)

    async def _drain(self) -> None:
        """Finish what is in flight, then hand back the rest to other workers."""
        log.info("worker.draining", extra={"runs": len(self.tasks)})
        for drive in self.drives.values():
            drive.leave("soon")
        await _gone(self.tasks.values(), self.parts.settings.drain_s)
        for drive in self.drives.values():
            drive.leave("now")
        await _gone(self.tasks.values(), HAND_BACK_S)
        await _gone(self.leaving, PUT_AWAY_S)
        left = [*self.tasks.values(), *self.leaving]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


async def _gone(tasks: Collection[asyncio.Task[None]], within_s: float) -> None:
    if tasks:
        await asyncio.wait(tasks, timeout=within_s)
