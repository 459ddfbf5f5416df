"""A whole installation for tests that look from the outside: real processes, real sockets, a real database.

`Installation` starts `sojourn serve --no-worker` and any number of `sojourn worker` in a data folder of its own, with a
model simulator in the test's process, and speaks HTTP to it as a caller does. Any of them can be killed with -9.
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from sojourn.models.simulator import Simulator
from sojourn.sandboxes.bwrap import BwrapProvider
from sojourn.store import embedded
from sojourn.store.roles import Dsns
from tests.conftest import until

START_S = 60.0
RUN_S = 120.0
ENDED = ("completed", "failed", "cancelled")
RECORD = """
import asyncio, os, time
from sojourn.tools.functions import tool

def record(line):
    fd = os.open(os.environ["EFFECTS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(fd, (line + "\\n").encode())
    os.close(fd)

"""
"""How offered tools begin that have effects: `record` adds a line to the file EFFECTS, whatever dies after it."""


class Installation:
    """API and workers of one data folder."""

    def __init__(self, data_dir: Path, model_url: str, env: Mapping[str, str]) -> None:
        """`model_url` is where the simulator listens; `env` is added to what the processes are given."""
        self.data_dir = data_dir
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(data_dir),
            "SOJOURN_DATA_DIR": str(data_dir),
            "OPENAI_BASE_URL": f"{model_url}/v1",
            "OPENAI_API_KEY": "sim-key",
            "ANTHROPIC_BASE_URL": model_url,
            "ANTHROPIC_API_KEY": "sim-key",
            "SOJOURN_RATES_RUNS_USER": "1000000/1",  # in force, and never reached
            **env,
        }
        self.url = ""
        self.workers: list[asyncio.subprocess.Process] = []
        self.processes: list[asyncio.subprocess.Process] = []
        self.http: aiohttp.ClientSession

    async def start(
        self, *arguments: str, name: str, env: Mapping[str, str] | None = None, prefix: Sequence[str] = ()
    ) -> asyncio.subprocess.Process:
        """Start a `sojourn` process whose log goes to a file of the data folder; `env` is its own.

        The command begins with `prefix`, which becomes it.
        """
        command = (*prefix, sys.executable, "-m", "sojourn.cli", *arguments)
        with (self.data_dir / f"{name}.log").open("ab") as out:
            process = await asyncio.create_subprocess_exec(
                *command, env={**self.env, **(env or {})}, stdout=out, stderr=out
            )
        self.processes.append(process)
        return process

    async def start_worker(self, **env: str) -> asyncio.subprocess.Process:
        worker = await self.start("worker", name="worker", env=env)
        self.workers.append(worker)
        return worker

    async def start_api(self, *arguments: str) -> asyncio.subprocess.Process:
        """Start the API on a free port and wait until it is ready."""
        process = await self.start("serve", "--port", "0", *arguments, name="api")
        self.url = await self.announced(process, "api")
        self.http = self.caller(self.url)
        return process

    def caller(self, url: str) -> aiohttp.ClientSession:
        """A session with an API that has the local key."""
        key = (self.data_dir / "local.key").read_text().strip()
        return aiohttp.ClientSession(url, headers={"Authorization": f"Bearer {key}"})

    async def announced(self, process: asyncio.subprocess.Process, name: str) -> str:
        """The URL that a new API says it listens on, in the log of that name."""
        log = self.data_dir / f"{name}.log"
        async with asyncio.timeout(START_S):
            while True:
                for line in reversed(log.read_text().splitlines()):
                    if "listens on " in line:
                        return line.rpartition(" ")[2].strip()
                assert process.returncode is None, log.read_text()
                await asyncio.sleep(0.02)

    # ---- as a caller ----

    async def post(self, path: str, body: Any = None, expect: int = 202) -> Any:
        async with self.http.post(path, json=body) as response:
            text = await response.text()
            assert response.status == expect, (path, response.status, text)
            return msgspec.json.decode(text) if text else None

    async def get(self, path: str, expect: int = 200) -> Any:
        async with self.http.get(path) as response:
            text = await response.text()
            assert response.status == expect, (path, response.status, text)
            return msgspec.json.decode(text)

    async def run(self, **body: Any) -> str:
        return str((await self.post("/v1/runs", body))["run_id"])

    async def until(self, run_id: str, *status: str, within_s: float = RUN_S) -> Any:
        """The run once it has one of the states (an ended one, if none is named)."""
        run: Any = None
        try:
            async with asyncio.timeout(within_s):
                while True:
                    run = await self.get(f"/v1/runs/{run_id}")
                    if run["status"] in (status or ENDED):
                        return run
                    await asyncio.sleep(0.02 if status else 0.1)  # an end stays, and asking costs
        except TimeoutError:
            raise AssertionError(f"it stays {run and run['status']}: {run}\n{self.tail()}") from None

    async def events(self, run_id: str) -> list[Any]:
        """Every public event of a run."""
        events: list[Any] = []
        while True:
            after = events[-1]["seq"] if events else 0
            page = await self.get(f"/v1/runs/{run_id}/events?after={after}&limit=500")
            events += page["data"]
            if not page["has_more"]:
                return events

    def tail(self, lines: int = 30) -> str:
        """The last log lines of every process."""
        return "\n".join(
            f"--- {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
            for path in sorted(self.data_dir.glob("*.log"))
        )

    async def stop(self) -> None:
        if self.url:
            await self.http.close()
        for process in self.processes:
            if process.returncode is None:
                process.terminate()
        for process in self.processes:
            try:
                await asyncio.wait_for(process.wait(), 30)
            except TimeoutError:
                process.send_signal(signal.SIGKILL)
                await process.wait()
        sandboxes = BwrapProvider(self.data_dir / "sandboxes")
        await sandboxes.reap(frozenset())
        await sandboxes.close()
        await until(lambda: not embedded.running(self.data_dir))


def at(dsns: Dsns) -> dict[str, str]:
    """The settings of processes that use this database, and start no server of their own."""
    return {
        "SOJOURN_DATABASE_URL": dsns.migrate,
        "SOJOURN_DATABASE_URL_API": dsns.api,
        "SOJOURN_DATABASE_URL_ENGINE": dsns.engine,
    }


def offer_tools(data_dir: Path, source: str, *names: str) -> dict[str, str]:
    """Install functions as an operator's package would, and give the environment that finds them."""
    site = data_dir / "site"
    info = site / "offered-1.dist-info"
    info.mkdir(parents=True)
    (site / "offered.py").write_text(source)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: offered\nVersion: 1\n")
    points = "".join(f"{name} = offered:{name}\n" for name in names)
    (info / "entry_points.txt").write_text(f"[sojourn.tools]\n{points}")
    return {"PYTHONPATH": str(site)}


@asynccontextmanager
async def installed(
    data_dir: Path, script: Any = None, *, workers: int = 1, env: Mapping[str, str] | None = None
) -> AsyncIterator[Installation]:
    """An installation that is ready, with `workers` worker processes."""
    async with Simulator(script) as simulator:
        installation = Installation(data_dir, simulator.url, env or {})
        try:
            await installation.start_api("--no-worker")
            for _ in range(workers):
                await installation.start_worker()
            yield installation
        finally:
            await installation.stop()
