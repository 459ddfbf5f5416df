"""B5: from the end of a worker that holds fifty runs to all fifty going on elsewhere, with default settings.

    python -m bench.takeover [--small] [--json] [--kills 50] [--freezes 3 ...]

A caller and a model endpoint in this process, the API in a second one. One worker holds all the runs, each with a model
call that is open, and another one stands by. The first is killed with -9, stopped with SIGSTOP, or cut off from the
database; a run goes on when its model is asked again.
"""

import asyncio
import random
import signal
import time
from collections.abc import Awaitable, Callable

import asyncpg
import msgspec
import uvloop
from tests.conftest import until
from tests.wire_cutter import Wire, wired

from bench.figure import Figure, chosen, report, spread
from bench.run import Bench, with_bench
from sojourn.settings import Settings
from sojourn.store import embedded
from sojourn.store.embedded import Cluster

LIVING = "select count(*) from worker where pid = $1 and seen_at > now() - interval '3 seconds'"
dice = random.Random(5)


class Sizes(msgspec.Struct, frozen=True):
    """How much is measured."""

    runs: int = 50
    """That one worker holds."""
    kills: int = 50
    freezes: int = 3
    """SIGSTOPs, and cuts of the network."""
    rest_s: float = 4.0
    """How long the workers live side by side before one ends."""
    lease_s: float = Settings().lease_s


SMALL = Sizes(runs=5, kills=1, freezes=1, rest_s=0.0, lease_s=3.0)


async def taken_over(bench: Bench, cluster: Cluster, sizes: Sizes, end: Callable[[], Awaitable[None]]) -> float:
    """Let a worker take up the runs, another stand by, and the first end; seconds until the last run goes on."""
    thinker, started = bench.thinker, await asyncio.gather(*(bench.run("hold") for _ in range(sizes.runs)))
    names = [name for _, name, _ in started]
    await until(lambda: all(thinker.asked.get(name) for name in names), 120)
    standby = await bench.installation.start_worker()
    connection = await asyncpg.connect(cluster.dsns.engine)
    while not await connection.fetchval(LIVING, standby.pid):  # noqa: ASYNC110 (it starts)
        await asyncio.sleep(0.02)
    await connection.close()
    await asyncio.sleep(sizes.rest_s + dice.random())  # its beats are steady, and at any distance from the end
    began = time.perf_counter()
    await end()
    await until(lambda: all(len(thinker.asked[name]) > 1 for name in names), 120)
    last = max(thinker.asked[name][1] for name in names)
    thinker.let_go.set()
    await asyncio.gather(*(bench.ended(run_id) for run_id, _, _ in started))
    thinker.let_go.clear()
    return last - began


async def kills(bench: Bench, cluster: Cluster, sizes: Sizes) -> Figure:
    """The connection of a dead process drops, and its lock with it."""
    workers = bench.installation.workers

    async def kill() -> None:
        workers[0].kill()
        await workers.pop(0).wait()

    took = [await taken_over(bench, cluster, sizes, kill) for _ in range(sizes.kills)]
    return spread("B5", f"kill -9 to all of {sizes.runs} runs going on", "s", took, most=(1.0, 3.0))


async def stops(bench: Bench, cluster: Cluster, sizes: Sizes) -> Figure:
    """A stopped process keeps its connection: its lease runs out."""
    workers = bench.installation.workers

    async def stop() -> None:
        workers[0].send_signal(signal.SIGSTOP)

    took = []
    for _ in range(sizes.freezes):
        took.append(await taken_over(bench, cluster, sizes, stop))
        workers[0].kill()
        await workers.pop(0).wait()
    return _leased("SIGSTOP", sizes, took)


async def cuts(bench: Bench, cluster: Cluster, sizes: Sizes) -> Figure:
    """A cut network says nothing to anybody: the lease again."""
    workers = bench.installation.workers
    took = []
    for _ in range(sizes.freezes):
        async with wired(cluster.dsns) as wire:
            await _replace(bench, wire.dsns(cluster.dsns))

            async def cut(wire: Wire = wire) -> None:
                wire.cut()

            took.append(await taken_over(bench, cluster, sizes, cut))
            workers[0].kill()
            await workers.pop(0).wait()
    return _leased("network cut", sizes, took)


async def _replace(bench: Bench, env: dict[str, str]) -> None:
    """Put another worker in the place of the one there is."""
    workers = bench.installation.workers
    workers[0].terminate()
    await workers.pop(0).wait()
    await bench.installation.start_worker(**env)


def _leased(what: str, sizes: Sizes, took: list[float]) -> Figure:
    what = f"{what} to all of {sizes.runs} runs going on, lease_s {sizes.lease_s:g}"
    return spread("B5", what, "s", took, most=(sizes.lease_s + 3, None))


async def main(sizes: Sizes) -> None:
    async def measure(bench: Bench) -> list[Figure]:
        cluster = await embedded.start(bench.installation.data_dir)
        try:
            return [
                await kills(bench, cluster, sizes),
                await stops(bench, cluster, sizes),
                await cuts(bench, cluster, sizes),
            ]
        finally:
            await cluster.close()

    report(await with_bench(10, measure, SOJOURN_LEASE_S=str(sizes.lease_s)))


if __name__ == "__main__":
    uvloop.run(main(chosen(__doc__, Sizes(), SMALL)))
