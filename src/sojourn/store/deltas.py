"""Deltas: pieces of streams on their way to whoever watches. Written by the worker, read by the API.

The rules: nobody needs them, and only the holder of a run's lease adds to them. They are collected for some
milliseconds, written without waiting for the disk, dropped under pressure (the oldest first), and forgotten soon; the
journal has the whole message.
"""

import asyncio
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Mapping

import msgspec

from sojourn.store.db import ANSWER_S, Connection, Database
from sojourn.store.rows import DeltaRow

log = logging.getLogger("sojourn.store")

# The limit keeps the planner from reading all runs for a batch of few; and it cannot look into what a subselect gives,
# so that it plans once for batches of all sizes.
WRITE = """
insert into delta (tenant, run_id, frame_id, step, attempt, items)
select tenant, run_id, frame_id, step, attempt, items
from unnest((select $1::text[]), (select $2::text[]), (select $3::bigint[]), (select $4::text[]),
    (select $5::int[]), (select $6::int[]), (select $7::bytea[]))
    as piece (tenant, run_id, fence, frame_id, step, attempt, items)
cross join lateral (
    select from run r
    where r.tenant = piece.tenant and r.id = piece.run_id and r.fence = piece.fence and r.lease_worker is not null
    limit 1
) as held
"""
READ = """
select place.run_id, one.* from unnest($1::text[], $2::bigint[]) as place (run_id, after)
cross join lateral (
    select id, frame_id, step, attempt, items from delta
    where tenant = (select scope_tenant()) and run_id = place.run_id and id > place.after order by id limit $3
) one
order by one.id
"""
STREAMED = """
select frame_id, step, attempt, items from delta
where tenant = $1 and run_id = $2 and (frame_id, step, attempt) in (
    select * from unnest($3::text[], $4::int[], $5::int[])
)
"""
PRUNE = "delete from delta where at < now() - make_interval(secs => $1)"

BYTES_MAX = 8 << 20
"""What may wait to be written; beyond it the oldest is dropped."""

RETRY_S = 0.5
REST, WRITES = 16, 4
"""The pause, in times of the shortest of the last writes: a single one may have had to wait for a core."""

Place = tuple[str, str, int, str, int, int]
"""Tenant, run, fence, frame, step, attempt."""

Asked = tuple[str, int, int]
"""Frame, step, attempt."""


class _Item(msgspec.Struct, frozen=True):
    type: str = ""
    text: str = ""


REPLIES = ("message", "thinking", "tool_arguments")
"""The deltas that a model makes."""

_shown = msgspec.json.Decoder(list[_Item]).decode


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
        """Write the first at once and batches from then on, until nothing comes any more."""
        try:
            while self._waiting:
                try:
                    async with self._db.engine() as engine:
                        await self._write(engine)
                except Exception as error:
                    log.warning("deltas.dropped", extra={"error": type(error).__name__, "detail": str(error)})
                    self._waiting, self._bytes = OrderedDict(), 0
                    await asyncio.sleep(RETRY_S)
        finally:
            self._task = None

    async def _write(self, engine: Connection) -> None:
        """Write what comes, on one connection, and ring after each batch.

        The pause is REST times as long as a write takes, and `flush_s` at most: where little else goes on, pieces go
        out almost at once, and where the process or the database is busy, batches grow.
        """
        took_s = deque[float](maxlen=WRITES)
        while self._waiting:
            batch, self._waiting, self._bytes = self._waiting, OrderedDict(), 0
            columns = [list(column) for column in zip(*batch, strict=True)]
            items = [b"[" + b",".join(found) + b"]" for found in batch.values()]
            began = time.monotonic()
            await engine.execute(WRITE, *columns, items, timeout=ANSWER_S)
            took_s.append(time.monotonic() - began)
            self._ring("sojourn_delta", {run_id for _, run_id, *_ in batch})
            await asyncio.sleep(min(self._flush_s, REST * min(took_s)))


async def read(conn: Connection, after: Mapping[str, int], *, limit: int = 1000) -> dict[str, list[DeltaRow]]:
    """Read what is new of runs, each above an id and in order; of each run at most `limit`."""
    found: dict[str, list[DeltaRow]] = {run_id: [] for run_id in after}
    for run_id, id_, frame, step, attempt, items in await conn.fetch(READ, list(after), list(after.values()), limit):
        found[run_id].append(DeltaRow(id=id_, frame=frame, step=step, attempt=attempt, items=items))
    return found


async def streamed(engine: Connection, run: tuple[str, str], attempts: Collection[Asked]) -> dict[Asked, int]:
    """Count the bytes that readers were shown of replies: of a run (tenant, id), by frame, step and attempt."""
    seen: dict[Asked, int] = {}
    for frame, step, attempt, items in await engine.fetch(STREAMED, *run, *map(list, zip(*attempts, strict=True))):
        said = sum(len(one.text.encode()) for one in _shown(items) if one.type in REPLIES)
        seen[frame, step, attempt] = seen.get((frame, step, attempt), 0) + said
    return seen


async def prune(db: Database, older_than_s: float) -> int:
    """Forget old deltas, and say how many."""
    async with db.engine() as engine:
        status = await engine.execute(PRUNE, older_than_s)
    return int(status.split()[-1])
