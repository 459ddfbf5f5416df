"""Dead letters: runs in quarantine, that no worker could go on with. Seen here, and put back where they stood.

The rule: a dead letter is a run like others, which has not ended: it can be read, exported, retried or cancelled.
"""

from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from sojourn.api.http.once import once
from sojourn.api.http.pages import Page
from sojourn.api.parts import RUN_BELL, WORK_BELL
from sojourn.api.route import Answer, Ask, Audited, Route
from sojourn.api.runs.routes import seen
from sojourn.api.runs.shapes import Run
from sojourn.store import runs
from sojourn.store.db import Connection
from sojourn.store.rows import RunFilter, RunRow


class LettersQuery(Page, frozen=True, forbid_unknown_fields=True, kw_only=True):
    agent: Annotated[str, Meta(max_length=64, description="Only runs of this agent.")] | None = None
    session: Annotated[str, Meta(max_length=64, description="Only runs of this session.")] | None = None
    user: Annotated[str, Meta(max_length=200, description="Only runs of this user.")] | None = None


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A run that no worker could go on with; `error` of the run says why."""

    run: Run
    quarantined_at: datetime | None
    claims: int | None
    """How often it was claimed in a row without coming any further."""
    workers: tuple[str, ...]
    """Who had it and died, or gave it back; the oldest first."""
    events: str
    """Where its journal is read."""


class LettersPage(msgspec.Struct, frozen=True, kw_only=True):
    """Dead letters, the newest run first."""

    data: tuple[DeadLetter, ...]
    has_more: bool
    next: str | None


async def page(ask: Ask[None, LettersQuery]) -> Answer:
    """List dead letters."""
    asked = ask.query
    where = RunFilter(status="quarantined", agent=asked.agent, session_id=asked.session, user_id=asked.user)
    async with ask.transaction() as connection:
        found = await runs.page(connection, where, after=asked.after, limit=asked.limit)
    rows = tuple(map(_letter, found.rows))
    return Answer(body=LettersPage(data=rows, has_more=found.next is not None, next=found.next))


def _letter(row: RunRow) -> DeadLetter:
    assert row.dead_letter is not None
    return DeadLetter(
        run=seen(row),
        quarantined_at=row.dead_letter.at,
        claims=row.dead_letter.claims,
        workers=row.dead_letter.workers,
        events=f"/v1/runs/{row.id}/events",
    )


async def retry(ask: Ask[None, None]) -> Answer:
    """Put a dead letter back into the queue."""
    run_id = ask.names["run_id"]

    async def work(connection: Connection) -> Answer:
        await runs.retry(connection, run_id)
        row = await runs.get(connection, run_id)
        return Answer(status=202, body=seen(row), rings=((WORK_BELL, run_id), (RUN_BELL, run_id)))

    return await once(ask, work)


ROUTES = (
    Route(
        method="GET",
        path="/v1/dead_letters",
        handler=page,
        summary="List the runs that no worker could go on with",
        detail="One worker after the other died of it or gave it up, or none could read it. The run is `quarantined`: "
        "it has not ended, nothing of it is lost, and nobody takes it up. Retry it once the cause is mended, or cancel "
        "it.",
        tag="runs",
        scope="admin:runs",
        query=LettersQuery,
        answers={200: (LettersPage, "Dead letters")},
    ),
    Route(
        method="POST",
        path="/v1/runs/{run_id}/retry",
        handler=retry,
        rate="runs",
        summary="Put a dead letter back into the queue",
        detail="It goes on where it stood.",
        tag="runs",
        scope="admin:runs",
        audit=Audited(action="run.retry"),
        answers={202: (Run, "It is queued again")},
        refusals=("request.not_found", "run.not_quarantined"),
        creates=True,
    ),
)
