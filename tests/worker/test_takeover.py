"""Workers that are cut off, stopped or taken for dead while they perform: they stop before another one goes on.

The tools write down every tenth of a second that they are at it, so that the file shows who performed when.
"""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from tests import cable
from tests.conftest import until
from tests.installation import RECORD, Installation, offer_tools
from tests.wire_cutter import Wire, wired
from tests.worker.restarted import Follower, plays

from sojourn.models.simulator import Simulator
from sojourn.models.simulator.script import Call, Pacing, Rule, Script, When
from sojourn.store.roles import Dsns

TOOLS = (
    RECORD
    + '''
def note(what, context):
    record(f"{time.monotonic()} {os.getpid()} {what} {context.run_id} {context.key}")

@tool(effect="idempotent")
async def toil(seconds: float, *, context) -> str:
    """Is at it for so long."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        note("toil", context)
        await asyncio.sleep(0.1)
    return "done"

@tool
def charge(*, context) -> str:
    """Has an effect that must not be had twice."""
    note("charge", context)
    return "charged"
'''
)
LEASE_S = 4.0
WORDS = " ".join(f"word{n}" for n in range(100))
SCRIPT = Script(
    rules=(
        *plays("toiler", (Call("toil", {"seconds": 8}),), (Call("charge"),)),
        *plays("ready", (Call("shell", {"command": "sleep 4; echo once >> log"}),), (Call("charge"),)),
        Rule(when=When(model="talker"), text=WORDS, pacing=Pacing(tokens_per_s=20)),
    )
)
TOILER = {"model": "openai:toiler", "tools": ["toil", "charge"]}
READY = {"model": "openai:ready", "tools": ["shell", "charge"]}
TALKER = {"model": "openai:talker"}


class Place(Installation):
    """Workers with wires of their own to one database, and what their tools did."""

    def __init__(self, data_dir: Path, simulator: Simulator, dsns: Dsns) -> None:
        self.effects = data_dir / "effects"
        self.effects.touch()
        super().__init__(
            data_dir,
            simulator.url,
            {
                **offer_tools(data_dir, TOOLS, "toil", "charge"),
                "SOJOURN_DATABASE_URL": dsns.migrate,
                "SOJOURN_DATABASE_URL_API": dsns.api,
                "SOJOURN_DATABASE_URL_ENGINE": dsns.engine,
                "SOJOURN_LEASE_S": str(LEASE_S),
                "EFFECTS": str(self.effects),
            },
        )
        self.simulator = simulator

    async def start_wired(self, wire: Wire, dsns: Dsns) -> asyncio.subprocess.Process:
        """A worker behind a wire."""
        env = {**wire.dsns(dsns), **wire.env}
        self.workers.append(await self.start("worker", name="worker", env=env, prefix=wire.prefix))
        return self.workers[-1]

    def lines(self) -> list[list[str]]:
        """What the tools wrote down: when, in which process, what."""
        return [line.split() for line in self.effects.read_text().splitlines()]

    def did(self, what: str, pid: int | None = None) -> list[float]:
        """When a tool was at it, in this process or in any."""
        return [float(at) for at, by, name, *_ in self.lines() if name == what and pid in (None, int(by))]

    def log(self, word: str) -> bool:
        return any(word in path.read_text() for path in self.data_dir.glob("worker*.log"))


@asynccontextmanager
async def place(data_dir: Path, dsns: Dsns) -> AsyncIterator[Place]:
    async with Simulator(SCRIPT) as simulator:
        made = Place(data_dir, simulator, dsns)
        try:
            await made.start_api("--no-worker")
            yield made
        finally:
            await made.stop()


async def test_a_worker_that_is_cut_off_stops_before_another_goes_on(data_dir: Path, dsns: Dsns) -> None:
    async with place(data_dir, dsns) as here, wired(dsns) as wire:
        cut_off = await here.start_wired(wire, dsns)
        toils, talks = await here.run(agent=TOILER, input="go"), await here.run(agent=TALKER, input="go")
        follower = Follower(here, talks)
        following = asyncio.create_task(follower.read("run.completed"))
        await until(lambda: bool(here.did("toil", cut_off.pid)) and follower.said() != [])
        other = await here.start_worker()
        wire.cut()
        cut_at = time.monotonic()
        await until(lambda: bool(here.did("toil", other.pid)) and len(here.simulator.requests(model="talker")) > 1, 60)
        (asked_before, asked_again) = here.simulator.requests(model="talker")
        assert here.did("toil", cut_off.pid)[-1] < here.did("toil", other.pid)[0], "two were at it"
        assert here.did("toil", other.pid)[0] - cut_at < LEASE_S + 10
        assert asked_before.outcome == "aborted" and asked_before.ended_at < asked_again.received_at
        ended = [await here.until(run_id) for run_id in (toils, talks)]
        assert [run["status"] for run in ended] == ["completed", "completed"]
        events, made = [await here.events(run_id) for run_id in (toils, talks)], len(here.simulator.requests())
        wire.mend()  # and what was underway arrives
        await until(lambda: here.log("run.lease_lost"))
        await following
        assert [await here.events(run_id) for run_id in (toils, talks)] == events, "it committed nothing"
        assert [WORDS.startswith(said) for said in follower.said()] == [True, True], "it said no more"
        assert (len(here.did("charge")), len(here.simulator.requests())) == (1, made), "and began nothing"
        again = await here.until(await here.run(agent=TALKER, input="again"))
        assert (again["status"], cut_off.returncode) == ("completed", None), "it serves again"


async def test_a_worker_that_was_cut_off_alone_goes_on_where_it_was(data_dir: Path, dsns: Dsns) -> None:
    async with place(data_dir, dsns) as here, wired(dsns) as wire:
        worker = await here.start_wired(wire, dsns)
        run_id = await here.run(agent=TOILER, input="go")
        await until(lambda: bool(here.did("toil")))
        wire.cut()
        await until(lambda: here.log("worker.cut_off"))
        wire.mend()
        assert (await here.until(run_id))["status"] == "completed"
        assert (len(here.did("charge")), len(here.simulator.requests())) == (1, 3)
        assert {pid for _, pid, *_ in here.lines()} == {str(worker.pid)}
        assert not here.log("run.lease_lost")


@pytest.mark.skipif(not cable.available(), reason="network namespaces take root and iproute2")
async def test_a_worker_whose_network_is_unplugged_stops_before_another_goes_on(data_dir: Path, dsns: Dsns) -> None:
    """No packet comes or goes, to the database or the model: not even that a connection has ended."""
    async with place(data_dir, dsns) as here, cable.plugged(dsns, here.simulator.url) as wire:
        unplugged = await here.start_wired(wire, dsns)
        run_id = await here.run(agent=TOILER, input="go")
        await until(lambda: bool(here.did("toil", unplugged.pid)))
        wire.cut()
        cut_at = time.monotonic()
        other = await here.start_worker()
        await until(lambda: bool(here.did("toil", other.pid)), 60)
        assert here.did("toil", unplugged.pid)[-1] < here.did("toil", other.pid)[0], "two were at it"
        assert here.did("toil", other.pid)[0] - cut_at < LEASE_S + 10
        assert (await here.until(run_id))["status"] == "completed"
        events = await here.events(run_id)
        wire.mend()
        await until(lambda: here.log("run.lease_lost"))
        assert await here.events(run_id) == events, "it committed nothing"
        assert {pid for _, pid, name, *_ in here.lines() if name == "charge"} == {str(other.pid)}
        other.terminate()
        assert await other.wait() == 0
        again = await here.until(await here.run(agent=TALKER, input="again"))
        assert (again["status"], unplugged.returncode) == ("completed", None), "it serves again"


async def test_a_stopped_worker_that_wakes_late_looks_at_the_clock_first(data_dir: Path, dsns: Dsns) -> None:
    """It sleeps behind a wire that brings it no news: its own clock is all that it has."""
    async with place(data_dir, dsns) as here, wired(dsns) as wire:
        zombie = await here.start_wired(wire, dsns)
        runs = [await here.run(agent=TOILER, input="go") for _ in range(5)]
        await until(lambda: len(set(here.effects.read_text().split()[3::5])) == 5)
        zombie.send_signal(signal.SIGSTOP)
        wire.cut()
        stopped_at = time.monotonic()
        await here.start_worker()
        ended = [await here.until(run_id) for run_id in runs]
        assert {run["status"] for run in ended} == {"completed"}
        asked = len(here.simulator.requests())
        zombie.send_signal(signal.SIGCONT)
        await until(lambda: here.log("worker.cut_off"))
        woken = [at for at in here.did("toil", zombie.pid) if at > stopped_at + 1]
        assert len(woken) <= len(runs), "what was in flight got no further than its next breath"
        wire.mend()
        await until(lambda: here.log("run.lease_lost"))
        assert (len(here.did("charge")), len(here.simulator.requests())) == (5, asked)
        assert here.did("charge", zombie.pid) == []


async def test_a_worker_whose_connections_are_ended_goes_on(data_dir: Path, dsns: Dsns) -> None:
    """Its lock is free for a moment, and nobody is there to steal: nothing is interrupted."""
    async with place(data_dir, dsns) as here:
        await here.start_worker()
        run_id = await here.run(agent=TOILER, input="go")
        await until(lambda: bool(here.did("toil")))
        admin = await asyncpg.connect(dsns.engine)
        ended = await admin.fetch(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database()"
            " and application_name like 'sojourn-engine%'"
        )
        await admin.close()
        assert ended
        run = await here.until(run_id)
        assert (run["status"], len(here.did("charge"))) == ("completed", 1)
        assert [event["attempt"] for event in await here.events(run_id) if event["type"] == "agent.tool_started"] == [
            1,
            1,
        ]


async def test_a_free_lock_is_stolen_from_a_living_worker_and_nothing_is_doubled(data_dir: Path, dsns: Dsns) -> None:
    """Somebody ends the connections that two workers live by, over and over, while they work."""
    async with place(data_dir, dsns) as here:
        for _ in range(2):
            await here.start_worker()
        runs = [await here.run(agent=READY, input="go") for _ in range(3)]
        admin: Any = await asyncpg.connect(dsns.engine)
        over = asyncio.Event()

        async def shake() -> None:
            while not over.is_set():
                await admin.fetch(
                    "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and classid = $1",
                    0x504A,
                )
                await asyncio.sleep(1.0)

        shaking = asyncio.create_task(shake())
        ended = [await here.until(run_id, "suspended", "completed") for run_id in runs]
        over.set()
        await shaking
        await admin.close()
        for run in ended:
            async with here.http.get(f"/v1/sessions/{run['session_id']}/files/log") as response:
                assert await response.text() == "once\n"
        charged = [line.split()[3] for line in here.effects.read_text().splitlines() if " charge " in line]
        assert len(charged) == len(set(charged)), "and where the outcome is unknown, a person is asked"
        assert {run["id"] for run in ended if run["status"] == "completed"} <= set(charged)
