"""A database, workers that die and are robbed of their lease, and people who answer: the world of the random explorer.

A worker here is worker/drive.py in a few lines: take, announce, commit, perform. The rules that it keeps: nothing is
performed before its announcement is committed; a commit with an old fence is refused, and so is an effect.
"""

import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import msgspec
from msgspec.structs import replace
from tests.loop.audit import Audit
from tests.loop.company import AGENTS, HELD, INITIATOR, LEAST, ROOT, act, draw, judge, think
from tests.loop.rules import Broken

from sojourn.loop import events as ev
from sojourn.loop.agent import Suspend, ref
from sojourn.loop.budget import Bill, Held, Limits, Price, Tariff
from sojourn.loop.continuation import Continuation, Failure, Floor, Principal, attach, detach, fresh, pending
from sojourn.loop.effects import CallModel, Effect
from sojourn.loop.machine import apply, begin, due, given_up, in_flight, wake_at
from sojourn.loop.messages import Message, Usage, said

T0 = datetime(2026, 1, 1, tzinfo=UTC)
TARIFF = Tariff(Price(1, 1, 1, 1))
COMMITS_MAX = 800
"""Four times what the longest of them takes."""
COMMANDS = (ev.Said, ev.Paused, ev.Turned, ev.Noted)
"""What is delivered once because its inbox row goes in the commit that takes it; all else may be delivered again."""


class Died(Exception):
    """The worker's process is gone."""


class LeaseLost(Exception):
    """Another worker has the run."""


@dataclass
class World:
    """What survives a crash."""

    seed: int
    die_at: int = 0
    """The commit boundary at which a worker dies: odd before, even after; 0 for none."""
    limits: Limits = field(default_factory=lambda: Limits(steps=100))
    pace: tuple[float, ...] = (0.0, 0.004, 0.01)
    """How many seconds pass from one thing to the next."""
    floor: Floor | None = None
    row: Continuation = field(init=False)
    audit: Audit = field(init=False)
    bodies: dict[tuple[str, int], Message] = field(default_factory=dict)
    inbox: list[tuple[int, ev.Event]] = field(default_factory=list)
    posted: int = 0
    fence: int = 0
    commits: int = 0
    second: float = 0.0
    performed: list[tuple[str, int]] = field(default_factory=list)
    states: set[bytes] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed * 1009 + self.die_at)
        first = ev.Began(
            at=T0,
            run_id="run_1",
            tenant="t",
            session_id="ses_1",
            principal=Principal(INITIATOR),
            agent=ref(ROOT),
            limits=self.limits,
            suspend=Suspend(after_active_s=40),
            message=said("in", "onboard t"),
        )
        self.audit = Audit(first)
        self._keep(None, begin(first))
        if self.floor is not None:
            self.post(ev.FloorRaised(at=T0, floor=self.floor))

    def now(self) -> datetime:
        self.second += self.dice.choice(self.pace)
        return T0 + timedelta(seconds=self.second)

    def wait_for(self, at: datetime) -> None:
        """Let time pass."""
        self.second = max(self.second, (at - T0).total_seconds())

    def post(self, event: ev.Event) -> None:
        self.posted += 1
        self.inbox.append((self.posted, event))

    def load(self) -> Continuation:
        return replace(self.row, root=attach(self.row.root, self.bodies))

    def open(self) -> str:
        """Which world this is, and what its run still has to do or waits for."""
        state = self.audit.state
        flying = [f"{place} attempt {n} in flight" for place, n in map(place_of, in_flight(state, state.updated_at))]
        due_now = [f"{type(one).__name__} due" for one in due(AGENTS, state)]
        waits = [f"{wait.id} waits" for wait in pending(state)]
        what = ", ".join([*flying, *due_now, *waits, f"{len(self.inbox)} unread"])
        return f"seed {self.seed}, death {self.die_at}, root {state.root.state}, {what}"

    def holds(self, worker: "Worker") -> bool:
        """Whether this worker has the lease."""
        return worker.fence == self.fence

    def commit(self, worker: "Worker", events: list[ev.Event], mail: set[int]) -> None:
        """Keep what a worker did, if it has the lease. Raises Died and LeaseLost."""
        if not self.holds(worker):
            raise LeaseLost
        if worker.before.rev != self.audit.state.rev:
            raise Broken({"rule_09"}, self.audit.journal[-1])
        self.commits += 1
        assert self.commits < COMMITS_MAX, f"it goes round in circles: {self.open()}"
        if self.commits * 2 - 1 == self.die_at:
            raise Died
        for event in events:
            self.audit.hear(event)
        if self.audit.state != worker.state:
            raise Broken({"rule_02"}, self.audit.journal[-1])
        self._keep(worker.before, worker.state)
        self.inbox = [row for row in self.inbox if row[0] not in mail]
        self.states.add(msgspec.json.encode((detach(worker.state.root), worker.state.spent.steps)))
        self._deliver_again(worker.state)
        if self.commits * 2 == self.die_at:
            raise Died

    def _deliver_again(self, state: Continuation) -> None:
        journal = self.audit.journal
        for old in (*journal[-6:], *self.dice.sample(journal, min(3, len(journal)))):
            newer = isinstance(old, ev.Ticked) and (wake_at(state) or old.at) <= old.at  # our clock went back since
            if not newer and not isinstance(old, COMMANDS) and apply(AGENTS, state, old) is not state:
                raise Broken({"again"}, old)

    def _keep(self, before: Continuation | None, after: Continuation) -> None:
        for frame, slot, message in fresh(before, after):
            self.bodies[frame, slot] = message
        row = msgspec.json.encode(replace(after, root=detach(after.root)))
        self.row = msgspec.json.decode(row, type=Continuation)

    def perform(self, worker: "Worker", effect: Effect) -> ev.Event:
        """What the outside answers; the gateway lets an effect out only under the present fence."""
        if not self.holds(worker):
            raise LeaseLost
        if isinstance(effect, CallModel):
            return think(self.seed, effect, self.now())
        intended = any(
            isinstance(one, ev.Intended) and (one.call, one.attempt) == (effect.call, effect.attempt)
            for one in self.audit.journal
        )
        if not intended or (effect.call, effect.attempt) in self.performed:
            raise Broken({"rule_09"}, effect.announced(T0))
        self.performed.append((effect.call, effect.attempt))
        return act(self.seed, effect, self.now())

    def unfunded(self, effect: CallModel, held: Held) -> ev.Unfunded | None:
        """In every third world, refuse one in five first attempts for want of room in a pool of the day."""
        chance = draw(self.seed, effect.frame, effect.step, "room") % 10
        if self.seed % 3 != 1 or effect.attempt > 1 or chance > 1:
            return None
        return ev.Unfunded(
            at=self.now(),
            frame=effect.frame,
            step=effect.step,
            attempt=effect.attempt,
            pool="user",
            held=held,
            error=Failure("budget.day_exhausted", "There is no room today."),
            until=T0 + timedelta(days=1),
            later=chance == 1 or self.limits.on_exhaust == "fail",
        )


class Worker:
    """One claim of the run, from load to release."""

    def __init__(self, world: World) -> None:
        world.fence += 1
        self.world, self.fence = world, world.fence
        self.before = self.state = world.load()
        self.happened: list[ev.Event] = list(in_flight(self.state, self.state.updated_at))
        self.flying: list[Effect] = []
        self.read = 0

    def turn(self) -> bool:
        """Take what happened as far as the next commit; false when the run was given back."""
        events: list[ev.Event] = []
        mail = [row for row in self.world.inbox if row[0] > self.read]
        self.read = max([self.read, *(row for row, _ in mail)])
        for event in (*self.happened, *(event for _, event in mail)):
            self._take(event, events)
        self.happened = []
        now = self.world.now()
        if (wake := wake_at(self.state)) is not None and wake <= now:
            self._take(ev.Ticked(at=now), events)
        for event in judge(self.world.seed, self.before, self.state, now):
            self._take(event, events)
        starting: list[Effect] = []
        for effect in due(AGENTS, self.state):
            if self._take(self._announcement(effect), events):
                starting.append(effect)
        if events or mail:
            self.world.commit(self, events, {row for row, _ in mail})
            self.before = self.state
        alive = {place_of(lost) for lost in in_flight(self.state, self.state.updated_at)}
        self.flying = [effect for effect in (*self.flying, *starting) if place_of(effect) in alive]
        if self.flying:
            effect = self.flying.pop(self.world.dice.randrange(len(self.flying)))
            self.happened = [self.world.perform(self, effect)]
        return bool(self.happened or events)

    def _announcement(self, effect: Effect) -> ev.Event:
        if isinstance(effect, CallModel):
            held = Held(output_tokens=2, usd_micros=HELD)
            if (refused := self.world.unfunded(effect, held)) is not None:
                return refused
            least = Bill(model=effect.model, usage=Usage(input=LEAST), usd_micros=LEAST, estimated=True)
            return effect.announced(self.world.now(), held, least=least, tariff=TARIFF)
        return effect.announced(self.world.now())

    def _take(self, event: ev.Event, events: list[ev.Event]) -> bool:
        after = apply(AGENTS, self.state, event)
        changed = after is not self.state
        if changed:
            lost = given_up(self.state, after, event)
            for one in (*lost, event):
                self.state = apply(AGENTS, self.state, one)
            events += (*lost, event)
        return changed


def place_of(one: Effect | ev.ModelLost | ev.CallLost) -> tuple[str, int]:
    """What an effect, or its loss, is of: the step or the call, and the attempt."""
    if isinstance(one, CallModel | ev.ModelLost):
        return f"{one.frame}#{one.step}", one.attempt
    return one.call, one.attempt
