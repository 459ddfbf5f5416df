"""Whether an answer is taken. Called by every route that answers a wait.

The rule: the loop's own judgement is asked, on the run as it will be when its mail is read; so the same answer twice is
one answer, the opposite one conflicts, and what is refused changes nothing.
"""

from collections.abc import Mapping

import msgspec

from sojourn.api import schemas
from sojourn.api.approvals.shapes import Noted
from sojourn.api.route import Answer
from sojourn.api.runs.routes import mailed
from sojourn.errors import AlreadyDecided, Conflict, Forbidden, Invalid, NotWaiting, Refused
from sojourn.loop.agent import Tool
from sojourn.loop.continuation import Call, Wait
from sojourn.loop.events import Decided, Paused, Signalled
from sojourn.loop.step import decisions
from sojourn.store import runs, stops
from sojourn.store.db import Connection

REFUSALS: Mapping[str, tuple[type[Refused], str | None]] = {
    "run.not_waiting": (NotWaiting, None),
    "approval.not_allowed": (Invalid, "/decision"),
    "approval.expired": (Conflict, None),
    "approval.voted": (AlreadyDecided, None),
    "approval.not_yours": (Forbidden, None),
    "approval.initiator": (Forbidden, None),
    "approval.other_arguments": (Conflict, "/arguments_digest"),
    "approval.other_tool": (Conflict, None),
    "approval.no_limits": (Invalid, "/limits"),
    "approval.no_end": (Invalid, "/expires_at"),
    "approval.edit_invalid": (Invalid, "/arguments"),
    "approval.edit_denied": (Forbidden, "/arguments"),
    "approval.edit_widens": (Forbidden, "/arguments"),
}
"""How each refusal of the loop is said in HTTP, and the field that it is about."""


def open_wait(asked: runs.Asked, wait_id: str) -> Wait | None:
    """The wait of that id, where it is open."""
    return decisions.open_wait(asked.continuation, wait_id)


def call_of(asked: runs.Asked, wait: Wait) -> tuple[Call, Tool | None]:
    """The call that a wait is about, and its tool."""
    frame, call = decisions.place(asked.continuation, wait)
    return call, asked.agents[frame.agent.digest].tool(call.tool.name)


async def noted(connection: Connection, run_id: str, event: Decided | Paused | Signalled) -> Answer:
    """Put something into a run's inbox, and say so."""
    await runs.post(connection, run_id, event)
    return Answer(status=202, body=Noted(accepted=True), rings=mailed(run_id))


async def post(connection: Connection, asked: runs.Asked, event: Decided) -> Answer:
    """Put an answer into the run's inbox. Raises the refusal that fits."""
    run_id = asked.continuation.run_id
    refused = decisions.refusal(asked.agents, asked.continuation, event)
    if refused is None:
        await _may_go_on(connection, asked, event)
        _fits_schema(asked, event)
        return await noted(connection, run_id, event)
    before = [
        one for one in (*await runs.decided(connection, run_id, event.wait), *asked.mail) if one.wait == event.wait
    ]
    if any(_said(one) == _said(event) for one in before) and refused.code in ("run.not_waiting", "approval.voted"):
        return Answer(status=202, body=Noted(accepted=True, replayed=True))
    if before and refused.code == "run.not_waiting":
        raise AlreadyDecided("This was decided before, in another way; the run's events say how.")
    kind, pointer = REFUSALS[refused.code]
    raise kind(refused.detail, code=refused.code, pointer=pointer)


async def _may_go_on(connection: Connection, asked: runs.Asked, event: Decided) -> None:
    """Raise Conflict where a stop holds the run: it goes on once that is lifted."""
    wait = asked.continuation.wait
    if wait is not None and wait.id == event.wait and (stop := await stops.holding(connection, wait)):
        raise Conflict(f"Stop {stop} holds the run. Lift the stop, or cancel the run.", code="stop.in_force")


def _said(event: Decided) -> tuple[object, ...]:
    """What was decided, whoever said it and when."""
    return event.decision, event.text, event.failed, event.args, event.limits, event.expires_at


def _fits_schema(asked: runs.Asked, event: Decided) -> None:
    """Raise Invalid where edited arguments do not fit the tool's schema, pointing at the place."""
    wait = open_wait(asked, event.wait)
    if event.args is None or wait is None or wait.call is None:
        return
    _, tool = call_of(asked, wait)
    if tool is None:
        return
    try:
        error = schemas.flaw(tool.schema, msgspec.json.decode(event.args))
    except Invalid as refused:
        raise Invalid(str(refused), code="approval.edit_invalid", pointer="/arguments") from None
    if error is not None:
        place = "".join(f"/{step}" for step in error.absolute_path)
        raise Invalid(
            f"The arguments do not fit the tool: {error.message[:300]}.",
            code="approval.edit_invalid",
            pointer=f"/arguments{place}",
        )
