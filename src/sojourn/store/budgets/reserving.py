"""A model call's place in the pools of its day, reserved before it is made. Called by the worker.

The rule: who has no current lease reserves nothing, and the same call asked for again is reserved once.
"""

from collections.abc import Collection
from datetime import datetime
from typing import Literal

from sojourn.errors import LeaseLost
from sojourn.loop.messages import Plain
from sojourn.store.budgets.pools import BOUND, Defaults
from sojourn.store.db import ANSWER_S, Database
from sojourn.store.rows import Claimed

RESERVE = "select * from reserve_day($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"
WITH_POOLS = f"select id from tenant where id = any($1) and ({BOUND})"


class Wanted(Plain, frozen=True, kw_only=True):
    """A call that is to be made: what it may cost at most, and what the next commit says to the pools."""

    call: str
    usd_micros: int | None
    """None where the price is not known."""
    tokens: int
    ending: tuple[str, ...] = ()
    """Calls of the run that end with that commit."""
    owed_usd_micros: int = 0
    owed_tokens: int = 0


class Verdict(Plain, frozen=True, kw_only=True):
    """Whether there was room: `later` where calls in flight hold it, `price` where none is known and money bound."""

    verdict: Literal["held", "later", "exhausted", "price", "lost"]
    pool: Literal["tenant", "user"] | None
    measure: Literal["usd", "tokens"] | None
    bound: int | None
    until: datetime | None


async def reserve(db: Database, worker_id: str, *, claimed: Claimed, wanted: Wanted, defaults: Defaults) -> Verdict:
    """Set a call's cost aside in every pool that it is paid from, or in none. Raises LeaseLost."""
    async with db.engine() as engine:
        row = await engine.fetchrow(
            RESERVE,
            worker_id,
            claimed.tenant,
            claimed.run_id,
            claimed.fence,
            wanted.call,
            wanted.usd_micros,
            wanted.tokens,
            list(wanted.ending),
            wanted.owed_usd_micros,
            wanted.owed_tokens,
            defaults.row,
            timeout=ANSWER_S,
        )
    verdict = Verdict(**row)
    if verdict.verdict == "lost":
        raise LeaseLost(f"Run {claimed.run_id} has another worker now.")
    return verdict


async def bound(db: Database, tenants: Collection[str]) -> set[str]:
    """Say which of these tenants have a pool of their own with a bound."""
    async with db.engine() as engine:
        found = await engine.fetch(WITH_POOLS, list(tenants), timeout=ANSWER_S)
    return {row["id"] for row in found}
