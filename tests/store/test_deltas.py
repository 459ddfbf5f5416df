"""Deltas: batched, in order, bounded, and never needed."""

import asyncio

import msgspec
import pytest
from scripted_runs import enter, hired, submit
from tests.conftest import until

from sojourn.store import deltas
from sojourn.store.db import Database
from sojourn.store.deltas import DeltaWriter


def item(n: int) -> bytes:
    return b'{"n":%d}' % n


async def test_deltas_arrive_in_order_and_in_batches(database: Database) -> None:
    caller, rung = await enter(database), list[tuple[str, set[str]]]()
    one, two = await submit(database, caller), await submit(database, caller)
    writer = DeltaWriter(database, lambda channel, ids: rung.append((channel, set(ids))), flush_s=0.001)
    for n in range(500):
        writer.add(("acme", one, "/", n // 250, 1), item(n))
        writer.add(("acme", two, "/0.1", 0, 2), item(-n))
        if n % 50 == 0:
            await asyncio.sleep(0)
    await writer.close()
    async with database.scoped(caller.handle) as conn:
        rows = await deltas.read(conn, one, after=0)
        assert [msg["n"] for row in rows for msg in msgspec.json.decode(row.items)] == list(range(500))
        assert {(row.frame, row.step, row.attempt) for row in rows} == {("/", 0, 1), ("/", 1, 1)}
        assert len(rows) < 50
        assert await deltas.read(conn, one, after=rows[0].id) == rows[1:]
        assert await deltas.read(conn, one, after=rows[0].id, limit=1) == rows[1:2]
        assert await deltas.last(conn, one) == rows[-1].id
        assert await deltas.last(conn, "run_none") == 0
        assert {row.frame for row in await deltas.read(conn, two, after=0)} == {"/0.1"}
    assert {channel for channel, _ in rung} == {"sojourn_delta"}
    assert {one, two} in [ids for _, ids in rung]


async def test_the_first_delta_does_not_wait(database: Database) -> None:
    caller, rung = await enter(database), list[object]()
    run_id = await submit(database, caller)
    writer = DeltaWriter(database, lambda *ring: rung.append(ring), flush_s=0.2)
    writer.add(("acme", run_id, "/", 0, 1), item(1))
    loop = asyncio.get_running_loop()
    began = loop.time()
    await until(lambda: bool(rung))
    assert loop.time() - began < 0.2
    await writer.close()


async def test_under_pressure_the_oldest_are_dropped(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deltas, "BYTES_MAX", 1000)
    caller = await enter(database)
    made = [await submit(database, caller) for _ in range(3)]
    writer = DeltaWriter(database, lambda _channel, _ids: None)
    for run_id in made:
        for n in range(50):
            writer.add(("acme", run_id, "/", 0, 1), item(n))
    await writer.close()
    async with database.scoped(caller.handle) as conn:
        assert await deltas.read(conn, made[0], after=0) == []
        assert len(await deltas.read(conn, made[2], after=0)) == 1


async def test_a_writer_survives_what_cannot_be_written(database: Database) -> None:
    caller = await enter(database)
    run_id = await submit(database, caller)
    writer = DeltaWriter(database, lambda _channel, _ids: None, flush_s=0)
    writer.add(("acme", "\0", "/", 0, 1), item(0))
    await writer.close()
    writer.add(("acme", run_id, "/", 0, 1), item(1))
    await writer.close()
    async with database.scoped(caller.handle) as conn:
        assert len(await deltas.read(conn, run_id, after=0)) == 1


async def test_old_deltas_are_forgotten(database: Database) -> None:
    caller = await enter(database)
    run_id = await submit(database, caller)
    async with hired(database):
        writer = DeltaWriter(database, lambda _channel, _ids: None, flush_s=0)
        writer.add(("acme", run_id, "/", 0, 1), item(0))
        await writer.close()
    assert await deltas.prune(database, 60) == 0
    assert await deltas.prune(database, 0) == 1
    async with database.scoped(caller.handle) as conn:
        assert await deltas.last(conn, run_id) == 0
