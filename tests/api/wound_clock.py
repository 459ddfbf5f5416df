"""Schedules whose clock the tests move: it stands still, is wound on, and ticks when it is told."""

import asyncio
from datetime import timedelta
from typing import Any

from served_api import Served

from sojourn.api.schedules import clock
from sojourn.store.db import Database

HOUR = timedelta(hours=1)
RUN = {"agent": "clerk", "input": "Tidy up."}
HOURLY = {"name": "hourly", "every_s": 3600, "run": RUN}


async def furnished(api: Served) -> Served:
    """The application with an agent, and with clocks that stand still: the tests move them."""
    await stand_still()
    for key in (api.key, api.other):
        await api.post("/v1/agents", {"name": "clerk", "model": "sim:one"}, key=key)
    return api


async def stand_still() -> None:
    """End the clocks of every application that is served here."""
    clocks = [task for task in asyncio.all_tasks() if task.get_name() == "schedules"]
    for clock_task in clocks:
        clock_task.cancel()
    await asyncio.gather(*clocks, return_exceptions=True)


async def made(api: Served, *, key: str | None = None, **more: Any) -> str:
    """Make a schedule and give its name."""
    reply = await api.post("/v1/schedules", {**HOURLY, **more}, key=key)
    assert reply.status == 201, reply.body
    return str(reply.json["name"])


async def rewritten(database: Database, statement: str, *arguments: Any) -> None:
    """Write into schedules and fires past their wall."""
    async with database.migrator() as owner, owner.transaction():
        for table in ("schedule", "fire"):
            await owner.execute(f"alter table {table} no force row level security")
        await owner.execute(statement, *arguments)
        for table in ("schedule", "fire"):
            await owner.execute(f"alter table {table} force row level security")


async def wind(database: Database, back: timedelta) -> None:
    """Let time pass: all that schedules remember lies so much farther back, and they are looked at now."""
    await rewritten(
        database,
        "with fires as (update fire set fire_at = fire_at - $1::interval)"
        " update schedule set created_at = created_at - $1, since = since - $1, next_at = next_at - $1,"
        " due_at = case when due_at is not null then clock_timestamp() end",
        back,
    )


async def ticked(api: Served) -> int:
    """Do all that is due, and say how many schedules were looked at."""
    looked = 0
    while await clock.fire_next(api.parts):
        looked += 1
    return looked


async def seen(api: Served, name: str = "hourly") -> Any:
    return (await api.get(f"/v1/schedules/{name}")).json


async def runs_of(api: Served, name: str = "hourly", **query: str) -> list[Any]:
    """The runs of a schedule, the oldest first."""
    return (await api.get("/v1/runs", params={"schedule": name, **query})).json["data"][::-1]
