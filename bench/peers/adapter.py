"""The part of an adapter that is the same for all: verbs in on stdin, answers out on stdout, processes looked after.

A product's module in `products/` subclasses Adapter and ends in `main`. It runs in the product's own venv, which has
msgspec and aiohttp beside the product. The rule: an adapter is the caller; what it costs is not the product's.
"""

import asyncio
import os
import re
import signal
import socket
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar, NoReturn

import aiohttp
import msgspec

from bench.peers.verbs import (
    AddWorker,
    AnyAnswer,
    AnyVerb,
    Begin,
    Decide,
    Done,
    Follow,
    Heard,
    KillWorker,
    Kind,
    Look,
    Place,
    Processes,
    Ready,
    Settle,
    Settled,
    Stop,
    Times,
    Trouble,
)

ROOT = Path(__file__).parent.parent.parent
STAMP = re.compile(r"t=(\d+\.\d{6})")
START_S = 60.0
STOP_S = 15.0
POLL_S = 0.05
LANES = 8
"""States that are asked for at the same time."""
LINE_BYTES_MAX = 1 << 20

_verbs = msgspec.json.Decoder(AnyVerb)
now = time.perf_counter


class Adapter(ABC):
    """A product that runs, and how it is used."""

    product: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]
    """Whose versions are told."""
    setup: ClassVar[str]
    notes: ClassVar[str] = ""
    lacks: ClassVar[Mapping[str, str]] = {}
    workers_max = 2

    def __init__(self, place: Place) -> None:
        self.place = place
        self.folder = Path(place.folder)
        self.workers: list[asyncio.subprocess.Process] = []
        self.others: list[asyncio.subprocess.Process] = []
        self.http: aiohttp.ClientSession

    # ---- what a product's module says ----

    @abstractmethod
    async def start(self) -> None:
        """Start the product with one worker and wait until it is ready."""

    @abstractmethod
    async def begin(self, run: str, kind: Kind, tenant: str) -> None:
        """Ask for one run; its input is `bench RUN`."""

    @abstractmethod
    async def state(self, run: str) -> str:
        """Tell a run's state; completed and waiting are said so, anything else in the product's words."""

    @abstractmethod
    async def decide(self, run: str) -> float:
        """Allow the call that a run waits with; when the request was made, what the caller looked up before apart."""

    @abstractmethod
    def deltas(self, run: str) -> AsyncIterator[str]:
        """Begin a run of `ticks` and give what its stream brings, in pieces that hold whole stamps."""

    @abstractmethod
    async def add_worker(self, *, again: bool = False) -> None:
        """Start a worker (the killed one, if `again`) and wait until it is ready."""

    async def versions(self) -> dict[str, str]:
        return {name: version(name) for name in self.packages}

    # ---- processes ----

    async def spawn(
        self, command: Sequence[str], *, log: str, env: Mapping[str, str] | None = None, worker: bool = False
    ) -> asyncio.subprocess.Process:
        """Start a process of the product in the adapter's folder; its output goes to a file there."""
        given = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "PYTHONPATH": str(ROOT),
            "OPENAI_BASE_URL": self.place.model_url,
            "OPENAI_API_KEY": "sim-key",
        }
        with (self.folder / f"{log}.log").open("ab") as out:
            process = await asyncio.create_subprocess_exec(
                *command,
                env=given | dict(env or {}),
                cwd=self.folder,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        (self.workers if worker else self.others).append(process)
        return process

    async def until_ready(self, process: asyncio.subprocess.Process, ready: Callable[[], Awaitable[bool]]) -> None:
        """Wait until a new process is ready. Raises RuntimeError when it ended."""
        async with asyncio.timeout(START_S):
            while True:
                if process.returncode is not None:
                    raise RuntimeError(f"a process of {self.product} ended: {self.tail()}")
                try:
                    if await ready():
                        return
                except (aiohttp.ClientError, OSError):
                    pass
                await asyncio.sleep(0.05)

    async def answers(self, url: str) -> bool:
        """Tell whether an address answers with success."""
        async with self.http.get(url) as response:
            return response.status == 200

    def said(self, log: str, words: str) -> Callable[[], Awaitable[bool]]:
        """Make the test of whether a log holds some words once more than now."""
        path = self.folder / f"{log}.log"
        before = path.read_text(errors="replace").count(words) if path.exists() else 0

        async def more() -> bool:
            return path.exists() and path.read_text(errors="replace").count(words) > before

        return more

    def tail(self) -> str:
        """The end of every log."""
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(f"{log.name}: {log.read_text(errors='replace')[-1500:]}" for log in logs)

    async def stop(self) -> None:
        """End all processes, workers first."""
        for process in [*self.workers, *reversed(self.others)]:
            if process.returncode is None:
                process.terminate()
                try:
                    await asyncio.wait_for(process.wait(), STOP_S)
                except TimeoutError:
                    process.kill()
                    await process.wait()

    # ---- verbs ----

    async def obey(self, verb: AnyVerb) -> AnyAnswer:
        """Do what is said."""
        match verb:
            case Begin():
                return await self._begin(verb)
            case Settle():
                return await self._settle(verb)
            case Decide(run=run):
                return Times(at={run: await self.decide(run)})
            case Follow(run=run):
                return Heard(late_ms=tuple([late async for late in self._late_ms(run)]))
            case AddWorker(again=again):
                at = now()
                await self.add_worker(again=again)
                return Done(at=at)
            case KillWorker():
                victim = self.workers.pop(0)
                at = now()
                victim.send_signal(signal.SIGKILL)
                await victim.wait()
                return Done(at=at)
            case Look():
                pids = [process.pid for process in [*self.others, *self.workers] if process.returncode is None]
                return Processes(workers=tuple(worker.pid for worker in self.workers), everything=tuple(pids))
            case Stop():
                await self.stop()
                return Done(at=now())

    async def _begin(self, verb: Begin) -> Times:
        lanes, at = asyncio.Semaphore(verb.lanes), {}

        async def one(run: str) -> None:
            async with lanes:
                at[run] = now()
                await self.begin(run, verb.kind, verb.tenant)

        await asyncio.gather(*map(one, verb.runs))
        return Times(at=at)

    async def _settle(self, verb: Settle) -> Settled:
        pending, lanes, deadline = dict.fromkeys(verb.runs, ""), asyncio.Semaphore(LANES), now() + verb.within_s

        async def one(run: str) -> None:
            async with lanes:
                pending[run] = await self.state(run)
            if pending[run] == verb.state:
                del pending[run]

        while True:
            await asyncio.gather(*map(one, [*pending]))
            if not pending or now() > deadline:
                return Settled(at=now(), others=pending)
            await asyncio.sleep(POLL_S)

    async def _late_ms(self, run: str) -> AsyncIterator[float]:
        """Give how late each stamp of a stream was; one that comes again was heard the first time."""
        known: set[str] = set()
        async for text in self.deltas(run):
            at = now()
            for stamp in STAMP.findall(text):
                if stamp not in known:
                    known.add(stamp)
                    yield (at - float(stamp)) * 1000


def free_port() -> int:
    """Find a port of loopback that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


async def _serve(adapter: Adapter) -> None:
    loop, reader = asyncio.get_running_loop(), asyncio.StreamReader(limit=LINE_BYTES_MAX)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as adapter.http:
        try:
            await adapter.start()
            _say(
                Ready(
                    product=adapter.product,
                    versions=await adapter.versions(),
                    setup=adapter.setup,
                    notes=adapter.notes,
                    lacks=dict(adapter.lacks),
                )
            )
            while line := await reader.readline():
                verb = _verbs.decode(line)
                try:
                    _say(await adapter.obey(verb))
                except Exception as error:  # noqa: BLE001, RUF100 - one thing that fails is said, and the next is tried
                    _say(Trouble(why=f"{type(error).__name__}: {error}"[:2000]))
                if isinstance(verb, Stop):
                    return
        except Exception as error:  # noqa: BLE001, RUF100 - whatever it is, the harness hears it
            _say(Trouble(why=f"{type(error).__name__}: {error}"[:4000]))
        finally:
            await adapter.stop()


def _say(answer: AnyAnswer) -> None:
    os.write(_OUT, msgspec.json.encode(answer) + b"\n")


_OUT = 1


def main(adapter: type[Adapter]) -> NoReturn:
    """Be the adapter of a product until told to stop, or until the harness has gone."""
    place = msgspec.json.decode(sys.argv[1], type=Place)
    asyncio.run(_serve(adapter(place)))
    sys.exit(0)
