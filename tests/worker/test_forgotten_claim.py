"""A database that forgot a claim, for its replica was behind, gives a run to the worker that drives it already."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from tests.conftest import until
from tests.worker.inside import Caller, Thinker, agent, working

from sojourn.loop.messages import Message
from sojourn.store.db import Database

FORGET = "update run set status = 'queued', lease_worker = null, fence = fence - 1, due_at = now()"


class Slow(Thinker):
    """Says nothing until it may."""

    def __init__(self, *turns: Any) -> None:
        super().__init__(*turns)
        self.may, self.at_work, self.most = asyncio.Event(), 0, 0

    async def stream(self, *request: Any, **more: Any) -> AsyncGenerator[Message, None]:
        self.at_work += 1
        self.most = max(self.most, self.at_work)
        try:
            await self.may.wait()
            async for message in super().stream(*request, **more):
                yield message
        finally:
            self.at_work -= 1


async def test_a_run_that_was_given_twice_is_driven_once(database: Database) -> None:
    caller, thinker = await Caller.of(database), Slow("read")
    async with working(database, thinker, None, beat_s=0.5) as worker:
        run_id = await caller.run(agent(), worker)
        await until(lambda: thinker.at_work == 1)
        async with database.engine() as engine:
            last = worker.last_beat_s
            await until(lambda: worker.last_beat_s > last)  # the next is half a second away, and would see it too
            await engine.execute(FORGET)
        worker.parts.doorbell.ring("sojourn_work", ())
        await until(lambda: thinker.at_work == 0)
        thinker.may.set()
        row = await caller.until(run_id, "completed")
        assert (row.result, row.steps, thinker.most) == ("read", 1, 1)
