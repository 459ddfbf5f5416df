"""Which tenants have pools of the day, and a model call's place in them. `drive.py` asks before each call.

The rules: a run of a tenant without pools asks nobody; a new pool is known within a second; and whether there is room
is always asked of the database, whose clock says which day it is.
"""

import logging
from collections.abc import Callable, Collection
from datetime import datetime

from sojourn.loop import events as ev
from sojourn.loop.budget import Held
from sojourn.loop.continuation import Failure
from sojourn.store.budgets import reserving, waking
from sojourn.store.budgets.pools import Defaults, amount
from sojourn.store.budgets.tally import Tally, call_name
from sojourn.store.commits import Ring
from sojourn.store.db import Database
from sojourn.store.rows import Claimed

log = logging.getLogger("sojourn.worker")

KNOWN_MAX = 10_000
"""Tenants of which it is remembered whether they have pools."""


class DayPools:
    """The pools as one worker sees them."""

    def __init__(self, db: Database, worker_id: str, defaults: Defaults) -> None:
        self._db, self._worker_id, self._defaults = db, worker_id, defaults
        self._all_bound = defaults.bind
        self._bound: dict[str, bool] = {}

    def bind(self, tenant: str) -> bool:
        """Whether the tenant has pools, as was last heard."""
        return self._all_bound or self._bound.get(tenant, False)

    async def meet(self, tenant: str) -> None:
        """Ask whether a tenant has pools, unless that is known."""
        if tenant not in self._bound:
            self._bound[tenant] = bool(await reserving.bound(self._db, [tenant]))

    async def look(self, tenants: Collection[str]) -> None:
        """Ask again of the tenants whose runs are driven, and of the others that are known."""
        if len(self._bound) > KNOWN_MAX:
            self._bound = {tenant: bound for tenant, bound in self._bound.items() if tenant in tenants}
        asked = list(self._bound)
        found = await reserving.bound(self._db, asked) if asked else set()
        self._bound |= {tenant: tenant in found for tenant in asked}

    async def wake(self, ring: Ring, now: Callable[[], datetime]) -> None:
        """Let runs go on that waited for room that there is now."""
        if told := await waking.wake(self._db, ring, now(), self._defaults):
            log.info("budget.room_again", extra={"runs": told})

    async def room(
        self, claimed: Claimed, call: str, held: Held, *, priced: bool, tally: Tally | None = None
    ) -> reserving.Verdict:
        """Reserve what a call may cost, beside what the tally has to settle. Raises LeaseLost."""
        paid = tally.paid if tally is not None else ()
        wanted = reserving.Wanted(
            call=call,
            usd_micros=held.usd_micros if priced else None,
            tokens=held.input_tokens + held.output_tokens,
            ending=tuple(one.call for one in paid if not one.open),
            owed_usd_micros=sum(one.usd_micros for one in paid),
            owed_tokens=sum(one.tokens for one in paid),
        )
        return await reserving.reserve(
            self._db, self._worker_id, claimed=claimed, wanted=wanted, defaults=self._defaults
        )

    async def refusal(
        self, claimed: Claimed, asked: ev.ModelAsked, *, tally: Tally, priced: bool
    ) -> ev.Unfunded | None:
        """Reserve what a call may cost; the event that says why not, where there is no room. Raises LeaseLost."""
        found = await self.room(claimed, call_name(asked), asked.held, priced=priced, tally=tally)
        if found.verdict == "held":
            return None
        assert found.pool is not None
        log.info("budget.no_room", extra={"run": claimed.run_id, "pool": found.pool, "verdict": found.verdict})
        return ev.Unfunded(
            at=asked.at,
            frame=asked.frame,
            step=asked.step,
            attempt=asked.attempt,
            pool=found.pool,
            held=asked.held,
            error=_why(found, asked.model, claimed.snapshot.principal.user),
            until=None if found.verdict == "price" else found.until,
            later=found.verdict == "later",
        )


def _why(found: reserving.Verdict, model: str, user: str) -> Failure:
    """Say in words for a person why a call is not made."""
    whose = "the tenant" if found.pool == "tenant" else f"user {user}"
    if found.verdict == "price":
        told = f"The price of {model} is not known, and the day's budget of {whose} is one of money. Set the price."
        return Failure("budget.price_unknown", told)
    most = amount(str(found.measure), found.bound or 0)
    until = f"{found.until:%Y-%m-%d %H:%M} UTC"
    told = f"The day's budget of {whose} ({most}) has no room for another model call before {until}."
    return Failure("budget.day_exhausted", told)
