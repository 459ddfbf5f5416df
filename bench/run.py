"""B1, B2, B3, B8, B10, B11: what the platform adds to a run, measured from outside in real processes.

A caller and a model endpoint in this process, the API in a second one, one worker in a third, the embedded database.
"""

import asyncio
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import asyncpg
import uvloop
from msgspec.structs import replace
from tests.conftest import until
from tests.installation import Installation, offer_tools

from bench import bare, processor
from bench.figure import Figure, report
from bench.thinker import Thinker
from sojourn.store import embedded

NOOP = '''
from sojourn.tools.functions import tool

@tool(effect="read")
async def noop() -> str:
    """Nothing."""
    return "x" * {size}
'''


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


async def first_byte(bench: Bench) -> list[Figure]:
    """B1: from POST to the model's endpoint being asked."""
    times: list[float] = []
    for _ in range(150):
        run_id, name, began = await bench.run("0-1")
        await bench.ended(run_id)
        times.append((bench.thinker.asked[name][0] - began) * 1000)
    p50, p99 = _quantiles(times[20:])
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


async def added(bench: Bench) -> list[Figure]:
    """B2: from the end of one reply to the next request, with a tool that does nothing between."""
    gaps: list[float] = []
    for _ in range(12):
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
    rate = steps / worker_s
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
        Figure(id="B2", what=f"steps/s per database core, all in, {what}", unit="1/s", median=steps / database_s),
        Figure(id="B2", what=f"steps/s all in on this machine, {what}", unit="1/s", median=steps / wall_s),
    ]


async def one_step(bench: Bench) -> list[Figure]:
    """B3: runs of one step, as many as come through."""
    count, lanes = 600, asyncio.Semaphore(60)

    async def one() -> None:
        body = {"agent": {"model": "openai:0-1"}, "input": "bench one"}
        async with lanes:
            run = await bench.installation.post("/v1/runs?wait=30", body, expect=200)
        assert run["status"] == "completed", run

    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(count)))
    rate = count / (time.perf_counter() - began)
    return [Figure(id="B3", what="one-step runs a second", unit="1/s", median=rate, target=">= 330", met=rate >= 330)]


async def late_steps(bench: Bench) -> list[Figure]:
    """B8: the last steps of a run of 200 with 20 KB results against its first, until all of the request is there."""
    first: list[float] = []
    last: list[float] = []
    for _ in range(5):
        run_id, name, _ = await bench.run("199-1", steps=250)
        written = await _written(bench, name)
        await bench.ended(run_id)
        gaps = _gaps(bench.thinker.answered[name], bench.thinker.read[name])
        first, last = first + gaps[5:35], last + gaps[-30:]
    early, late = statistics.median(first), statistics.median(last)
    body = bench.thinker.body
    bare_early, bare_late = [await _bare_ms(bench.thinker, body[: len(body) * step // 200]) for step in (20, 185)]
    slower = (late - bare_late) / (early - bare_early)
    more = _rate(written, 160, 195) / _rate(written, 5, 40)
    return [
        Figure(
            id="B8",
            what="time of step 200 against step 1, 20 KB results, less a bare POST",
            unit="x",
            median=slower,
            floor=f"bare POST {bare_late:.1f} of {late:.1f} ms, {bare_early:.1f} of {early:.1f} ms",
            target="<= 1.5",
            met=slower <= 1.5,
        ),
        Figure(id="B8", what="bytes written by the same", unit="x", median=more, target="<= 1.2", met=more <= 1.2),
    ]


async def _written(bench: Bench, name: str) -> dict[int, float]:
    """Look at the database's log until a run has asked 200 times: how long it was at which step."""
    cluster = await embedded.start(bench.installation.data_dir)
    connection = await asyncpg.connect(cluster.dsns.migrate)
    written: dict[int, float] = {}
    asked = bench.thinker.asked.setdefault(name, [])
    while len(asked) < 200:
        written[len(asked)] = await connection.fetchval("select (pg_current_wal_lsn() - '0/0')::float8")
        await asyncio.sleep(0.02)
    await connection.close()
    await cluster.close()
    return written


async def _bare_ms(thinker: Thinker, body: bytes) -> float:
    """How long a plain socket takes to bring a body to the thinker."""
    port, name = int(thinker.url.rpartition(":")[2].partition("/")[0]), f"bare-{len(body)}"
    named = re.sub(rb"bench n[0-9]+", b"bench " + name.encode(), body, count=1)
    began = await bare.apart(bare.post, port, named, 30)
    return statistics.median(_gaps(began, [0.0, *thinker.read[name]]))


async def in_flight(bench: Bench) -> list[Figure]:
    """B10: memory of a run whose model is answering."""
    floor_kb = await bare.apart(bare.hold_kb, bench.thinker.url, 200)
    held, before, count = bench.thinker.holding, bare.memory_kb(bench.worker), 1000
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
            what="memory of one run in flight, of 1,000",
            unit="KB",
            median=each,
            floor=f"a bare streamed answer {floor_kb:.0f} KB",
            target="<= 150",
            met=each <= 150,
        ),
        Figure(
            id="B10",
            what="added to a step beside 1,000 in flight",
            unit="ms",
            median=_quantiles(gaps)[0],
            p99=_quantiles(gaps)[1],
        ),
    ]


async def starts(data_dir: Path, env: dict[str, str]) -> list[Figure]:
    """B11: the second start of a server, and the command line's own."""
    times = []
    for _ in range(4):
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
    command = await asyncio.to_thread(_process_ms, [sys.executable, "-m", "sojourn.cli", "version"], env)
    floor = await asyncio.to_thread(_process_ms, [sys.executable, "-c", "pass"], env)
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


def _process_ms(command: list[str], env: dict[str, str]) -> float:
    """How long a command takes from start to end."""
    times = []
    for _ in range(15):
        began = time.perf_counter()
        subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
        times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times)


def _gaps(ended: list[float], begun: list[float]) -> list[float]:
    """Milliseconds from the end of each reply to the next request."""
    return [(after - before) * 1000 for before, after in zip(ended, begun[1:], strict=False)]


def _rate(written: dict[int, float], low: int, high: int) -> float:
    """Bytes a step between two steps that were looked at."""
    inside = sorted(step for step in written if low <= step <= high)
    return (written[inside[-1]] - written[inside[0]]) / (inside[-1] - inside[0])


def _quantiles(times: list[float]) -> tuple[float, float]:
    ordered = sorted(times)
    return statistics.median(ordered), ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]


async def with_bench(size: int, measure: Callable[[Bench], Awaitable[list[Figure]]], **env: str) -> list[Figure]:
    """Measure on an installation of its own."""
    data_dir = Path(tempfile.mkdtemp(prefix="sojourn-bench-"))
    try:
        async with Thinker() as thinker:
            offered = offer_tools(data_dir, NOOP.replace("{size}", str(size)), "noop")
            extra = {"OPENAI_BASE_URL": thinker.url, "SOJOURN_LOG_LEVEL": "warning", **offered, **env}
            installation = Installation(data_dir, thinker.url, extra)
            try:
                await installation.start_api("--no-worker")
                await installation.start_worker()
                return await measure(Bench(installation, thinker))
            finally:
                await installation.stop()
    finally:
        shutil.rmtree(data_dir)


async def main() -> None:
    async def hot_path(bench: Bench) -> list[Figure]:
        return [
            *await first_byte(bench),
            *await added(bench),
            *await many(bench, "9-40", 100, 300),
            *await many(bench, "9-1", 100, 800),
            *await one_step(bench),
        ]

    figures = await with_bench(10, hot_path)
    figures += await with_bench(20_000, late_steps)
    figures += await with_bench(10, in_flight, SOJOURN_WORKER_RUNS_MAX="1100", SOJOURN_QUEUED_RUNS_MAX="2000")
    data_dir = Path(tempfile.mkdtemp(prefix="sojourn-bench-"))
    try:
        env = {"PATH": os.environ["PATH"], "HOME": str(data_dir), "SOJOURN_LOG_LEVEL": "warning"}
        figures += await starts(data_dir, env | {"SOJOURN_DATA_DIR": str(data_dir)})
    finally:
        shutil.rmtree(data_dir)
    report(figures)


if __name__ == "__main__":
    uvloop.run(main())
