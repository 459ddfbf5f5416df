"""What was paid: the ledger's rows and their sums. The worker and the stops make rows of events, the API reads.

The rules: an event that costs something is one row, written in its commit; and a sum says how much of it is estimated
and how many calls are not in it, because nobody told their price.
"""

from collections.abc import Sequence
from datetime import date, datetime
from typing import Literal, NamedTuple

import asyncpg  # type: ignore[import-untyped]

from sojourn.loop import events as ev
from sojourn.loop.continuation import Continuation, path
from sojourn.loop.messages import Plain, Usage
from sojourn.store.db import Connection
from sojourn.store.rows import LedgerRow

LEDGER = """
select seq, at, user_id, agent_name, provider, model, attempt, input, cache_read, cache_write, output, reasoning,
    usd_micros, estimated, judge
from ledger where tenant = (select scope_tenant()) and run_id = $1 order by seq
"""
KEYS = {
    "tenant": "tenant",
    "user": "user_id",
    "agent": "agent_name",
    "model": "provider || ':' || model",
    "purpose": "case when judge then 'judge' else 'agent' end",
    "day": "(at at time zone 'UTC')::date",
}
# One look at the rows gives the groups and the whole; the page is cut out of it.
TOTALS = """
select * from (
    select {named}, {grouping} as whole, count(*) as calls, count(*) filter (where estimated) as estimated_calls,
        count(*) - count(usd_micros) as unpriced_calls, coalesce(sum(usd_micros), 0)::bigint as usd_micros,
        coalesce(sum(usd_micros) filter (where estimated), 0)::bigint as estimated_usd_micros,
        coalesce(sum(input), 0)::bigint as input, coalesce(sum(cache_read), 0)::bigint as cache_read,
        coalesce(sum(cache_write), 0)::bigint as cache_write, coalesce(sum(output), 0)::bigint as output,
        coalesce(sum(reasoning), 0)::bigint as reasoning
    from ledger where tenant = (select scope_tenant()) and at >= $1 and at < $2 {whose}
    group by grouping sets ({sets})
) as found where whole {after} order by {order} limit $3
"""
SINCE = "select ledger_since from tenant where id = (select scope_tenant())"

Key = Literal["tenant", "user", "agent", "model", "purpose", "day"]


class Span(NamedTuple):
    """What to sum up: from one time up to another, of the tenant or of one user."""

    since: datetime
    until: datetime
    user: str | None = None


class UsageRow(Plain, frozen=True, kw_only=True):
    """What was paid for the calls of one group, or for all."""

    keys: tuple[str | date, ...] = ()
    """One for each that was asked for, in that order; none for all."""
    calls: int
    estimated_calls: int
    unpriced_calls: int
    usage: Usage
    usd_micros: int
    """Without the calls whose price is not known."""
    estimated_usd_micros: int
    """The part of it that is estimated."""


def entry(before: Continuation, event: ev.Event) -> LedgerRow | None:
    """The ledger's row for an event that is applied to `before`; None where it costs nothing."""
    match event:
        case ev.Replied() | ev.ModelErred() | ev.ModelLost() | ev.Compacted() | ev.Consulted():
            bill = ev.bill(event)
        case _:
            return None
    if bill is None:
        return None
    frame = (path(before.root, event.frame) or (before.root,))[-1]
    provider, _, model = bill.model.partition(":")
    return LedgerRow(
        seq=before.rev + 1,
        at=event.at,
        user_id=before.principal.user,
        agent_name=frame.agent.name,
        provider=provider,
        model=model,
        attempt=1 if isinstance(event, ev.Consulted) else event.attempt,
        usage=bill.usage,
        usd_micros=bill.usd_micros,
        estimated=bill.estimated,
        judge=isinstance(event, ev.Consulted),
    )


async def ledger(conn: Connection, run_id: str) -> list[LedgerRow]:
    """Read what a run paid, call by call."""
    return [
        LedgerRow(
            seq=row["seq"],
            at=row["at"],
            user_id=row["user_id"],
            agent_name=row["agent_name"],
            provider=row["provider"],
            model=row["model"],
            attempt=row["attempt"],
            usage=_usage(row),
            usd_micros=row["usd_micros"],
            estimated=row["estimated"],
            judge=row["judge"],
        )
        for row in await conn.fetch(LEDGER, run_id)
    ]


async def totals(
    conn: Connection,
    span: Span,
    *,
    by: Sequence[Key] = (),
    after: Sequence[str | date] = (),
    limit: int = 1000,
) -> tuple[UsageRow, list[UsageRow]]:
    """Sum what was paid in a span: all of it, and the groups beyond those `after`."""
    places = range(1, len(by) + 1)
    keys = [f"k{n}" for n in places]
    given = f"({', '.join(keys)}) > ({', '.join(f'${n + 3}' for n in places)})" if after else "true"
    statement = TOTALS.format(
        named=", ".join(f"{KEYS[key]} as k{n}" for n, key in enumerate(by, 1)) or "null as k0",
        grouping=f"grouping({KEYS[by[0]]}) = 1" if by else "true",
        sets=f"({', '.join(KEYS[key] for key in by)}), ()" if by else "()",
        after=f"or {given}" if by else "",
        order=", ".join(["whole desc", *keys]),
        whose=f"and user_id = ${len(after) + 4}" if span.user is not None else "",
    )
    user = () if span.user is None else (span.user,)
    found = await conn.fetch(statement, span.since, span.until, limit + 1, *after, *user)
    whole, *groups = (_row(row, () if row["whole"] else keys) for row in found)
    return whole, groups


async def complete_since(conn: Connection) -> datetime | None:
    """Since when no row of the tenant's ledger was deleted; None where none ever was."""
    found: datetime | None = await conn.fetchval(SINCE)
    return found


def _row(row: asyncpg.Record, keys: Sequence[str]) -> UsageRow:
    return UsageRow(
        keys=tuple(row[key] for key in keys),
        calls=row["calls"],
        estimated_calls=row["estimated_calls"],
        unpriced_calls=row["unpriced_calls"],
        usage=_usage(row),
        usd_micros=row["usd_micros"],
        estimated_usd_micros=row["estimated_usd_micros"],
    )


def _usage(row: asyncpg.Record) -> Usage:
    return Usage(
        input=row["input"],
        cache_read=row["cache_read"],
        cache_write=row["cache_write"],
        output=row["output"],
        reasoning=row["reasoning"],
    )
