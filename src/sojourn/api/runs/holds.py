"""A run put on hold, and let go on: nothing new begins meanwhile, and what is in flight ends."""

from sojourn.api.approvals import judge
from sojourn.api.approvals.shapes import Noted
from sojourn.api.http.once import once
from sojourn.api.route import Answer, Ask, Route
from sojourn.api.runs.shapes import Reason
from sojourn.errors import NotWaiting
from sojourn.loop.events import Decided, Paused
from sojourn.store import runs
from sojourn.store.db import Connection


async def hold(ask: Ask[Reason, None]) -> Answer:
    """Put a run on hold."""
    run_id = ask.names["run_id"]

    async def work(connection: Connection) -> Answer:
        event = Paused(at=ask.parts.now(), by=ask.principal.user, reason=ask.body.reason)
        return await judge.noted(connection, run_id, event)

    return await once(ask, work)


async def resume(ask: Ask[Reason, None]) -> Answer:
    """End a hold."""

    async def work(connection: Connection) -> Answer:
        asked = await runs.asked(connection, ask.names["run_id"])
        wait = asked.continuation.wait
        if wait is None:
            raise NotWaiting("The run is not on hold.")
        event = Decided(
            at=ask.parts.now(), wait=wait.id, by=ask.principal.user, decision="approve", reason=ask.body.reason
        )
        return await judge.post(connection, asked, event)

    return await once(ask, work)


ROUTES = (
    Route(
        method="POST",
        path="/v1/runs/{run_id}/hold",
        handler=hold,
        rate="decisions",
        summary="Put a run on hold",
        detail="What is in flight ends; nothing new begins, in the run and in its sub-agents, before it is resumed.",
        tag="runs",
        scope="runs:write",
        body=Reason,
        body_optional=True,
        answers={202: (Noted, "It suspends as soon as nothing is in flight")},
        refusals=("request.not_found", "run.ended"),
        creates=True,
        example={"reason": "the vendor's system is down"},
    ),
    Route(
        method="POST",
        path="/v1/runs/{run_id}/resume",
        handler=resume,
        rate="decisions",
        summary="Let a run go on that is on hold",
        tag="runs",
        scope="runs:write",
        body=Reason,
        body_optional=True,
        answers={202: (Noted, "It goes on where it stood")},
        refusals=("request.not_found", "run.ended", "run.not_waiting"),
        creates=True,
        example={"reason": "it is back"},
    ),
)
