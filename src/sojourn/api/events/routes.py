"""GET /v1/runs/{run_id}/events: the run's events as a page of JSON, or as a stream that goes on."""

from typing import Annotated, Any

import msgspec
from aiohttp import web
from msgspec import Meta

from sojourn.api.events.kinds import DELTAS, Kind
from sojourn.api.events.public import project, quarantined
from sojourn.api.events.stream import Stream
from sojourn.api.route import Answer, Ask, Route
from sojourn.errors import Invalid
from sojourn.store import runs
from sojourn.store.tenant import catalog

PAGE_BYTES = 4 << 20


class EventsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    after: Annotated[
        int, Meta(ge=0, le=2**63 - 1, description="Begin after this seq; a stream obeys Last-Event-ID before it.")
    ] = 0
    limit: Annotated[int, Meta(ge=1, le=1000, description="How many journal rows a page covers at most.")] = 200


class EventsPage(msgspec.Struct, frozen=True, kw_only=True):
    """Events, the oldest first."""

    data: tuple[Kind, ...]
    has_more: bool
    next: int
    """Give this as `after` for the next page, now or when there is more."""


async def events(ask: Ask[None, EventsQuery]) -> Answer | web.StreamResponse:
    """Answer with a page, or with a stream where the caller accepts one."""
    run_id, streams = ask.names["run_id"], "text/event-stream" in ask.http.headers.get("Accept", "")
    after = _last_event_id(ask) if streams else ask.query.after
    async with ask.transaction() as connection:
        run = await runs.get(connection, run_id)
        agent = await catalog.spec(connection, run.agent.digest)
        page = {"after": after, "limit": ask.query.limit, "bytes_max": PAGE_BYTES}
        rows = [] if streams else await runs.events(connection, run_id, **page)
    if after > run.seq:
        raise Invalid(
            f"The run has {run.seq} events so far; a stream cannot begin after event {after}. Use what its `id` lines "
            "or `next` said, or 0.",
            code="stream.beyond_end",
        )
    if streams:
        with ask.live.hub.admit(ask.principal.tenant):
            return await Stream(ask, run, agent, after).run()
    last = rows[-1][0] if rows else after
    seen: tuple[Kind, ...] = tuple(one for seq, event in rows for one in project(run_id, agent, seq, event))
    if last >= run.seq and (dead := quarantined(run)):
        seen = (*seen, dead)
    return Answer(body=EventsPage(data=seen, has_more=last < run.seq, next=last))


def _last_event_id(ask: Ask[Any, EventsQuery]) -> int:
    """Where the client says that it stands; the header is newer than the URL, which stays as it was."""
    text = ask.http.headers.get("Last-Event-ID", "")
    if not text:
        return ask.query.after
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise Invalid("Last-Event-ID is not a number that this stream has given as an id.")
    return int(text)


ROUTES = (
    Route(
        method="GET",
        path="/v1/runs/{run_id}/events",
        handler=events,
        summary="Read or follow a run's events",
        detail=(
            "With `Accept: text/event-stream` it is a stream of server-sent events: first what happened after "
            "`Last-Event-ID` or `after`, then what happens, until the run has ended. `id:` is the run's seq. Deltas "
            f"({', '.join(DELTAS)}) come in between without an id and are never needed: the event that follows holds "
            "the whole. A comment comes every 15 s; the server ends a stream after some minutes, and the client comes "
            "back. Without that header it is a page of JSON."
        ),
        tag="runs",
        scope="runs:read",
        query=EventsQuery,
        answers={200: (EventsPage, "Events, or a stream of them")},
        refusals=("request.not_found", "stream.beyond_end", "limit.streams"),
        media=("application/json", "text/event-stream"),
    ),
)
