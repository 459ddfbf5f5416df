"""Deletes what has expired, a batch at a time. Called by the tidying of any number of workers, side by side.

    sessions   end sessions that were not used for as long as their tenant keeps runs
    rows       delete the rows of runs that are gone, ended so or deleted by a caller
    ledger     forget what was paid long ago
    blobs      delete what nothing names
    keys       delete keys that were renewed, once nothing can use them

The rule: each takes what nobody else holds and waits for nobody.
"""

from typing import NamedTuple

from sojourn.store.db import Connection, Database

SESSIONS = "select looked, sessions, runs from expire_sessions($1, $2)"
ROWS = "select purge_runs($1)"
LEDGER = "select expire_ledger($1, $2)"
BLOBS = "select looked, gone from sweep_blobs($1, $2)"
KEYS = "select end_keys()"
COUNT = "update tidying set gone = gone + $2 where task = $1"

SESSIONS_MAX, ROWS_MAX, BLOBS_MAX, BLOB_BYTES_MAX = 200, 2000, 100, 64 << 20
"""The most of one batch: it takes some ten milliseconds."""


class Batch(NamedTuple):
    """What came of a batch: what went, by kind, and whether there may be more."""

    gone: dict[str, int]
    more: bool


async def sessions(db: Database, *, kept_days: int) -> Batch:
    """End sessions that have expired, the longest unused first; `kept_days` for tenants that say nothing, 0 is ever."""
    async with db.engine() as engine:
        row = await engine.fetchrow(SESSIONS, kept_days, SESSIONS_MAX)
        gone = {"sessions": row["sessions"] or 0, "runs": row["runs"] or 0}
        await _count(engine, gone)
    return Batch(gone, row["looked"] == SESSIONS_MAX)


async def rows(db: Database) -> Batch:
    """Delete rows of runs that are gone."""
    async with db.engine() as engine:
        gone = {"rows": await engine.fetchval(ROWS, ROWS_MAX)}
        await _count(engine, gone)
    return Batch(gone, gone["rows"] == ROWS_MAX)


async def ledger(db: Database, *, kept_days: int) -> Batch:
    """Delete rows of the ledger that have expired."""
    async with db.engine() as engine:
        gone = {"ledger": await engine.fetchval(LEDGER, kept_days, ROWS_MAX)}
        await _count(engine, gone)
    return Batch(gone, gone["ledger"] == ROWS_MAX)


async def blobs(db: Database) -> Batch:
    """Delete blobs that nothing names."""
    async with db.engine() as engine:
        row = await engine.fetchrow(BLOBS, BLOBS_MAX, BLOB_BYTES_MAX)
        gone = {"blobs": row["gone"]}
        await _count(engine, gone)
    return Batch(gone, row["looked"] > 0)


async def keys(db: Database) -> Batch:
    """Delete keys that were renewed."""
    async with db.engine() as engine:
        return Batch({"keys": await engine.fetchval(KEYS)}, more=False)


async def _count(engine: Connection, gone: dict[str, int]) -> None:
    """Count what went, in a statement of its own: whoever deletes never waits for another's count."""
    for task, number in gone.items():
        if number:
            await engine.execute(COUNT, task, number)
