"""The connection is lost round a statement, on either side of the server's commit: nothing is lost, nothing doubled."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from scripted_runs import Caller, Hand, asked, enter, hired, intended, post, replied, returned, submit, words
from tests.postgres_wire import POINTS, CutWire, cut_wire

from sojourn.errors import StoreUnavailable
from sojourn.store import queue, runs
from sojourn.store.db import Database, connect
from sojourn.store.roles import Dsns
from sojourn.store.rows import Release
from sojourn.store.tenant import blobs

COMMIT, CLAIM, GIVE_BACK, BEAT = "as done (tenant", "skip locked", "least(60", "with beaten"


@pytest.fixture
async def wire(dsns: Dsns) -> AsyncIterator[tuple[CutWire, Database]]:
    """Give the wire, and connections through it."""
    async with cut_wire(dsns) as (wire, through), await connect(through) as database:
        yield wire, database


@pytest.mark.parametrize("point", POINTS)
async def test_every_commit_of_a_run_is_cut_and_written_once(
    wire: tuple[CutWire, Database], database: Database, point: str
) -> None:
    cutting, narrow = wire
    caller = await enter(database)
    run_id = await submit(database, caller)
    await post(database, caller, run_id, words())
    async with hired(narrow) as worker:
        hand = await worker.take_one()
        ((letter, said),) = (await queue.mail(narrow, [("acme", run_id)]))[run_id]
        steps: list[tuple[object, ...]] = [
            (said, asked(0)),
            (replied(0, calls=1), intended(0)),
            (returned(0), asked(1)),
        ]
        for n, events in enumerate(steps):
            cutting.cut(point, COMMIT)
            await hand.commit(*events, inbox=[letter] if n == 0 else ())
            assert cutting.cuts == 1
        cutting.cut(point, COMMIT)
        await hand.commit(replied(1, "done"), release=Release(status="completed"))
        assert cutting.cuts == 1
    await see(database, caller, hand, events=7, paid=2 * 3)


async def see(database: Database, caller: Caller, hand: Hand, *, events: int, paid: int) -> None:
    """What the run's rows say after all."""
    async with database.scoped(caller.handle) as conn:
        run = await runs.get(conn, hand.run_id)
        rows = await runs.events(conn, hand.run_id, after=0, limit=100)
        assert [seq for seq, _ in rows] == list(range(1, events + 2))
        assert (run.status, run.usd_micros, run.seq) == ("completed", paid, events + 1)
        assert await conn.fetchval("select count(*) from ledger") == 2
        assert await conn.fetchval("select count(*) from inbox") == 0
        assert await runs.transcript(conn, hand.run_id) == hand.state
    async with database.engine() as engine:
        assert await engine.fetchval("select lease_worker from run") is None


@pytest.mark.parametrize("point", POINTS)
async def test_a_mere_release_is_cut(wire: tuple[CutWire, Database], database: Database, point: str) -> None:
    cutting, narrow = wire
    caller = await enter(database)
    await submit(database, caller)
    async with hired(narrow) as worker:
        hand = await worker.take_one()
        cutting.cut(point, COMMIT)
        await hand.commit(release=Release(status="suspended"))
        assert cutting.cuts == 1
    async with database.engine() as engine:
        assert tuple(await engine.fetchrow("select status, seq from run")) == ("suspended", 1)


async def refused_once(ask: Callable[[], Awaitable[object]]) -> None:
    with pytest.raises(StoreUnavailable):
        await ask()


@pytest.mark.parametrize("point", POINTS)
async def test_a_claim_whose_answer_is_lost_is_found_by_the_heartbeat(
    wire: tuple[CutWire, Database], database: Database, point: str
) -> None:
    cutting, narrow = wire
    caller = await enter(database)
    run_id = await submit(database, caller)
    async with hired(narrow) as worker:
        cutting.cut(point, CLAIM)
        await refused_once(worker.take)
        cutting.cut(point, BEAT)
        await refused_once(lambda: beat(narrow, worker.id))
        held = frozenset() if point == "before" else frozenset({(run_id, 1)})
        async with asyncio.timeout(30):  # the server may still be at it
            while await beat(narrow, worker.id) != held:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        cutting.cut(point, GIVE_BACK)
        await refused_once(lambda: queue.give_back(narrow, worker.id, held))
        await queue.give_back(narrow, worker.id, held)
        async with database.engine() as engine:
            await engine.execute("update run set due_at = now()")
        hand = await worker.take_one()
        await queue.give_back(narrow, worker.id, held)
        await hand.finish(0)


async def beat(database: Database, worker_id: str) -> frozenset[queue.Lease]:
    """Renew the leases over a connection of the pool, which the wire gives anew."""
    async with database.engine() as engine:
        return await queue.beat(engine, worker_id)


@pytest.mark.parametrize("point", POINTS)
async def test_an_upload_is_cut_and_sent_again(wire: tuple[CutWire, Database], database: Database, point: str) -> None:
    cutting, narrow = wire
    caller = await enter(database)

    async def upload() -> str:
        async with narrow.scoped(caller.handle) as conn:
            return await blobs.put(conn, b"much", bytes_max=100)

    cutting.cut(point, "COMMIT", since="insert into blob")
    await refused_once(upload)
    digest = await upload()
    async with database.scoped(caller.handle) as conn:
        assert [tuple(row) for row in await conn.fetch("select digest, bytes from blob")] == [(digest, 4)]
