"""B1 to B6 and B9, measured through the verbs of an adapter and the notes of the model endpoint.

`measure` does all of them for one product. The rule: a row that fails says so and the next is measured; the order is
such that what one leaves behind does not reach the next.
"""

import asyncio
import contextlib
import itertools
import math
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Mapping

import msgspec

from bench.peers.figures import Figure
from bench.peers.model import HELD_STEPS, STEPS, Asked, Model
from bench.peers.peer import Peer, PeerFailed
from bench.processor import family_s

Found = dict[str, Figure]

now = time.perf_counter


class Sizes(msgspec.Struct, frozen=True):
    """How much is measured. These are the page's; tests take fewer."""

    first: int = 60
    single: int = 4
    many: int = 100
    one_step: int = 200
    waiting: int = 200
    decisions: int = 40
    killed: int = 25
    takeover_s: float = 75.0
    settle_s: float = 15.0
    streams: int = 3
    queued: int = 900
    small: int = 10
    small_s: float = 60.0
    wait_s: float = 120.0
    """How long a bulk of runs may take."""


class Bench:
    """One product, the model that it asks, and the database server's process."""

    def __init__(self, peer: Peer, model: Model, *, database_pid: int, sizes: Sizes) -> None:
        self.peer = peer
        self.model = model
        self.database_pid = database_pid
        self.sizes = sizes
        self.lacks: Mapping[str, str] = {}
        """Rows that the product has no notion of, and why."""
        self._count = 0

    def names(self, count: int) -> list[str]:
        """Make names that no run has yet."""
        self._count += count
        return [f"n{number}" for number in range(self._count - count, self._count)]

    async def run(self, kind: str, steps: int) -> tuple[str, float]:
        """Take one run from its POST to its end; its name and when it was asked for."""
        (name,) = self.names(1)
        at = (await self.peer.begin([name], kind))[name]
        await self.model.answered([name], steps, self.sizes.wait_s)
        await self.peer.settle([name])
        return name, at

    async def cpu_s(self) -> tuple[float, float]:
        """Processor time of the product and of the database server so far."""
        return await self.peer.cpu_s(), family_s((self.database_pid,))


async def first_request(bench: Bench) -> Found:
    """B1: from POST to the model being asked, one run at a time."""
    times = []
    for _ in range(bench.sizes.first):
        name, at = await bench.run("one", 1)
        times.append((bench.model.asked[name][0].at - at) * 1000)
    return {"asked": spread(times[len(times) // 6 :])}


async def added(bench: Bench) -> Found:
    """B2: from the end of a reply to the next request, with a tool that does nothing between."""
    gaps: list[float] = []
    for _ in range(bench.sizes.single):
        name, _ = await bench.run("ten", STEPS)
        gaps += _gaps_ms(bench.model.asked[name])
    return {"added": spread(gaps)}


async def many(bench: Bench) -> Found:
    """B2: many runs at once on one worker, and what a step costs."""
    names, before = bench.names(bench.sizes.many), await bench.cpu_s()
    at = await bench.peer.begin(names, "ten")
    await bench.model.answered(names, STEPS, bench.sizes.wait_s)
    wall_s = await bench.peer.settle(names, within_s=bench.sizes.wait_s) - min(at.values())
    steps, after = STEPS * len(names), await bench.cpu_s()
    product, database = ((late - early) * 1000 / steps for early, late in zip(before, after, strict=True))
    return {
        "steps": Figure(value=steps / wall_s),
        "cpu": Figure(value=product + database),
        "cpu_database": Figure(value=database),
    }


async def one_step(bench: Bench) -> Found:
    """B3: runs of one step, as many as come through."""
    names = bench.names(bench.sizes.one_step)
    at = await bench.peer.begin(names, "one")
    await bench.model.answered(names, 1, bench.sizes.wait_s)
    wall_s = await bench.peer.settle(names, within_s=bench.sizes.wait_s) - min(at.values())
    return {"runs": Figure(value=len(names) / wall_s)}


async def waiting(bench: Bench) -> Found:
    """B4: runs that wait for a person, and how fast some of them go on."""
    await _wait_for_a_person(bench, max(1, bench.sizes.waiting // 10))  # the worker has its buffers and connections
    before = await bench.peer.memory_kb()
    names = await _wait_for_a_person(bench, bench.sizes.waiting)
    each = (await bench.peer.memory_kb() - before) / len(names)
    times = []
    for name in names[: bench.sizes.decisions]:
        at = await bench.peer.decide(name)
        times.append(((await bench.model.times(name, 2))[1].at - at) * 1000)
    return {"memory": Figure(value=max(each, 0.0)), "decided": spread(times)}


async def _wait_for_a_person(bench: Bench, count: int) -> list[str]:
    names = bench.names(count)
    await bench.peer.begin(names, "ask")
    await bench.model.answered(names, 1, bench.sizes.wait_s)
    await bench.peer.settle(names, "waiting", within_s=bench.sizes.wait_s)
    return names


async def deltas(bench: Bench) -> Found:
    """B6: from the model's write of a piece to its reader."""
    late_ms: list[float] = []
    for name in bench.names(bench.sizes.streams):
        late_ms += await bench.peer.follow(name)
    if not late_ms:
        raise PeerFailed("its reader heard no piece")
    return {"delta": spread(late_ms)}


async def takeover(bench: Bench) -> Found:
    """B5: kill a worker in the middle of replies; another stands by. Where that does not help, it is started again."""
    names = bench.names(bench.sizes.killed)
    await bench.peer.begin(names, "held")
    for name in names:
        await bench.model.times(name, 2, bench.sizes.wait_s)
    await bench.peer.add_worker()
    killed_at = await bench.peer.kill_worker()
    bench.model.let_go.set()
    found = {"takeover": await _going_on(bench, names, killed_at)}
    if found["takeover"].value is None and "restart" not in bench.lacks:
        again_at = await bench.peer.add_worker(again=True)
        found["restart"] = await _going_on(bench, names, again_at)
    with contextlib.suppress(TimeoutError):  # so that they are out of the way
        await bench.model.answered(names, HELD_STEPS, bench.sizes.settle_s)
    return found


async def _going_on(bench: Bench, names: list[str], since: float) -> Figure:
    """How long until every run has asked the model again."""

    def after(name: str) -> list[Asked]:
        return [asked for asked in bench.model.asked[name] if asked.at > since]

    try:
        for name in names:
            before = len(bench.model.asked[name]) - len(after(name))
            left_s = max(0.0, bench.sizes.takeover_s - (now() - since))
            await bench.model.times(name, before + 1, left_s)
    except TimeoutError:
        gone = sum(bool(after(name)) for name in names)
        states = ", ".join(sorted(set((await bench.peer.states(names)).values())))
        return Figure(more_than=bench.sizes.takeover_s, note=f"{gone} of {len(names)} went on; it calls them {states}")
    behind = sum(
        after(name)[0].turn < max(one.turn for one in bench.model.asked[name] if one.at < since) for name in names
    )
    figure = spread([after(name)[0].at - since for name in names])
    return msgspec.structs.replace(figure, note=f"{behind} of {len(names)} began anew" if behind else "")


async def small_tenant(bench: Bench) -> Found:
    """B9: how long a tenant with a few runs waits behind one that queued many."""
    big, small = bench.names(bench.sizes.queued), bench.names(bench.sizes.small)
    await bench.peer.begin(big, "slow")
    at = await bench.peer.begin(small, "one", tenant="small")
    try:
        async with asyncio.timeout(bench.sizes.small_s):
            asked = [(await bench.model.times(name, 1, bench.sizes.small_s))[0].at for name in small]
    except TimeoutError:
        return {"small": Figure(more_than=bench.sizes.small_s)}
    queued = sum(not (first := bench.model.asked[name]) or first[0].at > max(asked) for name in big)
    figure = spread([there - at[name] for name, there in zip(small, asked, strict=True)])
    return {"small": msgspec.structs.replace(figure, note="" if queued else "nothing was queued any more at the end")}


MEASURES: dict[Callable[[Bench], Awaitable[Found]], tuple[str, ...]] = {
    first_request: ("asked",),
    added: ("added",),
    many: ("steps", "cpu", "cpu_database"),
    one_step: ("runs",),
    waiting: ("memory", "decided"),
    deltas: ("delta",),
    takeover: ("takeover",),
    small_tenant: ("small",),
}


async def measure(bench: Bench) -> Found:
    """Measure all that a product has the notion of."""
    found = {key: Figure(note=why) for key, why in bench.lacks.items()}
    for one, keys in MEASURES.items():
        if keys[0] in found:
            continue
        print(f"  {one.__name__} ...", file=sys.stderr, flush=True)
        try:
            found |= await one(bench)
        except (PeerFailed, TimeoutError) as error:
            found |= dict.fromkeys(keys, Figure(note=f"failed: {error or 'out of time'}"))
    return found


def spread(values: list[float]) -> Figure:
    """Make a figure of many values."""
    return Figure(value=statistics.median(values), p99=sorted(values)[math.ceil(0.99 * len(values)) - 1])


def _gaps_ms(asked: list[Asked]) -> list[float]:
    """Milliseconds from the end of each reply to the next request."""
    pairs = itertools.pairwise(asked)
    return [(after.at - before.answered) * 1000 for before, after in pairs if before.answered is not None]
