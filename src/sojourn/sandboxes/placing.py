"""Where a session's files are: on the host that its row names, else in the archive that the row names.

The worker opens sandboxes for tools with it and puts idle ones away; the API opens them for a caller's files. The
rules: both look while they hold the row's lock, and no host gives up files before their archive is committed.
"""

from typing import Literal

import msgspec

from sojourn.errors import SandboxUnavailable
from sojourn.sandboxes.sandbox import Provider, Sandbox, Snapshot, Spec
from sojourn.store.db import Connection
from sojourn.store.rows import IdleSession
from sojourn.store.tenant import blobs, sessions

ARCHIVE_BYTES_MAX = 256 << 20
"""The files of a larger workspace stay on their host."""

Came = Literal["opened", "restored"]


async def open_here(
    conn: Connection, provider: Provider, *, session_id: str, host: str, spec: Spec
) -> tuple[Sandbox, Came | None]:
    """Open a session's sandbox on this host with its newest files; how it came, None where it was alive.

    `conn` is in a transaction of the session's scope. Raises NotFound, and SandboxUnavailable where the files are on
    another host.
    """
    await sessions.touch(conn, session_id)
    row = await sessions.get(conn, session_id)
    if row.host not in (None, host):
        raise SandboxUnavailable(f"The session's files are on the host {row.host}.")
    if row.host is None and row.workspace is not None:
        archive = Snapshot(digest=row.workspace, data=await blobs.get(conn, row.workspace))
        sandbox = await provider.restore(session_id, archive, spec)
    else:
        sandbox = await provider.create(session_id, spec)
    if not sandbox.created and row.host is not None:
        return sandbox, None
    found = await provider.probe()
    enforced = msgspec.json.encode(found.enforced)
    await sessions.place(conn, session_id, host=host, backend=found.provider, enforced=enforced)
    return sandbox, "opened" if row.host is None and row.workspace is None else "restored"


async def put_away(conn: Connection, provider: Provider, session: IdleSession) -> int | None:
    """End an idle session's processes and store its files, for any host to go on; the bytes stored.

    None where there is no sandbox here, or where it was used meanwhile. Raises TooLarge, and the files then stay here.
    """
    session_id = session.id
    if (await sessions.lock(conn, session_id)).used_at != session.used_at:
        return None
    sandbox = await provider.attach(session_id)
    if sandbox is None:
        return None
    archive = await sandbox.suspend()
    digest = await blobs.put(conn, archive.data, bytes_max=ARCHIVE_BYTES_MAX)
    await sessions.save_workspace(conn, session_id, digest=digest)
    return len(archive.data)
