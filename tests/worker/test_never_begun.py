"""Workers killed with -9 between a command's intent and its beginning: the next one runs it, once, wherever that is."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from tests.installation import at
from tests.sandboxes.test_crash import keeper_pid
from tests.worker.inside import ground
from tests.worker.restarted import WITHIN_S, Company, asks, company, plays

from sojourn.models.simulator.script import Call, Script
from sojourn.store.db import Database
from sojourn.store.roles import Dsns
from sojourn.store.tenant import keys, sessions

SCRIPT = Script(
    rules=tuple(
        plays(
            "clerk",
            (Call("shell", {"command": "echo before >> log"}), Call("charge", {"n": 1})),
            (Call("shell", {"command": "echo once >> log; cat log"}),),
        )
    )
)
AGENT = {"model": "openai:clerk", "tools": ["shell", "charge"], "policy": asks("charge")}
WAITING = "select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
LOG = "before\nonce\n"


class Moment:
    """A session whose sandbox is put away, and the means to stop a worker on its way to open it."""

    def __init__(self, here: Company, database: Database, session_id: str) -> None:
        self.here, self.database, self.session_id = here, database, session_id
        self.row = AsyncExitStack()

    async def is_true(self, condition: str, *values: object) -> None:
        """Wait until this holds of the session's row."""
        asked = f"select {condition} from session where id = $1"
        async with self.database.engine() as engine, asyncio.timeout(WITHIN_S):
            while not await engine.fetchval(asked, self.session_id, *values):  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def put_away(self) -> None:
        await self.is_true("host is null")
        async with self.database.engine() as engine:
            self.used_at = await engine.fetchval("select used_at from session where id = $1", self.session_id)

    async def opens(self) -> None:
        """A worker has read the row, and goes on to the keeper."""
        await self.is_true("used_at > $2", self.used_at)

    async def hold_row(self) -> None:
        """From now on nobody opens the session, or says that it is opened."""
        caller = await keys.authenticate(self.database, (self.here.data_dir / "local.key").read_text().strip())
        await sessions.lock(await self.row.enter_async_context(self.database.scoped(caller.handle)), self.session_id)

    async def somebody_waits(self) -> None:
        async with self.database.engine() as engine, asyncio.timeout(WITHIN_S):
            while not await engine.fetch(WAITING):  # noqa: ASYNC110 (a worker comes to the lock)
                await asyncio.sleep(0.01)

    async def comes_to_its_row(self) -> None:
        """Let the worker, whose keeper stands still, come as far as the row that we hold."""
        await self.opens()
        await self.hold_row()
        await self.keeper(signal.SIGCONT)
        await self.somebody_waits()

    async def keeper(self, how: signal.Signals) -> None:
        async with self.here.sandboxes() as sandboxes:
            os.kill(keeper_pid(sandboxes), how)


@asynccontextmanager
async def before_it_opens(moment: Moment) -> AsyncIterator[None]:
    await moment.hold_row()
    yield
    await moment.somebody_waits()
    await moment.here.kill_workers()
    await moment.row.aclose()


@asynccontextmanager
async def while_its_files_are_brought(moment: Moment) -> AsyncIterator[None]:
    await moment.keeper(signal.SIGSTOP)
    yield
    await moment.opens()
    await moment.here.kill_workers()
    await moment.keeper(signal.SIGCONT)


@asynccontextmanager
async def before_its_row_says_that_they_are_here(moment: Moment) -> AsyncIterator[None]:
    await moment.keeper(signal.SIGSTOP)
    yield
    await moment.comes_to_its_row()
    await moment.here.kill_workers()
    await moment.row.aclose()


@asynccontextmanager
async def before_the_keeper_hears_of_it(moment: Moment) -> AsyncIterator[None]:
    await moment.keeper(signal.SIGSTOP)
    yield
    await moment.comes_to_its_row()
    await moment.keeper(signal.SIGSTOP)
    await moment.row.aclose()
    await moment.is_true("host is not null")
    await moment.here.kill_workers()
    await moment.keeper(signal.SIGCONT)


DEATHS = (
    (before_it_opens, "here"),
    (while_its_files_are_brought, "here"),
    (before_the_keeper_hears_of_it, "here"),
    (before_its_row_says_that_they_are_here, "south"),
)
"""When a worker dies, and the machine that the next one runs on."""


async def test_a_command_is_run_once_by_the_next_worker(data_dir: Path, dsns: Dsns, database: Database) -> None:
    env = {**at(dsns), "SOJOURN_HOST_NAME": "here", "SOJOURN_SANDBOX_SUSPEND_S": "0"}
    south = {"SOJOURN_HOST_NAME": "south", "SOJOURN_DATA_DIR": str(data_dir)}
    async with company(SCRIPT, **env) as here, ground(data_dir / "sandboxes"):
        for death, machine in DEATHS:
            run_id = await here.run(agent=AGENT, input="go")
            wait = await here.asked(run_id, "approval")
            moment = Moment(here, database, (await here.get(f"/v1/runs/{run_id}"))["session_id"])
            await moment.put_away()
            async with death(moment):
                await here.decide(wait, "approve")
            await here.start_worker(**(south if machine == "south" else {}))
            assert (await here.until(run_id))["status"] == "completed"
            assert (await here.results(run_id))[-1] == LOG, death.__name__
