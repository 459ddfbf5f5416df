"""B1, B2, B3, B8, B10, B11: what the platform adds to a run, measured from outside in real processes.

A caller and a model endpoint in this process, the API in a second one, one worker in a third, the embedded database.

    python -m bench.run [--small] [--json] [--firsts 150 ...]
"""

import asyncio
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import msgspec
import uvloop
from msgspec.structs import replace
from tests.conftest import until
from tests.installation import Installation, offer_tools

from bench import bare, processor
from bench.figure import Figure, chosen, report
from bench.place import data_folder
from bench.thinker import Thinker
from sojourn.store import embedded

NOOP = '''
from sojourn.tools.functions import tool

@tool(effect="read")
async def noop() -> str:
    """Nothing."""
    return "x" * {size}
'''


class Sizes(msgspec.Struct, frozen=True):
    """How much is measured."""

    firsts: int = 130
    """Runs of B1, after `before` that are not counted."""
    before: int = 20
    alone: int = 12
    """Runs of B2, one after the other."""
    together: int = 100
    one_step: int = 600
    late: int = 5
    """Runs of so many steps:"""
    steps: int = 200
    held: int = 1000
    starts: int = 3
    commands: int = 15


SMALL = Sizes(firsts=3, before=1, alone=1, together=4, one_step=10, late=1, steps=40, held=10, starts=1, commands=1)


class Bench:
    """An installation with one worker, whose model is a Thinker."""

    def __init__(self, installation: Installation, thinker: Thinker) -> None:
        self.installation = installation
        self.thinker = thinker
        self.names = 0

    @property
    def worker(self) -> int:
        return self.installation.workers[0].pid

    async def run(self, model: str, *, steps: int = 75) -> tuple[str, str, float]:
        """Ask for a run; its id, the name that the thinker knows it by, and when it was asked for."""
        self.names += 1
        name = f"n{self.names}"
        agent = {
            "model": f"openai:{model}",
            "tools": ["noop"],
            "limits": {"steps": steps},
            "policy": {"loop_guard": False},
        }
        began = time.perf_counter()
        return await self.installation.run(agent=agent, input=f"bench {name}"), name, began

    async def ended(self, run_id: str) -> None:
        run = await self.installation.until(run_id)
        assert run["status"] == "completed", run

    def cpu_s(self) -> tuple[float, float]:
        """Processor time of the worker and of the database so far."""
        return processor.own_s(self.worker), processor.database_s(self.data_dir)

    @property
    def data_dir(self) -> Path:
        return self.installation.data_dir


async def first_byte(bench: Bench, sizes: Sizes) -> list[Figure]:
    """B1: from POST to the model's endpoint being asked."""
    times: list[float] = []
    for _ in range(sizes.before + sizes.firsts):
        run_id, name, began = await bench.run("0-1")
        await bench.ended(run_id)
        times.append((bench.thinker.asked[name][0] - began) * 1000)
    p50, p99 = _quantiles(times[sizes.before :])
    met = p50 <= 10 and p99 <= 30
    post, commit = await _bare_ms(bench.thinker, bench.thinker.body), await bare.commit_ms(bench.data_dir)
    return [
        Figure(
            id="B1",
            what="POST to the model asked",
            unit="ms",
            median=p50,
            p99=p99,
            floor=f"2 bare POSTs + 3 bare commits {2 * post + 3 * commit:.1f}",
            target="p50 <= 10, p99 <= 30",
            met=met,
        )
    ]


async def added(bench: Bench, runs: int) -> list[Figure]:
    """B2: from the end of one reply to the next request, with a tool that does nothing between."""
    gaps: list[float] = []
    for _ in range(runs):
        run_id, name, _ = await bench.run("9-40")
        await bench.ended(run_id)
        gaps += _gaps(bench.thinker.answered[name], bench.thinker.asked[name])
    p50, p99 = _quantiles(gaps)
    post, commit = await _bare_ms(bench.thinker, bench.thinker.body), await bare.commit_ms(bench.data_dir)
    figure = Figure(
        id="B2", what="added to a step, 1 run", unit="ms", median=p50, p99=p99, target="p50 <= 3", met=p50 <= 3
    )
    return [replace(figure, floor=f"a bare POST {post:.1f} + 1 bare commit {commit:.1f}")]


async def many(bench: Bench, model: str, runs: int, target: float) -> list[Figure]:
    """B2: steps a second with many runs at once, and what one costs the worker and the database."""
    steps = runs * (int(model.partition("-")[0]) + 1)
    before, began = bench.cpu_s(), time.perf_counter()
    asked = await asyncio.gather(*(bench.run(model) for _ in range(runs)))
    await asyncio.gather(*(bench.ended(run_id) for run_id, _, _ in asked))
    wall_s = time.perf_counter() - began
    worker_s, database_s = (after - s for after, s in zip(bench.cpu_s(), before, strict=True))
    rate = steps / max(worker_s, processor.LEAST_S)
    what = f"{runs} runs, {model.partition('-')[2]} chunks"
    return [
        Figure(
            id="B2",
            what=f"steps/s per worker core, {what}",
            unit="1/s",
            median=rate,
            target=f">= {target:g}",
            met=rate >= target,
        ),
        Figure(
            id="B2",
            what=f"steps/s per database core, all in, {what}",
            unit="1/s",
            median=steps / max(database_s, processor.LEAST_S),
        ),
        Figure(id="B2", what=f"steps/s all in on this machine, {what}", unit="1/s", median=steps / wall_s),
    ]


async def one_step(bench: Bench, count: int) -> list[Figure]:
    """B3: runs of one step, as many as come through."""
    lanes = asyncio.Semaphore(60)

    async def one() -> None:
        body = {"agent": {"model": "openai:0-1"}, "input": "bench one"}
        async with lanes:
            run = await bench.installation.post("/v1/runs?wait=30", body, expect=200)
        assert run["status"] == "completed", run

    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(count)))
    rate = count / (time.perf_counter() - began)
    return [Figure(id="B3", what="one-step runs a second", unit="1/s", median=rate, target=">= 330", met=rate >= 330)]


async def late_steps(bench: Bench, runs: int, steps: int) -> list[Figure]:
    """B8: the last steps of a long run with 20 KB results against its first, until all of the request is there."""
    marks = steps // 40, steps // 5, steps * 4 // 5, steps * 39 // 40
    first: list[float] = []
    last: list[float] = []
    async with _written(bench, marks) as written:
        for _ in range(runs):
            run_id, name, _ = await bench.run(f"{steps - 1}-1", steps=steps + 50)
            await bench.ended(run_id)
            gaps = _gaps(bench.thinker.answered[name], bench.thinker.read[name])
            first, last = first + gaps[marks[0] : marks[0] + steps * 3 // 20], last + gaps[-steps * 3 // 20 :]
    early, late = statistics.median(first), statistics.median(last)
    body = bench.thinker.body
    bare_early, bare_late = [await _bare_ms(bench.thinker, body[: len(body) * part // 40]) for part in (4, 37)]
    slower = (late - bare_late) / (early - bare_early)
    began, more_early, less_late, ended = (written[mark] for mark in marks)
    more = (ended - less_late) / (more_early - began)
    return [
        Figure(
            id="B8",
            what=f"time of step {steps} against step 1, 20 KB results, less a bare POST",
            unit="x",
            median=slower,
            floor=f"bare POST {bare_late:.1f} of {late:.1f} ms, {bare_early:.1f} of {early:.1f} ms",
            target="<= 1.5",
            met=slower <= 1.5,
        ),
        Figure(id="B8", what="bytes written by the same", unit="x", median=more, target="<= 1.2", met=more <= 1.2),
    ]


@asynccontextmanager
async def _written(bench: Bench, marks: Sequence[int]) -> AsyncIterator[dict[int, float]]:
    """Tell how long the database's log was when the last run asked for the so-manieth time."""
    written: dict[int, float] = {}
    async with await embedded.start(bench.data_dir) as cluster:
        connection = await asyncpg.connect(cluster.dsns.migrate)

        async def look(times: int) -> None:
            if times in marks:
                written[times] = await connection.fetchval("select (pg_current_wal_lsn() - '0/0')::float8")

        bench.thinker.look = look
        yield written
        bench.thinker.look = None
        await connection.close()


async def _bare_ms(thinker: Thinker, body: bytes) -> float:
    """How long a plain socket takes to bring a body to the thinker."""
    port, name = int(thinker.url.rpartition(":")[2].partition("/")[0]), f"bare-{len(body)}"
    named = re.sub(rb"bench n[0-9]+", b"bench " + name.encode(), body, count=1)
    began = await bare.apart(bare.post, port, named, 30)
    return statistics.median(_gaps(began, [0.0, *thinker.read[name]]))


async def in_flight(bench: Bench, count: int) -> list[Figure]:
    """B10: memory of a run whose model is answering."""
    floor_kb = await bare.apart(bare.hold_kb, bench.thinker.url, min(count, 200))
    held, before = bench.thinker.holding, bare.memory_kb(bench.worker)
    asked = await asyncio.gather(*(bench.run("hold") for _ in range(count)))
    await until(lambda: bench.thinker.holding == held + count, 120)
    each = (bare.memory_kb(bench.worker) - before) / count
    gaps = []
    for _ in range(3):
        run_id, name, _ = await bench.run("9-40")
        await bench.ended(run_id)
        gaps += _gaps(bench.thinker.answered[name], bench.thinker.asked[name])
    bench.thinker.let_go.set()
    await asyncio.gather(*(bench.ended(run_id) for run_id, _, _ in asked))
    return [
        Figure(
            id="B10",
            what=f"memory of one run in flight, of {count:,}",
            unit="KB",
            median=each,
            floor=f"a bare streamed answer {floor_kb:.0f} KB",
            target="<= 150",
            met=each <= 150,
        ),
        Figure(
            id="B10",
            what=f"added to a step beside {count:,} in flight",
            unit="ms",
            median=_quantiles(gaps)[0],
            p99=_quantiles(gaps)[1],
        ),
    ]


async def starts(data_dir: Path, env: dict[str, str], sizes: Sizes) -> list[Figure]:
    """B11: the second start of a server, and the command line's own."""
    times = []
    for _ in range(1 + sizes.starts):
        began = time.perf_counter()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "sojourn.cli", "serve", "--port", "0", env=env, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        while b"listens on" not in (line := await process.stdout.readline()):
            assert line, "the server did not start"
        times.append((time.perf_counter() - began) * 1000)
        process.terminate()
        await process.communicate()
        await until(lambda: not embedded.running(data_dir))
    command = await asyncio.to_thread(
        _process_ms, [sys.executable, "-m", "sojourn.cli", "version"], env, sizes.commands
    )
    floor = await asyncio.to_thread(_process_ms, [sys.executable, "-c", "pass"], env, sizes.commands)
    start = statistics.median(times[1:])
    return [
        Figure(
            id="B11",
            what="`sojourn serve` to ready, later starts",
            unit="ms",
            median=start,
            target="<= 2000",
            met=start <= 2000,
        ),
        Figure(
            id="B11",
            what="the command line's own start",
            unit="ms",
            median=command,
            floor=f"python alone {floor:.0f} ms",
            target="<= 150",
            met=command <= 150,
        ),
    ]


def _process_ms(command: list[str], env: dict[str, str], rounds: int) -> float:
    """How long a command takes from start to end."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
        times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times)


def _gaps(ended: list[float], begun: list[float]) -> list[float]:
    """Milliseconds from the end of each reply to the next request."""
    return [(after - before) * 1000 for before, after in zip(ended, begun[1:], strict=False)]


def _quantiles(times: list[float]) -> tuple[float, float]:
    ordered = sorted(times)
    return statistics.median(ordered), ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]


async def with_bench(size: int, measure: Callable[[Bench], Awaitable[list[Figure]]], **env: str) -> list[Figure]:
    """Measure on an installation of its own."""
    async with data_folder() as data_dir, Thinker() as thinker:
        offered = offer_tools(data_dir, NOOP.replace("{size}", str(size)), "noop")
        extra = {"OPENAI_BASE_URL": thinker.url, "SOJOURN_LOG_LEVEL": "warning", **offered, **env}
        installation = Installation(data_dir, thinker.url, extra)
        try:
            await installation.start_api("--no-worker")
            await installation.start_worker()
            return await measure(Bench(installation, thinker))
        finally:
            await installation.stop()


async def main(sizes: Sizes) -> None:
    async def hot_path(bench: Bench) -> list[Figure]:
        return [
            *await first_byte(bench, sizes),
            *await added(bench, sizes.alone),
            *await many(bench, "9-40", sizes.together, 300),
            *await many(bench, "9-1", sizes.together, 800),
            *await one_step(bench, sizes.one_step),
        ]

    figures = await with_bench(10, hot_path)
    figures += await with_bench(20_000, lambda bench: late_steps(bench, sizes.late, sizes.steps))
    env = {"SOJOURN_WORKER_RUNS_MAX": "1100", "SOJOURN_QUEUED_RUNS_MAX": "2000"}
    figures += await with_bench(10, lambda bench: in_flight(bench, sizes.held), **env)
    async with data_folder() as data_dir:
        env = {"PATH": os.environ["PATH"], "HOME": str(data_dir), "SOJOURN_LOG_LEVEL": "warning"}
        figures += await starts(data_dir, env | {"SOJOURN_DATA_DIR": str(data_dir)}, sizes)
    report(figures)


if __name__ == "__main__":
    uvloop.run(main(chosen(__doc__, Sizes(), SMALL)))
