"""The runs that wait for room in a pool of the day, told once there is some. Called by the worker, now and then.

The rule: only so many are told as there is room for, the first ones first; each asks again, and may be refused again.
"""

from datetime import datetime

from sojourn.loop.events import Decided
from sojourn.store.budgets.pools import Defaults
from sojourn.store.commits import Ring
from sojourn.store.db import Database
from sojourn.store.runs.mailing import post_all

STARVING = "select tenant from day_wait group by tenant order by min(since) limit 50"
FED = "select run_id, wait from day_fed($1, $2)"
BY, REASON = "sojourn", "the day's budget has room again"


async def wake(db: Database, ring: Ring, at: datetime, defaults: Defaults) -> int:
    """Answer the waits of runs for which there is room now; how many there were."""
    told = 0
    async with db.engine() as engine:
        for tenant in [row["tenant"] for row in await engine.fetch(STARVING)]:
            async with engine.transaction():
                fed = await engine.fetch(FED, tenant, defaults.row)
                answers = [
                    (tenant, row["run_id"], Decided(at=at, wait=row["wait"], by=BY, decision="approve", reason=REASON))
                    for row in fed
                ]
                await post_all(engine, answers)
            if ids := [run_id for _, run_id, _ in answers]:
                told += len(ids)
                ring("sojourn_work", ids)
                ring("sojourn_inbox", ids)
    return told
