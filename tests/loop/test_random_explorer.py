"""Three levels of agents, people who answer at random, workers that die or are robbed: the rules hold at every step.

With planned answers a run that is interrupted ends as the one that is not; with random ones there is no single end, and
every rule holds all the same. SOJOURN_DRILL=full runs ten times as many.
"""

import os
import re
from dataclasses import dataclass, field

import pytest
from tests.loop.company import AGENTS, FLOORS, draw
from tests.loop.people import Planned, Wild
from tests.loop.rules import RULES, Broken
from tests.loop.seeded_bugs import BUGS
from tests.loop.world import Died, LeaseLost, Worker, World

from sojourn.loop import machine
from sojourn.loop.agent import digest
from sojourn.loop.budget import Limits
from sojourn.loop.machine import due, in_flight, wake_at
from sojourn.loop.step import budgets, calls, decisions, ending, pauses, replies, taints, waits

SIZE = 10 if os.environ.get("SOJOURN_DRILL") == "full" else 1
TURNS_MAX = 1_500
"""Five times what the longest of them takes."""
TIME = re.compile(r"\d{4}-\d\d-\d\dT[\d:]+\S*")


@dataclass
class Explored:
    runs: int = 0
    events: int = 0
    states: set[bytes] = field(default_factory=set)
    ends: set[str] = field(default_factory=set)

    def add(self, world: World) -> None:
        self.runs += 1
        self.events += len(world.audit.journal)
        self.states |= world.states
        self.ends.add(world.audit.state.root.state)


def live(world: World, people: Planned | Wild, *, trouble: float = 0.0) -> None:
    """Run the world until the run has ended, or people are tired; `trouble` is how often a lease is stolen or lost."""
    workers: list[Worker] = []
    for _ in range(TURNS_MAX):
        state, dice = world.audit.state, world.dice
        if isinstance(people, Planned):
            people.watch()
        elif people.acts <= 0:
            return
        if state.root.ended and not workers:
            return
        if dice.random() < trouble:
            _make_trouble(world, workers)
        elif workers and dice.random() < 0.8:
            _turn(dice.choice(workers), workers)
        elif not people.act() and not workers:
            if not _claimable(world):
                wake = wake_at(state)
                assert wake is not None, "nobody can go on with it, and nobody is asked"
                world.wait_for(wake)
            workers.append(Worker(world))
        elif not workers and _claimable(world):
            workers.append(Worker(world))
    raise AssertionError(f"the run does not end: {world.open()}")


def _make_trouble(world: World, workers: list[Worker]) -> None:
    """A worker dies, or another one takes the lease and the old one goes on for a while."""
    if workers and world.dice.random() < 0.5:
        workers.pop(world.dice.randrange(len(workers)))
    else:
        workers.append(Worker(world))


def _turn(worker: Worker, workers: list[Worker]) -> None:
    try:
        if not worker.turn():
            workers.remove(worker)
    except LeaseLost:
        workers.remove(worker)
    except Died:
        workers.clear()


def _claimable(world: World) -> bool:
    state = world.audit.state
    wake = wake_at(state)
    timely = wake is not None and wake <= world.now()
    return bool(world.inbox or timely or due(AGENTS, state) or in_flight(state, state.updated_at))


def planned(seed: int, *, die_at: int = 0, trouble: float = 0.0) -> World:
    depth, late = (8, 8, 8, 1)[draw(seed, "depth") % 4], draw(seed, "wall") % 3 == 0
    wall_s, on_exhaust = (20.0, "suspend") if late else (None, "fail")
    world = World(seed, die_at, limits=Limits(steps=100, depth=depth, wall_s=wall_s, on_exhaust=on_exhaust))
    live(world, Planned(world), trouble=trouble)
    return world


def wild(seed: int) -> World:
    limits = Limits(
        steps=(20, 40, 12)[seed % 3],
        tool_calls=(None, 3, 8)[draw(seed, "calls") % 3],
        usd_micros=(None, 33, 14)[draw(seed, "money") % 3],
        active_s=(None, 300.0, 900.0)[draw(seed, "time") % 3],
        wall_s=(None, None, 1500.0, 120.0)[draw(seed, "wall") % 4],
        depth=(8, 8, 8, 1)[draw(seed, "depth") % 4],
        children=(100, 100, 3)[draw(seed, "children") % 3],
        on_exhaust=("suspend", "fail")[draw(seed, "exhaust") % 2],
    )
    world = World(seed, limits=limits, pace=(0, 0.4, 1, 3), floor=FLOORS[seed // 6 % 2] if seed % 6 == 3 else None)
    live(world, Wild(world, acts=120), trouble=0.03)
    world.second = max(world.second, (world.audit.state.updated_at - world.audit.state.created_at).total_seconds())
    live(world, Planned(world, patient=True))
    return world


def end(world: World) -> str:
    """What must be the same however the run went: the words of the root, and what was spent on them."""
    root, spent = world.audit.state.root, world.audit.state.spent
    words: list[tuple[int, str]] = []
    turns = 0
    for slot in range(root.length):
        message = world.bodies["/", slot]
        turns += message.role != "user"
        words.append((turns, TIME.sub("then", str(message.parts))))
    words.sort()  # what users said in one turn, in any order
    replies = spent.usd_micros - world.audit.books.estimated
    paid = f"{spent.steps} steps {replies} micro-USD {spent.tool_calls} calls"
    return f"{root.state} {root.result} {paid} {digest(words)}"


def rule_17_a_kill_changes_no_end(seed: int, explored: Explored) -> None:
    """Run once in peace, and then with deaths at drawn boundaries, stolen leases, and both."""
    calm = planned(seed)
    explored.add(calm)
    boundaries = calm.commits * 2
    for n in range(4):
        hurt = planned(seed, die_at=1 + draw(seed, n) % boundaries, trouble=(0.0, 0.0, 0.02, 0.08)[n])
        explored.add(hurt)
        assert end(hurt) == end(calm), f"seed {seed}, death {n}"


@pytest.mark.drill
def test_with_the_same_answers_every_interrupted_run_ends_as_the_calm_one() -> None:
    explored = Explored()
    for seed in range(50 * SIZE):
        rule_17_a_kill_changes_no_end(seed, explored)
    print(f"\n{explored.runs} runs, {explored.events} events, {len(explored.states)} distinct states")


@pytest.mark.drill
def test_with_answers_at_random_every_rule_holds_at_every_step() -> None:
    explored = Explored()
    for seed in range(250 * SIZE):
        explored.add(wild(seed))
    print(f"\n{explored.runs} runs, {explored.events} events, {len(explored.states)} distinct states")
    assert explored.ends == {"done", "failed", "cancelled"}


# ---- bugs that the explorer must catch -----------------------------------------------------


MODULES = (machine, budgets, calls, decisions, ending, pauses, replies, taints, waits)


def seen_by(seeds: int) -> set[str]:
    """The rules that see the first thing wrong, as the explorer goes from seed to seed."""
    explored = Explored()
    for seed in range(seeds):
        try:
            wild(seed)
            rule_17_a_kill_changes_no_end(seed, explored)
        except Broken as broken:
            return broken.rules
        except AssertionError:
            return {"rule_17"}
    return set()


@pytest.mark.parametrize("name", BUGS)
def test_a_seeded_bug_is_seen_by_its_rule(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bug = BUGS[name]
    right = getattr(bug.module, bug.name)
    for module in (*MODULES, bug.module):
        if getattr(module, bug.name, None) is right:
            monkeypatch.setattr(module, bug.name, bug.broken)
    seen = seen_by(60)
    assert seen and seen <= bug.rules


def test_a_run_that_never_ends_is_stopped_and_told_with_what_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(World, "commit", lambda *_: None)
    with pytest.raises(AssertionError, match=r"does not end: seed 6, death 0, root ready, CallModel due"):
        wild(6)


def test_every_rule_has_a_bug_that_it_sees() -> None:
    named = {name[:7] for name in RULES} | {"rule_17"}
    assert named == {rule for bug in BUGS.values() for rule in bug.rules if rule.startswith("rule_")}
    assert len(named) == 20, "rule 16 is shown by the gateway's canary"
