"""The sandbox behind a session's files. Called by the file handlers.

The rules: the session was seen with the caller's own rights before anything of it is opened; few are opened at once, so
that neither they nor the database connections that they wait with are used up; and every path is the port's to judge.
"""

from typing import Any

from sojourn.api.route import Ask
from sojourn.errors import Conflict, NotFound, SandboxUnavailable
from sojourn.sandboxes import placing
from sojourn.sandboxes.sandbox import Provider, Sandbox, Spec
from sojourn.store.rows import SessionRow
from sojourn.store.tenant import sessions


async def existing(ask: Ask[Any, Any]) -> Sandbox | None:
    """The session's sandbox; None where it never had a file. Raises NotFound and SandboxUnavailable."""
    row = await _row(ask)
    provider = _provider(ask)
    if row.host is None and row.workspace is None:
        return None
    living = await provider.attach(row.id) if row.host == ask.parts.host else None
    return living or await _open(ask, row)


async def writable(ask: Ask[Any, Any]) -> Sandbox:
    """The same, made now where there is none. Raises NotFound, Conflict and SandboxUnavailable."""
    row = await _row(ask)
    if row.closed_at is not None:
        raise Conflict("The session is closed; its files can be read and not changed.", code="session.closed")
    return await _open(ask, row)


def need(sandbox: Sandbox | None) -> Sandbox:
    """The sandbox. Raises NotFound where there is none, and so no file either."""
    if sandbox is None:
        raise NotFound("The session has no files yet.")
    return sandbox


async def _row(ask: Ask[Any, Any]) -> SessionRow:
    async with ask.transaction() as connection:
        return await sessions.get(connection, ask.names["session_id"])


async def _open(ask: Ask[Any, Any], row: SessionRow) -> Sandbox:
    """The session's sandbox on this host. Raises SandboxUnavailable where its files are on another one."""
    provider, spec = _provider(ask), Spec(limits=ask.parts.settings.sandbox_limits)
    async with ask.live.opening.entered():
        opened = await placing.open_here(ask.transaction, provider, session_id=row.id, host=ask.parts.host, spec=spec)
    return opened.sandbox


def _provider(ask: Ask[Any, Any]) -> Provider:
    if ask.parts.sandboxes is None:
        raise SandboxUnavailable("This server reaches no sandboxes; ask one that runs beside a worker.")
    return ask.parts.sandboxes
