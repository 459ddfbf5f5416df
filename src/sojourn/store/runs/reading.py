"""Runs as lists and details show them. Called by the API.

The rule: the snapshot is not read here; what a list shows stands in columns of its own.
"""

from collections.abc import Collection

import asyncpg  # type: ignore[import-untyped]
import msgspec

from sojourn.errors import NotFound
from sojourn.loop.agent import AgentRef
from sojourn.loop.budget import Limits
from sojourn.loop.continuation import Failure, Wait
from sojourn.loop.messages import Usage
from sojourn.store.db import Connection
from sojourn.store.rows import DeadLetter, RunFilter, RunPage, RunRow

# Whoever has read something that is tainted takes level 4 to be read.
COLUMNS = """
select id, session_id, user_id, agent_name, agent_version, agent_digest, status, priority, seq, created_at, start_at,
    started_at, finished_at, input, result, error_code, error_detail, steps, input_tokens, cache_read_tokens,
    cache_write_tokens, output_tokens, reasoning_tokens, usd_micros, estimated_calls, limits, waits, labels, schedule,
    fire_at, quarantined_at, quarantined_claims, lost_workers, needs >= 4 as tells_more
from run where tenant = (select scope_tenant())
"""
# The ids are ordered by time, so the primary key is the order of a page.
PAGE = f"{COLUMNS} and id < $1 {{}} order by id desc limit $2"
WAITING = PAGE.format("and waits is not null")
# Finished and unfinished runs have indexes of their own.
BOTH = f"""
select * from (
    ({PAGE.format("{0} and finished_at is null")}) union all ({PAGE.format("{0} and finished_at is not null")})
) as run order by id desc limit $2
"""
MADE_BY = "and id in (select id from fire where tenant = (select scope_tenant()) and schedule = ${})"
UNFINISHED = ("queued", "running", "suspended", "quarantined")
FAILED = ("failed", "cancelled")
TROUBLED = ("failed", "quarantined")
"""A run that was let out of quarantine keeps the reason in its row until the next commit."""
NEWEST = "zzzz"
"""A cursor above every id."""

_limits = msgspec.json.Decoder(Limits)
_labels = msgspec.json.Decoder(dict[str, str])
_waits = msgspec.json.Decoder(tuple[Wait, ...])


async def get(conn: Connection, run_id: str) -> RunRow:
    """Read one run. Raises NotFound."""
    row = await conn.fetchrow(f"{COLUMNS} and id = $1", run_id)
    if row is None:
        raise NotFound(f"There is no run {run_id}.")
    return _run(row)


async def page(
    conn: Connection, where: RunFilter | None = None, *, after: str | None = None, limit: int = 50
) -> RunPage:
    """Read a page of runs, newest first."""
    where = where or RunFilter()
    wanted = {
        "status": where.status,
        "agent_name": where.agent,
        "session_id": where.session_id,
        "user_id": where.user_id,
    }
    given = {column: value for column, value in wanted.items() if value is not None}
    clauses = [f"and {column} = ${n}" for n, column in enumerate(given, 3)]
    if where.schedule is not None:
        given["schedule"] = where.schedule
        clauses.append(MADE_BY.format(len(given) + 2))
    clauses += ["and finished_at is null"] if where.status in UNFINISHED else []
    clauses += [f"and status in {FAILED}"] if where.status in FAILED else []
    both = where.status is None and where.session_id is None and given
    statement = (BOTH if both else PAGE).format(" ".join(clauses))
    return _page(await conn.fetch(statement, after or NEWEST, limit + 1, *given.values()), limit)


async def dead(conn: Connection, run_ids: Collection[str]) -> list[RunRow]:
    """Read those of some runs that are dead letters."""
    statement = f"{COLUMNS} and id = any($1::text[]) and status = 'quarantined'"
    return [_run(row) for row in await conn.fetch(statement, list(run_ids))]


async def waiting(conn: Connection, *, after: str | None = None, limit: int = 50) -> RunPage:
    """Read a page of the runs that have an open wait, newest first."""
    return _page(await conn.fetch(WAITING, after or NEWEST, limit + 1), limit)


def _page(found: list[asyncpg.Record], limit: int) -> RunPage:
    rows = tuple(_run(row) for row in found[:limit])
    return RunPage(rows, rows[-1].id if len(found) > limit else None)


def _run(row: asyncpg.Record) -> RunRow:
    return RunRow(
        id=row["id"],
        session_id=row["session_id"],
        user_id=row["user_id"],
        agent=AgentRef(row["agent_name"], row["agent_version"], row["agent_digest"]),
        status=row["status"],
        priority=row["priority"],
        seq=row["seq"],
        created_at=row["created_at"],
        start_at=row["start_at"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        input=row["input"],
        result=row["result"],
        error=Failure(row["error_code"], row["error_detail"] or "") if row["status"] in TROUBLED else None,
        steps=row["steps"],
        usage=Usage(
            input=row["input_tokens"],
            cache_read=row["cache_read_tokens"],
            cache_write=row["cache_write_tokens"],
            output=row["output_tokens"],
            reasoning=row["reasoning_tokens"],
        ),
        usd_micros=row["usd_micros"],
        estimated_calls=row["estimated_calls"],
        limits=_limits.decode(row["limits"]),
        waits=_waits.decode(row["waits"]) if row["waits"] else (),
        labels=_labels.decode(row["labels"]),
        schedule=row["schedule"],
        fire_at=row["fire_at"],
        tells_more=row["tells_more"],
        dead_letter=_dead_letter(row) if row["status"] == "quarantined" else None,
    )


def _dead_letter(row: asyncpg.Record) -> DeadLetter:
    workers = tuple(row["lost_workers"] or ())
    return DeadLetter(at=row["quarantined_at"], claims=row["quarantined_claims"], workers=workers)
