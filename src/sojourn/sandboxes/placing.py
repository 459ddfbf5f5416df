"""Where a session's files are: on the host that its row names, else in the archive that the row names.

The worker opens sandboxes for tools with it, puts them away and clears up; the API opens them for a caller's files.

    read the row -> do the work, without a connection -> write the row, where it still says the same

The rules: of one host, one task moves a session's files at a time; what it brought here counts once the row says so,
and is used by nobody before; and no host gives up files before their archive is committed.
"""

import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Literal, NamedTuple

import msgspec
from msgspec.structs import replace

from sojourn.errors import SandboxUnavailable, TooLarge
from sojourn.sandboxes.sandbox import Provider, Sandbox, Snapshot, Spec
from sojourn.store.db import Connection, Database
from sojourn.store.rows import IdleSession, SessionRow
from sojourn.store.tenant import blobs, sessions

log = logging.getLogger("sojourn.sandboxes")

ARCHIVE_BYTES_MAX = 256 << 20
"""The files of a larger workspace stay on their host."""
RESTORED = "SOJOURN_RESTORED"
"""A variable of sandboxes that are not their session's first: processes of the earlier ones are gone."""

Came = Literal["opened", "restored"]
Lend = Callable[[], AbstractAsyncContextManager[Connection]]
"""Lends a transaction in the session's scope."""


class Opened(NamedTuple):
    """A sandbox with the session's newest files; how it came, None where it was alive; and when its use began."""

    sandbox: Sandbox
    came: Came | None
    used_at: datetime


class Elsewhere(SandboxUnavailable):
    """The session's files are on another host."""

    def __init__(self, host: str) -> None:
        super().__init__(f"The session's files are on the host {host}.")
        self.host = host


async def open_here(lend: Lend, provider: Provider, *, session_id: str, host: str, spec: Spec) -> Opened:
    """Open a session's sandbox on this host with its newest files. Raises NotFound, Elsewhere, SandboxUnavailable."""
    async with provider.alone(session_id):
        async with lend() as conn:
            row = await sessions.lock(conn, session_id)
            if row.host not in (None, host):
                raise Elsewhere(str(row.host))
            used_at = await sessions.touch(conn, session_id)
            archive = await _archive(conn, row)
        first = row.backend is None and row.workspace is None
        spec = spec if first else again(spec)
        if archive is not None:
            sandbox = await provider.restore(session_id, archive, spec)
        else:
            sandbox = await provider.create(session_id, spec, first=first)
        if not sandbox.created and row.host is not None:
            return Opened(sandbox, None, used_at)
        await _arrive(lend, provider, row, host)
    return Opened(sandbox, "opened" if first else "restored", used_at)


def again(spec: Spec) -> Spec:
    """The same for a sandbox that is not its session's first."""
    return replace(spec, env={**spec.env, RESTORED: "1"})


async def _archive(conn: Connection, row: SessionRow) -> Snapshot | None:
    """The files that no host has, and what was ever begun on them."""
    if row.host is not None or row.workspace is None:
        return None
    data = await blobs.get(conn, row.workspace)
    return Snapshot(digest=row.workspace, data=data, begun=await sessions.begun(conn, row.id))


async def _arrive(lend: Lend, provider: Provider, seen: SessionRow, host: str) -> None:
    """Say that the files are here now. Raises Elsewhere where another host was faster, whose files are newer."""
    found = await provider.probe()
    async with lend() as conn:
        row = await sessions.lock(conn, seen.id)
        if (row.host, row.workspace) == (seen.host, seen.workspace):
            enforced = msgspec.json.encode(found.enforced)
            return await sessions.place(conn, seen.id, host=host, backend=found.provider, enforced=enforced)
    await provider.discard(seen.id)
    raise Elsewhere(row.host or "that had them last")


async def put_away(lend: Lend, provider: Provider, *, session: IdleSession, host: str, spec: Spec) -> int | None:
    """End a session's processes and store its files, for any host to go on; the bytes stored.

    None where it was used meanwhile, is not on this host, or its files are lost. What lies here afterwards is for
    `clear`. Raises TooLarge, and the files then stay here.
    """
    session_id = session.id
    async with provider.alone(session_id):
        async with lend() as conn:
            row = await sessions.get(conn, session_id)
        if (row.host, row.used_at) != (host, session.used_at):
            return None
        packed = await _pack(provider, session_id, spec)
        try:
            async with lend() as conn:
                if packed is None:
                    await sessions.save_workspace(conn, session_id, digest=None)
                    return None
                digest = await blobs.put(conn, packed.data, bytes_max=ARCHIVE_BYTES_MAX)
                await sessions.save_workspace(conn, session_id, digest=digest, begun=packed.begun)
        except TooLarge:
            async with lend() as conn:
                await sessions.touch(conn, session_id)  # so that it comes last the next time
            raise
    return len(packed.data)


async def _pack(provider: Provider, session_id: str, spec: Spec) -> Snapshot | None:
    """End the session's processes; its files as an archive. None where it has none here: an older archive is better."""
    sandbox = await provider.attach(session_id)
    if sandbox is None and session_id not in await provider.sessions():
        log.error("sandbox.files_lost", extra={"session": session_id})
        return None
    return await (sandbox or await provider.create(session_id, again(spec))).suspend()


async def clear(db: Database, provider: Provider, session_id: str, *, host: str) -> bool:
    """Remove what this host has of a session, unless it may be the newest; whether it was removed."""
    async with provider.alone(session_id):
        if await sessions.kept(db, host=host, ids=(session_id,)):
            return False
        await provider.discard(session_id)
    return True
