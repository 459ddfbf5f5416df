"""Schedules, and the fires that made runs. Called by the API's handlers, and by its clock.

    create, get, page, change, take, delete    through the caller's scope
    lent                                       the one that has been due for longest, with the scope that it acts in
    made                                       which run a fire made

The rule: a schedule is changed under its row's lock, so that a fire and a change of it come one after the other.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import asyncpg  # type: ignore[import-untyped]

from sojourn.errors import Conflict, NotFound, OverLimit
from sojourn.store.db import Connection, Database
from sojourn.store.rows import Due, ScheduleRow

LOCKS = 0x504A_0005
"""The space of the locks under which a tenant's schedules are counted."""
COLUMNS = """
select name, user_id, key_id, spec, created_at, since, next_at, due_at, paused_at, tries, last_fire_at, last_run_id,
    error_code, error_detail, error_at, fired, missed, skipped, refused
from schedule where tenant = (select scope_tenant())
"""
CREATE = """
insert into schedule (tenant, name, user_id, key_id, spec, created_at, since, next_at, due_at, paused_at)
values (scope_tenant(), $1, scope_user(), (scope())[3], $2, $3, $4, $5, $6, $7)
"""
CHANGE = "update schedule set {} where tenant = (select scope_tenant()) and name = $1"
GOES_ON = """
select exists (select from run where tenant = (select scope_tenant()) and id = $1 and finished_at is null)
"""
MADE = "insert into fire (tenant, id, schedule, fire_at) values (scope_tenant(), $1, $2, $3)"


async def create(conn: Connection, new: ScheduleRow, *, most: int) -> None:
    """Make a schedule that acts as the caller's key. Raises Conflict where there is one of that name, and OverLimit."""
    await conn.execute("select pg_advisory_xact_lock($1, hashtext(scope_tenant()))", LOCKS)
    if await conn.fetchval("select count(*) from schedule where tenant = (select scope_tenant())") >= most:
        raise OverLimit(f"There are {most} schedules already. Delete some first.", code="limit.schedules")
    values = (new.name, new.spec, new.created_at, new.since, new.next_at, new.due_at, new.paused_at)
    try:
        await conn.execute(CREATE, *values)
    except asyncpg.UniqueViolationError:
        raise Conflict(f"There is a schedule {new.name} already; change that one.", code="schedule.exists") from None


async def get(conn: Connection, name: str, *, lock: bool = False) -> ScheduleRow:
    """Read one schedule, and with `lock` hold its row until the transaction ends. Raises NotFound."""
    row = await conn.fetchrow(f"{COLUMNS} and name = $1{' for no key update' if lock else ''}", name)
    if row is None:
        raise _missing(name)
    return ScheduleRow(**row)


async def page(conn: Connection, *, after: str | None = None, limit: int = 50) -> list[ScheduleRow]:
    """Read schedules by name, those after `after`."""
    found = await conn.fetch(f"{COLUMNS} and ($1::text is null or name > $1) order by name limit $2", after, limit)
    return [ScheduleRow(**row) for row in found]


async def change(conn: Connection, name: str, **columns: Any) -> None:
    """Write columns of a schedule that the caller has locked."""
    assert columns.keys() <= set(ScheduleRow.__struct_fields__)
    given = ", ".join(f"{column} = ${n}" for n, column in enumerate(columns, 2))
    await conn.execute(CHANGE.format(given), name, *columns.values())


async def take(conn: Connection, name: str) -> None:
    """Let a schedule act as the caller's key from now on. Raises NotFound."""
    if not await conn.fetchval("select take_schedule($1)", name):
        raise _missing(name)


async def delete(conn: Connection, name: str) -> None:
    """Delete a schedule; its runs stay. Raises NotFound."""
    gone = await conn.execute("delete from schedule where tenant = (select scope_tenant()) and name = $1", name)
    if gone == "DELETE 0":
        raise _missing(name)


async def made(conn: Connection, name: str, run_id: str, fire_at: datetime | None) -> None:
    """Write down which run a fire made; None stands for a fire out of turn. Raises Conflict for a time once more."""
    try:
        await conn.execute(MADE, run_id, name, fire_at)
    except asyncpg.UniqueViolationError:
        raise Conflict(f"Schedule {name} was fired for this time before.") from None


async def goes_on(conn: Connection, run_id: str) -> bool:
    """Whether a run has not ended."""
    return bool(await conn.fetchval(GOES_ON, run_id))


# ---- the clock's side ------------------------------------------------------------------------


@asynccontextmanager
async def lent(db: Database) -> AsyncIterator[tuple[Connection, Due] | None]:
    """Lend a transaction in the scope of the schedule that has been due for longest, with its row locked.

    None where nothing is due that no other process looks at. A schedule whose key has ended comes without a scope.
    """
    async with db.api() as connection, connection.transaction():
        row = await connection.fetchrow("select * from due_schedule()")
        if row is None:
            yield None
            return
        if row["handle"] is not None:
            await connection.execute("select set_config('app.scope', $1, true)", row["handle"])
        yield connection, Due(**{**row, "scopes": frozenset(row["scopes"] or ())})


async def next_at(db: Database) -> datetime | None:
    """When a schedule of any tenant is due next."""
    async with db.api() as connection:
        at: datetime | None = await connection.fetchval("select next_schedule_at()")
    return at


def _missing(name: str) -> NotFound:
    return NotFound(f"There is no schedule {name}.")
