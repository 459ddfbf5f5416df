"""Crash the worker on either side of every commit, answer effects in any order, deliver history again: one end.

The world here is a worker of a few lines that keeps the rules of worker/drive.py: announce, commit, perform, commit.
The real one is drilled with real processes in tests/drill.
"""

import itertools
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from msgspec.structs import replace

from sojourn.loop import events as ev
from sojourn.loop.agent import Agent, Tool, digest, ref
from sojourn.loop.budget import Limits
from sojourn.loop.continuation import (
    Continuation,
    Failure,
    Principal,
    attach,
    detach,
    frames,
    fresh,
    pending,
)
from sojourn.loop.effects import CallModel, Effect
from sojourn.loop.machine import apply, begin, due, in_flight, phase, wake_at
from sojourn.loop.messages import Message, Text, ToolCall, Usage, observed, said
from sojourn.loop.policy import Policy, Rule
from sojourn.loop.step import budgets, calls, ending, replies

CHILD = Agent(
    name="accounts",
    models=("sim:a",),
    tools=(Tool(name="create", effect="idempotent"), Tool(name="sign", effect="at_most_once")),
    policy=Policy(rules=(Rule("sign", "ask"),)),
)
ROOT = Agent(
    name="hr",
    models=("sim:a", "sim:b"),
    tools=(
        Tool(name="mail", effect="read"),
        Tool(name="delegate", executor="agent", agent=digest(CHILD)),
        Tool(name="forbidden"),
    ),
    policy=Policy(rules=(Rule("forbidden", "deny"),)),
)
AGENTS = {digest(agent): agent for agent in (ROOT, CHILD)}

SCRIPT: dict[tuple[str, int], tuple[str, tuple[tuple[str, str], ...]]] = {
    ("/", 0): ("", (("mail", '{"to":"t"}'), ("delegate", '{"input":"open t"}'), ("forbidden", "{}"), ("nosuch", "{}"))),
    ("/", 1): ("onboarded", ()),
    ("/0.1", 0): ("", (("create", '{"n":1}'), ("create", '{"n":2}'), ("create", "{broken"))),
    ("/0.1", 1): ("", (("sign", '{"level":2}'),)),
    ("/0.1", 2): ("account ready", ()),
}


class Died(Exception):
    """The worker's process is gone."""


@dataclass
class World:
    """The database and the outside: what survives a crash."""

    die_at: int
    order: random.Random
    row: Continuation = field(init=False)
    bodies: dict[tuple[str, int], Message] = field(default_factory=dict)
    journal: list[ev.Event] = field(default_factory=list)
    effects: Counter[str] = field(default_factory=Counter)
    approvals: int = 0
    commits: int = 0
    states: set[str] = field(default_factory=set)
    clock: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=next(self.clock))

    def start(self) -> None:
        first = ev.Began(
            at=datetime(2026, 1, 1, tzinfo=UTC),
            run_id="run_1",
            tenant="t",
            session_id="ses_1",
            principal=Principal("u"),
            agent=ref(ROOT),
            limits=Limits(steps=10),
            message=said("in", "onboard t"),
        )
        whole = begin(first)
        self.journal = [first]
        self.keep(None, whole)

    def keep(self, before: Continuation | None, after: Continuation) -> None:
        for frame, slot, message in fresh(before, after):
            assert (frame, slot) not in self.bodies, "a body is written once"
            self.bodies[frame, slot] = message
        self.row = msgspec.json.decode(msgspec.json.encode(replace(after, root=detach(after.root))), type=Continuation)

    def load(self) -> Continuation:
        return replace(self.row, root=attach(self.row.root, self.bodies))

    def commit(self, before: Continuation, after: Continuation, events: list[ev.Event]) -> None:
        self.commits += 1
        assert self.commits < 100, "it goes round in circles"
        if self.commits * 2 - 1 == self.die_at:
            raise Died
        self.keep(before, after)
        self.journal += events
        self.states.add(digest((after.root, after.spent.steps)))
        if self.commits * 2 == self.die_at:
            raise Died


def perform(world: World, effect: Effect) -> ev.Event:
    if isinstance(effect, CallModel):
        if effect.model == "sim:a" and effect.frame == "/" and effect.step == 0:
            error = Failure("model.not_found", "no such model")
            return ev.ModelErred(
                at=world.now(), frame=effect.frame, step=effect.step, attempt=effect.attempt, error=error
            )
        text, wanted = SCRIPT[effect.frame, effect.step]
        parts = tuple(ToolCall(f"call_{i}", name, args) for i, (name, args) in enumerate(wanted))
        message = Message(
            id=f"{effect.frame}#{effect.step}",
            role="assistant",
            parts=(Text(text), *parts) if text else parts,
            stop="tool_calls" if parts else "end",
            usage=Usage(input=10, output=1),
        )
        return ev.Replied(
            at=world.now(), frame=effect.frame, step=effect.step, attempt=effect.attempt, message=message, usd_micros=3
        )
    world.effects[f"{effect.tool} {effect.args}"] += 1
    message = observed(effect.call, effect.provider_id, f"{effect.tool} did {effect.args}")
    return ev.Returned(at=world.now(), call=effect.call, attempt=effect.attempt, message=message)


def announcement(effect: Effect, at: datetime) -> ev.Event:
    if isinstance(effect, CallModel):
        return ev.ModelAsked(at=at, frame=effect.frame, step=effect.step, attempt=effect.attempt, model=effect.model)
    return ev.Intended(at=at, call=effect.call, attempt=effect.attempt)


def work(world: World) -> None:
    """One worker's life: as drive.py, with effects answered one at a time in random order."""
    before = state = world.load()
    happened: list[ev.Event] = list(in_flight(state, world.now()))
    flying: list[Effect] = []
    while True:
        events: list[ev.Event] = []
        for event in happened:
            state = take(state, event, events)
        starting = due(AGENTS, state)
        for effect in starting:
            state = take(state, announcement(effect, world.now()), events)
        if events:
            world.commit(before, state, events)
            before = state
            for old in world.journal:
                assert apply(AGENTS, state, old) is state, ("history delivered again changes nothing", old)
        check(state)
        flying += starting
        if not flying:
            return
        happened = [perform(world, flying.pop(world.order.randrange(len(flying))))]


def take(state: Continuation, event: ev.Event, events: list[ev.Event]) -> Continuation:
    after = apply(AGENTS, state, event)
    if after is not state:
        events.append(event)
    return after


def check(state: Continuation) -> None:
    """The rules that hold after every step."""
    assert state.spent.steps <= (state.limits.steps or 0)
    for frame in frames(state.root):
        asked = [call.id for message in frame.messages for call in message.calls]
        answered = [part.id for message in frame.messages if message.role == "tool" for part in message.parts]
        open_calls = [call.provider_id for call in frame.calls]
        assert asked == answered + open_calls, "every call has one observation, in order"
        for call in frame.calls:
            assert call.state != "intent" or call.gate is not None, "nothing runs without a gate"
            assert not (call.tool.name == "forbidden" and call.attempts)
    if phase(AGENTS, state) == "suspended":
        assert pending(state) and not in_flight(state, state.updated_at) and not due(AGENTS, state)


def explore(die_at: int, seed: int) -> World:
    world = World(die_at, random.Random(seed))
    world.start()
    for _ in range(40):
        try:
            work(world)
            state = world.load()
            if state.root.ended:
                return world
            answer_one(world, state)
        except Died:
            pass
    raise AssertionError("the run did not end")


def answer_one(world: World, state: Continuation) -> None:
    """A person, or the clock, answers one open question."""
    waits = pending(state)
    if not waits:
        wake = wake_at(state)
        assert wake is not None
        event: ev.Event = ev.Ticked(at=wake)
    else:
        wait = world.order.choice(waits)
        decision = "approve" if "approve" in wait.allowed else "retry"
        world.approvals += 1
        event = ev.Decided(at=world.now(), wait=wait.id, by="boss", decision=decision)
    after = apply(AGENTS, state, event)
    assert after is not state
    world.commit(state, after, [event])


def final(world: World) -> str:
    """What must be the same however the run went: the words of the root, and what was spent on them."""
    root, spent = world.row.root, world.row.spent
    words = sorted(
        (slot, message.role, message.parts) for (frame, slot), message in world.bodies.items() if frame == "/"
    )
    return f"{root.state} {root.result} {spent.steps} steps {spent.usd_micros} micro-USD {digest(words)}"


@dataclass
class Explored:
    runs: int = 0
    states: set[str] = field(default_factory=set)
    ends: set[str] = field(default_factory=set)


def explore_all(deaths: int, seeds: int) -> Explored:
    """Die at each of the first `deaths` commit boundaries (0: never), with `seeds` orders each."""
    explored = Explored()
    for die_at in range(deaths):
        for seed in range(seeds):
            world = explore(die_at, seed)
            judge(world)
            explored.runs += 1
            explored.states |= world.states
            explored.ends.add(final(world))
    return explored


def judge(world: World) -> None:
    refolded = begin(world.journal[0])  # type: ignore[arg-type]
    for event in world.journal[1:]:
        refolded = apply(AGENTS, refolded, event)
    assert refolded == world.load(), "the snapshot is the fold of the journal"
    signed = sum(count for name, count in world.effects.items() if name.startswith("sign"))
    assert 1 <= signed <= world.approvals, "at_most_once never runs without a fresh yes"
    assert all(world.effects[f'create {{"n":{n}}}'] >= 1 for n in (1, 2))
    if not world.die_at:
        assert set(world.effects.values()) == {1}


def test_every_crash_and_every_order_ends_in_one_state() -> None:
    explored = explore_all(deaths=44, seeds=60)
    print(f"\n{explored.runs} runs, {len(explored.states)} distinct states, ends {explored.ends}")
    assert explored.runs == 2640
    assert len(explored.ends) == 1
    assert len(explored.states) > 300


# ---- bugs that the explorer must catch -----------------------------------------------------

RIGHT = {"reply": replies.reply, "settle": ending.settle, "intend": calls.intend}


def _runs_a_lost_call_again(call, frame, at):  # type: ignore[no-untyped-def]
    ended = replace(call.attempts[-1], state="lost", ended_at=at)
    return replace(call, state="authorized", attempts=(*call.attempts[:-1], ended))


def _takes_a_lost_call_for_done(call, frame, at):  # type: ignore[no-untyped-def]
    return calls.close(call, "succeeded", "probably done")


def _shuffles_observations(frame):  # type: ignore[no-untyped-def]
    settled = RIGHT["settle"](frame)
    if settled.state == "ready" and frame.state == "acting":
        n = len(frame.calls)
        *tail, last = settled.messages[-n:]
        return replace(settled, messages=(*settled.messages[:-n], last, *tail))
    return settled


def _keeps_the_attempts_number(frame):  # type: ignore[no-untyped-def]
    return replace(frame, turn=replace(frame.turn, sent=False))


def _forgets_a_result(call, event):  # type: ignore[no-untyped-def]
    return replace(call, state="authorized")


def _answers_the_same_step_twice(agents, frame, event):  # type: ignore[no-untyped-def]
    return replace(RIGHT["reply"](agents, frame, event), turn=frame.turn, step=frame.step)


def _forgets_the_intent(call, run_id, at):  # type: ignore[no-untyped-def]
    return replace(RIGHT["intend"](call, run_id, at), attempts=())


def _drops_a_child(agents, call, frame, at):  # type: ignore[no-untyped-def]
    return calls.close(call, "failed", "nobody was there")


def _asks_nobody(call, kind, *, frame, at, title):  # type: ignore[no-untyped-def]
    return replace(call, state="authorized")


def _gives_up_at_the_first_failure(agents, frame, event):  # type: ignore[no-untyped-def]
    return ending.failed(frame, event.error)


SEEDED = {
    "a lost at_most_once call is run again": (calls, "lose", _runs_a_lost_call_again),
    "a lost call is taken for done": (calls, "lose", _takes_a_lost_call_for_done),
    "observations enter in another order": (budgets, "settle", _shuffles_observations),
    "a lost model attempt keeps its number": (replies, "again", _keeps_the_attempts_number),
    "a result is forgotten": (calls, "finish", _forgets_a_result),
    "a reply does not end its step": (replies, "reply", _answers_the_same_step_twice),
    "an intent leaves no attempt": (calls, "intend", _forgets_the_intent),
    "a sub-agent is not begun": (calls, "_begin_child", _drops_a_child),
    "nobody is asked": (calls, "ask", _asks_nobody),
    "no failover": (replies, "retry", _gives_up_at_the_first_failure),
}


@pytest.mark.parametrize("name", SEEDED)
def test_a_seeded_bug_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, attribute, broken = SEEDED[name]
    good = final(explore(die_at=0, seed=0))
    monkeypatch.setattr(module, attribute, broken)
    with pytest.raises((AssertionError, KeyError, IndexError)):
        assert explore_all(deaths=44, seeds=6).ends == {good}
