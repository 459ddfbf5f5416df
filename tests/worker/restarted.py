"""What tests of long-lived runs stand on: an installation whose workers are killed between any two answers.

company   API, worker, simulator and operator's tools, which leave a line in a file for every effect they have
Company   speaks to it as callers do, and kills and starts its workers
plays     what one model says, step by step
"""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from tests.installation import RECORD, Installation, offer_tools

from sojourn.models.simulator import RequestLog, Simulator
from sojourn.models.simulator.script import Call, Rule, Script, When
from sojourn.sandboxes.bwrap import BwrapProvider

TOOLS = (
    RECORD
    + '''
@tool
def charge(n: int, *, context) -> str:
    """Has an effect that must not be had twice."""
    record(f"{context.run_id} charge {n}")
    return f"charged {n}"

@tool(effect="idempotent")
def ship(to: str, *, context) -> str:
    """Has an effect that the outside deduplicates by key."""
    record(f"{context.run_id} ship {to}")
    return f"shipped to {to}"

@tool(effect="idempotent")
async def stubborn(*, context) -> str:
    """Does not let itself be cancelled, so many times."""
    tries = int(os.environ.get("STUBBORN", "1000000"))
    record(f"{context.run_id} begun")
    while tries:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            tries -= 1
    return "let go"

@tool(effect="read")
def report(kb: int) -> str:
    """Says a lot."""
    return "".join(f"{n:1023}\\n" for n in range(kb))

@tool
def hang(*, context) -> str:
    """Never returns."""
    record(f"{context.run_id} hang")
    time.sleep(600)

@tool(effect="idempotent")
def crash(*, context) -> str:
    """Kills the worker that runs it, until somebody mends it."""
    if not os.path.exists(os.environ["EFFECTS"] + ".mended"):
        os.kill(os.getpid(), 9)
    return "survived"
'''
)
PAY = '''
@tool
def pay(n: int, *, context) -> str:
    """Pays."""
    record(f"{context.run_id} pay {n}")
    return f"paid {n}"
'''
WITHIN_S = 60.0
PRICES = '[prices."openai:priced"]\ninput = 1.0\noutput = 2.0\n'


def plays(model: str, *steps: tuple[Call, ...], text: str = "all done") -> Iterator[Rule]:
    """The rules of a model that makes these calls, step by step, and then says `text`."""
    for step, calls in enumerate(steps):
        yield Rule(when=When(model=model, step=step), calls=calls)
    yield Rule(when=When(model=model), text=text)


def asks(*tools: str, **how: Any) -> dict[str, Any]:
    """A policy that asks about these tools."""
    return {"rules": [{"tool": tool, "verdict": "ask"} for tool in tools], "ask": how}


class Company(Installation):
    """API and workers of one data folder, and the model that they ask."""

    def __init__(self, data_dir: Path, simulator: Simulator, **env: str) -> None:
        self.effects = data_dir / "effects"
        tools = offer_tools(data_dir, TOOLS + PAY, "charge", "ship", "report", "hang", "crash", "pay", "stubborn")
        own = {"EFFECTS": str(self.effects), "PYTHONDONTWRITEBYTECODE": "1", "SOJOURN_BEAT_S": "0.2"}
        super().__init__(data_dir, simulator.url, {**tools, **own, **env})
        self.simulator = simulator

    async def kill_workers(self) -> None:
        """Kill every worker with -9."""
        for worker in self.workers:
            if worker.returncode is None:
                worker.kill()
            await worker.wait()

    async def restart(self) -> None:
        """Kill every worker, and start one."""
        await self.kill_workers()
        await self.start_worker()

    def done(self, run_id: str) -> list[str]:
        """The effects that a run's tools had."""
        lines = self.effects.read_text().splitlines() if self.effects.exists() else []
        return [line.partition(" ")[2] for line in lines if line.startswith(run_id)]

    async def asking(self, run_id: str, *kinds: str) -> Any:
        """The open questions of a run, by call, once it waits for just these kinds."""
        run: Any = None
        try:
            async with asyncio.timeout(WITHIN_S):
                while True:
                    run = await self.until(run_id, "suspended")
                    if sorted(wait["kind"] for wait in run["waits"]) == sorted(kinds):
                        return {wait["call"]: wait for wait in run["waits"]}
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"it does not ask this: {run}\n{self.tail()}") from None

    async def asked(self, run_id: str, kind: str) -> Any:
        """The one question that a run waits for."""
        (wait,) = (await self.asking(run_id, kind)).values()
        return wait

    async def decide(self, wait: Any, decision: str, expect: int = 202, **more: Any) -> Any:
        """Answer a question, and see that the run has heard the answer where it is taken."""
        said = await self.post(f"/v1/approvals/{wait['approval']}", {"decision": decision, **more}, expect=expect)
        run_id = wait["approval"].partition(".")[0]
        async with asyncio.timeout(WITHIN_S):
            while expect == 202 and await self.waits_for(run_id, wait["id"]):  # noqa: ASYNC110 (a worker hears it)
                await asyncio.sleep(0.02)
        return said

    async def waits_for(self, run_id: str, wait: str) -> bool:
        return any(one["id"] == wait for one in (await self.get(f"/v1/runs/{run_id}"))["waits"])

    async def of(self, run_id: str, kind: str) -> list[Any]:
        """The run's events of one type."""
        return [event for event in await self.events(run_id) if event["type"] == kind]

    async def results(self, run_id: str) -> list[str]:
        """What the run's tools said."""
        return [event["text"] for event in await self.of(run_id, "agent.tool_result")]

    async def log_of(self, run_id: str) -> str:
        """The file that the run's commands write to; empty before they do."""
        session = (await self.get(f"/v1/runs/{run_id}"))["session_id"]
        async with self.http.get(f"/v1/sessions/{session}/files/log") as response:
            return await response.text() if response.status == 200 else ""

    async def begun(self, run_id: str) -> None:
        """Wait until the run's command has written something."""
        async with asyncio.timeout(WITHIN_S):
            while not await self.log_of(run_id):  # noqa: ASYNC110 (a worker does it)
                await asyncio.sleep(0.02)

    @asynccontextmanager
    async def sandboxes(self) -> AsyncIterator[BwrapProvider]:
        """The sandboxes of this host, to look at."""
        provider = BwrapProvider(self.data_dir / "sandboxes")
        yield provider
        await provider.close()


@asynccontextmanager
async def company(script: Script, **env: str) -> AsyncIterator[Company]:
    """A company that is ready, with one worker."""
    folder = Path(tempfile.mkdtemp(prefix="sojourn-test-"))
    (folder / "sojourn.toml").write_text(PRICES)
    try:
        async with Simulator(script, log=RequestLog(keep_bodies=True)) as simulator:
            made = Company(folder, simulator, **env)
            try:
                await made.start_api("--no-worker")
                await made.start_worker()
                yield made
            finally:
                await made.stop()
    finally:
        shutil.rmtree(folder)


class Follower:
    """Reads a run's stream as a browser does, and can be made to come back later."""

    def __init__(self, installation: Installation, run_id: str) -> None:
        self.http, self.path = installation.http, f"/v1/runs/{run_id}/events"
        self.last_id = ""
        self.durable: list[Any] = []
        self.all: list[Any] = []

    async def read(self, last: str) -> None:
        """Read up to an event of this type, from where the last reading ended."""
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": self.last_id} if self.last_id else {})}
        timeout = aiohttp.ClientTimeout(total=WITHIN_S)
        async with self.http.get(self.path, headers=headers, timeout=timeout) as response:
            assert response.status == 200, await response.text()
            kind = ""
            async for line in response.content:
                name, _, value = line.decode().strip().partition(": ")
                match name:
                    case "id":
                        self.last_id = value
                    case "event":
                        kind = value
                    case "data":
                        self._take({"type": kind, **msgspec.json.decode(value)})
                        if kind == last:
                            return
        raise AssertionError(f"the stream ended without {last}: {self.durable}")

    def _take(self, event: Any) -> None:
        self.all.append(event)
        if "seq" in event:
            self.durable.append(event)

    def said(self) -> list[str]:
        """The text of the deltas, in one piece between any two resets."""
        pieces = [""]
        for event in self.all:
            if event["type"] == "delta.reset":
                pieces.append("")
            elif event["type"] == "delta.message":
                pieces[-1] += event["text"]
        return [piece for piece in pieces if piece]
