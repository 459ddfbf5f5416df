"""The handlers of exports, imports and forks.

The rule: a run that moves is never changed by it; what is made is a new run of the caller.
"""

import asyncio
import dataclasses
from typing import Annotated, Literal

import msgspec
from aiohttp import web
from msgspec import Meta

from sojourn.api.audit import acts
from sojourn.api.continuations import gathering, landing
from sojourn.api.continuations.issuers import VAULT
from sojourn.api.guardrails.screen import screened_input
from sojourn.api.http import transfer
from sojourn.api.http.codes import WrongMedia
from sojourn.api.http.once import once
from sojourn.api.route import Answer, Ask, Audited, Route
from sojourn.api.runs.hear import heard
from sojourn.api.runs.shapes import Accepted, Input
from sojourn.identity import scopes
from sojourn.loop.moving.adoption import forked
from sojourn.loop.moving.document import Export
from sojourn.store.db import Connection
from sojourn.store.tenant.blobs import digest_of

NEEDED = ("sessions:read", "agents:read")
"""An export holds the session's files and the agents' prompts, too."""


class ExportQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    files: Annotated[bool, Meta(description="With the session's files.")] = True


class Fork(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where a branch begins, and what is different in it."""

    step: Annotated[int, Meta(ge=0)] | None = None
    """Before the root's reply of this step, counted from 0 as in the events; where the run stands, if not given."""
    input: Input | None = None
    """What the user says then."""
    session: Literal["new", "same"] = "new"
    """The same session takes the branch only once the run has ended."""
    files: bool = True
    """A new session begins with the files that the old one has now, whatever the step."""


async def export(ask: Ask[None, ExportQuery]) -> web.StreamResponse:
    """Sign a run and all that it needs."""
    for scope in NEEDED:
        scopes.require(ask.principal.scopes, scope)
    run_id, files = ask.names["run_id"], ask.query.files
    if files:
        await gathering.rest(ask, run_id)
    bytes_max = ask.parts.settings.export_max_bytes
    async with ask.live.moving.entered():
        async with ask.transaction() as connection:
            gathered = await gathering.gather(connection, run_id, files=files)
            unsigned, secret = await gathering.exported(ask, connection, gathered)
            await acts.note(ask, connection, Answer())
        data = await asyncio.to_thread(gathering.signed, unsigned, secret, bytes_max=bytes_max)
        headers = {
            "Content-Type": "application/json",
            "ETag": f'"{gathered.source.continuation.rev}"',
            "Content-Disposition": transfer.attachment(f"{run_id}.json"),
        }
        del gathered, unsigned
        return await transfer.held(ask, data, headers=headers)


async def import_(ask: Ask[None, None]) -> Answer:
    """Go on with an exported run here."""
    if ask.http.content_type != "application/json":
        raise WrongMedia("Send the export as JSON, with the header Content-Type: application/json.")
    limit_bytes = ask.parts.settings.export_max_bytes
    async with ask.live.moving.entered():
        data = bytes(await transfer.received(ask, limit_bytes=limit_bytes, within_s=transfer.HELD_S))
        whole = await landing.verified(ask, data)

        async def work(connection: Connection) -> Answer:
            return await landing.import_(ask, connection, whole)

        return await once(dataclasses.replace(ask, raw=data), work)


async def fork(ask: Ask[Fork, None]) -> Answer:
    """Go on in a branch."""
    run_id, wanted = ask.names["run_id"], ask.body
    fresh = wanted.session == "new"
    if fresh and wanted.files:
        await gathering.rest(ask, run_id)
    given = await screened_input(ask, wanted.input or "")

    async def work(connection: Connection) -> Answer:
        gathered = await gathering.gather(connection, run_id, files=fresh and wanted.files)
        source = gathered.source.continuation
        home = landing.home(ask, ask.parts.new_id("ses") if fresh else source.session_id)
        message = None
        if wanted.input is not None:
            message = await heard(ask, connection, home.run_id, given())
        adoption = forked(gathered.agents, source, home, step=wanted.step, message=message)
        if fresh:
            await landing.begin_session(connection, home.session_id, gathered.workspace)
        return await landing.land(ask, connection, adoption, gathered)

    return await once(ask, work)


def _exported(ask: Ask[None, ExportQuery], answer: Answer) -> dict[str, str]:
    return {"files": str(ask.query.files).lower()}


def _imported(ask: Ask[None, None], answer: Answer) -> dict[str, str]:
    return {"export": digest_of(ask.raw)}


def _forked(ask: Ask[Fork, None], answer: Answer) -> dict[str, str]:
    return {"source": ask.names["run_id"]}


UNREADABLE = ("continuation.unreadable", "continuation.unknown_format", "continuation.bad_seal")
LANDS = (
    "model.no_key", "budget.no_price", "tool.unknown", "tool.changed", "session.busy", "limit.queue", "stop.in_force",
    "budget.day_exhausted",
)  # fmt: skip

ROUTES = (
    Route(
        method="GET",
        path="/v1/runs/{run_id}/continuation",
        handler=export,
        summary="Export a run",
        detail="Everything that the run needs to go on elsewhere, in one JSON object that is signed; "
        "docs/continuation-v1.schema.json describes it, and POST /v1/runs/import takes it. The run must stand still; "
        "its session's sandbox is put away first. Then it goes on as if nothing had happened: put it on hold if it is "
        "to go on there alone. Needs `sessions:read` and `agents:read` beside its scope.",
        tag="continuations",
        scope="runs:read",
        query=ExportQuery,
        audit=Audited(action="run.export", detail=_exported),
        answers={200: (Export, "The run; the ETag is its rev")},
        refusals=(
            "run.running",
            "session.busy",
            "continuation.too_large",
            "sandbox.busy",
            "auth.forbidden",
            *VAULT,
            *UNREADABLE,
        ),
    ),
    Route(
        method="POST",
        path="/v1/runs/import",
        handler=import_,
        rate="runs",
        summary="Import a run",
        detail="The body is an export, of up to `export_max_bytes`. It becomes a new run of yours, in a new session "
        "with its files. Its open questions keep their ids; what a person allowed there and has no result yet is asked "
        "again here, and no grant comes along. It must be signed by you or by a key that you trust, be newer than what "
        "was imported of that run before, and not have begun here: fork that.",
        tag="continuations",
        scope="runs:write",
        upload=True,
        fills=True,
        audit=Audited(action="run.import", subject=acts.made("run_id"), detail=_imported),
        answers={202: (Accepted, "The new run; Location names it")},
        refusals=(
            "request.media_type",
            *UNREADABLE,
            "continuation.too_deep",
            "continuation.duplicate_name",
            "continuation.unknown_issuer",
            "continuation.revoked_issuer",
            "continuation.missing_pin",
            "continuation.bad_blob",
            "import.replayed",
            "import.stale",
            "import.original_here",
            "limit.blobs",
            *LANDS,
        ),
        creates=True,
    ),
    Route(
        method="POST",
        path="/v1/runs/{run_id}/fork",
        handler=fork,
        rate="runs",
        summary="Go on with a run in a branch, or try again from a step",
        detail="A new run with the words of the old one, which is left as it is. Without `step` it stands where the "
        "old one stands; with a step it begins before that step's reply, with nothing open and nothing spent.",
        tag="continuations",
        scope="runs:write",
        body=Fork,
        body_optional=True,
        fills=True,
        audit=Audited(action="run.fork", subject=acts.made("run_id"), detail=_forked),
        answers={202: (Accepted, "The new run; Location names it")},
        refusals=(
            "request.not_found",
            "run.running",
            "fork.ended",
            "fork.no_such_step",
            "session.closed",
            "blob.unknown",
            "sandbox.busy",
            *UNREADABLE,
            *LANDS,
        ),
        creates=True,
        example={"step": 3, "input": "Try the other file."},
    ),
)
