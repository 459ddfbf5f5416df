"""B4: five thousand runs that wait for a person, and how fast one of them goes on.

    python -m bench.waiting [--small] [--json] [--runs 5000 ...]

A caller and a model endpoint in this process, the API in a second one, one worker in a third. Every run asks whether
its tool may run; what the worker holds meanwhile is looked up in the kernel and in the database.
"""

import asyncio
import time
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import uvloop
from tests.conftest import until

from bench import bare
from bench.figure import Figure, chosen, report, spread
from bench.run import Bench, with_bench
from sojourn.store import embedded

AGENT = {"model": "openai:1-1", "tools": ["noop"], "policy": {"otherwise": "ask"}}
LANES = 64
HELD = """
select (select count(*) from run where status = 'suspended') as waiting,
    (select count(*) from run where lease_worker is not null) as leases,
    (select count(*) from session where host is not null) as sandboxes,
    (select count(*) from pg_stat_activity where application_name like 'sojourn-engine%' and state <> 'idle') as busy
"""


class Sizes(msgspec.Struct, frozen=True):
    """How much is measured."""

    runs: int = 5000
    before: int = 200
    """Runs that give the worker its buffers and connections."""
    decisions: int = 300


SMALL = Sizes(runs=20, before=5, decisions=3)


async def waiting(bench: Bench, sizes: Sizes) -> list[Figure]:
    """Start the runs, look at what is held, then decide some of them one by one."""
    await _start(bench, sizes.before)
    await _suspended(bench, sizes.before)
    before = bare.memory_kb(bench.worker)
    names = await _start(bench, sizes.runs)
    held = await _suspended(bench, sizes.before + sizes.runs)
    grown = (bare.memory_kb(bench.worker) - before) / 1024
    times = [await _decided_ms(bench, run_id, name) for run_id, name in list(names.items())[: sizes.decisions]]
    nothing = not (held["leases"] or held["sandboxes"] or _children(bench.worker))
    return [
        Figure(
            id="B4",
            what=f"memory of a worker for {sizes.runs:,} runs that wait",
            unit="MB",
            median=grown,
            target="<= 2",
            met=grown <= 2,
        ),
        Figure(
            id="B4",
            what="leases, sandboxes and processes that they hold",
            unit="",
            median=held["leases"] + held["sandboxes"] + _children(bench.worker),
            target="0",
            met=nothing,
        ),
        spread("B4", "decision to the model asked", "ms", times, most=(15, None)),
    ]


async def _start(bench: Bench, count: int) -> dict[str, str]:
    """Ask for runs; the name that the thinker knows each by."""
    lanes, names = asyncio.Semaphore(LANES), {}

    async def one(number: int) -> None:
        name = f"w{count}-{number}"
        async with lanes:
            names[await bench.installation.run(agent=AGENT, input=f"bench {name}")] = name

    await asyncio.gather(*(one(number) for number in range(count)))
    return names


async def _suspended(bench: Bench, count: int) -> dict[str, Any]:
    """Wait until so many runs are suspended; what is held then."""
    cluster = await embedded.start(bench.installation.data_dir)
    connection = await asyncpg.connect(cluster.dsns.engine)
    try:
        found: dict[str, Any] = {"waiting": 0}
        async with asyncio.timeout(600):
            while found["waiting"] < count or found["leases"]:
                await asyncio.sleep(0.2)
                found = dict(await connection.fetchrow(HELD))
        return found
    finally:
        await connection.close()
        await cluster.close()


async def _decided_ms(bench: Bench, run_id: str, name: str) -> float:
    """From the POST of a yes to the model's endpoint being asked, with a tool that does nothing between."""
    (wait,) = (await bench.installation.get(f"/v1/runs/{run_id}"))["waits"]
    began = time.perf_counter()
    await bench.installation.post(f"/v1/approvals/{wait['approval']}", {"decision": "approve"}, expect=202)
    await until(lambda: len(bench.thinker.asked[name]) == 2)
    return (bench.thinker.asked[name][1] - began) * 1000


def _children(pid: int) -> int:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return sum(len(task.read_text().split()) for task in tasks)


async def main(sizes: Sizes) -> None:
    async def measure(bench: Bench) -> list[Figure]:
        return await waiting(bench, sizes)

    report(await with_bench(10, measure, SOJOURN_QUEUED_RUNS_MAX="100000"))


if __name__ == "__main__":
    uvloop.run(main(chosen(__doc__, Sizes(), SMALL)))
