"""The sandbox behind a session's files. Called by the file handlers.

The rule: the session was seen with the caller's own rights before anything of it is opened, its row is locked while its
files are brought here, so that two who want them do not undo each other, and every path is the port's to judge.
"""

from typing import Any

from sojourn.api.route import Ask
from sojourn.errors import Conflict, NotFound, SandboxUnavailable
from sojourn.sandboxes import placing
from sojourn.sandboxes.sandbox import Provider, Sandbox, Spec
from sojourn.store.db import Connection
from sojourn.store.rows import SessionRow
from sojourn.store.tenant import sessions


async def existing(ask: Ask[Any, Any]) -> Sandbox | None:
    """The session's sandbox; None where it never had a file. Raises NotFound and SandboxUnavailable."""
    async with ask.transaction() as connection:
        row = await sessions.get(connection, ask.names["session_id"])
        provider = _provider(ask)
        if row.host is None and row.workspace is None:
            return None
        living = await provider.attach(row.id) if row.host == ask.parts.host else None
        return living or await _open(ask, connection, row)


async def writable(ask: Ask[Any, Any]) -> Sandbox:
    """The same, made now where there is none. Raises NotFound, Conflict and SandboxUnavailable."""
    async with ask.transaction() as connection:
        row = await sessions.get(connection, ask.names["session_id"])
        if row.closed_at is not None:
            raise Conflict("The session is closed; its files can be read and not changed.", code="session.closed")
        return await _open(ask, connection, row)


def need(sandbox: Sandbox | None) -> Sandbox:
    """The sandbox. Raises NotFound where there is none, and so no file either."""
    if sandbox is None:
        raise NotFound("The session has no files yet.")
    return sandbox


async def _open(ask: Ask[Any, Any], connection: Connection, row: SessionRow) -> Sandbox:
    """The session's sandbox on this host. Raises SandboxUnavailable where its files are on another one."""
    spec = Spec(limits=ask.parts.settings.sandbox_limits)
    sandbox, _ = await placing.open_here(connection, _provider(ask), session_id=row.id, host=ask.parts.host, spec=spec)
    return sandbox


def _provider(ask: Ask[Any, Any]) -> Provider:
    if ask.parts.sandboxes is None:
        raise SandboxUnavailable("This server reaches no sandboxes; ask one that runs beside a worker.")
    return ask.parts.sandboxes
