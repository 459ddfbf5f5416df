"""Deltas: batched, in order, bounded, and never needed."""

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest
from scripted_runs import Caller, Worker, enter, hired, submit
from tests.conftest import until

from sojourn.store import deltas, queue
from sojourn.store.db import Database, connect
from sojourn.store.deltas import DeltaWriter
from sojourn.store.roles import Dsns


@pytest.fixture
async def worker(database: Database) -> AsyncIterator[Worker]:
    async with hired(database) as worker:
        yield worker


async def leased(worker: Worker, caller: Caller) -> str:
    """A run that the worker holds, by its first claim."""
    await submit(worker.db, caller)
    return (await worker.take_one()).run_id


def item(n: int) -> bytes:
    return b'{"n":%d}' % n


async def test_deltas_arrive_in_order_and_in_batches(database: Database, worker: Worker) -> None:
    caller, rung = await enter(database), list[tuple[str, set[str]]]()
    one, two = await leased(worker, caller), await leased(worker, caller)
    writer = DeltaWriter(database, lambda channel, ids: rung.append((channel, set(ids))), flush_s=0.001)
    for n in range(500):
        writer.add(("acme", one, 1, "/", n // 250, 1), item(n))
        writer.add(("acme", two, 1, "/0.1", 0, 2), item(-n))
        if n % 50 == 0:
            await asyncio.sleep(0)
    await writer.close()
    async with database.scoped(caller.handle) as conn:
        found = await deltas.read(conn, {one: 0, two: 0, "run_none": 0})
        rows = found[one]
        assert [msg["n"] for row in rows for msg in msgspec.json.decode(row.items)] == list(range(500))
        assert {(row.frame, row.step, row.attempt) for row in rows} == {("/", 0, 1), ("/", 1, 1)}
        assert len(rows) < 50
        assert {row.frame for row in found[two]} == {"/0.1"}
        assert found["run_none"] == []
        later = {one: rows[0].id, two: found[two][-1].id}
        assert await deltas.read(conn, later) == {one: rows[1:], two: []}
        assert await deltas.read(conn, later, limit=1) == {one: rows[1:2], two: []}
    assert {channel for channel, _ in rung} == {"sojourn_delta"}
    assert {one, two} in [ids for _, ids in rung]


async def test_the_first_delta_does_not_wait(database: Database, worker: Worker) -> None:
    caller, rung = await enter(database), list[object]()
    run_id = await leased(worker, caller)
    writer = DeltaWriter(database, lambda *ring: rung.append(ring), flush_s=0.2)
    writer.add(("acme", run_id, 1, "/", 0, 1), item(1))
    loop = asyncio.get_running_loop()
    began = loop.time()
    await until(lambda: bool(rung))
    assert loop.time() - began < 0.2
    await writer.close()


async def test_where_writes_are_quick_nothing_waits_for_the_longest_pause(database: Database, worker: Worker) -> None:
    caller, rung = await enter(database), list[object]()
    run_id = await leased(worker, caller)
    writer = DeltaWriter(database, lambda *ring: rung.append(ring), flush_s=3600)
    for n in range(1, 10):
        writer.add(("acme", run_id, 1, "/", 0, 1), item(n))
        await until(lambda n=n: len(rung) == n)
    async with asyncio.timeout(60):
        await writer.close()


async def test_where_writes_are_slow_batches_grow(database: Database, worker: Worker) -> None:
    caller, rung = await enter(database), list[object]()
    run_id = await leased(worker, caller)
    writer = DeltaWriter(database, lambda *ring: rung.append(ring), flush_s=3600)
    async with database.migrator() as owner, owner.transaction():
        await owner.execute("lock table delta in exclusive mode")
        writer.add(("acme", run_id, 1, "/", 0, 1), item(0))
        for n in range(1, 50):
            await asyncio.sleep(0.001)
            writer.add(("acme", run_id, 1, "/", 0, 1), item(n))
        assert not rung
    await until(lambda: bool(rung))
    assert len(rung) == 1, "the pause after a slow write is a long one"
    await until(lambda: len(rung) == 2)
    await writer.close()
    async with database.scoped(caller.handle) as conn:
        rows = (await deltas.read(conn, {run_id: 0}))[run_id]
    assert [msg["n"] for row in rows for msg in msgspec.json.decode(row.items)] == list(range(50))
    assert len(rows) == 2


async def test_under_pressure_the_oldest_are_dropped(
    database: Database, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deltas, "BYTES_MAX", 1000)
    caller = await enter(database)
    made = [await leased(worker, caller) for _ in range(3)]
    writer = DeltaWriter(database, lambda _channel, _ids: None)
    for run_id in made:
        for n in range(50):
            writer.add(("acme", run_id, 1, "/", 0, 1), item(n))
    await writer.close()
    async with database.scoped(caller.handle) as conn:
        assert (await deltas.read(conn, {made[0]: 0}))[made[0]] == []
        assert len((await deltas.read(conn, {made[2]: 0}))[made[2]]) == 1


async def test_a_writer_survives_what_cannot_be_written(database: Database, worker: Worker) -> None:
    caller = await enter(database)
    run_id = await leased(worker, caller)
    writer = DeltaWriter(database, lambda _channel, _ids: None, flush_s=0)
    writer.add(("acme", "\0", 1, "/", 0, 1), item(0))
    await writer.close()
    writer.add(("acme", run_id, 1, "/", 0, 1), item(1))
    await writer.close()
    async with database.scoped(caller.handle) as conn:
        assert len((await deltas.read(conn, {run_id: 0}))[run_id]) == 1


async def test_a_writer_ends_though_the_database_is_away(dsns: Dsns) -> None:
    async with await connect(dsns) as away:
        writer = DeltaWriter(away, lambda _channel, _ids: None, flush_s=0)
    writer.add(("acme", "run_1", 1, "/", 0, 1), item(0))
    async with asyncio.timeout(20):
        await writer.close()


async def test_old_deltas_are_forgotten(database: Database, worker: Worker) -> None:
    caller = await enter(database)
    run_id = await leased(worker, caller)
    writer = DeltaWriter(database, lambda _channel, _ids: None, flush_s=0)
    writer.add(("acme", run_id, 1, "/", 0, 1), item(0))
    await writer.close()
    assert await deltas.prune(database, 60) == 0
    assert await deltas.prune(database, 0) == 1
    async with database.scoped(caller.handle) as conn:
        assert await deltas.read(conn, {run_id: 0}) == {run_id: []}


async def test_only_the_holder_of_the_lease_adds_to_a_runs_deltas(database: Database, worker: Worker) -> None:
    caller, rung = await enter(database), list[object]()
    run_id = await leased(worker, caller)
    writer = DeltaWriter(database, lambda *ring: rung.append(ring), flush_s=0)

    async def shown(n: int, fence: int) -> list[int]:
        writer.add(("acme", run_id, fence, "/", 0, 1), item(n))
        await writer.close()
        async with database.scoped(caller.handle) as conn:
            rows = (await deltas.read(conn, {run_id: 0}))[run_id]
        return [msg["n"] for row in rows for msg in msgspec.json.decode(row.items)]

    assert await shown(1, fence=1) == [1]
    async with database.engine() as engine:
        await engine.execute("update worker set seen_at = now() - interval '20 seconds'")
    assert await queue.steal(database, 15) == [run_id]
    assert await shown(2, fence=1) == [1], "nobody has it"
    async with hired(database, "w2") as other:
        assert (await other.take_one()).claimed.fence == 2
        assert await shown(3, fence=1) == [1], "another has it"
        assert await shown(4, fence=2) == [1, 4]
