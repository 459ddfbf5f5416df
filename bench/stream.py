"""B6: event streams to 1,000 clients, 20 events a second to each, through the database as in production.

    python -m bench.stream [--clients 1000] [--seconds 10] [--json]

The API runs in a process of its own, whose CPU time is read; the clients are here. Deltas come from a worker in the
same process, or from one in a third process; each carries the time at which it was made.
"""

import argparse
import asyncio
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import uvloop
from aiohttp import web
from tests.api.played_worker import Play, Player, at, ids

from bench.figure import Figure, report, spread
from sojourn.api.app import build
from sojourn.api.parts import DELTA_BELL, INBOX_BELL, RUN_BELL, WORK_BELL, Api
from sojourn.models.model import Endpoint
from sojourn.settings import Settings
from sojourn.store import embedded
from sojourn.store.db import Database, connect
from sojourn.store.doorbell import Doorbell
from sojourn.store.migrate import migrate
from sojourn.store.tenant import keys

RATE = 20
MADE = re.compile(rb'"text":"(\d+)"')
TICK = os.sysconf("SC_CLK_TCK")
CHANNELS = (RUN_BELL, DELTA_BELL, WORK_BELL, INBOX_BELL)


class Models:
    """One provider, which nobody asks."""

    def endpoints(self) -> dict[str, Endpoint]:
        return {"sim": Endpoint(name="sim", dialect="openai", base_url="http://127.0.0.1:9", key_required=False)}


class Client(asyncio.Protocol):
    """One reader of a stream, as cheap as can be."""

    def __init__(self, head: bytes, late_ms: list[float]) -> None:
        self.head, self.late_ms = head, late_ms
        self.events = 0
        self.ready = asyncio.Event()

    def connection_made(self, transport: asyncio.Transport) -> None:
        transport.write(self.head)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        if b"event: model.request_started" in data:
            self.ready.set()
        for made in MADE.findall(data):
            self.events += 1
            self.late_ms.append((now - int(made)) / 1e6)


# ---- the server's process, and the other worker's ----------------------------------------------


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
    """Serve until stdin closes; a line `go RUN ...` plays the worker of these runs."""
    async with joined(folder) as (database, bell):
        await migrate(database)
        token = await keys.bootstrap(database)
        parts = Api(
            database=database, doorbell=bell, settings=Settings(stream_clients_max=10_000), tools={},
            models=Models(), sandboxes=None, now=at, new_id=ids(),  # type: ignore[arg-type]
            price=lambda model, usage: None if "unpriced" in model else 1,
        )  # fmt: skip
        runner = web.AppRunner(build(parts), access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=2000).start()
        print(runner.addresses[0][1], token, flush=True)
        await obey(database, bell)
        await runner.cleanup()


async def work(folder: Path) -> None:
    """Be a worker in a process of its own."""
    async with joined(folder) as (database, bell):
        print("ready", flush=True)
        await obey(database, bell)


async def obey(database: Database, bell: Doorbell) -> None:
    """Do what stdin says: `claim N`, then `go SECONDS`."""
    player = await Player.start(database, bell.ring, flush_s=Settings().delta_flush_ms / 1000)
    plays: list[Play] = []
    while line := await asyncio.to_thread(sys.stdin.readline):
        word, number = line.split()
        if word == "claim":
            plays = [await player.take_any() for _ in range(int(number))]
            for play in plays:
                play.asked()
                await play.commit()
        else:
            await speak(plays, float(number))
        print("done", flush=True)
    await player.close()


async def speak(plays: list[Play], seconds: float) -> None:
    """Make RATE deltas a second in every run, spread over the time."""
    began, n = time.monotonic(), 0
    while (passed := time.monotonic() - began) < seconds:
        while n < passed * RATE * len(plays):
            plays[n % len(plays)].delta(str(time.monotonic_ns()))
            n += 1
        await asyncio.sleep(1 / RATE / len(plays) if len(plays) < 20 else 0.002)


# ---- here --------------------------------------------------------------------------------------


class Process:
    """A child that is spoken to by lines."""

    def __init__(self, child: asyncio.subprocess.Process) -> None:
        self.child = child

    @classmethod
    async def start(cls, role: str, folder: Path) -> "Process":
        command = (sys.executable, "-m", "bench.stream", "--role", role, "--folder", str(folder))
        pipe = asyncio.subprocess.PIPE
        return cls(await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe))

    async def line(self) -> str:
        assert self.child.stdout is not None
        return (await self.child.stdout.readline()).decode().strip()

    async def say(self, words: str) -> str:
        assert self.child.stdin is not None
        self.child.stdin.write(f"{words}\n".encode())
        return await self.line()

    async def stop(self) -> None:
        assert self.child.stdin is not None
        self.child.stdin.close()
        await self.child.wait()

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.child.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICK


async def measure(
    server: Process, worker: Process, address: tuple[str, str], shape: tuple[int, int, float]
) -> list[Figure]:
    """Let `clients` readers follow `runs` runs for some seconds."""
    port, token = address
    clients, runs, seconds = shape
    made = []
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as http:
        for _ in range(runs):
            async with http.post(f"http://127.0.0.1:{port}/v1/runs", json={"input": "go", "model": "sim:a"}) as reply:
                made.append((await reply.json())["run_id"])
    await worker.say(f"claim {runs}")
    late_ms: list[float] = []
    readers = []
    for n in range(clients):
        head = f"GET /v1/runs/{made[n % runs]}/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
        head += "Accept: text/event-stream\r\n\r\n"
        loop = asyncio.get_running_loop()
        transport, reader = await loop.create_connection(
            lambda head=head: Client(head.encode(), late_ms), "127.0.0.1", int(port)
        )
        readers.append((transport, reader))
    await asyncio.gather(*(reader.ready.wait() for _, reader in readers))
    late_ms.clear()
    began, cpu_s = time.monotonic(), server.cpu_s()
    await worker.say(f"go {seconds}")
    await asyncio.sleep(0.2)
    cpu_s, wall_s = server.cpu_s() - cpu_s, time.monotonic() - began
    for transport, _ in readers:
        transport.close()
    where = "one process" if worker is server else "another process's worker"
    what = f"{clients} clients on {runs} run{'s' if runs > 1 else ''}, {where}"
    return figures(what, late_ms, len(late_ms) / cpu_s, len(late_ms) / wall_s)


def figures(what: str, late_ms: list[float], per_core: float, per_s: float) -> list[Figure]:
    across = "another" in what
    rate = Figure(
        id="B6",
        what=f"events sent, {what} ({per_s:,.0f}/s offered)",
        unit="events/s/core",
        median=per_core,
        target="" if across else ">= 60,000",
        floor="raw ASGI 67,100",
        met=None if across else per_core >= 60_000,
    )
    bound = (10.0, 50.0) if across else (5.0, 5.0)
    return [rate, spread("B6", f"from made to read, {what}", "ms", late_ms, most=bound)]


async def main(clients: int, seconds: float) -> None:
    folder = Path(tempfile.mkdtemp(prefix="sojourn-bench-"))
    server = await Process.start("serve", folder)
    port, token = (await server.line()).split()
    found = await measure(server, server, (port, token), (clients, 1, seconds))
    found += await measure(server, server, (port, token), (clients, 50, seconds))
    worker = await Process.start("work", folder)
    await worker.line()
    found += await measure(server, worker, (port, token), (clients, 1, seconds))
    await worker.stop()
    await server.stop()
    shutil.rmtree(folder)
    report(found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--role", choices=("serve", "work"))
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    roles = {"serve": serve, "work": work}
    uvloop.run(roles[given.role](given.folder) if given.role else main(given.clients, given.seconds))
