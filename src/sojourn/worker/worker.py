"""A worker process: it claims runs, drives each in a task, and gives them back when it is told to stop.

`wiring` starts it. Loops run side by side: claim, read mail, beat, carry out stops, rescue what nobody drives,
tidy, share, expire, fund, and let go of what is in flight before others can have it. The rules: what happens to one run
never stops another; while the database is away the worker waits and tries again; a suspended run holds nothing of it;
once it is told to end it claims nothing new, and every run is finished or handed back.
"""

import asyncio
import logging
import math
import os
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import ExitStack, suppress
from datetime import datetime, timedelta
from typing import TypeVar

from sojourn import __version__
from sojourn.errors import LeaseLost, StoreUnavailable, Unreadable
from sojourn.loop.agent import Agent
from sojourn.store import deltas, queue, stops
from sojourn.store.db import Connection, edge
from sojourn.store.doorbell import Subscription
from sojourn.store.queue import Lease
from sojourn.store.rows import Claimed, IdleSession
from sojourn.store.sharing import rates
from sojourn.store.tenant import idempotency
from sojourn.worker.drive import Drive
from sojourn.worker.notices.sending import Sender
from sojourn.worker.parts import Parts
from sojourn.worker.shutdown import Shutdown, ended, gone
from sojourn.worker.upkeep.sessions import WANTED, clear, put_away, put_away_idle
from sojourn.worker.upkeep.tidying import tidy

log = logging.getLogger("sojourn.worker")

T = TypeVar("T")

CLAIM_MAX = 50
POLL_S = 1.0
"""How long a missed doorbell can go unnoticed."""
RETRY_S = 0.5
PATIENCE = 0.2
"""Of `lease_s`: so long a beat may take, and so long a worker that starts leaves the silent ones alone."""
TIDY_S = 20.0
DELTAS_KEPT_S = 600.0
AGENTS_MAX = 1000
"""Agent versions that are kept in memory."""
REVIVAL_S = 3.0
"""How long the others get to register again where we had to."""
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
        self.shutdown = Shutdown()
        self.unread = False
        """A run began to be driven whose mail may have come between its opening and now."""
        self.read_at = parts.now()
        self.idle: frozenset[Lease] = frozenset()
        """What the last beat found leased to us and driven by no task: failed, or claimed by a lost answer."""
        self.stranded: frozenset[Lease] = frozenset()
        """What the one before had found so too."""
        self.stale: frozenset[str] = frozenset()
        """Sessions whose files were found here and belong elsewhere."""
        self.tidied_at = parts.now()
        self.agents: dict[str, Agent] = {}
        self.room = asyncio.Event()
        limit = parts.settings.tenant_runs_max
        self.line = queue.Line(parts.database, parts.worker_id, tenant_runs_max=limit)
        self.work: Subscription | None = None
        self.left = 0
        """Counts the runs that left: each may have been what a limit held another one back for."""
        self.life: Connection = None
        self.shaken = asyncio.Event()
        """The connection that we live by was lost."""
        self.steady_since_s = self.last_beat_s = self.revived_at_s = -math.inf
        self.grace_s = self.patience_s

    async def run(self, shutdown: Shutdown) -> None:
        """Work until it is told to stop, then drain."""
        self.shutdown = shutdown
        await self._register()
        bell, sender = self.parts.doorbell, Sender(self.parts)
        ears = (bell.subscribe(name) for name in ("sojourn_work", "sojourn_inbox", WANTED, "sojourn_stop"))
        with ExitStack() as stack:
            work, mail, wanted, ordered = map(stack.enter_context, ears)
            self.work = work
            loops = [
                asyncio.create_task(self._repeat(self._claim, work)),
                asyncio.create_task(self._repeat(self._read_mail, mail)),
                asyncio.create_task(self._repeat(self._beat, mail)),
                asyncio.create_task(self._repeat(self._rescue, wanted)),
                asyncio.create_task(self._repeat(self._tidy, wanted)),
                asyncio.create_task(self._repeat(self._share, wanted)),
                asyncio.create_task(self._repeat(self._expire, wanted)),
                asyncio.create_task(self._repeat(self._fund, wanted)),
                asyncio.create_task(self._repeat(self._let_go, wanted)),
                asyncio.create_task(self._repeat(self._stop, ordered)),
                asyncio.create_task(self._repeat(sender.send, wanted)),
                asyncio.create_task(self._repeat(sender.look, wanted)),
            ]
            try:
                await shutdown.told.wait()
                loops[0].cancel()
                await self._drain()
            finally:
                await ended(loops)
                await self.parts.calls.close()
                self.life.terminate()  # nothing is underway, and a database that is cut off would not answer

    async def _register(self) -> None:
        """Tell the others that this worker lives for as long as a new connection does."""
        parts, before = self.parts, self.life
        life = self.life = await queue.register(
            parts.database,
            parts.worker_id,
            host=parts.host,
            pid=os.getpid(),
            version=__version__,
        )
        life.add_termination_listener(self._lost)
        if before is not None:
            before.terminate()

    def _lost(self, life: Connection) -> None:
        """Begin nothing once others may take us for dead, and see at once who has our runs."""
        if life is self.life:
            self.parts.tenure.doubt()
            self.shaken.set()

    async def _repeat(self, step: Callable[[Subscription], Awaitable[None]], ear: Subscription) -> None:
        """Do one loop's step for ever; what the database refuses now it may allow later."""
        away = False
        while True:
            try:
                await step(ear)
                if away:
                    log.info("worker.store_back", extra={"loop": step.__name__})
                away = False
            except StoreUnavailable as error:
                if not away:
                    log.warning("worker.store_away", extra={"loop": step.__name__, "detail": str(error)})
                away = True
                await asyncio.sleep(RETRY_S)
            except Exception:
                log.exception("worker.bug", extra={"loop": step.__name__})
                await asyncio.sleep(RETRY_S)

    # ---- the loops ----

    async def _claim(self, work: Subscription) -> None:
        """Claim what there is room for, then wait for the doorbell, the next timer or the slow poll."""
        await self.parts.tenure.held()
        room = min(self.parts.settings.worker_runs_max - len(self.tasks), CLAIM_MAX)
        if room <= 0:
            self.room.clear()
            await self.room.wait()
            return
        left = self.left
        try:
            claimed = await self.line.claim(room)
        except LeaseLost:  # the others took this worker for dead: the beat registers it again
            self.life.terminate()
            return
        for one in claimed:
            self._begin(one)
        if len(claimed) < room and not (self.line.held_back and left != self.left):
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
        """Renew the lease, and let go of what was stolen. Nothing else may hold this loop up."""
        driven, tasks = dict(self.drives), set(self.tasks)
        held = await self._renewed()
        for lease in driven.keys() - held:
            driven[lease].leave("lost")
        idle = held - tasks - self.tasks.keys()
        self.idle, self.stranded = idle, idle & self.idle
        with suppress(TimeoutError):
            await asyncio.wait_for(self.shaken.wait(), self.parts.settings.beat_s)
        self.shaken.clear()

    async def _rescue(self, _: Subscription) -> None:
        """Put back runs that nobody drives: our own, and those of dead workers.

        What took the database from us took it from the others too, so they get the time to come back: a lease for their
        beats, and a moment for their locks. And whoever was not heard of itself since then judges nobody.
        """
        await asyncio.sleep(self.parts.settings.beat_s / 2)
        if self.stranded:
            await queue.give_back(self.parts.database, self.parts.worker_id, self.stranded)
        lease_s = self.parts.settings.lease_s
        if not self.parts.tenure.holds or self.last_beat_s - self.revived_at_s < min(REVIVAL_S, lease_s):
            return
        steady = self.last_beat_s - self.steady_since_s > self.grace_s
        stolen = await queue.steal(self.parts.database, lease_s if steady else None)
        if stolen:
            log.warning("worker.stole", extra={"runs": len(stolen)})
            self.parts.doorbell.ring("sojourn_work", ())

    @property
    def patience_s(self) -> float:
        return self.parts.settings.lease_s * PATIENCE

    async def _renewed(self) -> frozenset[Lease]:
        """Renew the leases over the connection that we live by, or over a new one where it does not answer."""
        tenure, asked_at_s = self.parts.tenure, self.parts.tenure.now_s()
        if not self.life.is_closed():
            with suppress(StoreUnavailable):
                return self._beaten(asked_at_s, await self._in_time(queue.beat(self.life, self.parts.worker_id)))
        await self._in_time(self._register())
        asked_at_s = self.revived_at_s = tenure.now_s()
        return self._beaten(asked_at_s, await self._in_time(queue.beat(self.life, self.parts.worker_id)))

    def _beaten(self, asked_at_s: float, held: frozenset[Lease]) -> frozenset[Lease]:
        """Take note of a beat that went through."""
        if asked_at_s - self.last_beat_s > self.patience_s + self.parts.settings.beat_s:
            self.grace_s = self.patience_s if self.last_beat_s == -math.inf else self.parts.settings.lease_s
            self.steady_since_s = asked_at_s
        self.last_beat_s = asked_at_s
        self.parts.tenure.renew(asked_at_s)
        return held

    async def _in_time(self, asked: Coroutine[None, None, T]) -> T:
        """Wait for the database no longer than a beat may take. Raises StoreUnavailable."""
        with edge():
            return await asyncio.wait_for(asked, self.patience_s)

    async def _let_go(self, _: Subscription) -> None:
        """End what is in flight once the last beat is too old, as if this process had died."""
        await self.parts.tenure.held()
        await self.parts.tenure.over()
        log.warning("worker.cut_off", extra={"runs": len(self.drives)})
        for drive in self.drives.values():
            drive.interrupt()

    async def _stop(self, ordered: Subscription) -> None:
        """Carry out the stops that are not done yet."""
        while await stops.sweep(self.parts.database, self.parts.doorbell.ring, self.parts.now()):
            pass
        await ordered.wait(POLL_S)

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
        await rates.prune(self.parts.database)

    async def _share(self, _: Subscription) -> None:
        """Settle with the other workers how many calls of limited providers each may have on their way."""
        await self.parts.calls.settle(self.parts.settings.beat_s)

    async def _expire(self, _: Subscription) -> None:
        """Delete what is past its time; nobody waits for it."""
        if not await tidy(self.parts):
            await asyncio.sleep(TIDY_S)

    async def _fund(self, _: Subscription) -> None:
        """Learn which tenants have pools of the day, and let runs go on that waited for room in one."""
        await self.parts.pools.look({drive.place.tenant for drive in self.drives.values()})
        await self.parts.pools.wake(self.parts.doorbell.ring, self.parts.now)
        await asyncio.sleep(POLL_S)

    def _until(self, due: datetime | None) -> float:
        """Seconds to sleep when the queue is empty, at most the slow poll."""
        return POLL_S if due is None else min(POLL_S, max(0.001, (due - self.parts.now()).total_seconds()))

    # ---- one run ----

    def _begin(self, claimed: Claimed) -> None:
        lease = (claimed.run_id, claimed.fence)
        if lease in self.tasks:  # the database forgot our claim (a replica that was behind), and gave it to us again
            if lease in self.drives:
                self.drives[lease].leave("lost")
            return
        task = self.tasks[lease] = asyncio.create_task(self._drive(lease, claimed), name=claimed.run_id)
        task.add_done_callback(lambda _: self._ended(lease))

    def _ended(self, lease: Lease) -> None:
        del self.tasks[lease]
        self.left += 1
        self.room.set()
        if self.work and self.line.held_back:
            self.work.hear(())

    async def _drive(self, lease: Lease, claimed: Claimed) -> None:
        """Drive one run; one that cannot be driven is given back, and claimed again after a pause."""
        try:
            known = self.agents if len(self.agents) < AGENTS_MAX else {}
            opened = await queue.open(self.parts.database, claimed, known=known)
            self.agents = agents = {**known, **opened.agents}
            if opened.stops:
                await stops.note(self.parts.database, claimed, opened.stops)
            drive = self.drives[lease] = Drive(self.parts, claimed, opened, agents)
            self.unread = True
            if self.shutdown.told.is_set():
                drive.leave("soon")
            await drive.run()
            if drive.released and drive.released.status == "suspended" and drive.place.opened:
                self._put_away(IdleSession(claimed.tenant, drive.place.session_id, drive.place.opened[0].used_at))
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
                await asyncio.wait_for(self.shutdown.told.wait(), self.parts.settings.sandbox_suspend_s)
            await put_away(self.parts, session)

        task = asyncio.create_task(leave(), name=f"put away {session.id}")
        self.leaving.add(task)
        task.add_done_callback(self.leaving.discard)

    async def _drain(self) -> None:
        """Finish what is in flight, then hand back the rest to other workers; at once, where it is hastened."""
        log.info("worker.draining", extra={"runs": len(self.tasks)})
        for drive in self.drives.values():
            drive.leave("soon")
        await self.shutdown.gone(self.tasks.values(), self.parts.settings.drain_s)
        for drive in self.drives.values():
            drive.leave("now")
        await gone(self.tasks.values(), HAND_BACK_S)
        await self.shutdown.gone(self.leaving, PUT_AWAY_S)
        left = [*self.tasks.values(), *self.leaving]
        for task in left:
            task.cancel()
        await gone(left, HAND_BACK_S)
