"""Counts a request against its limits, or says that it is refused. The guard asks it before every handler.

    refused   from memory: a limit that is known to be used up costs no query
    count     in the database, together with all requests that came meanwhile: one statement at a time for a process

The rule: what is remembered is only that nothing comes free before a time, which no other process can make untrue.
"""

import asyncio
import time
from dataclasses import dataclass

from sojourn.api.rates.standing import Standing
from sojourn.store.db import Database
from sojourn.store.rows import Principal
from sojourn.store.sharing import rates
from sojourn.store.sharing.rates import SUBJECTS, US, Class, Limits, Rate, Subject, Taken, Taking

TOGETHER_MAX = 200
EMPTY_MAX = 10_000
"""Subjects that are remembered to have nothing left."""

Bucket = tuple[str, Class, Subject, str, Rate]


@dataclass(frozen=True, kw_only=True)
class Counted:
    """A request that counts: whose, as what, and against which limits."""

    principal: Principal
    class_: Class
    limits: Limits
    agent: str | None = None
    key: str | None = None
    """Its Idempotency-Key; `route` and `digest` tell whether it was answered before."""
    route: str | None = None
    digest: str | None = None


class Limiter:
    """The limits of one process, which are those of all."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._empty: dict[Bucket, float] = {}
        """What has nothing left, until when by our clock; the limit is in the key, so that another one is asked for."""
        self._waiting: list[tuple[Taking, asyncio.Future[Taken]]] = []
        self._work: asyncio.Task[None] | None = None

    def refused(self, one: Counted) -> Standing | None:
        """The standing of a request that is known to be refused. One with a key may have been answered: ask for it."""
        if one.key is not None or not self._empty:
            return None
        now, debts_us = time.monotonic(), [*(None for _ in SUBJECTS)]
        for place, bucket in enumerate(_buckets(one)):
            if bucket is None or (until := self._empty.get(bucket)) is None:
                continue
            if until <= now:
                del self._empty[bucket]
            else:
                debts_us[place] = round((until - now) * US) + (bucket[4].at_once - 1) * bucket[4].every_us
        return Standing(one.class_, one.limits, tuple(debts_us), refused=True) if any(debts_us) else None

    async def count(self, one: Counted) -> Standing:
        """Take one of each limit, or of none. Raises StoreUnavailable."""
        taking = _taking(one)
        if not any(taking.every_us):
            return Standing(one.class_, one.limits, taking.every_us)
        taken = await self._take(taking)
        standing = Standing(one.class_, one.limits, taken.debts_us, refused=taken.outcome == "refused")
        if standing.refused:
            self._remember(one, standing)
        return standing

    def _remember(self, one: Counted, standing: Standing) -> None:
        now, waits = time.monotonic(), {subject: wait_us for subject, _, wait_us in standing.empty()}
        for bucket in _buckets(one):
            if bucket is not None and bucket[2] in waits:
                self._empty[bucket] = now + waits[bucket[2]] / US
        while len(self._empty) > EMPTY_MAX:
            del self._empty[next(iter(self._empty))]

    # ---- one statement at a time ----

    async def _take(self, taking: Taking) -> Taken:
        taken: asyncio.Future[Taken] = asyncio.get_running_loop().create_future()
        self._waiting.append((taking, taken))
        if self._work is None:
            self._work = asyncio.create_task(self._take_all(), name="rates")
        return await taken

    async def _take_all(self) -> None:
        """Ask for those that wait, and for those that come meanwhile, until there are none."""
        while batch := self._waiting[:TOGETHER_MAX]:
            del self._waiting[:TOGETHER_MAX]
            try:
                found = await rates.take(self._database, [taking for taking, _ in batch])
            except Exception as error:
                for _, taken in batch:
                    if not taken.done():
                        taken.set_exception(error)
            else:
                for (_, taken), one in zip(batch, found, strict=True):
                    if not taken.done():
                        taken.set_result(one)
        self._work = None


def _buckets(one: Counted) -> tuple[Bucket | None, ...]:
    """What each limit counts, in the order of SUBJECTS."""
    names = ("", one.principal.user, one.agent)
    return tuple(
        None if rate is None or name is None else (one.principal.tenant, one.class_, subject, name, rate)
        for subject, name, rate in zip(SUBJECTS, names, one.limits.by_subject(), strict=True)
    )


def _taking(one: Counted) -> Taking:
    limits = one.limits.by_subject() if one.agent is not None else (*one.limits.by_subject()[:2], None)
    return Taking(
        tenant=one.principal.tenant,
        user=one.principal.user,
        class_=one.class_,
        every_us=tuple(rate and rate.every_us for rate in limits),
        bursts=tuple(rate and rate.at_once for rate in limits),
        agent=one.agent,
        key=one.key,
        route=one.route,
        digest=one.digest,
    )
