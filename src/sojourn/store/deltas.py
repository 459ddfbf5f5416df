"""Deltas: pieces of streams on their way to whoever watches. Written by the worker, read by the API.

The rule: nobody needs them. They are collected for some milliseconds, written without waiting for the disk, dropped
under pressure (the oldest first), and forgotten soon; the journal has the whole message.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Collection

from sojourn.store.db import Connection, Database
from sojourn.store.rows import DeltaRow

log = logging.getLogger("sojourn.store")

WRITE = """
insert into delta (tenant, run_id, frame_id, step, attempt, items)
select * from unnest($1::text[], $2::text[], $3::text[], $4::int[], $5::int[], $6::bytea[])
"""
READ = """
select id, frame_id, step, attempt, items from delta
where tenant = (select scope_tenant()) and run_id = $1 and id > $2 order by id limit $3
"""
LAST = "select coalesce(max(id), 0) from delta where tenant = (select scope_tenant()) and run_id = $1"
PRUNE = "delete from delta where at < now() - make_interval(secs => $1)"

BYTES_MAX = 8 << 20
"""What may wait to be written; beyond it the oldest is dropped."""

Place = tuple[str, str, str, int, int]
"""Tenant, run, frame, step, attempt."""


class DeltaWriter:
    """Collects the deltas of one worker process. `ring` is the doorbell's."""

    def __init__(self, db: Database, ring: Callable[[str, Collection[str]], None], *, flush_s: float = 0.02) -> None:
        self._db, self._ring, self._flush_s = db, ring, flush_s
        self._waiting: OrderedDict[Place, list[bytes]] = OrderedDict()
        self._bytes = 0
        self._task: asyncio.Task[None] | None = None

    def add(self, place: Place, item: bytes) -> None:
        """Take a delta (one JSON value) of an attempt; it never waits."""
        self._waiting.setdefault(place, []).append(item)
        self._bytes += len(item)
        while self._bytes > BYTES_MAX:
            _, dropped = self._waiting.popitem(last=False)
            self._bytes -= sum(map(len, dropped))
        if self._task is None:
            self._task = asyncio.create_task(self._work(), name="deltas")

    async def close(self) -> None:
        """Write what is left."""
        while self._task is not None:
            await asyncio.wait([self._task])

    async def _work(self) -> None:
        """Write the first at once and batches from then on, `flush_s` apart, until nothing comes any more."""
        try:
            while self._waiting:
                await self._flush()
                await asyncio.sleep(self._flush_s)
        finally:
            self._task = None

    async def _flush(self) -> None:
        batch, self._waiting, self._bytes = self._waiting, OrderedDict(), 0
        columns = [list(column) for column in zip(*batch, strict=True)]
        items = [b"[" + b",".join(found) + b"]" for found in batch.values()]
        try:
            async with self._db.engine() as engine:
                await engine.execute(WRITE, *columns, items)
        except Exception as error:
            log.warning("deltas.dropped", extra={"attempts": len(batch), "error": type(error).__name__})
            return
        self._ring("sojourn_delta", {run_id for _, run_id, *_ in batch})


async def read(conn: Connection, run_id: str, *, after: int, limit: int = 1000) -> list[DeltaRow]:
    """Read a run's deltas above an id, in order."""
    found = await conn.fetch(READ, run_id, after, limit)
    return [
        DeltaRow(id=row["id"], frame=row["frame_id"], step=row["step"], attempt=row["attempt"], items=row["items"])
        for row in found
    ]


async def last(conn: Connection, run_id: str) -> int:
    """Give the id of a run's last delta, 0 when there is none: a reader that wants only new ones begins there."""
    newest: int = await conn.fetchval(LAST, run_id)
    return newest


async def prune(db: Database, older_than_s: float) -> int:
    """Forget old deltas, and say how many."""
    async with db.engine() as engine:
        status = await engine.execute(PRUNE, older_than_s)
    return int(status.split()[-1])
