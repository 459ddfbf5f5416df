"""B6: event streams to 1,000 clients, 20 events a second to each, through the database as in production.

    python -m bench.stream [--small] [--json] [--clients 1000 ...]

The API runs in a process of its own, whose CPU time is read; the clients are here. Deltas come from a worker in the
same process, or from one in a third process; each carries the time at which it was made. The floor is the same bytes,
at the same times and to as many clients, written by bare transports that know nothing of runs or databases.
"""

import asyncio
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import aiohttp
import asyncpg
import msgspec
import uvloop
from aiohttp import web
from msgspec.structs import replace
from tests.api.played_worker import Play, Player, at, ids
from tests.conftest import until

from bench.figure import Figure, chosen, report, spread
from bench.place import data_folder
from bench.processor import LEAST_S, own_s
from bench.readers import Readers
from sojourn.api.app import build
from sojourn.api.parts import Api
from sojourn.guardrails.in_force import InForce
from sojourn.identity.secrets.roots import RootKeys
from sojourn.identity.secrets.vault import Vault
from sojourn.models.model import Endpoint
from sojourn.settings import Settings
from sojourn.store import embedded
from sojourn.store.db import Database, connect
from sojourn.store.doorbell import Doorbell
from sojourn.store.migrate import migrate
from sojourn.store.sharing.rates import Limits, Rate, Rates
from sojourn.store.tenant import keys
from sojourn.wiring import CHANNELS

RATE = 20
MARK = b"event: model.request_started"
CHUNK = b'66\r\nevent: delta.message\ndata: {"frame":"/","step":0,"attempt":1,"text":"%d"}\n\n\r\n'
"""What a delta is on the wire."""

Say = Callable[[int], None]
"""Make a delta of a number, in one run."""


class Sizes(msgspec.Struct, frozen=True):
    """How much is measured."""

    clients: int = 1000
    runs: int = 50
    """That are followed, where it is not one."""
    seconds: float = 10.0


SMALL = Sizes(clients=20, runs=5, seconds=0.3)


class Models:
    """One provider, which nobody asks."""

    def endpoints(self) -> dict[str, Endpoint]:
        return {"sim": Endpoint(name="sim", dialect="openai", base_url="http://127.0.0.1:9", key_required=False)}


# ---- the other processes: the server, a worker, and the floor ----------------------------------


@asynccontextmanager
async def joined(folder: Path) -> AsyncIterator[tuple[Database, Doorbell]]:
    """The database of a data folder and a bell for it."""
    async with (
        await embedded.start(folder, fsync=False) as cluster,
        await connect(cluster) as database,
        Doorbell(database, CHANNELS) as bell,
    ):
        yield database, bell


async def serve(folder: Path) -> None:
    """Serve until stdin closes, and be the worker of one process that is both."""
    async with joined(folder) as (database, bell):
        await migrate(database)
        token = await keys.bootstrap(database)
        settings = Settings(
            stream_clients_max=10_000, stream_clients_tenant_max=10_000, rates=Rates(runs=Limits(user=Rate(10**6, 1)))
        )
        parts = Api(
            database=database, doorbell=bell, settings=settings, tools={},
            models=Models(), vault=Vault(RootKeys("", folder / "root.key")), sandboxes=None, now=at, new_id=ids(),  # type: ignore[arg-type]
            guardrails=InForce(database, bell),
            price=lambda model, usage: None if "unpriced" in model else 1,
        )  # fmt: skip
        runner = web.AppRunner(build(parts), access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=2000).start()
        print(runner.addresses[0][1], token, flush=True)
        await play(database, bell)
        await runner.cleanup()


async def work(folder: Path) -> None:
    """Be a worker in a process of its own."""
    async with joined(folder) as (database, bell):
        print("ready", flush=True)
        await play(database, bell)


async def play(database: Database, bell: Doorbell) -> None:
    """Play the worker of as many runs as are asked for."""
    player = await Player.start(database, bell.ring, flush_s=Settings().delta_flush_ms / 1000)

    async def claim(number: int) -> list[Say]:
        return [_teller(await _begin(player)) for _ in range(number)]

    await obey(claim)
    await player.close()


async def _begin(player: Player) -> Play:
    play = await player.take_any()
    play.asked()
    await play.commit()
    return play


def _teller(play: Play) -> Say:
    return lambda made_ns: play.delta(str(made_ns))


class Bare(asyncio.Protocol):
    """A connection of the floor: it joins those that are written to."""

    def __init__(self, joined: list[asyncio.Transport]) -> None:
        self.joined = joined

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.joined.append(transport)
        transport.write(MARK)


async def floor(folder: Path) -> None:
    """Write the same bytes to as many clients, with nothing in between."""
    clients: list[asyncio.Transport] = []
    server = await asyncio.get_running_loop().create_server(lambda: Bare(clients), "127.0.0.1", 0, backlog=2000)
    print(server.sockets[0].getsockname()[1], flush=True)

    async def claim(number: int) -> list[Say]:
        clients.clear()
        return [_writer(clients, n, number) for n in range(number)]

    await obey(claim)
    server.close()


def _writer(clients: list[asyncio.Transport], first: int, step: int) -> Say:
    def say(made_ns: int) -> None:
        data = CHUNK % made_ns
        for client in clients[first::step]:
            client.write(data)

    return say


async def obey(claim: Callable[[int], object]) -> None:
    """Do what stdin says: `claim N`, then `go SECONDS`, which answers with the number of deltas made."""
    says: list[Say] = []
    while line := await asyncio.to_thread(sys.stdin.readline):
        word, number = line.split()
        if word == "claim":
            says = await claim(int(number))  # type: ignore[misc]
            print("done", flush=True)
        else:
            print(await speak(says, float(number)), flush=True)


async def speak(says: Sequence[Say], seconds: float) -> int:
    """Make RATE deltas a second in every run, spread over the time."""
    began, n = time.monotonic(), 0
    while (passed := time.monotonic() - began) < seconds:
        while n < passed * RATE * len(says):
            says[n % len(says)](time.monotonic_ns())
            n += 1
        await asyncio.sleep(1 / RATE / len(says) if len(says) < 20 else 0.002)
    return n


# ---- here --------------------------------------------------------------------------------------


class Process:
    """A child that is spoken to by lines."""

    def __init__(self, child: asyncio.subprocess.Process) -> None:
        self.child = child

    @classmethod
    @asynccontextmanager
    async def started(cls, role: str, folder: Path, module: str = "bench.stream") -> AsyncIterator["Process"]:
        """Start a module in a role; it ends when its stdin does."""
        pipe = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", module, role, str(folder)), stdin=pipe, stdout=pipe
        )
        assert child.stdin is not None
        try:
            yield cls(child)
        finally:
            child.stdin.close()
            await child.wait()

    async def line(self) -> str:
        assert self.child.stdout is not None
        return (await self.child.stdout.readline()).decode().strip()

    async def say(self, words: str) -> str:
        assert self.child.stdin is not None
        self.child.stdin.write(f"{words}\n".encode())
        return await self.line()

    def cpu_s(self) -> float:
        return own_s(self.child.pid)


class Shape(NamedTuple):
    """How many follow how many runs, and for how long."""

    clients: int
    runs: int
    seconds: float


class Measured(NamedTuple):
    """What came of one shape."""

    late_ms: list[float]
    per_core: float
    per_s: float

    def quantiles(self) -> str:
        ordered = sorted(self.late_ms)
        return f"p50 {statistics.median(ordered):.1f}, p99 {ordered[int(len(ordered) * 0.99)]:.1f}"


async def measure(server: Process, worker: Process, shape: Shape, port: int, requests: Sequence[bytes]) -> Measured:
    """Let readers follow, and see that each hears every delta of its run."""
    readers = await asyncio.to_thread(Readers, port, requests)
    await until(lambda: readers.have(MARK), 60)
    readers.forget()
    began, cpu_s = time.monotonic(), server.cpu_s()
    made = int(await worker.say(f"go {shape.seconds}"))
    await asyncio.sleep(0.2)
    cpu_s, wall_s = server.cpu_s() - cpu_s, time.monotonic() - began
    await until(lambda: readers.count() >= made * shape.clients // shape.runs, 60)
    readers.close()
    late_ms = readers.late_ms()
    return Measured(late_ms, len(late_ms) / max(cpu_s, LEAST_S), len(late_ms) / wall_s)


async def streamed(server: Process, worker: Process, shape: Shape, address: tuple[str, str]) -> Measured:
    """Measure real streams."""
    port, token = address
    made = []
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as http:
        for _ in range(shape.runs):
            async with http.post(f"http://127.0.0.1:{port}/v1/runs", json={"input": "go", "model": "sim:a"}) as reply:
                made.append((await reply.json())["run_id"])
    await worker.say(f"claim {shape.runs}")
    head = "GET /v1/runs/{}/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nAccept: text/event-stream\r\n\r\n"
    requests = [head.format(made[n % shape.runs], token).encode() for n in range(shape.clients)]
    return await measure(server, worker, shape, int(port), requests)


async def bare(folder: Path, shapes: Sequence[Shape]) -> list[Measured]:
    """Measure the floors."""
    async with Process.started("floor", folder) as process:
        port, measured = int(await process.line()), []
        for shape in shapes:
            await process.say(f"claim {shape.runs}")
            measured.append(await measure(process, process, shape, port, [b"hello"] * shape.clients))
    return measured


async def notified(folder: Path) -> list[float]:
    """Measure the floor between processes: one bare NOTIFY until it is heard."""
    times, heard = [], asyncio.Event()
    async with await embedded.start(folder, fsync=False) as cluster:
        one, two = await asyncpg.connect(cluster.dsns.api), await asyncpg.connect(cluster.dsns.api)
        await two.add_listener("bench", lambda *_: heard.set())
        for _ in range(500):
            began = time.perf_counter()
            await one.execute("notify bench")
            await heard.wait()
            heard.clear()
            times.append((time.perf_counter() - began) * 1000)
        await asyncio.gather(one.close(), two.close())
    return times


def figures(shape: Shape, got: Measured, least: Measured, *, notify_ms: Sequence[float] = ()) -> list[Figure]:
    """Put what was measured beside its floor; `notify_ms` says that the worker was another process."""
    runs = f"{shape.runs} run{'s' if shape.runs > 1 else ''}"
    what = f"{shape.clients} clients on {runs}, {'another' if notify_ms else 'one'} process"
    rate = Figure(
        id="B6",
        what=f"events sent, {what} ({got.per_s:,.0f}/s offered)",
        unit="events/s/core",
        median=got.per_core,
        target="" if notify_ms else ">= 60,000",
        floor=f"bare transport {least.per_core:,.0f}",
        met=None if notify_ms else got.per_core >= 60_000,
    )
    late = spread("B6", f"from made to read, {what}", "ms", got.late_ms, most=(10.0, 50.0) if notify_ms else (5.0, 5.0))
    knock = f" + NOTIFY {Measured([*notify_ms], 0, 0).quantiles()}" if notify_ms else ""
    return [rate, replace(late, floor=f"bare transport {least.quantiles()}{knock}")]


async def main(sizes: Sizes) -> None:
    shapes = [Shape(sizes.clients, runs, sizes.seconds) for runs in (1, sizes.runs)]
    found: list[Figure] = []
    async with data_folder() as folder, Process.started("serve", folder) as server:
        port, token = (await server.line()).split()
        floors = await bare(folder, shapes)
        for shape, least in zip(shapes, floors, strict=True):
            found += figures(shape, await streamed(server, server, shape, (port, token)), least)
        async with Process.started("work", folder) as worker:
            await worker.line()
            notify_ms = await notified(folder)
            for shape, least in zip(shapes, floors, strict=True):
                got = await streamed(server, worker, shape, (port, token))
                found += figures(shape, got, least, notify_ms=notify_ms)
    report(found)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve" | "work" | "floor" as role, folder]:
            uvloop.run({"serve": serve, "work": work, "floor": floor}[role](Path(folder)))
        case _:
            uvloop.run(main(chosen(__doc__, Sizes(), SMALL)))
