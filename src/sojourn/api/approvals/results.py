"""/v1/runs/{id}/tool_results: what the caller's own tools returned. It is the owner's to say, not an approver's."""

from sojourn.api.approvals import judge
from sojourn.api.approvals.shapes import Noted, ToolResult
from sojourn.api.guardrails.screen import screened
from sojourn.api.http.once import once
from sojourn.api.route import Answer, Ask, Route
from sojourn.errors import Invalid
from sojourn.loop.continuation import pending
from sojourn.loop.events import Decided
from sojourn.store import runs
from sojourn.store.db import Connection


async def send(ask: Ask[ToolResult, None]) -> Answer:
    """Give a call of the caller's own tool its result."""
    body = ask.body
    if (body.output is None) == (body.error is None):
        raise Invalid("Give either `output` or `error`.", pointer="/output")
    field = "/output" if body.error is None else "/error"
    text = await screened(ask, "tool_result", body.output or body.error or "", pointer=field)

    async def work(connection: Connection) -> Answer:
        asked = await runs.asked(connection, ask.names["run_id"])
        open_ = (one for one in pending(asked.continuation) if one.kind == "client_tool" and one.call == body.call)
        wait = next(open_, None)
        event = Decided(
            at=ask.parts.now(),
            wait=wait.id if wait is not None else await _answered(connection, asked, body.call),
            by=ask.principal.user,
            decision="answer",
            text=text(),
            failed=body.error is not None,
        )
        return await judge.post(connection, asked, event)

    return await once(ask, work)


async def _answered(connection: Connection, asked: runs.Asked, call: str) -> str:
    """The wait of a call that was answered before; a name that fits nothing where there was none."""
    on_their_way = (one.wait for one in asked.mail)
    before = (one.wait for one in await runs.decided(connection, asked.continuation.run_id, f"{call}?"))
    return next((wait for wait in (*on_their_way, *before) if wait.rpartition("?")[0] == call), f"{call}?")


ROUTES = (
    Route(
        method="POST",
        path="/v1/runs/{run_id}/tool_results",
        handler=send,
        rate="decisions",
        summary="Send what a tool of yours returned",
        detail="The same result twice is one; another one for the same call is refused.",
        tag="runs",
        scope="runs:write",
        body=ToolResult,
        answers={202: (Noted, "The run goes on with it")},
        refusals=("request.not_found", "run.ended", "run.not_waiting", "approval.already_decided", "guardrail.refused"),
        creates=True,
        example={"call": "/0.0", "output": "shipped"},
    ),
)
