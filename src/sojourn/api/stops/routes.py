"""The handlers of /v1/admin/stops.

The rule: making a stop writes one row and answers; workers carry it out, and who asks how far they are is told by the
tables.
"""

from sojourn.api.audit.acts import made
from sojourn.api.http.once import once
from sojourn.api.http.pages import Page
from sojourn.api.parts import STOP_BELL
from sojourn.api.route import Answer, Ask, Audited, Route
from sojourn.api.stops import shapes
from sojourn.errors import Invalid
from sojourn.store import stops
from sojourn.store.db import Connection


async def make(ask: Ask[shapes.CreateStop, None]) -> Answer:
    """Make a stop."""
    body, caller = ask.body, ask.principal
    if body.what == "tenant" and body.id not in ("", caller.tenant):
        raise Invalid("A key stops its own tenant alone.", pointer="/id")
    if body.what != "tenant" and not body.id:
        raise Invalid(f"Say which {body.what}.", pointer="/id")
    target = "" if body.what == "tenant" else body.id
    new = stops.NewStop(tenant=caller.tenant, what=body.what, target=target, mode=body.mode, reason=body.reason)

    async def work(connection: Connection) -> Answer:
        stop = await stops.make(connection, new, stop_id=ask.parts.new_id("stp"), by=caller.user)
        report = await stops.report(connection, stop)
        headers = {"Location": f"/v1/admin/stops/{stop.id}"}
        return Answer(status=202, body=shapes.seen(stop, report), headers=headers, rings=((STOP_BELL, stop.id),))

    return await once(ask, work)


async def get(ask: Ask[None, None]) -> Answer:
    """Show a stop, and what is left."""
    async with ask.transaction() as connection:
        stop = await stops.get(connection, ask.names["stop_id"])
        return Answer(body=shapes.seen(stop, await stops.report(connection, stop)))


async def page(ask: Ask[None, shapes.ListQuery]) -> Answer:
    """List stops."""
    asked = ask.query
    async with ask.transaction() as connection:
        found = await stops.page(connection, lifted=asked.all, after=asked.after, limit=asked.limit + 1)
    rows, more = tuple(shapes.seen(stop) for stop in found[: asked.limit]), len(found) > asked.limit
    return Answer(body=shapes.StopsPage(data=rows, has_more=more, next=rows[-1].id if more else None))


async def runs(ask: Ask[None, Page]) -> Answer:
    """List the runs that a stop hit."""
    asked = ask.query
    async with ask.transaction() as connection:
        stop = await stops.get(connection, ask.names["stop_id"])
        found = await stops.runs(connection, stop, after=asked.after, limit=asked.limit + 1)
    rows = tuple(shapes.StoppedRun(run_id=x.run_id, status=x.status, hit_at=x.hit_at) for x in found[: asked.limit])
    more = len(found) > asked.limit
    return Answer(body=shapes.StoppedRunsPage(data=rows, has_more=more, next=rows[-1].run_id if more else None))


async def lift(ask: Ask[None, None]) -> Answer:
    """End a stop."""

    async def work(connection: Connection) -> Answer:
        stop = await stops.lift(connection, ask.names["stop_id"], by=ask.principal.user)
        return Answer(body=shapes.seen(stop), rings=((STOP_BELL, stop.id),))

    return await once(ask, work)


def _told(ask: Ask[shapes.CreateStop, None], answer: Answer) -> dict[str, str]:
    """What the audit log says of a stop."""
    return {"what": answer.body.what, "target": answer.body.target, "mode": answer.body.mode}


ROUTES = (
    Route(
        method="POST",
        path="/v1/admin/stops",
        handler=make,
        rate="decisions",
        summary="Stop a run, a session, an agent, a user or the tenant",
        detail="From the answer on no run begins that the stop names (`stop.in_force`), and nothing begins of those "
        "that are there: they are cancelled, or held until it is lifted. `progress` says what is left. The same stop "
        "made twice is one. An agent is stopped by its name, in all versions, where it is what a run runs: other "
        "agents that use it as a sub-agent are stopped by their own.",
        tag="stops",
        scope="admin:stop",
        body=shapes.CreateStop,
        audit=Audited(action="stop.create", subject=made("id"), detail=_told),
        answers={202: (shapes.StopSeen, "It is in force")},
        refusals=("request.not_found",),
        creates=True,
        example={"what": "user", "id": "ann", "reason": "the key leaked"},
    ),
    Route(
        method="GET",
        path="/v1/admin/stops",
        handler=page,
        summary="List the stops that are in force",
        tag="stops",
        scope="admin:stop",
        query=shapes.ListQuery,
        answers={200: (shapes.StopsPage, "Stops")},
    ),
    Route(
        method="GET",
        path="/v1/admin/stops/{stop_id}",
        handler=get,
        summary="See what a stop has hit, and what is left",
        detail="Everything is counted in the tables when you ask. `settled` is true once no run, no lease, no call and "
        "no sandbox is left of what the stop names.",
        tag="stops",
        scope="admin:stop",
        answers={200: (shapes.StopSeen, "The stop")},
        refusals=("request.not_found",),
    ),
    Route(
        method="GET",
        path="/v1/admin/stops/{stop_id}/runs",
        handler=runs,
        summary="List the runs that a stop hit",
        tag="stops",
        scope="admin:stop",
        query=Page,
        answers={200: (shapes.StoppedRunsPage, "Runs")},
        refusals=("request.not_found",),
    ),
    Route(
        method="DELETE",
        path="/v1/admin/stops/{stop_id}",
        handler=lift,
        rate="decisions",
        summary="Lift a stop",
        detail="New runs begin again, and those that it held go on where they stood. What was cancelled stays so.",
        tag="stops",
        scope="admin:stop",
        audit=Audited(action="stop.lift"),
        answers={200: (shapes.StopSeen, "The stop, lifted")},
        refusals=("request.not_found",),
    ),
)
