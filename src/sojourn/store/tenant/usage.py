"""What was paid: the ledger's rows and their sums. Called by the API.

The rule: a sum that holds an unknown price is unknown.
"""

from datetime import datetime

import asyncpg  # type: ignore[import-untyped]

from sojourn.loop.messages import Usage
from sojourn.store.db import Connection
from sojourn.store.rows import LedgerRow, UsageRow

LEDGER = """
select seq, at, user_id, agent_name, provider, model, attempt, input, cache_read, cache_write, output, reasoning,
    usd_micros
from ledger where tenant = (select scope_tenant()) and run_id = $1 order by seq
"""
TOTALS = """
select (at at time zone 'UTC')::date as day, user_id, agent_name, provider || ':' || model as model, count(*) as calls,
    sum(input)::bigint as input, sum(cache_read)::bigint as cache_read, sum(cache_write)::bigint as cache_write,
    sum(output)::bigint as output, sum(reasoning)::bigint as reasoning,
    case when count(*) = count(usd_micros) then sum(usd_micros)::bigint end as usd_micros
from ledger where tenant = (select scope_tenant()) and at >= $1 and at < $2
group by 1, 2, 3, 4 order by 1, 2, 3, 4
"""


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
        )
        for row in await conn.fetch(LEDGER, run_id)
    ]


async def totals(conn: Connection, *, since: datetime, until: datetime) -> list[UsageRow]:
    """Sum what the tenant paid by day (UTC), user, agent and model."""
    return [
        UsageRow(
            day=row["day"],
            user_id=row["user_id"],
            agent_name=row["agent_name"],
            model=row["model"],
            calls=row["calls"],
            usage=_usage(row),
            usd_micros=row["usd_micros"],
        )
        for row in await conn.fetch(TOTALS, since, until)
    ]


def _usage(row: asyncpg.Record) -> Usage:
    return Usage(
        input=row["input"],
        cache_read=row["cache_read"],
        cache_write=row["cache_write"],
        output=row["output"],
        reasoning=row["reasoning"],
    )
