"""The sandbox behind a session's files. Called by the file handlers.

The rule: the session was seen with the caller's own rights before anything of it is opened, and every path is the
sandbox port's to judge. A living sandbox is used as it is; one that was put away is brought back from its snapshot.
"""

from typing import Any

from sojourn.api.route import Ask
from sojourn.errors import Conflict, NotFound, SandboxUnavailable
from sojourn.sandboxes.sandbox import Provider, Sandbox, Snapshot, Spec
from sojourn.store.rows import SessionRow
from sojourn.store.tenant import blobs, sessions


async def existing(ask: Ask[Any, Any]) -> Sandbox | None:
    """The session's sandbox; None where it never had one. Raises NotFound and SandboxUnavailable."""
    return await _reach(ask, await _row(ask))


async def writable(ask: Ask[Any, Any]) -> Sandbox:
    """The same, made now where there is none. Raises NotFound, Conflict and SandboxUnavailable."""
    row = await _row(ask, touch=True)
    if row.closed_at is not None:
        raise Conflict("The session is closed; its files can be read and not changed.", code="session.closed")
    found = await _reach(ask, row)
    return found or await _provider(ask).create(row.id, _spec(ask))


async def _row(ask: Ask[Any, Any], *, touch: bool = False) -> SessionRow:
    async with ask.transaction() as connection:
        row = await sessions.get(connection, ask.names["session_id"])
        if touch:
            await sessions.touch(connection, row.id)
    return row


async def _reach(ask: Ask[Any, Any], row: SessionRow) -> Sandbox | None:
    provider = _provider(ask)
    living = await provider.attach(row.id)
    if living is not None or row.workspace is None:
        return living
    async with ask.transaction() as connection:
        data = await blobs.get(connection, row.workspace)
    snapshot = Snapshot(digest=row.workspace, data=data, files=0, size_bytes=len(data))
    return await provider.restore(row.id, snapshot, _spec(ask))


def _provider(ask: Ask[Any, Any]) -> Provider:
    provider = ask.parts.sandboxes
    if provider is None:
        raise SandboxUnavailable("This server reaches no sandboxes; ask one that runs beside a worker.")
    return provider


def _spec(ask: Ask[Any, Any]) -> Spec:
    return Spec(limits=ask.parts.settings.sandbox_limits)


def need(sandbox: Sandbox | None) -> Sandbox:
    """The sandbox. Raises NotFound where there is none, and so no file either."""
    if sandbox is None:
        raise NotFound("The session has no files yet.")
    return sandbox
