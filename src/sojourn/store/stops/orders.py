"""Making, lifting and reading stops. Called by the API in a tenant's scope, and by the operator's command line.

The rules: to make the same stop twice is to make it once; who has a key of a tenant lifts what such a key has made, and
the owner of the database lifts all.
"""

from datetime import datetime
from typing import Literal

import asyncpg  # type: ignore[import-untyped]

from sojourn.errors import Conflict, Forbidden, Invalid, NotFound
from sojourn.loop.continuation import Wait
from sojourn.loop.messages import Plain
from sojourn.store.db import Connection

What = Literal["run", "session", "agent", "user", "tenant", "installation"]
Mode = Literal["cancel", "hold"]

COLUMNS = "tenant, id, what, target, mode, reason, operator, made_by, created_at, lifted_by, lifted_at"
# The API may not write `operator`.
MAKE = f"""
insert into stop (tenant, id, what, target, mode, reason, made_by{{0}}) values ($1, $2, $3, $4, $5, $6, $7{{1}})
on conflict (tenant, what, target, mode, operator) where lifted_at is null do nothing
returning {COLUMNS}
"""
SAME = f"""
select {COLUMNS} from stop
where tenant = $1 and what = $2 and target = $3 and mode = $4 and operator = $5 and lifted_at is null
"""
LIFT = f"""
update stop set lifted_by = $3, lifted_at = now(), sweep_at = now(),
    done_at = case mode when 'cancel' then coalesce(done_at, now()) end
where tenant = $1 and id = $2 and lifted_at is null
returning {COLUMNS}
"""
GET = f"select {COLUMNS} from stop where id = $1"
PAGE = f"select {COLUMNS} from stop where id < $1 and (lifted_at is null or $2) order by id desc limit $3"
NEWEST = "zzzz"
HIT = """
select x.run_id, r.status, x.hit_at from stopped_run x join run r on r.tenant = x.tenant and r.id = x.run_id
where x.tenant = $1 and x.stop_id = $2 and x.run_id > $3 order by x.run_id limit $4
"""


class NewStop(Plain, frozen=True, kw_only=True):
    """What is to be stopped; `tenant` is EVERYBODY for the installation, and `target` empty for it and for a tenant."""

    tenant: str
    what: What
    target: str = ""
    mode: Mode = "cancel"
    reason: str = ""


class Stop(NewStop, frozen=True, kw_only=True):
    """A stop that was made."""

    id: str
    operator: bool
    made_by: str
    created_at: datetime
    lifted_by: str | None
    lifted_at: datetime | None


class StoppedRun(Plain, frozen=True, kw_only=True):
    """A run that a stop has hit, and how it stands now."""

    run_id: str
    status: str
    hit_at: datetime


async def make(conn: Connection, new: NewStop, *, stop_id: str, by: str, operator: bool = False) -> Stop:
    """Make a stop, or give the same one that is in force; ring `sojourn_stop` after the transaction. Raises Refused."""
    statement = MAKE.format(", operator", ", true") if operator else MAKE.format("", "")
    named = (new.tenant, new.what, new.target, new.mode)
    await _exists(conn, new)
    while True:
        try:
            row = await conn.fetchrow(statement, new.tenant, stop_id, *named[1:], new.reason, by)
        except asyncpg.CheckViolationError:
            raise Invalid("A stop names what it stops; only a tenant and the installation need no id.") from None
        except asyncpg.UniqueViolationError:
            raise Conflict(f"There is a stop {stop_id} already.") from None
        if row := row or await conn.fetchrow(SAME, *named, operator):
            return Stop(**row)


async def _exists(conn: Connection, new: NewStop) -> None:
    """See that what has an id of ours is there: who mistypes one would believe that it was stopped. Raises NotFound."""
    table = {"run": "run", "session": "session", "tenant": "tenant"}.get(new.what)
    if table is None:
        return
    clause = "id = $1" if table == "tenant" else "tenant = $1 and id = $2"
    names = (new.tenant,) if table == "tenant" else (new.tenant, new.target)
    if not await conn.fetchval(f"select exists (select from {table} where {clause})", *names):
        raise NotFound(f"There is no {new.what} {new.target or new.tenant}.")


async def lift(conn: Connection, stop_id: str, *, by: str) -> Stop:
    """End a stop; one that was lifted before stays as it is. Raises NotFound, and Forbidden for the operator's."""
    stop = await get(conn, stop_id)
    if stop.lifted_at is not None:
        return stop
    if row := await conn.fetchrow(LIFT, stop.tenant, stop_id, by):
        return Stop(**row)
    stop = await get(conn, stop_id)
    if stop.lifted_at is None:
        raise Forbidden(f"The operator made stop {stop_id}; `sojourn lift {stop_id}` on the server's machine ends it.")
    return stop


async def get(conn: Connection, stop_id: str) -> Stop:
    """Read one stop. Raises NotFound."""
    row = await conn.fetchrow(GET, stop_id)
    if row is None:
        raise NotFound(f"There is no stop {stop_id}.")
    return Stop(**row)


async def holding(conn: Connection, wait: Wait) -> str | None:
    """Name the stop in force that has put a run on hold with this wait: who did it stands first in its title."""
    stop_id = wait.title.partition(" ")[0]
    found: str | None = await conn.fetchval("select id from stop where id = $1 and lifted_at is null", stop_id)
    return found


async def page(conn: Connection, *, lifted: bool = False, after: str | None = None, limit: int = 50) -> list[Stop]:
    """Read stops, newest first: those in force, or all."""
    return [Stop(**row) for row in await conn.fetch(PAGE, after or NEWEST, lifted, limit)]


async def runs(conn: Connection, stop: Stop, *, after: str | None = None, limit: int = 50) -> list[StoppedRun]:
    """Read the runs of the tenant that a stop has hit, oldest first."""
    return [StoppedRun(**row) for row in await conn.fetch(HIT, stop.tenant, stop.id, after or "", limit)]
