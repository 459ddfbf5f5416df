"""A worker keeps to the limits: of runs that it holds, and of calls that it makes."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from tests.conftest import until
from tests.worker.inside import Caller, Thinker, agent, working

from sojourn.loop import events as ev
from sojourn.loop.messages import Message
from sojourn.models.model import Request
from sojourn.store.db import Database
from sojourn.worker import worker


class Slow(Thinker):
    """Counts who thinks at once; none ends before somebody says so, where `gate` is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def stream(self, request: Request, **more: Any) -> AsyncGenerator[Message, None]:  # type: ignore[override]
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(0.01)
            await self.gate.wait()
            async for item in super().stream(request, **more):
                yield item
        finally:
            self.now -= 1


async def test_the_next_run_of_a_limited_tenant_begins_when_one_has_ended(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "POLL_S", 3600.0)
    thinker = Slow()
    async with working(database, thinker, None, tenant_runs_max=1) as one:
        caller = await Caller.of(database)
        made = [await caller.run(agent(), one) for _ in range(5)]
        for run_id in made:
            await caller.until(run_id, "completed")
    assert thinker.most == 1


async def test_calls_of_a_limited_provider_wait_for_their_slot_and_hold_up_nobody(database: Database) -> None:
    thinker = Slow()
    thinker.gate.clear()
    async with working(database, thinker, None, calls_max={"sim": 1}) as one:
        caller = await Caller.of(database)
        first = await caller.run(agent(), one)
        await until(lambda: thinker.now == 1)
        second, third = await caller.run(agent(), one), await caller.run(agent(), one)
        await caller.until(third, "running")
        await caller.post(second, ev.Cancelled(at=one.parts.now(), by="ann"))
        await caller.until(second, "cancelled")
        thinker.gate.set()
        for run_id in (first, third):
            await caller.until(run_id, "completed")
    assert (thinker.most, len(thinker.heard)) == (1, 2), "the cancelled one was never asked"
    async with database.engine() as engine:
        assert await engine.fetchval("select count(*) from call_share") == 0, "it gave its share up when it stopped"
