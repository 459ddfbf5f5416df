"""A suspended run holds nothing: no task, connection or lease, and soon no process; its files come back anywhere."""

import asyncio
import gc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.conftest import until
from tests.worker.inside import DONE, Caller, Thinker, agent, ground, working

from sojourn.errors import StoreUnavailable
from sojourn.loop import events as ev
from sojourn.loop.continuation import Continuation
from sojourn.sandboxes.bwrap import BwrapProvider
from sojourn.sandboxes.sandbox import Sandbox
from sojourn.store.db import Database
from sojourn.store.tenant import sessions
from sojourn.worker import perform
from sojourn.worker.drive import Drive
from sojourn.worker.parts import Parts, Place
from sojourn.worker.upkeep.sessions import sandbox_of
from sojourn.worker.worker import Worker

WRITE = ("write_file", {"path": "note", "content": "kept"})
READ = ("read_file", {"path": "note"})
ASK = ("edit_file", {"path": "note", "old": "kept", "new": "edited"})


@pytest.fixture
async def sandboxes(data_dir: Path) -> AsyncIterator[BwrapProvider]:
    async with ground(data_dir / "sandboxes") as provider:
        yield provider


async def away(caller: Caller, sandboxes: BwrapProvider, run_id: str) -> None:
    """Wait until a run's sandbox has been put away."""
    async with asyncio.timeout(30):
        while (session := await caller.session(run_id)).host is not None:  # noqa: ASYNC110 (a worker does it)
            await asyncio.sleep(0.01)
    assert session.workspace is not None
    assert await sandboxes.attach(session.id) is None, "its processes are gone"


async def heard(caller: Caller, run_id: str) -> list[str]:
    """What the run's tools said."""
    messages = (await caller.transcript(run_id)).root.messages
    return [part.text for message in messages if message.role == "tool" for part in message.parts]


def noted(events: list[ev.Event]) -> list[str]:
    return [event.kind for event in events if isinstance(event, ev.Noted)]


async def test_the_sandbox_of_a_suspended_run_is_put_away_and_comes_back(
    database: Database, sandboxes: BwrapProvider
) -> None:
    caller = await Caller.of(database)
    async with working(database, Thinker((WRITE,), (ASK,), (READ,)), sandboxes, sandbox_suspend_s=0.0) as worker:
        run_id = await caller.run(agent("write_file", "edit_file", "read_file", ask="edit_file"), worker)
        await caller.until(run_id, "suspended")
        await away(caller, sandboxes, run_id)
        await caller.approve(run_id, worker)
        assert (await caller.until(run_id, "completed")).result == DONE
    assert (await heard(caller, run_id))[-1] == "edited"
    assert noted(await caller.events(run_id)) == ["sandbox.opened", "sandbox.restored"]


async def test_an_answer_that_comes_at_once_finds_the_sandbox_alive(
    database: Database, sandboxes: BwrapProvider
) -> None:
    caller = await Caller.of(database)
    turns = Thinker((WRITE, ("shell", {"command": "touch /tmp/warm"})), (ASK,), (("shell", {"command": "ls /tmp"}),))
    async with working(database, turns, sandboxes, sandbox_suspend_s=3600.0) as worker:
        run_id = await caller.run(agent("write_file", "edit_file", "shell", ask="edit_file"), worker)
        await caller.until(run_id, "suspended")
        await caller.approve(run_id, worker)
        await caller.until(run_id, "completed")
        assert (await heard(caller, run_id))[-1] == "warm\n"
        assert noted(await caller.events(run_id)) == ["sandbox.opened"]


async def test_a_worker_that_stops_puts_away_what_it_would_have_put_away_later(
    database: Database, sandboxes: BwrapProvider
) -> None:
    caller = await Caller.of(database)
    async with working(database, Thinker((WRITE,), (ASK,)), sandboxes, sandbox_suspend_s=3600.0) as worker:
        run_id = await caller.run(agent("write_file", "edit_file", ask="edit_file"), worker)
        await caller.until(run_id, "suspended")
        await until(lambda: len(worker.leaving) == 1)
        assert (await caller.session(run_id)).host == "here"
    await away(caller, sandboxes, run_id)


async def test_a_sandbox_that_a_caller_uses_is_left_to_him(database: Database, sandboxes: BwrapProvider) -> None:
    caller = await Caller.of(database)

    async def touch(run_id: str) -> None:
        async with database.scoped(caller.principal.handle) as conn:
            await sessions.touch(conn, (await caller.row(run_id)).session_id)

    async with working(database, Thinker((WRITE,), (ASK,)), sandboxes, sandbox_suspend_s=0.0) as worker:
        committer = worker.parts.committer
        committer.status, committer.moments = "suspended", [touch]
        run_id = await caller.run(agent("write_file", "edit_file", ask="edit_file"), worker)
        await caller.until(run_id, "suspended")
        await until(lambda: not (worker.tasks or worker.leaving))
        session = await caller.session(run_id)
        assert session.host == "here" and await sandboxes.attach(session.id) is not None


async def test_what_a_dead_worker_did_not_put_away_is_put_away_by_the_next(
    database: Database, sandboxes: BwrapProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sojourn.worker.worker.TIDY_S", 0.1)
    monkeypatch.setattr(Worker, "_put_away", lambda *_: None)  # as if it had died after the commit
    caller = await Caller.of(database)
    async with working(database, Thinker((WRITE,), (ASK,)), sandboxes) as worker:
        run_id = await caller.run(agent("write_file", "edit_file", ask="edit_file"), worker)
        await caller.until(run_id, "suspended")
        async with database.engine() as engine, engine.transaction():
            await engine.execute("select set_config('app.scope', $1, true)", caller.principal.handle)
            await engine.execute("update session set used_at = now() - interval '2 minutes'")
        await away(caller, sandboxes, run_id)


async def test_the_interpreter_says_that_its_variables_are_gone(database: Database, sandboxes: BwrapProvider) -> None:
    caller = await Caller.of(database)
    one, two = ("python", {"code": "x = 1; print(x)"}), ("python", {"code": "print('x' in globals())"})
    turns = Thinker((one,), (WRITE,), (two,), (two,))
    async with working(database, turns, sandboxes, sandbox_suspend_s=0.0) as worker:
        run_id = await caller.run(agent("python", "write_file", ask="write_file"), worker)
        await caller.until(run_id, "suspended")
        await away(caller, sandboxes, run_id)
        await caller.approve(run_id, worker)
        await caller.until(run_id, "completed")
    said = await heard(caller, run_id)
    assert said[0] == "1\n"
    assert "restarted" in said[2] and said[2].endswith("\nFalse\n")
    assert said[3] == "False\n", "it says so once"


RUNS = 100


async def nothing_held(caller: Caller, sandboxes: BwrapProvider, ids: list[str], worker: Worker) -> None:
    for run_id in ids:
        await caller.until(run_id, "suspended")
        await away(caller, sandboxes, run_id)
    await until(lambda: not (worker.tasks or worker.drives or worker.leaving))


async def test_a_worker_holds_nothing_of_a_hundred_suspended_runs(database: Database, sandboxes: BwrapProvider) -> None:
    caller = await Caller.of(database)
    clerk = agent("write_file", "edit_file", ask="edit_file")
    async with working(database, Thinker((WRITE,), (ASK,)), sandboxes, sandbox_suspend_s=0.0) as worker:
        ids = [await caller.run(clerk, worker)]
        await nothing_held(caller, sandboxes, ids, worker)
        tasks = len(asyncio.all_tasks())
        ids += [await caller.run(clerk, worker) for _ in range(RUNS)]
        await nothing_held(caller, sandboxes, ids, worker)
        await until(lambda: len(asyncio.all_tasks()) <= tasks)
        gc.collect()
        kept = [one for one in gc.get_objects() if isinstance(one, Drive | Continuation)]
        assert not [one for one in kept if (one.state if isinstance(one, Drive) else one).run_id in ids]
        async with database.engine() as engine:
            leases = "select count(*) from run where lease_worker is not null or due_at is not null"
            assert await engine.fetchval(leases) == 0
            busy = "select count(*) from pg_stat_activity where datname = current_database() and state like 'idle in %'"
            async with asyncio.timeout(30):  # the worker's own chores have short ones
                while await engine.fetchval(busy):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        await caller.approve(ids[0], worker)
        assert (await caller.until(ids[0], "completed")).result == DONE


async def test_an_outage_while_a_sandbox_opens_is_not_for_the_model_to_read(
    database: Database, sandboxes: BwrapProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    async def away_at_first(parts: Parts, place: Place) -> Sandbox:
        tried.append(place.run_id)
        if len(tried) <= 2:
            raise StoreUnavailable
        return await sandbox_of(parts, place)

    monkeypatch.setattr(perform, "sandbox_of", away_at_first)
    caller = await Caller.of(database)
    async with working(database, Thinker((WRITE,), (READ,)), sandboxes) as worker:
        run_id = await caller.run(agent("write_file", "read_file"), worker)
        assert (await caller.until(run_id, "completed")).result == DONE
    assert (await heard(caller, run_id))[-1] == "kept"
    assert len(tried) == 4, "two outages, then one for each call"
