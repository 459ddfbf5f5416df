"""Sessions whose files are on another host, or on this one and of no use: fetched, given up, put away, cleared."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.installation import Installation, at
from tests.worker.inside import Caller, Thinker, agent, ground, working
from tests.worker.test_outside import begun, script, shell
from tests.worker.test_suspending import READ, WRITE, away, heard

from sojourn.loop import events as ev
from sojourn.models.simulator import Simulator
from sojourn.models.simulator.script import Call, Rule, Script, When
from sojourn.sandboxes.bwrap import BwrapProvider
from sojourn.sandboxes.sandbox import Spec
from sojourn.store import queue
from sojourn.store.db import Database
from sojourn.store.roles import Dsns
from sojourn.store.tenant import sessions

TALK = Script(
    rules=(
        Rule(when=When(user="busy", step=0), calls=(shell("echo begun > log; sleep 600"),)),
        Rule(when=When(user="write", step=0), calls=(Call(*WRITE),)),
        Rule(when=When(user="read", step=0), calls=(Call(*READ),)),
        Rule(when=When(user="read", step=1), calls=(shell("rm note; ls"),)),
        *script(text="all done").rules,
    )
)
AGENT = {"model": "openai:sim", "tools": ["write_file", "read_file", "shell"]}


@pytest.fixture
async def two(data_dir: Path, dsns: Dsns) -> AsyncIterator[tuple[Installation, Installation]]:
    """Two machines with a database in common: `north` has the API and a worker for one run at a time."""
    async with Simulator(TALK) as simulator:
        machines = []
        for name in ("north", "south"):
            env = {
                **at(dsns),
                "SOJOURN_HOST_NAME": name,
                "SOJOURN_WORKER_RUNS_MAX": "1",
                "SOJOURN_DRAIN_S": "0.2",
            }
            (data_dir / name).mkdir()
            machines.append(Installation(data_dir / name, simulator.url, env))
        north, south = machines
        try:
            await north.start_api("--no-worker")
            await north.start_worker()
            yield north, south
        finally:
            await north.stop()
            await south.stop()


async def test_a_run_goes_on_with_its_sessions_files_on_another_machine(
    two: tuple[Installation, Installation],
) -> None:
    north, south = two
    session = (await north.until(await north.run(agent=AGENT, input="write")))["session_id"]
    busy = await north.run(agent=AGENT, input="busy")
    await begun(north, busy)  # north lives, and takes nothing more
    await south.start_worker()
    run_id = await north.run(agent=AGENT, input="read", session=session)
    assert (await north.until(run_id))["status"] == "completed"
    events = await north.events(run_id)
    texts = [event["text"] for event in events if event["type"] == "agent.tool_result"]
    assert texts == ["kept", ""], "it read the file, and could remove it"
    assert [event["type"] for event in events if event["type"].startswith("sandbox.")] == ["sandbox.restored"]
    await north.post(f"/v1/runs/{busy}/cancel", {})
    await north.until(busy)


@pytest.fixture
async def sandboxes(data_dir: Path) -> AsyncIterator[BwrapProvider]:
    async with ground(data_dir / "sandboxes") as provider:
        yield provider


async def on_north(caller: Caller) -> str:
    """A session whose files are on a host that no test has."""
    session_id = "ses_1"
    async with caller.database.scoped(caller.principal.handle) as conn:
        await sessions.create(conn, session_id)
        await sessions.place(conn, session_id, host="north", backend="bwrap", enforced=None)
    return session_id


@pytest.mark.parametrize("lives", [True, False])
async def test_files_of_a_host_that_does_not_answer_are_given_up_and_the_model_is_told(
    database: Database, sandboxes: BwrapProvider, monkeypatch: pytest.MonkeyPatch, lives: bool
) -> None:
    monkeypatch.setattr("sojourn.worker.upkeep.sessions.AWAY_S", 0.5)
    caller = await Caller.of(database)
    session_id = await on_north(caller)
    if lives:
        await (await queue.register(database, "w0", host="north", pid=1, version="0")).close()
    async with working(database, Thinker((READ,)), sandboxes, host="south") as worker:
        run_id = await caller.run(agent("read_file"), worker, session_id=session_id)
        await caller.until(run_id, "completed")
    (text,) = await heard(caller, run_id)
    assert "on the host north" in text
    assert ("No worker has run there" in text) is not lives
    session = await caller.session(run_id)
    assert (session.host, session.workspace) == ("north", None), "nothing was changed"
    assert await sandboxes.sessions() == []


async def test_a_wanted_session_is_put_away_at_once_but_not_while_its_own_host_drives_it(
    database: Database, sandboxes: BwrapProvider
) -> None:
    caller = await Caller.of(database)
    sleep = ("shell", {"command": "echo x > x; while [ ! -e stop ]; do sleep 0.05; done"})
    async with working(database, Thinker((sleep,)), sandboxes) as worker:
        run_id = await caller.run(agent("shell"), worker)
        async with asyncio.timeout(30):
            while (session := await caller.session(run_id)).host is None:  # noqa: ASYNC110 (a worker opens it)
                await asyncio.sleep(0.01)
        await want(caller, worker, session.id)
        assert await sessions.idle(database, host="here", older_than_s=3600) == []
        sandbox = await sandboxes.attach(session.id)
        assert sandbox is not None
        await sandbox.write("stop", b"")
        await caller.until(run_id, "completed")
        await want(caller, worker, session.id)
        await away(caller, sandboxes, run_id)


async def want(caller: Caller, worker: Any, session_id: str) -> None:
    async with caller.database.scoped(caller.principal.handle) as conn:
        await sessions.want(conn, session_id)
        await conn.execute("update session set used_at = now() - interval '5 seconds'")
    worker.parts.doorbell.ring("sojourn_wanted", [session_id])


async def test_a_closed_sessions_files_are_archived_and_leave_the_host(
    database: Database, sandboxes: BwrapProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sojourn.worker.worker.TIDY_S", 0.1)
    caller = await Caller.of(database)
    await sandboxes.create("ses_of_nobody", Spec())
    async with working(database, Thinker((WRITE,)), sandboxes) as worker:
        run_id = await caller.run(agent("write_file"), worker)
        await caller.until(run_id, "completed")
        session = await caller.session(run_id)
        async with database.scoped(caller.principal.handle) as conn:
            await sessions.close(conn, session.id)
            await conn.execute("update session set used_at = now() - interval '2 minutes'")
        await away(caller, sandboxes, run_id)
        async with asyncio.timeout(30):
            while await sandboxes.sessions():  # noqa: ASYNC110 (a worker clears up)
                await asyncio.sleep(0.02)
    notes = [event.kind for event in await caller.events(run_id) if isinstance(event, ev.Noted)]
    assert notes == ["sandbox.opened"]
