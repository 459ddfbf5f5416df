"""The handlers of /v1/runs but for its events."""

import hashlib
from collections.abc import Iterable
from typing import Annotated

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from sojourn.api.agents.specs import limits_seen
from sojourn.api.guardrails.screen import screened_input
from sojourn.api.http.once import once
from sojourn.api.http.pages import Page
from sojourn.api.parts import INBOX_BELL, WORK_BELL
from sojourn.api.route import Answer, Ask, Audited, Route, own
from sojourn.api.runs import shapes, trace, wait
from sojourn.api.runs.create import create
from sojourn.api.runs.hear import heard
from sojourn.errors import Conflict
from sojourn.loop.continuation import Origin, Wait
from sojourn.loop.events import Cancelled, Said
from sojourn.loop.messages import Message
from sojourn.store import runs
from sojourn.store.db import Connection
from sojourn.store.retention import deletion
from sojourn.store.rows import RunFilter, RunRow, Status
from sojourn.store.sharing.limits import held_back

PAGE_BYTES = 4 << 20
"""How much of a journal is in memory at a time."""
WaitS = Annotated[
    float, Meta(ge=0, le=300, description="Hold the answer up to so many seconds, until the run has ended or waits.")
]


class StartQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    wait: WaitS = 0


class ListQuery(Page, frozen=True, forbid_unknown_fields=True, kw_only=True):
    status: Annotated[Status, Meta(description="Only runs that stand so.")] | None = None
    agent: Annotated[str, Meta(max_length=64, description="Only runs of this agent.")] | None = None
    session: Annotated[str, Meta(max_length=64, description="Only runs of this session.")] | None = None
    user: Annotated[str, Meta(max_length=200, description="Only runs of this user.")] | None = None
    schedule: Annotated[str, Meta(max_length=64, description="Only runs that this schedule made.")] | None = None


class Transcript(msgspec.Struct, frozen=True, kw_only=True):
    """What was said in a run's root frame, in the order in which the model reads it."""

    data: tuple[Message, ...]


async def start(ask: Ask[shapes.CreateRun, StartQuery]) -> Answer:
    """Accept a run, and hold the answer where the caller wants to wait."""
    given = await screened_input(ask, ask.body.input)

    async def work(connection: Connection) -> Answer:
        return await create(ask, connection, replace(ask.body, input=given()))

    answer = await once(ask, work)
    if not ask.query.wait:
        return answer
    run_id = accepted(answer).run_id
    run = await wait.ended(ask, run_id, ask.query.wait)
    return Answer(body=seen(run), headers=answer.headers) if run else answer


def accepted(answer: Answer) -> shapes.Accepted:
    """What a new or a remembered answer says of the run."""
    body = answer.body
    return body if isinstance(body, shapes.Accepted) else msgspec.json.decode(body, type=shapes.Accepted)


async def get(ask: Ask[None, None]) -> Answer:
    """Show one run."""
    async with ask.transaction() as connection:
        run = await runs.get(connection, ask.names["run_id"])
        limit = ask.parts.settings.tenant_runs_max
        waits_for = await held_back(connection, run.id, tenant_runs_max=limit) if run.status == "queued" else None
        more = await runs.more(connection, run.id) if run.tells_more else runs.More()
    whole = replace(seen(run), held_back=waits_for, taints=tainted(more.taints), children=more.children)
    body = msgspec.json.encode(whole)
    etag = hashlib.sha256(body).hexdigest()[:32]
    if {one.value for one in ask.http.if_none_match or ()} & {etag, "*"}:
        return Answer(status=304, headers={"ETag": f'"{etag}"'})
    return Answer(body=body, headers={"ETag": f'"{etag}"'})


async def page(ask: Ask[None, ListQuery]) -> Answer:
    """List runs."""
    asked = ask.query
    where = RunFilter(
        status=asked.status,
        agent=asked.agent,
        session_id=asked.session,
        user_id=asked.user or own(ask),
        schedule=asked.schedule,
    )
    async with ask.transaction() as connection:
        found = await runs.page(connection, where, after=asked.after, limit=asked.limit)
    rows = tuple(seen(run) for run in found.rows)
    return Answer(body=shapes.RunsPage(data=rows, has_more=found.next is not None, next=found.next))


async def cancel(ask: Ask[shapes.Reason, None]) -> Answer:
    """Ask for a run's end; it stops what is in flight, and ends within moments. One that was cancelled stays so."""
    run_id = ask.names["run_id"]

    async def work(connection: Connection) -> Answer:
        event = Cancelled(at=ask.parts.now(), by=ask.principal.user, reason=ask.body.reason)
        ended: Conflict | None = None
        try:
            await runs.post(connection, run_id, event)
        except Conflict as error:
            ended = error
        run = await runs.get(connection, run_id)
        if ended and run.status != "cancelled":
            raise ended
        return Answer(status=202, body=seen(run), rings=() if ended else mailed(run_id))

    return await once(ask, work)


async def say(ask: Ask[shapes.Say, None]) -> Answer:
    """Put a message into a run's inbox."""
    run_id, given = ask.names["run_id"], await screened_input(ask, ask.body.input)

    async def work(connection: Connection) -> Answer:
        message = await heard(ask, connection, ask.parts.new_id("msg"), given())
        event = Said(at=ask.parts.now(), message=message, interrupt=ask.body.interrupt, taints=ask.body.taints)
        await runs.post(connection, run_id, event)
        return Answer(status=202, body=shapes.Heard(accepted=True), rings=mailed(run_id))

    return await once(ask, work)


async def delete(ask: Ask[None, None]) -> Answer:
    """Delete a run."""

    async def work(connection: Connection) -> Answer:
        await deletion.run(connection, ask.names["run_id"])
        return Answer(status=204)

    return await once(ask, work)


async def transcript(ask: Ask[None, None]) -> Answer:
    """Show what was said."""
    async with ask.transaction() as connection:
        run = await runs.transcript(connection, ask.names["run_id"])
    return Answer(body=Transcript(data=run.root.messages))


async def traced(ask: Ask[None, None]) -> Answer:
    """Show where the time and the money went."""
    run_id = ask.names["run_id"]
    book, seq = trace.Book(), 0
    async with ask.transaction() as connection:
        run = await runs.get(connection, run_id)
        while page := await runs.events(connection, run_id, after=seq, bytes_max=PAGE_BYTES):
            for _, event in page:
                book.take(event)
            seq = page[-1][0]
    return Answer(body=trace.trace(run, book))


def mailed(run_id: str) -> tuple[tuple[str, str], ...]:
    """The doorbells to ring for a run that got mail."""
    return ((WORK_BELL, run_id), (INBOX_BELL, run_id))


def seen(run: RunRow) -> shapes.Run:
    """Show a run to a caller."""
    agent = shapes.RunAgent(name=run.agent.name, version=run.agent.version, digest=run.agent.digest)
    return shapes.Run(
        id=run.id,
        status=run.status,
        session_id=run.session_id,
        user_id=run.user_id,
        agent=agent,
        input=run.input,
        output=run.result,
        error=shapes.Trouble(code=run.error.code, detail=run.error.detail) if run.error else None,
        waits=tuple(waiting(run.id, one) for one in run.waits),
        steps=run.steps,
        usage=shapes.usage(run.usage),
        cost=shapes.cost(run.usd_micros, estimated=run.estimated_calls > 0),
        limits=limits_seen(run.limits),
        labels=run.labels,
        schedule=run.schedule,
        fire_at=run.fire_at,
        created_at=run.created_at,
        start_at=run.start_at,
        started_at=run.started_at,
        finished_at=run.finished_at,
        rev=run.seq,
    )


def tainted(known: Iterable[Origin]) -> tuple[shapes.TaintSeen, ...]:
    """Show a caller what a run has read."""
    return tuple(shapes.TaintSeen(taint=one.taint, source=one.source, tool=one.tool) for one in known)


def waiting(run_id: str, one: Wait) -> shapes.OpenWait:
    """Show an open question to a caller."""
    return shapes.OpenWait(
        id=one.id,
        approval=shapes.approval_id(run_id, one.id),
        kind=one.kind,
        title=one.title,
        path=one.frame,
        call=one.call,
        allowed=one.allowed,
        created_at=one.created_at,
        expires_at=one.expires_at,
    )


STARTS = (
    "agent.unknown", "agent.archived", "blob.unknown", "model.unknown", "model.no_key", "budget.no_price",
    "tool.unknown", "tool.schema", "session.busy", "session.closed", "limit.queue", "stop.in_force",
    "guardrail.refused", "budget.day_exhausted", "budget.price_unknown",
)  # fmt: skip
"""The refusals of whatever starts a run."""

ROUTES = (
    Route(
        method="POST",
        path="/v1/runs",
        handler=start,
        rate="runs",
        agent=lambda body, _: body.agent if isinstance(body.agent, str) else None,
        summary="Start a run",
        detail="The answer comes as soon as the run is written down; follow it by its events, or hold the answer with "
        "`wait`: then it is 200 and the run once that has ended or waits for somebody. With `start_at` or `delay_s` it "
        "is there at once and begins then; its session is taken meanwhile.",
        tag="runs",
        scope="runs:write",
        body=shapes.CreateRun,
        query=StartQuery,
        answers={
            202: (shapes.Accepted, "Accepted; Location names the run"),
            200: (shapes.Run, "The run, ended in time"),
        },
        refusals=STARTS,
        fills=True,
        creates=True,
        counted_meanwhile=True,
        example={"input": "Which year was the warmest?", "model": "openai:gpt-5-mini", "tools": ["shell"]},
    ),
    Route(
        method="GET",
        path="/v1/runs",
        handler=page,
        summary="List runs, newest first",
        tag="runs",
        scope="runs:read",
        query=ListQuery,
        answers={200: (shapes.RunsPage, "Runs")},
    ),
    Route(
        method="GET",
        path="/v1/runs/{run_id}",
        handler=get,
        summary="Get a run",
        detail="With If-None-Match and the ETag of the answer before, a run that has not changed answers 304.",
        tag="runs",
        scope="runs:read",
        answers={200: (shapes.Run, "The run"), 304: (None, "It has not changed")},
        refusals=("request.not_found",),
    ),
    Route(
        method="POST",
        path="/v1/runs/{run_id}/cancel",
        handler=cancel,
        rate="decisions",
        summary="Cancel a run",
        detail="Wherever it stands. A run whose last reply comes at the same moment may still complete; to cancel one "
        "that was cancelled changes nothing.",
        tag="runs",
        scope="runs:write",
        body=shapes.Reason,
        body_optional=True,
        answers={202: (shapes.Run, "The run as it is; it ends within moments")},
        refusals=("request.not_found", "run.ended"),
        creates=True,
        example={"reason": "no longer needed"},
    ),
    Route(
        method="DELETE",
        path="/v1/runs/{run_id}",
        handler=delete,
        summary="Delete a run",
        detail="With its events, messages, and the images and files that nothing else names. What it cost stays in the "
        "usage. It must have ended, and be the last one of its session: later runs read what earlier ones said.",
        tag="runs",
        scope="runs:write",
        audit=Audited(action="run.delete"),
        answers={204: (None, "It is gone")},
        refusals=("request.not_found", "run.unfinished", "run.continued"),
    ),
    Route(
        method="POST",
        path="/v1/runs/{run_id}/messages",
        handler=say,
        summary="Say something to a run that goes on",
        tag="runs",
        scope="runs:write",
        body=shapes.Say,
        answers={202: (shapes.Heard, "It is heard before the next model call")},
        refusals=("request.not_found", "run.ended", "blob.unknown", "guardrail.refused"),
        creates=True,
        example={"input": "Leave out the years before 1900."},
    ),
    Route(
        method="GET",
        path="/v1/runs/{run_id}/messages",
        handler=transcript,
        summary="Read a run's transcript",
        tag="runs",
        scope="runs:read",
        answers={200: (Transcript, "The messages")},
        refusals=("request.not_found",),
    ),
    Route(
        method="GET",
        path="/v1/runs/{run_id}/trace",
        handler=traced,
        summary="See where a run's time, tokens and money went",
        tag="runs",
        scope="runs:read",
        answers={200: (trace.Trace, "The spans, read off the journal")},
        refusals=("request.not_found",),
    ),
)
