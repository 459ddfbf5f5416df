"""An example as its user has it: a folder, a simulated model, and one process for each command."""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from sojourn.loop import Continuation, Wait, loads, pending
from sojourn.models.simulator import RequestLog, Simulator, load

ROOT = Path(__file__).parent.parent.parent
OFFLINE = Path(__file__).parent / "offline"
INVOICES = "invoice,eur\nINV-1,120\nINV-2,40\nINV-3,5000\n"
TIME_OUT_S = 60


class Told(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


class Example:
    """One of the examples in a folder of its own. `await example("resume", "run.json")` runs a command."""

    def __init__(self, name: str, folder: Path, simulator: Simulator, *, code: Path = ROOT) -> None:
        self.name, self.folder, self.simulator, self.code = name, folder, simulator, code
        self.processes: list[Process] = []

    async def __call__(self, *words: str, program: str | None = None, **flags: str | bool) -> Told:
        process = await self.begin(*words, program=program, **flags)
        async with asyncio.timeout(TIME_OUT_S):
            out, err = await process.communicate()
        return Told(process.returncode or 0, out.decode(), err.decode())

    async def begin(self, *words: str, program: str | None = None, **flags: str | bool) -> Process:
        """Start a command and let it go on."""
        given = [f"--{flag}" if value is True else f"--{flag}={value}" for flag, value in flags.items()]
        module = f"examples.{program or self.name}"
        command = [sys.executable, "-W", "always::ResourceWarning", "-m", module, *words, *given]
        process = await asyncio.create_subprocess_exec(
            *command, cwd=self.folder, env=environ(self.simulator, self.code), stdin=PIPE, stdout=PIPE, stderr=PIPE
        )
        self.processes.append(process)
        return process

    async def end(self) -> None:
        """End what a failed test left behind."""
        for process in self.processes:
            if process.returncode is None:
                process.kill()
                await process.communicate()

    async def start(self, **flags: str | bool) -> Told:
        return await self("start", "Pay what is due.", file="run.json", **flags)

    async def resume(self) -> Told:
        return await self("resume", "run.json")

    async def decide(self, wait: str, *, program: str = "command_line", **flags: str | bool) -> Told:
        """Answer a question, by default with the program that knows nothing of agents."""
        return await self("decide", "run.json", program=program, wait=wait, **flags)

    @property
    def file(self) -> Path:
        return self.folder / "run.json"

    @property
    def run(self) -> Continuation:
        return loads(self.file.read_bytes()).run

    @property
    def waits(self) -> dict[str, Wait]:
        """The open questions by id."""
        return {wait.id: wait for wait in pending(self.run)}

    @property
    def payments(self) -> list[str]:
        path = self.folder / "payments.csv"
        return path.read_text().splitlines() if path.exists() else []

    def asked(self) -> list[dict[str, Any]]:
        """The bodies of the requests that the model answered."""
        return [msgspec.json.decode(one.body) for one in self.simulator.requests(outcome="finished") if one.body]

    def observed(self) -> list[str]:
        """The results that the last request of the payer showed to the model."""
        return [message["content"] for message in self.asked()[-1]["messages"] if message["role"] == "tool"]


async def begun(name: str, folder: Path) -> Path:
    """Start a run and give its folder: what is in it is all that there is of the run."""
    async with example(name, folder) as started:
        told = await started.start()
    assert (told.code, told.err) == (7, ""), told.err
    return folder


@asynccontextmanager
async def example(name: str, folder: Path, *, code: Path = ROOT, **script: Any) -> AsyncIterator[Example]:
    """Give an example and its model; `script` changes what the model's script says."""
    (folder / "invoices.csv").write_text(INVOICES)
    scripted = msgspec.structs.replace(load(ROOT / "examples" / name / "model.toml"), **script)
    async with Simulator(scripted, log=RequestLog(keep_bodies=True)) as simulator:
        given = Example(name, folder, simulator, code=code)
        try:
            yield given
        finally:
            await given.end()


def environ(simulator: Simulator, code: Path = ROOT) -> dict[str, str]:
    """What a user sets, and nothing of ours; whoever leaves this machine is ended."""
    return {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{code}:{OFFLINE}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OPENAI_BASE_URL": simulator.openai_url,
        "OPENAI_API_KEY": "none-needed",
        "USER": "carl",
    }
