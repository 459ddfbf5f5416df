"""The processes of the drill: workers, each at a cable of its own, and APIs, over a database of the operator's.

A fault takes one that no other fault has, and gives it back in service.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
from tests import cable
from tests.drill.orders import SCRIPT
from tests.installation import START_S, Installation
from tests.own_postgres import OwnPostgres, own_postgres
from tests.releases.next_release import next_release
from tests.wire_cutter import Wire, wired

from sojourn.cli.exits import UNREACHABLE
from sojourn.models.simulator import Simulator
from sojourn.store.roles import Dsns

WORKERS, APIS = 3, 2
LEASE_S = 3.0
AWAY = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""What one hears of a database that crashes or restarts in the middle of a question."""
SETTINGS = {
    "SOJOURN_LEASE_S": f"{LEASE_S:g}",
    "SOJOURN_BEAT_S": "0.5",
    "SOJOURN_DRAIN_S": "1",
    "SOJOURN_LINGER_S": "0.5",
    "SOJOURN_SANDBOX_IDLE_S": "20",
    "SOJOURN_LOG_LEVEL": "warning",
}


@dataclass
class Member:
    """One place in the fleet; the process that fills it changes."""

    name: str
    wire: Wire
    is_api: bool = False
    release: dict[str, str] = field(default_factory=dict)
    process: asyncio.subprocess.Process | None = None
    url: str = ""

    @property
    def running(self) -> asyncio.subprocess.Process:
        assert self.process is not None
        return self.process


class Fleet:
    """All places, those that no fault has, and the database."""

    def __init__(self, here: Installation, postgres: OwnPostgres, members: list[Member]) -> None:
        self.here, self.postgres, self.members = here, postgres, members
        self.free = list(members)
        self.database = asyncio.Lock()
        self.newer = next_release(here.data_dir)
        self.newer["PYTHONPATH"] += f":{here.env['PYTHONPATH']}"

    @property
    def apis(self) -> list[Member]:
        return [member for member in self.members if member.is_api]

    def urls(self, first: int) -> Iterator[str]:
        """Where the APIs are now, in turns."""
        while True:
            yield self.apis[first % APIS].url
            first += 1

    @asynccontextmanager
    async def one(self, dice: random.Random, *, api: bool = False) -> AsyncIterator[Member]:
        """Take one that no other fault has."""
        while not (choice := [member for member in self.free if member.is_api == api]):  # noqa: ASYNC110 (others end)
            await asyncio.sleep(0.05)
        member = dice.choice(choice)
        self.free.remove(member)
        try:
            yield member
        finally:
            self.free.append(member)

    async def start(self, member: Member) -> None:
        """Fill a place as a supervisor does, who starts again what ends at its start, and see it in service."""
        env = {**member.release, **member.wire.env, **through(member.wire, self.postgres)}
        arguments = ("serve", "--port", "0", "--no-worker") if member.is_api else ("worker",)
        async with asyncio.timeout(START_S):
            while True:
                name = f"{member.name}-{len(self.here.processes)}"
                member.process = await self.here.start(
                    *arguments, "--wait-database", "60", name=name, env=env, prefix=member.wire.prefix
                )
                while member.process.returncode is None:
                    if await self.serves(member, self.here.data_dir / f"{name}.log"):
                        return
                    await asyncio.sleep(0.05)
                assert member.process.returncode == UNREACHABLE, self.here.tail()

    async def serves(self, member: Member, log: Path) -> bool:
        """Whether an API listens, or the database knows a worker."""
        if member.is_api:
            lines = [line for line in log.read_text().splitlines() if "listens on " in line]
            member.url = lines[0].rpartition(" ")[2] if lines else member.url
            return bool(lines)
        with suppress(*AWAY):
            return bool(await self.postgres.say(f"select from worker where pid = {member.running.pid}"))
        return False


def through(wire: Wire, postgres: OwnPostgres) -> dict[str, str]:
    """The setting of a process whose database is at the other end of a wire."""
    return {"SOJOURN_DATABASE_URL": wire.dsns(Dsns(*[postgres.url] * 3))["SOJOURN_DATABASE_URL"]}


@asynccontextmanager
async def fleet(data_dir: Path, env: dict[str, str]) -> AsyncIterator[Fleet]:
    """A fleet in service."""
    async with AsyncExitStack() as stack:
        postgres = await stack.enter_async_context(own_postgres())
        simulator = await stack.enter_async_context(Simulator(SCRIPT))
        members = []
        for number in range(APIS + WORKERS):
            name = f"api{number}" if number < APIS else f"worker{number - APIS}"
            is_api, dsns = number < APIS, Dsns(*[postgres.url] * 3)
            # An API must be reached by its callers too.
            wire = await stack.enter_async_context(wired(dsns) if is_api else cable.plugged(dsns, simulator.url))
            members.append(Member(name, wire, is_api=is_api))
        made = Fleet(Installation(data_dir, simulator.url, {**env, **SETTINGS}), postgres, members)
        stack.push_async_callback(made.here.stop)
        for member in members:
            await made.start(member)
        yield made
