"""One run, from claim to release: the pipeline of verbs round the pure machine.

    take what happened -> announce what is due -> commit -> start it -> wait -> take ...

`worker.py` makes one Drive for every run that it claims. The rules: nothing that the world can see is performed before
the commit that announces it, so that what a crash interrupted can be told from the row alone; a run that has nothing in
flight is given back in the very commit that found this out; and it neither ends nor sleeps over mail: then that commit
is taken back, and the mail is heard first.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Iterable, Mapping
from datetime import timedelta
from functools import partial
from typing import Literal

from msgspec.structs import replace

from sojourn.errors import LeaseLost, Unreadable
from sojourn.guardrails.judging import EMPTY
from sojourn.loop import events as ev
from sojourn.loop.agent import Agent
from sojourn.loop.continuation import Continuation, Phase, fresh, pending
from sojourn.loop.effects import CallModel, CallTool, Effect
from sojourn.loop.machine import apply, due, given_up, in_flight, phase, wake_at
from sojourn.store import queue, stops
from sojourn.store.budgets.tally import Tally
from sojourn.store.commits import MailWaits
from sojourn.store.rows import Claimed, Commit, LedgerRow, Opened, Release
from sojourn.store.tenant import usage
from sojourn.worker.asking import announced
from sojourn.worker.intake import floors
from sojourn.worker.intake.judges import Judges
from sojourn.worker.intake.screening import Calls
from sojourn.worker.meter import seen
from sojourn.worker.parts import Parts, Place, asked_by
from sojourn.worker.perform import perform, stop

log = logging.getLogger("sojourn.worker")

LET_GO_S = 20.0
"""How long what was cancelled may take to end, before the run is left to others all the same."""
SKEW_MAX = timedelta(seconds=60)

Leaving = Literal["soon", "now", "lost"]
Key = tuple[str, str, int]
"""An attempt that is in flight: kind, frame or call, number."""


class Drive:
    """One claimed run in this worker's hands: `committed` is what the database has, `state` what is true."""

    def __init__(self, parts: Parts, claimed: Claimed, opened: Opened, agents: Mapping[str, Agent]) -> None:
        self.parts = parts
        self.agents = agents
        self.committed = self.state = opened.continuation
        self.happened: asyncio.Queue[ev.Event | None] = asyncio.Queue()
        self.place = Place(
            tenant=claimed.tenant,
            user=self.state.principal.user,
            session_id=self.state.session_id,
            claimed=claimed,
            note=self.happened.put_nowait,
            consult=lambda subject: self.judges.found(subject),
        )
        self.calls, self.rules = Calls(parts, self.place, lambda: self.happened.put_nowait(None)), EMPTY
        self.judges, self.phase = Judges(parts, self.place, lambda: self.state), self._told()
        self.leaving: Leaving | None = None
        self.released: Release | None = None
        """How the run was given back, once it was."""
        self.broken: Exception | None = None
        self.events: list[ev.Event] = []
        self.ledger: list[LedgerRow] = []
        self.tally = Tally()
        self.mail: list[int] = []
        self.mail_seen = 0
        self.starting: list[Effect] = []
        self.running: dict[Key, tuple[Effect, asyncio.Task[None]]] = {}
        self.begun: set[Key] = set()
        """Those of them that the lease let begin."""
        self.stopping: list[asyncio.Task[None]] = []
        for raised in floors.told(parts, agents, self.state):
            self.happened.put_nowait(raised)
        for event in in_flight(self.state, self.state.updated_at):
            self.happened.put_nowait(seen(event, opened.streamed, self.state.prices))
        self.deliver(opened.inbox)
        for order in opened.stops:
            self.happened.put_nowait(stops.ordered(order, parts.now()))
        self.happened.put_nowait(ev.Ticked(at=parts.now()))  # what was decided in time comes before what ran out

    # ---- from outside ----

    def deliver(self, mail: Iterable[tuple[int, ev.Event]]) -> None:
        """Take inbox rows; those that were taken before are left out."""
        for row, event in mail:
            if row > self.mail_seen:
                self.mail_seen = row
                self.mail.append(row)
                self.happened.put_nowait(event)

    def leave(self, how: Leaving) -> None:
        """Let the run go: `soon` lets finish what is in flight, `now` leaves that to others, `lost` is too late."""
        if self.leaving != "lost":
            self.leaving = how
        if how == "lost":
            for _, task in self.running.values():
                task.cancel()
        self.happened.put_nowait(None)

    def interrupt(self) -> None:
        """End what has begun, as a crash of this process would have; the run may be another worker's by now."""
        for lost in in_flight(self.state, self.parts.now()):
            key = _lost_key(lost)
            if key in self.begun:
                self.running.pop(key)[1].cancel()
                self.begun.remove(key)
                self.happened.put_nowait(lost)

    # ---- the pipeline ----

    async def run(self) -> None:
        """Take the run as far as it goes. Raises nothing: a lost lease ends it without a trace."""
        try:
            await self.place.patiently(self.parts.pools.meet, self.place.tenant)
            self._take(self._waiting())
            if self._early():
                self._take([await self._next(), *self._waiting()])
            while not await self._save():
                self._start(reads_only=False)
                self._take([await self._next(), *self._waiting()])
        except LeaseLost:
            log.warning("run.lease_lost", extra={"run": self.place.run_id, "fence": self.place.claimed.fence})
        finally:
            left = [task for _, task in (*self.running.values(), *self.calls.asking.values())]
            for task in left:
                task.cancel()
            if left := [*left, *self.stopping]:
                await asyncio.wait(left, timeout=LET_GO_S)

    def _early(self) -> bool:
        """Whether the database's clock called before ours: then the little that is left is waited for here."""
        wake = wake_at(self.state)
        idle = not (self.events or due(self.agents, self.state) or in_flight(self.state, self.state.updated_at))
        return idle and wake is not None and wake - self.parts.now() < SKEW_MAX

    def _waiting(self) -> list[ev.Event | None]:
        """All that has happened by now and was not taken yet."""
        return [self.happened.get_nowait() for _ in range(self.happened.qsize())]

    def _take(self, events: Iterable[ev.Event | None]) -> None:
        for event in events:
            if event is None:
                continue
            event = self._billed(event) if isinstance(event, ev.ModelLost) else event
            after = apply(self.agents, self.state, event)
            if after is self.state:
                continue
            lost = given_up(self.state, after, event)
            if lost or (after.root.ended and self.judges.open):
                cut: list[ev.Event] = [*map(self._billed, lost)]
                cut += self.judges.given_up() if after.root.ended else []
                for one in cut:
                    self._keep(one, apply(self.agents, self.state, one))
                after = apply(self.agents, self.state, event)
            if after is not self.state:
                self._keep(event, after)
        self._stop_abandoned()

    async def _judge(self) -> None:
        """Have the guardrails look at every call that has not begun, whoever let it run and under which rules."""
        rules = self.parts.guardrails.of(self.place.tenant)
        if rules is not self.rules and not self.state.root.ended:
            self.rules = rules
            self._take([ev.Noted(at=self.parts.now(), kind="guardrails.in_force", data=dict(rules.versions))])
        for judged, facts in await self.calls.judged(self.committed, self.state):
            before = self.state
            self._take([judged])
            if self.state is not before:
                self._take(facts)

    def _keep(self, event: ev.Event, after: Continuation) -> None:
        """Take an event that led to `after`, and write down what it cost."""
        if (row := usage.entry(self.state, event)) is not None:
            self.ledger.append(row)
        if self.parts.pools.bind(self.place.tenant):
            self.tally.take(self.state, event, after)
        if isinstance(event, ev.Compacted) and event.usage and (meter := self.place.meters.get(asked_by(event))):
            del meter.owed[:1]
        self.events.append(event)
        self.state = after

    def _billed(self, lost: ev.ModelLost) -> ev.ModelLost:
        """A call that is over without an answer, with what is known here of its cost."""
        if (meter := self.place.meters.get(asked_by(lost))) is not None:
            return replace(lost, bill=meter.cut())
        return replace(lost, bill=None) if lost.given_up else lost  # it had not begun; others were a dead worker's

    async def _announce(self) -> None:
        """Say in the journal what is about to be performed."""
        if self.leaving == "lost":
            raise LeaseLost
        if self.broken is not None:
            raise self.broken
        self._ask()
        self._turn()
        if self.leaving is None:
            for effect in due(self.agents, self.state):
                before = self.state
                effect, announcement = await self._announcement(effect)
                if isinstance(announcement, ev.ModelAsked) and self.judges.crowd(announcement):
                    continue
                self._take([announcement])
                if self.state is not before:
                    self.starting.append(effect)
            self._ask()
            self._turn()

    async def _announcement(self, effect: Effect) -> tuple[Effect, ev.Event]:
        """The effect, and what says that it is about to be performed, or that a pool of the day has no room for it."""
        if not isinstance(effect, CallModel):
            return effect, effect.announced(self.parts.now())
        pools = self.parts.pools
        pooled = pools.bind(self.place.tenant)
        effect, asked = announced(self.parts, self.agents[effect.agent], effect, pooled=pooled)
        if not pooled or _key(effect) not in self._alive(apply(self.agents, self.state, asked)):
            return effect, asked
        refusal = partial(pools.refusal, self.place.claimed, asked, tally=self.tally, priced=effect.tariff is not None)
        return effect, await self.place.patiently(refusal) or asked

    def _ask(self) -> None:
        """Say in the journal which questions were opened, and what people are shown."""
        if not (waits := pending(self.state)):
            return
        told = {wait.id for event in self.events if isinstance(event, ev.Asked) for wait in event.waits}
        told |= {wait.id for wait in pending(self.committed)}
        if asked := tuple(wait for wait in waits if wait.id not in told):
            self._take([ev.Asked(at=self.parts.now(), waits=asked)])

    def _turn(self) -> None:
        """Say in the journal that the run as a whole entered another phase, if it did."""
        now = phase(self.agents, self.state)
        if now != self.phase:
            resumed = now == "running" and self.phase is not None
            waits = tuple(wait.id for wait in pending(self.state)) if now == "suspended" else ()
            error, spent = self.state.root.error, self.state.spent if self.state.root.ended else None
            at = self.parts.now()
            self._take([ev.Turned(at=at, phase=now, resumed=resumed, waits=waits, error=error, spent=spent)])
            self.phase = now

    def _told(self) -> Phase | None:
        """The phase that the journal speaks of; none before the first."""
        return phase(self.agents, self.committed) if self.committed.rev > 1 else None

    async def _save(self) -> bool:
        """Make durable what happened and what is announced; true when the run was given back with it."""
        while True:
            await self._judge()
            if self.calls.asking:
                if self.leaving not in ("now", "lost"):
                    return False  # nothing is durable of a call that may yet be refused
                self._give_up()
            await self._announce()
            self._start(reads_only=True)
            commit = self._commit()
            if not (commit.events or commit.inbox_ids or commit.release):
                return False
            self.events, self.ledger, self.mail = [], [], []  # what comes meanwhile is the next one's
            self.tally = Tally()
            try:
                await self.place.patiently(self.parts.committer.commit, commit)
            except MailWaits:
                await self._take_back(commit)
                continue
            self.committed, self.released = commit.after, commit.release
            self._forget()
            return self.released is not None

    def _give_up(self) -> None:
        """Leave what is not durable to whoever drives the run next, as after a crash."""
        self.state, self.phase = self.committed, self._told()
        self.events, self.ledger, self.mail, self.tally = [], [], [], Tally()

    def _commit(self) -> Commit:
        """All that is not durable yet."""
        return Commit(
            tenant=self.place.tenant,
            run_id=self.place.run_id,
            fence=self.place.claimed.fence,
            before_seq=self.committed.rev,
            after=self.state,
            events=tuple(self.events),
            bodies=tuple(fresh(self.committed, self.state)),
            ledger=tuple(self.ledger),
            paid=self.tally.paid,
            starved=self.tally.starved(self.state),
            inbox_ids=tuple(self.mail),
            release=self._release(),
        )

    async def _take_back(self, commit: Commit) -> None:
        """Take a commit's events again from what is durable, with the mail before the one that ended the run.

        Raises Unreadable for mail of a newer release.
        """
        runs = [(self.place.tenant, self.place.run_id)]
        found = (await self.place.patiently(queue.mail, self.parts.database, runs)).get(self.place.run_id, [])
        if isinstance(found, Unreadable):
            raise found
        self.state, self.mail = self.committed, [*commit.inbox_ids, *self.mail]
        self.phase = self._told()
        self.deliver(found)
        again = deque(event for event in commit.events if not isinstance(event, ev.Turned | ev.Asked))
        while again and not apply(self.agents, self.state, again[0]).root.ended:
            self._take([again.popleft()])
        self._take([*self._waiting(), *again])

    def _release(self) -> Release | None:
        """How the run is given back, if it is: nothing in flight, or told to leave it to the next worker."""
        at = self.parts.now()
        if in_flight(self.state, at) and self.leaving != "now":
            return None
        if self.phase == "suspended":
            return Release(status="suspended", due_at=wake_at(self.state))
        if self.phase in ("completed", "failed", "cancelled"):
            return Release(status=self.phase, due_at=None)
        unfinished = due(self.agents, self.state) or in_flight(self.state, at)
        return Release(status="queued", due_at=at if unfinished else wake_at(self.state))

    def _start(self, *, reads_only: bool) -> None:
        """Perform what was announced: everything once that is committed, and what only reads while it is."""
        if not self.starting:
            return
        alive = self._alive()
        announced, self.starting = [effect for effect in self.starting if _key(effect) in alive], []
        for effect in announced:
            if reads_only and not _only_reads(effect):
                self.starting.append(effect)
            else:
                self.running[_key(effect)] = (effect, asyncio.create_task(self._perform(effect)))

    async def _perform(self, effect: Effect) -> None:
        key = _key(effect)
        await self.parts.tenure.held()
        self.begun.add(key)
        try:
            event: ev.Event | None = await perform(self.parts, self.place, self.agents[effect.agent], effect)
        except Exception as error:  # a bug: without an answer the run would wait for ever
            self.broken, event = error, None
        self.running.pop(key, None)
        self.begun.discard(key)
        self.happened.put_nowait(event)

    async def _next(self) -> ev.Event | None:
        """The next thing that happens; a Ticked when a time comes first."""
        wake = wake_at(self.state)
        delay_s = None if wake is None else max(0.0, (wake - self.parts.now()).total_seconds())
        try:
            return await asyncio.wait_for(self.happened.get(), delay_s)
        except TimeoutError:
            return ev.Ticked(at=self.parts.now())

    def _stop_abandoned(self) -> None:
        """End what still runs for attempts that no answer can reach any more: cancelled, failed or over budget."""
        for key in self.running.keys() - self._alive() if self.running else ():
            effect, task = self.running.pop(key)
            self.begun.discard(key)
            task.cancel()
            self.stopping.append(asyncio.create_task(stop(self.parts, self.place, effect)))

    def _alive(self, state: Continuation | None = None) -> set[Key]:
        """The attempts that an answer can still reach."""
        state = state or self.state
        return {_lost_key(lost) for lost in in_flight(state, state.updated_at)}

    def _forget(self) -> None:
        """Let go of what attempts used that are over, now that it is durable."""
        if meters := self.place.meters:
            alive = self._alive()
            for frame, step, n in list(meters):
                if ("model", f"{frame}#{step}", n) not in alive:
                    del meters[frame, step, n]


def _only_reads(effect: Effect) -> bool:
    """Whether nobody can see that it was performed, so that a crash may leave no trace of it."""
    return isinstance(effect, CallTool) and effect.effect == "read"


def _key(effect: Effect) -> Key:
    if isinstance(effect, CallModel):
        return "model", f"{effect.frame}#{effect.step}", effect.attempt
    return "tool", effect.call, effect.attempt


def _lost_key(lost: ev.ModelLost | ev.CallLost) -> Key:
    if isinstance(lost, ev.ModelLost):
        return "model", f"{lost.frame}#{lost.step}", lost.attempt
    return "tool", lost.call, lost.attempt
