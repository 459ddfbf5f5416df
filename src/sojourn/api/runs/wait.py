"""Holding an answer until a run has ended, for callers who want it in one go. Called by the routes that start runs.

The rule: no connection of the database is held while waiting, and looking costs at most a twentieth of the time waited.
"""

import asyncio
import time
from typing import Any

from sojourn.api.parts import RUN_BELL
from sojourn.api.route import Ask
from sojourn.store import runs
from sojourn.store.rows import RunRow

POLL_S = 2.0
PAUSE_MAX_S = 0.25
"""How late the end of a long run may be noticed."""


async def ended(ask: Ask[Any, Any], run_id: str, wait_s: float) -> RunRow | None:
    """The run once it has ended or stands still; None when that takes longer, or the server is told to stop."""
    began = time.monotonic()
    with ask.parts.doorbell.subscribe(RUN_BELL, run_id) as ear:
        while True:
            async with ask.transaction() as connection:
                run = await runs.get(connection, run_id)
            if run.finished_at is not None or run.status in ("suspended", "quarantined"):
                return run
            waited_s = time.monotonic() - began
            if waited_s >= wait_s or ask.parts.stopping.is_set():
                return None
            await asyncio.sleep(min(PAUSE_MAX_S, waited_s / 20))
            await ear.wait(min(POLL_S, wait_s - waited_s))
