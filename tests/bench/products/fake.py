"""A product made of files: a run is a file, its lease a lock that the kernel drops with the worker.

python -m tests.bench.products.fake PLACE           the adapter
python -m tests.bench.products.fake worker FOLDER   a worker
"""

import asyncio
import fcntl
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from bench.peers.adapter import Adapter, main, now
from bench.peers.verbs import Kind

LOOK_S = 0.005
NOOP = {"type": "function", "function": {"name": "noop", "parameters": {"type": "object", "properties": {}}}}


class Worker:
    """Takes runs that nobody holds."""

    def __init__(self, folder: Path, http: aiohttp.ClientSession) -> None:
        self.folder, self.http = folder, http
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def work(self) -> None:
        while True:
            for path in self.folder.glob("*.run"):
                if path.stem not in self.tasks and not self.file(path.stem, "completed").exists():
                    lease = path.open("rb")
                    try:
                        fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError:
                        lease.close()
                        continue
                    self.tasks[path.stem] = asyncio.create_task(self.drive(path.stem, lease))
            await asyncio.sleep(LOOK_S)

    def file(self, run: str, kind: str) -> Path:
        return self.folder / f"{run}.{kind}"

    async def drive(self, run: str, lease: Any) -> None:
        with lease:
            kind = lease.read().decode()
            log = self.file(run, "log")
            messages = msgspec.json.decode(log.read_bytes()) if log.exists() else [_said("user", f"bench {run}")]
            while True:
                reply = await self.think(run, kind, messages)
                messages += reply
                log.write_bytes(msgspec.json.encode(messages))
                if len(reply) == 1:
                    self.file(run, "completed").touch()
                    return
                if kind == "ask":
                    self.file(run, "waiting").touch()
                    while not self.file(run, "allowed").exists():  # noqa: ASYNC110 - the product is made of files
                        await asyncio.sleep(LOOK_S)

    async def think(self, run: str, kind: str, messages: list[Any]) -> list[Any]:
        """Ask the model; its reply, and the result of its call if it has one."""
        body = {"model": kind, "messages": messages, "tools": [NOOP], "stream": True}
        called = False
        async with self.http.post(f"{os.environ['OPENAI_BASE_URL']}/chat/completions", json=body) as response:
            with self.file(run, "deltas").open("ab", buffering=0) as deltas:
                async for line in response.content:
                    called |= b'"tool_calls":[' in line
                    deltas.write(line)
        if not called:
            return [_said("assistant", "done")]
        call = {"id": "call_1", "type": "function", "function": {"name": "noop", "arguments": "{}"}}
        return [_said("assistant", "", tool_calls=[call]), _said("tool", "done", tool_call_id="call_1")]


def _said(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


async def _work(folder: Path) -> None:
    async with aiohttp.ClientSession() as http:
        print("ready", flush=True)
        await Worker(folder, http).work()


class Fake(Adapter):
    product = "Fake"
    packages = ("aiohttp",)
    setup = "A worker and a folder."
    notes = "- Fake is not durable: nothing is synced."

    async def start(self) -> None:
        await self.add_worker()

    async def add_worker(self, *, again: bool = False) -> None:
        ready = self.said("worker", "ready")
        command = (sys.executable, "-m", "tests.bench.products.fake", "worker", str(self.folder))
        await self.until_ready(await self.spawn(command, log="worker", worker=True), ready)

    async def begin(self, run: str, kind: Kind, tenant: str) -> None:
        new = self.folder / f"{run}.new"
        new.write_text(kind)
        new.rename(self.folder / f"{run}.run")

    async def state(self, run: str) -> str:
        states = (state for state in ("completed", "waiting") if (self.folder / f"{run}.{state}").exists())
        return next(states, "running")

    async def decide(self, run: str) -> float:
        at = now()
        (self.folder / f"{run}.allowed").touch()
        return at

    async def deltas(self, run: str) -> AsyncIterator[str]:
        await self.begin(run, "ticks", "big")
        path, read = self.folder / f"{run}.deltas", 0
        while await self.state(run) != "completed":
            await asyncio.sleep(LOOK_S)
            text = path.read_text() if path.exists() else ""
            whole = text.rfind("\n") + 1
            yield text[read:whole]
            read = whole


if __name__ == "__main__":
    if sys.argv[1] == "worker":
        asyncio.run(_work(Path(sys.argv[2])))
    else:
        main(Fake)
