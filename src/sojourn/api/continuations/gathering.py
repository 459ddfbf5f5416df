"""A run that stands still, with all that it needs elsewhere. Called by the handlers of exports and forks.

The rules: run and files are those of one moment, so they are read under the run's lock once no host holds the files;
and while they are waited for, nothing is held.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, NamedTuple

from msgspec.structs import replace

from sojourn.api.parts import WANTED_BELL
from sojourn.api.route import Ask
from sojourn.errors import BadSeal, Conflict, SandboxUnavailable, TooLarge
from sojourn.identity import seal
from sojourn.loop.agent import Agent
from sojourn.loop.continuation import FORMAT, Principal, frames
from sojourn.loop.moving import document
from sojourn.store import runs
from sojourn.store.db import Connection
from sojourn.store.rows import RunFilter, SourceRun
from sojourn.store.tenant import blobs, catalog, sessions

REST_S, REST_TRY_S = 45.0, 0.25
"""How long the files of a session may take from their host into the archive."""


class Gathered(NamedTuple):
    """A run, the agent versions that it is pinned to, and the archive of its session's files."""

    source: SourceRun
    agents: Mapping[str, Agent]
    workspace: str | None


async def rest(ask: Ask[Any, Any], run_id: str) -> None:
    """Have the session's files put away. Raises NotFound, Conflict while they are used, and SandboxUnavailable."""
    deadline = asyncio.get_running_loop().time() + REST_S
    while True:
        async with ask.transaction() as connection:
            run = await runs.get(connection, run_id)
            session = await sessions.get(connection, run.session_id)
            if session.host is None:
                return
            where = RunFilter(status="running", session_id=session.id)
            if busy := (await runs.page(connection, where, limit=1)).rows:
                raise _busy(run_id, busy[0].id)
            await sessions.want(connection, session.id)
        if asyncio.get_running_loop().time() > deadline:
            raise _in_use(session.host)
        ask.parts.doorbell.ring(WANTED_BELL, (session.id,))
        await asyncio.sleep(REST_TRY_S)


async def gather(connection: Connection, run_id: str, *, files: bool) -> Gathered:
    """Read a run, under its lock. Raises NotFound, Conflict, Unreadable, and SandboxUnavailable for its files."""
    source = await runs.source(connection, run_id)
    session = await sessions.still(connection, source.continuation.session_id)
    if files and session.host is not None:
        raise _in_use(session.host)
    agents = await catalog.closure(connection, {one.agent.digest for one in frames(source.continuation.root)})
    return Gathered(source, agents, session.workspace if files else None)


async def exported(ask: Ask[Any, Any], connection: Connection, gathered: Gathered) -> tuple[document.Export, bytes]:
    """The export, unsigned, and the secret half of the key to sign it with. Raises TooLarge and BadSeal."""
    continuation = gathered.source.continuation
    needed = document.referred(continuation, gathered.workspace)
    kept = await blobs.about(connection, list(needed))
    if missing := needed.keys() - kept.keys():
        raise BadSeal(f"Run {continuation.run_id} lacks the blob {min(missing)}.")
    _bounded(sum(blob.size_bytes for blob in kept.values()) * 4 // 3, ask.parts.settings.export_max_bytes)
    issuer, secret = await ask.parts.vault.signing_key(connection)
    export = document.Export(
        format=FORMAT,
        version=1,
        exported_at=ask.parts.now(),
        issuer=issuer,
        continuation=replace(continuation, principal=Principal(continuation.principal.user)),
        agents=dict(gathered.agents),
        workspace=gathered.workspace,
        blobs={name: document.blob_text(await blobs.get(connection, name)) for name in needed},
        sig="",
    )
    return export, secret


def signed(export: document.Export, secret: bytes, *, bytes_max: int) -> bytes:
    """The export as it is sent. Raises TooLarge."""
    data = document.sealed(export, lambda signed: seal.sign(secret, signed))
    _bounded(len(data), bytes_max)
    return data


def _bounded(size: int, bytes_max: int) -> None:
    if size > bytes_max:
        raise TooLarge(
            f"The export has {size} bytes, and the limit is {bytes_max}. Leave the files out (`files=false`), or have "
            "the setting export_max_bytes raised, here and where it is imported.",
            code="continuation.too_large",
        )


def _busy(run_id: str, other: str) -> Conflict:
    if other == run_id:
        return Conflict(
            f"Run {run_id} is being worked on. Put it on hold first, or wait until it stands still.", code="run.running"
        )
    return Conflict(
        f"Run {other} works with the session's files now. Wait for it, or leave them out with `files` false.",
        code="session.busy",
    )


def _in_use(host: str) -> SandboxUnavailable:
    return SandboxUnavailable(
        f"The session's files are still in a sandbox on {host}, and were not put away in time. See that a worker runs "
        "there and try again, or leave them out with `files` false.",
        code="sandbox.busy",
    )
