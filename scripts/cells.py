"""Simulates tenants that are spread over several databases: how even, what must move, what an outage hits.

    python -m scripts.cells                      # the table of docs/operate/cells.md
    python -m scripts.cells --cells 4 --json     # one layout, for a machine

A fluid model in steps of ten minutes. Tenants differ as tenants do: a few ask for most, each has its own day, and now
and then one asks for five times as much. A cell serves its tenants in turns (max-min fair, as the claim does), each at
most its share, and what it cannot serve waits. The rule: what arrives is served or waits; nothing is made up or lost.

The rates are measured, see `make bench`: what one core of a database commits, and what a step leaves behind.
"""

import argparse
import itertools
import json
import math
import random
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field

STEPS_PER_CORE_S = 1150.0
"""Source: bench/run.py, 100 runs of ten steps of 40 chunks: 0.87 ms of the database's processor a step, all in."""
BYTES_PER_STEP = 12_000
"""Rows and indexes of a step with a small result."""
COPY_BYTES_S = 50e6
PAUSE_S = 45.0
"""A tenant's pause while it moves: its runs come to rest (one step), the last rows follow, the route changes."""
TICK_S = 600.0
DAY_TICKS = int(86_400 / TICK_S)
HOT, WARM = 0.80, 0.70
"""A cell above HOT gives a tenant away; no cell is filled above WARM by it."""
MOVES_AT_ONCE = 2
SHARE_MAX = 0.5
"""What one tenant may use of its cell."""
BURST, BURST_CHANCE, BURST_TICKS = 5.0, 1 / 2000, 3
DAY_SWING = 0.6


@dataclass
class Tenant:
    """One customer: `mean` steps a second, the hour of its noon, and what it has waiting."""

    name: str
    mean: float
    noon: float
    burst_until: int = 0
    moving_until: int = -1
    waiting: float = 0.0
    stored_bytes: float = 0.0

    def asks(self, tick: int, dice: random.Random) -> float:
        """Steps that it asks for in this tick."""
        if dice.random() < BURST_CHANCE:
            self.burst_until = tick + BURST_TICKS
        hour = 24 * (tick % DAY_TICKS) / DAY_TICKS
        day = 1 + DAY_SWING * math.cos((hour - self.noon) / 24 * math.tau)
        return self.mean * day * (BURST if tick < self.burst_until else 1.0) * TICK_S


@dataclass
class Cell:
    """One primary with its workers: what it can commit in a tick, who is on it, how full it was of late."""

    room: float
    tenants: list[Tenant] = field(default_factory=list)
    used: list[float] = field(default_factory=list)
    """Of each tick, as a share of `room`: above 1 it was asked for more than it has."""

    def load(self) -> float:
        """How full it was in the last hour: a burst is over before a tenant has moved."""
        hour = self.used[-6:]
        return sum(hour) / len(hour) if hour else 0.0


@dataclass(frozen=True)
class Outcome:
    """What a layout did over the days; shares are between 0 and 1."""

    cells: int
    placement: str
    fullest_mean: float
    fullest_peak: float
    late: float
    moves_a_day: float
    paused_minutes: float
    one_cell_down: float
    asked: float
    served: float
    waiting: float


# ---- placing and moving ---------------------------------------------------------------------------


def by_name(tenants: Sequence[Tenant], cells: Sequence[Cell]) -> None:
    """Place by a hash of the name: nobody needs a directory, and nobody looks at the load."""
    for tenant in tenants:
        cells[zlib.crc32(tenant.name.encode()) % len(cells)].tenants.append(tenant)


def by_load(tenants: Sequence[Tenant], cells: Sequence[Cell]) -> None:
    """Place where there is most room, the largest first: it takes a directory, which the router reads."""
    mean = dict.fromkeys(range(len(cells)), 0.0)
    for tenant in sorted(tenants, key=lambda one: -one.mean):
        emptiest = min(mean, key=mean.__getitem__)
        cells[emptiest].tenants.append(tenant)
        mean[emptiest] += tenant.mean


PLACEMENTS: dict[str, tuple[Callable[[Sequence[Tenant], Sequence[Cell]], None], bool]] = {
    "by name": (by_name, False),
    "by name, and moved": (by_name, True),
    "by load": (by_load, False),
    "by load, and moved": (by_load, True),
}


def relieve(cells: Sequence[Cell], tick: int) -> Iterator[Tenant]:
    """Move tenants from hot cells to the emptiest, the largest that fits, and give those that move."""
    under_way = sum(tenant.moving_until > tick for cell in cells for tenant in cell.tenants)
    for hot in sorted(cells, key=Cell.load, reverse=True)[: max(0, MOVES_AT_ONCE - under_way)]:
        cold = min(cells, key=Cell.load)
        room = (WARM - cold.load()) * cold.room
        fits = [one for one in hot.tenants if one.moving_until <= tick and one.mean * TICK_S <= room]
        if hot.load() <= HOT or hot is cold or not fits:
            continue
        tenant = max(fits, key=lambda one: one.mean)
        hot.tenants.remove(tenant)
        cold.tenants.append(tenant)
        tenant.moving_until = tick + 1 + int(tenant.stored_bytes / COPY_BYTES_S / TICK_S)
        yield tenant


# ---- serving --------------------------------------------------------------------------------------


def fair(asked: Sequence[float], room: float, most: float) -> list[float]:
    """Share `room` so that nobody can have more without one who has less having it taken; nobody above `most`."""
    if sum(asked) < 0.99 * room and max(asked, default=0.0) <= most:
        return list(asked)
    served, left = [0.0] * len(asked), room
    order = sorted(range(len(asked)), key=asked.__getitem__)
    for n, one in enumerate(order):
        served[one] = min(asked[one], most, left / (len(order) - n))
        left -= served[one]
    return served


def serve(cell: Cell, tick: int, dice: random.Random, paused: set[str]) -> tuple[float, float, float]:
    """Serve one cell for one tick: steps asked for, served, and late."""
    new = [tenant.asks(tick, dice) for tenant in cell.tenants]
    asked = [tenant.waiting + more for tenant, more in zip(cell.tenants, new, strict=True)]
    able = [
        steps * (1 - PAUSE_S / TICK_S) if tenant.name in paused else steps
        for tenant, steps in zip(cell.tenants, asked, strict=True)
    ]
    served = fair(able, cell.room, SHARE_MAX * cell.room)
    for tenant, wanted, done in zip(cell.tenants, asked, served, strict=True):
        tenant.waiting = wanted - done
        tenant.stored_bytes += done * BYTES_PER_STEP
    cell.used.append(sum(asked) / cell.room)
    return sum(new), sum(served), sum(tenant.waiting for tenant in cell.tenants)


# ---- a layout over some days ----------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """What is simulated: `cores` of databases in all, whose tenants ask for `demand` steps a second on average."""

    cores: int = 64
    tenants: int = 1500
    demand: float = 34_000.0
    skew: float = 1.2
    """The exponent of the tenants' sizes: nearer to 1 is a heavier head."""
    days: int = 2
    seed: int = 1


def customers(world: World, dice: random.Random) -> list[Tenant]:
    """Make the tenants: sizes after Pareto, noons by time zone."""
    sizes = [dice.paretovariate(world.skew) for _ in range(world.tenants)]
    scale = world.demand / sum(sizes)
    noons = dice.choices((7.0, 13.0, 20.0), weights=(2, 4, 4), k=world.tenants)
    return [Tenant(f"tenant-{n}", size * scale, noons[n]) for n, size in enumerate(sizes)]


def simulate(world: World, cells: int, placement: str) -> Outcome:
    """Run one layout over the days; the same world has the same tenants in every layout."""
    dice = random.Random(world.seed)  # noqa: S311 (a simulation)
    tenants = customers(world, dice)
    made = [Cell(world.cores / cells * STEPS_PER_CORE_S * TICK_S) for _ in range(cells)]
    place, moved = PLACEMENTS[placement]
    place(tenants, made)
    asked = served = late = paused_s = 0.0
    moves, per_cell = 0, [0.0] * cells
    for tick in range(world.days * DAY_TICKS):
        paused = {tenant.name for tenant in relieve(made, tick)} if moved else set[str]()
        moves, paused_s = moves + len(paused), paused_s + PAUSE_S * len(paused)
        for n, cell in enumerate(made):
            new, done, behind = serve(cell, tick, dice, paused)
            asked, served, late, per_cell[n] = asked + new, served + done, late + min(behind, new), per_cell[n] + new
    fullest = max(made, key=lambda cell: sum(cell.used))
    ordered = sorted(max(cell.used[tick] for cell in made) for tick in range(len(fullest.used)))
    return Outcome(
        cells=cells,
        placement=placement,
        fullest_mean=sum(fullest.used) / len(fullest.used),
        fullest_peak=ordered[math.ceil(0.99 * len(ordered)) - 1],
        late=late / asked,
        moves_a_day=moves / world.days,
        paused_minutes=paused_s / 60,
        one_cell_down=max(per_cell) / asked,
        asked=asked,
        served=served,
        waiting=sum(tenant.waiting for tenant in tenants),
    )


def table(outcomes: Sequence[Outcome]) -> str:
    """Write the outcomes as a Markdown table."""
    lines = [
        "| cells | placed | fullest cell, mean | fullest cell, p99 | late steps | moves a day | one cell down stops |",
        "|---:|---|---:|---:|---:|---:|---:|",
    ]
    for one in outcomes:
        lines.append(
            f"| {one.cells} | {one.placement} | {one.fullest_mean:.0%} | {one.fullest_peak:.0%} | {one.late:.2%} "
            f"| {one.moves_a_day:.0f} | {one.one_cell_down:.0%} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Simulate the layouts that are asked for, and print them."""
    parser = argparse.ArgumentParser(prog="python -m scripts.cells", description=__doc__.partition("\n")[0])
    parser.add_argument("--cells", type=int, nargs="*", default=[1, 2, 4, 8, 16], help="how many databases")
    parser.add_argument("--placement", choices=PLACEMENTS, action="append", help="all, if none is given")
    parser.add_argument("--cores", type=int, default=World.cores, help="cores of all databases together")
    parser.add_argument("--tenants", type=int, default=World.tenants)
    parser.add_argument("--demand", type=float, default=World.demand, help="steps a second of all tenants, on average")
    parser.add_argument("--skew", type=float, default=World.skew, help="Pareto exponent of the tenants' sizes")
    parser.add_argument("--days", type=int, default=World.days)
    parser.add_argument("--seed", type=int, default=World.seed)
    parser.add_argument("--json", action="store_true", help="print a JSON object a line")
    given = parser.parse_args()
    world = World(given.cores, given.tenants, given.demand, given.skew, given.days, given.seed)
    outcomes: list[Outcome] = []
    for cells, placement in itertools.product(given.cells, given.placement or PLACEMENTS):
        if cells > 1 or placement == "by name":
            outcomes.append(simulate(world, cells, placement))
            print(f"{cells} cells, {placement}: done", file=sys.stderr, flush=True)
    print("\n".join(json.dumps(asdict(one)) for one in outcomes) if given.json else table(outcomes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
