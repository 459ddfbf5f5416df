"""The handlers of /v1/schedules.

The rule: a schedule acts as the key that made, changed or resumed it last, so nobody can have another key do more than
their own may.
"""

import asyncio
from datetime import datetime
from itertools import islice
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta
from msgspec.structs import asdict, replace

from sojourn.api.agents.routes import ByName
from sojourn.api.audit.acts import made
from sojourn.api.http.once import once
from sojourn.api.parts import SCHEDULE_BELL
from sojourn.api.route import Answer, Ask, Audited, Route
from sojourn.api.runs.create import drafted
from sojourn.api.runs.routes import STARTS
from sojourn.api.runs.shapes import Accepted
from sojourn.api.schedules import clock, shapes
from sojourn.api.schedules import plan as plans
from sojourn.api.schedules.timing import Timing
from sojourn.errors import Conflict, Forbidden, Invalid
from sojourn.identity import scopes
from sojourn.loop.agent import digest
from sojourn.store.db import Connection
from sojourn.store.rows import ScheduleRow
from sojourn.store.tenant import schedules, sessions

CALM: dict[str, Any] = {"tries": 0, "error_code": None, "error_detail": None, "error_at": None}
WHEN = ("cron", "every_s", "timezone", "start_at", "end_at", "jitter_s")
"""The fields that a fire's time depends on."""


class NextQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    n: Annotated[int, Meta(ge=1, le=20, description="How many.")] = 5


async def make(ask: Ask[shapes.CreateSchedule, None]) -> Answer:
    """Make a schedule."""
    wanted, now = ask.body, ask.parts.now()
    _may_act(ask)

    async def work(connection: Connection) -> Answer:
        given = {name: value for name, value in asdict(wanted).items() if name not in ("name", "paused")}
        plan = await _settled(ask, connection, shapes.Plan(**given))
        row = ScheduleRow(
            name=wanted.name,
            user_id=ask.principal.user,
            key_id=ask.principal.key_id,
            spec=msgspec.json.encode(plan),
            created_at=now,
            since=now,
            paused_at=now if wanted.paused else None,
        )
        row = replace(row, **_timed(ask, row, plan, await _checked(plan, now, now)))
        await schedules.create(connection, row, most=ask.parts.settings.schedules_max)
        headers = {"Location": f"/v1/schedules/{wanted.name}"}
        return Answer(status=201, body=_seen(row), headers=headers, rings=_rung(row))

    return await once(ask, work)


async def page(ask: Ask[None, ByName]) -> Answer:
    """List schedules."""
    limit = ask.query.limit
    async with ask.transaction() as connection:
        rows = await schedules.page(connection, after=ask.query.after, limit=limit + 1)
    more, data = len(rows) > limit, tuple(_seen(row) for row in rows[:limit])
    return Answer(body=shapes.SchedulesPage(data=data, has_more=more, next=data[-1].name if more else None))


async def get(ask: Ask[None, None]) -> Answer:
    """Show a schedule."""
    async with ask.transaction() as connection:
        return Answer(body=_seen(await schedules.get(connection, ask.names["name"])))


async def next_fires(ask: Ask[None, NextQuery]) -> Answer:
    """Show when a schedule fires next, as if it were not paused."""
    async with ask.transaction() as connection:
        row = await schedules.get(connection, ask.names["name"])
    plan = plans.read(row.spec)
    since = plans.first_since(plan, ask.parts.now()) if row.paused_at else row.since
    fires = plans.timing(plan, row.created_at).fires(since, since + plans.FARTHEST)
    return Answer(body=shapes.NextFires(data=tuple(islice(fires, ask.query.n)), timezone=plan.timezone))


async def change(ask: Ask[shapes.ChangeSchedule, None]) -> Answer:
    """Change a schedule, and let it act as the caller's key."""
    _may_act(ask)
    given = {name: value for name, value in asdict(ask.body).items() if value is not UNSET}

    async def work(connection: Connection) -> Answer:
        row = await schedules.get(connection, ask.names["name"], lock=True)
        plan = await _settled(ask, connection, replace(plans.read(row.spec), **given))
        times = await _checked(plan, row.created_at, ask.parts.now())
        columns = {"spec": msgspec.json.encode(plan), **CALM}
        if any(name in given for name in WHEN):
            columns |= _timed(ask, row, plan, times)
        return await _taken(ask, connection, row, columns)

    return await once(ask, work)


async def pause(ask: Ask[None, None]) -> Answer:
    """Let a schedule make no more runs."""

    async def work(connection: Connection) -> Answer:
        row = await schedules.get(connection, ask.names["name"], lock=True)
        if row.paused_at is None:
            columns = {"paused_at": ask.parts.now(), "next_at": None, "due_at": None}
            await schedules.change(connection, row.name, **columns)
            row = replace(row, **columns)
        return Answer(body=_seen(row))

    return await once(ask, work)


async def resume(ask: Ask[None, None]) -> Answer:
    """Let a paused schedule go on from now, as the caller's key."""
    _may_act(ask)

    async def work(connection: Connection) -> Answer:
        row = await schedules.get(connection, ask.names["name"], lock=True)
        columns = dict(CALM)
        if row.paused_at is not None:
            plan = plans.read(row.spec)
            row = replace(row, paused_at=None)
            columns |= {"paused_at": None, **_timed(ask, row, plan, plans.timing(plan, row.created_at))}
        return await _taken(ask, connection, row, columns)

    return await once(ask, work)


async def fire(ask: Ask[None, None]) -> Answer:
    """Make a schedule's run now, as the caller."""

    async def work(connection: Connection) -> Answer:
        row = await schedules.get(connection, ask.names["name"], lock=True)
        answer, columns = await clock.make(ask, connection, row, plans.read(row.spec).run, fire_at=None)
        await schedules.change(connection, row.name, **columns)
        return answer

    return await once(ask, work)


async def delete(ask: Ask[None, None]) -> Answer:
    """Delete a schedule."""

    async def work(connection: Connection) -> Answer:
        await schedules.delete(connection, ask.names["name"])
        return Answer(status=204)

    return await once(ask, work)


# ---- the steps of these ----------------------------------------------------------------------


def _may_act(ask: Ask[Any, Any]) -> None:
    """Raise Forbidden unless a schedule can act as the caller."""
    scopes.require(ask.principal.scopes, "runs:write")
    if ask.principal.issuer:
        raise Forbidden(
            "A schedule acts as an API key, and a token ends too soon. `sojourn keys create` makes a key.",
            code="schedule.needs_key",
        )


async def _settled(ask: Ask[Any, Any], connection: Connection, plan: shapes.Plan) -> shapes.Plan:
    """See that a fire could make its run now, and name the session that is kept. Raises Refused."""
    session = plan.run.session
    try:
        await drafted(ask, connection, plans.wanted(replace(plan.run, session="new")))
    except Invalid as error:
        error.pointer = f"/run{error.pointer or ''}"
        raise
    if session == "kept":
        session = ask.parts.new_id("ses")
        await sessions.create(connection, session)
    elif session != "new" and (await sessions.get(connection, session)).closed_at is not None:
        raise Conflict(f"Session {session} is closed.", code="session.closed")
    return replace(plan, run=replace(plan.run, session=session))


async def _checked(plan: shapes.Plan, created_at: datetime, now: datetime) -> Timing:
    """See that a plan fires at all: in a thread, for to look 50 years ahead takes a while. Raises Invalid."""
    return await asyncio.to_thread(plans.checked, plan, created_at, now)


def _timed(ask: Ask[Any, Any], row: ScheduleRow, plan: shapes.Plan, times: Timing) -> dict[str, Any]:
    """The columns of a schedule whose times count from now."""
    since = plans.first_since(plan, ask.parts.now())
    next_at = times.after(since) if row.paused_at is None else None
    later = plans.jitter(plan, f"{ask.principal.tenant}/{row.name}")
    return {"since": since, "next_at": next_at, "due_at": plans.due_at(next_at, later, ask.parts.now())}


async def _taken(ask: Ask[Any, Any], connection: Connection, row: ScheduleRow, columns: dict[str, Any]) -> Answer:
    """Change a locked schedule, and let it act as the caller's key."""
    await schedules.change(connection, row.name, **columns)
    await schedules.take(connection, row.name)
    row = await schedules.get(connection, row.name)
    return Answer(body=_seen(row), rings=_rung(row))


def _rung(row: ScheduleRow) -> tuple[tuple[str, str], ...]:
    return ((SCHEDULE_BELL, row.name),)


def _seen(row: ScheduleRow) -> shapes.Schedule:
    """Show a schedule to a caller."""
    plan = plans.read(row.spec)
    failed = (
        shapes.LastError(code=row.error_code, detail=row.error_detail or "", at=row.error_at)
        if row.error_code and row.error_at
        else None
    )
    return shapes.Schedule(
        **asdict(plan),
        name=row.name,
        status="paused" if row.paused_at else "active" if row.next_at else "ended",
        user_id=row.user_id,
        key_id=row.key_id,
        created_at=row.created_at,
        paused_at=row.paused_at,
        next_at=row.next_at,
        last_fire_at=row.last_fire_at,
        last_run_id=row.last_run_id,
        last_error=failed,
        fires=shapes.Fires(made=row.fired, missed=row.missed, skipped=row.skipped, refused=row.refused),
    )


def _told(ask: Ask[Any, Any], answer: Answer) -> dict[str, str]:
    """What the audit log says of a schedule: what it says itself, by its digest."""
    plan = {name: getattr(answer.body, name) for name in shapes.Plan.__struct_fields__}
    return {"plan": digest(plan)}


def _route(method: str, path: str, handler: Any, summary: str, **more: Any) -> Route:
    scope = "schedules:read" if method == "GET" else "schedules:write"
    named = {"refusals": ("request.not_found",)} if path else {}
    return Route(
        **{"method": method, "path": f"/v1/schedules{path}", "handler": handler, "summary": summary, "tag": "schedules",
           "scope": scope, **named, **more}
    )  # fmt: skip


EXAMPLE: dict[str, Any] = {
    "name": "nightly",
    "cron": "30 2 * * mon-fri",
    "timezone": "Europe/Berlin",
    "run": {"agent": "analyst", "input": "What changed since yesterday?"},
}
PLANS = tuple(code for code in STARTS if code not in ("session.busy", "limit.queue"))
"""The refusals of a plan."""

ROUTES = (
    _route("POST", "", make, "Make a schedule", body=shapes.CreateSchedule, creates=True, example=EXAMPLE,
           audit=Audited(action="schedule.create", subject=made("name"), detail=_told),
           detail="It acts as the key that makes it, which needs runs:write, too.",
           refusals=("schedule.exists", "limit.schedules", "schedule.needs_key", *PLANS),
           answers={201: (shapes.Schedule, "The schedule")}),
    _route("GET", "", page, "List schedules by name", query=ByName, answers={200: (shapes.SchedulesPage, "Schedules")}),
    _route("GET", "/{name}", get, "Get a schedule", answers={200: (shapes.Schedule, "The schedule")}),
    _route("GET", "/{name}/next", next_fires, "See when a schedule fires next", query=NextQuery,
           answers={200: (shapes.NextFires, "Times")}),
    _route("PATCH", "/{name}", change, "Change a schedule", body=shapes.ChangeSchedule,
           audit=Audited(action="schedule.change", detail=_told),
           example={"cron": "0 3 * * *"}, refusals=("request.not_found", "schedule.needs_key", *PLANS),
           detail="It acts as the key that changes it from now on. With other times, its fires count from now.",
           answers={200: (shapes.Schedule, "The schedule")}),
    _route("POST", "/{name}/pause", pause, "Pause a schedule", creates=True, audit=Audited(action="schedule.pause"),
           answers={200: (shapes.Schedule, "The schedule; its runs go on")}),
    _route("POST", "/{name}/resume", resume, "Resume a schedule", creates=True, audit=Audited(action="schedule.resume"),
           refusals=("request.not_found", "schedule.needs_key"),
           detail="What would have fired meanwhile is left out. It acts as the key that resumes it from now on.",
           answers={200: (shapes.Schedule, "The schedule")}),
    _route("POST", "/{name}/run", fire, "Fire a schedule now", creates=True, fills=True, rate="runs",
           refusals=("request.not_found", *STARTS), detail="The run is yours, and needs runs:write.",
           answers={202: (Accepted, "Accepted; Location names the run")}),
    _route("DELETE", "/{name}", delete, "Delete a schedule", audit=Audited(action="schedule.delete"),
           answers={204: (None, "It is gone; its runs stay")}),
)  # fmt: skip
