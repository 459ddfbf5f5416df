"""Deletes what has expired, beside the runs and never in their way. The worker's loop of that name calls it.

The rule: between two batches it rests for as long as the last one took, so it takes at most half of one connection.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial

from sojourn.store.retention import expiry
from sojourn.store.retention.expiry import Batch
from sojourn.worker.parts import Parts

log = logging.getLogger("sojourn.worker")

ROUND_S = 30.0
"""How long a round goes on with one kind of work, before the others have their turn."""
REST_MIN_S = 0.01


async def tidy(parts: Parts) -> bool:
    """Delete what has expired, a round of each kind; whether there is more."""
    database, settings = parts.database, parts.settings
    works: tuple[Callable[[], Awaitable[Batch]], ...] = (
        partial(expiry.sessions, database, kept_days=settings.runs_kept_days),
        partial(expiry.rows, database),
        partial(expiry.ledger, database, kept_days=settings.ledger_kept_days),
        partial(expiry.blobs, database),
        partial(expiry.keys, database),
    )
    began, gone, more = time.monotonic(), dict[str, int](), False
    for work in works:
        more |= await _round(work, gone)
    if any(gone.values()):
        log.info("tidy.deleted", extra={**gone, "seconds": round(time.monotonic() - began, 1)})
    return more


async def _round(work: Callable[[], Awaitable[Batch]], gone: dict[str, int]) -> bool:
    """Do batches of one kind until there is no more, or for a while; whether there is more."""
    ends_at = time.monotonic() + ROUND_S
    while True:
        began = time.monotonic()
        batch = await work()
        for kind, number in batch.gone.items():
            gone[kind] = gone.get(kind, 0) + number
        now = time.monotonic()
        if not batch.more or now > ends_at:
            return batch.more
        await asyncio.sleep(max(REST_MIN_S, now - began))
