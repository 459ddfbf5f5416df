"""Fires the schedules that are due. It runs in every API process as long as the application does.

    run    sleep until something is due, fire it, go on
    fire   what is due of one schedule
    make   the run of a fire

The rule: a fire is one transaction (the run, its fire, the schedule's new `since`) under the schedule's row lock, so
whatever dies, it happened once or is still to come. A schedule does what its key may do at that moment, and no more.
"""

import asyncio
import logging
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from msgspec.structs import replace

from sojourn.api.guardrails.screen import screened_input
from sojourn.api.parts import SCHEDULE_BELL, Acting, Api
from sojourn.api.route import Answer
from sojourn.api.runs.create import create
from sojourn.api.schedules import plan as plans
from sojourn.api.schedules.shapes import ScheduledRun
from sojourn.api.schedules.timing import Timing
from sojourn.errors import SojournError, StoreUnavailable
from sojourn.identity import scopes
from sojourn.store.db import Connection
from sojourn.store.rows import Due, Principal, ScheduleRow
from sojourn.store.tenant import schedules

log = logging.getLogger("sojourn.api")

LANES = 2
"""How many of these loops a process has: each takes one of the ten connections of the API's pool."""
POLL_S, NAP_S, RETRY_S = 15.0, 0.05, 1.0
WAIT_S = 10.0
"""How often a fire that waits for the run before looks at it."""
AGAIN_S, AGAIN_MAX_S = 15.0, 600.0
"""When a fire that was refused for the moment is tried again; each time it waits twice as long."""

Changes = dict[str, Any]
"""Columns of a schedule, as they are to be."""


@dataclass(frozen=True)
class Fire:
    """On whose behalf a schedule fires."""

    parts: Api
    principal: Principal


async def run(parts: Api) -> None:
    """Fire whatever is due, until cancelled."""
    with parts.doorbell.subscribe(SCHEDULE_BELL) as ear:
        while True:
            try:
                while await fire_next(parts):
                    pass
                next_at = await schedules.next_at(parts.database)
            except StoreUnavailable as error:
                log.warning("schedules.store_away", extra={"detail": str(error)})
                await asyncio.sleep(RETRY_S)
            except Exception:
                log.exception("schedules.bug")
                await asyncio.sleep(RETRY_S)
            else:
                left_s = (next_at - parts.now()).total_seconds() if next_at else POLL_S
                await ear.wait(min(max(left_s, NAP_S), POLL_S))


async def fire_next(parts: Api) -> bool:
    """Do what is due of the schedule that has been due for longest, and say whether there was one."""
    async with schedules.lent(parts.database) as lent:
        if lent is None:
            return False
        answer = await looked_at(parts, *lent)
    for channel, id_ in answer.rings if answer else ():
        parts.doorbell.ring(channel, (id_,))
    return True


async def looked_at(parts: Api, connection: Connection, due: Due) -> Answer | None:
    """Fire a locked schedule and write down what became of it; what the fire made, if it made a run."""
    about = {"tenant": due.tenant, "schedule": due.name}
    if due.handle is None:
        log.warning("schedule.key_ended", extra=about)
        return None
    row = await schedules.get(connection, due.name)
    acting = Fire(parts, _principal(due, due.handle))
    try:
        answer, changes = await fire(acting, connection, row, due.now_at)
    except StoreUnavailable:
        raise
    except Exception as error:
        log.exception("schedule.bug", extra=about)
        bug = SojournError(
            f"This is a bug in Sojourn ({type(error).__name__}); the fire is tried again.", code="sojourn.bug"
        )
        answer, changes = None, _again(row, bug, due.now_at)
    await schedules.change(connection, due.name, **changes)
    if answer is None and (code := changes.get("error_code")):
        log.warning("schedule.refused", extra={**about, "code": code})
    if missed := changes.get("missed", row.missed) - row.missed:
        log.warning("schedule.missed", extra={**about, "fires": missed})
    return answer


async def fire(acting: Fire, connection: Connection, row: ScheduleRow, now: datetime) -> tuple[Answer | None, Changes]:
    """Make the run that is due, if one is; what changes of the schedule by it. Raises StoreUnavailable."""
    plan = plans.read(row.spec)
    times = plans.timing(plan, row.created_at)
    later = plans.jitter(plan, f"{acting.principal.tenant}/{row.name}")
    picked = plans.pick(plan, times, row.since, now - later)
    if picked is None:
        return None, _advanced(times, row.since, later, now)
    done = {**_advanced(times, picked.since, later, now), "missed": row.missed + picked.missed}
    if picked.fire_at is None:
        return None, done
    left_out = (
        {"due_at": now + timedelta(seconds=WAIT_S)} if plan.overlap == "wait" else {**done, "skipped": row.skipped + 1}
    )
    if plan.overlap != "allow" and row.last_run_id and await schedules.goes_on(connection, row.last_run_id):
        return None, left_out
    try:
        async with connection.transaction():
            answer, made = await make(acting, connection, row, plan.run, fire_at=picked.fire_at)
    except StoreUnavailable:
        raise
    except SojournError as error:
        if error.code == "session.busy":
            return None, left_out
        if error.retry:
            return None, _again(row, error, now)
        return None, {**done, **_error(error, now), "refused": row.refused + 1}
    return answer, {**done, **made}


async def make(
    acting: Acting, connection: Connection, row: ScheduleRow, wanted: ScheduledRun, *, fire_at: datetime | None
) -> tuple[Answer, Changes]:
    """Make a schedule's run, for a fire or (None) out of turn; the answer for it, and what changes. Raises Refused."""
    scopes.require(acting.principal.scopes, "runs:write")
    asked = plans.wanted(wanted)
    asked = replace(asked, input=(await screened_input(acting, asked.input))())
    answer = await create(acting, connection, asked, schedule=row.name, fire_at=fire_at)
    run_id = answer.body.run_id
    await schedules.made(connection, row.name, run_id, fire_at)
    fired = {"fired": row.fired + 1, "last_run_id": run_id, "last_fire_at": fire_at or acting.parts.now()}
    return answer, {**fired, "error_code": None, "error_detail": None, "error_at": None}


def _advanced(times: Timing, since: datetime, later: timedelta, now: datetime) -> Changes:
    """All fires up to `since` are dealt with."""
    next_at = times.after(since)
    return {"since": since, "next_at": next_at, "due_at": plans.due_at(next_at, later, now), "tries": 0}


def _again(row: ScheduleRow, error: SojournError, now: datetime) -> Changes:
    """The fire is still due, a little later."""
    rest_s = max(error.retry_after_s or 0, min(AGAIN_S * 2 ** min(row.tries, 10), AGAIN_MAX_S))
    return {**_error(error, now), "tries": row.tries + 1, "due_at": now + timedelta(seconds=rest_s)}


def _error(error: SojournError, now: datetime) -> Changes:
    return {"error_code": error.code, "error_detail": str(error), "error_at": now}


def _principal(due: Due, handle: str) -> Principal:
    return Principal(
        tenant=due.tenant, user=due.user_id, key_id=due.key_id, scopes=due.scopes, handle=handle, expires_at=due.now_at
    )
