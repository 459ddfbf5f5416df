"""A session's sandbox over its life: opened when a tool first asks, put away when nobody has used it for a while.

`perform.py` opens, the janitor loop of `worker.py` puts away. The rule: a session has its newest files wherever it goes
on. They are on the host that it was placed on; on another one they come out of the archive that was stored there last.
"""

import logging

import msgspec

from sojourn.errors import LeaseLost, SojournError
from sojourn.loop.events import Noted, NotedKind
from sojourn.sandboxes.sandbox import Sandbox, Snapshot
from sojourn.store import queue
from sojourn.store.db import Connection
from sojourn.store.rows import IdleSession
from sojourn.store.tenant import blobs, sessions
from sojourn.worker.parts import Parts, Place

log = logging.getLogger("sojourn.worker")

ARCHIVE_BYTES_MAX = 256 << 20
"""The files of a larger workspace stay on their host alone."""


async def sandbox_of(parts: Parts, place: Place) -> Sandbox:
    """The session's sandbox, with its files. Raises SandboxUnavailable, LeaseLost."""
    async with place.opening:
        if not place.opened:
            async with queue.lent(parts.database, parts.worker_id, place.claimed) as conn:
                await _open(parts, place, conn)
            place.opened.append(parts.host)
        return await parts.sandboxes.create(place.session_id, parts.sandbox_spec)


async def _open(parts: Parts, place: Place, conn: Connection) -> None:
    """Bring the files here if they are elsewhere, and write down that they are here now."""
    session = await sessions.get(conn, place.session_id)
    here = session.host == parts.host and parts.sandboxes.files(place.session_id) is not None
    if session.workspace is not None and not here:
        archive = Snapshot(digest=session.workspace, data=await blobs.get(conn, session.workspace))
        sandbox = await parts.sandboxes.restore(place.session_id, archive, parts.sandbox_spec)
    else:
        sandbox = await parts.sandboxes.create(place.session_id, parts.sandbox_spec)
    if sandbox.created or session.host != parts.host:
        kind: NotedKind = "sandbox.opened" if session.host is None else "sandbox.restored"
        found = await parts.sandboxes.probe()
        enforced = msgspec.json.encode(found.enforced)
        await sessions.place(conn, place.session_id, host=parts.host, backend=found.provider, enforced=enforced)
        data = {"backend": found.provider, "isolation": found.isolation.name.lower(), "host": parts.host}
        place.note(Noted(at=parts.now(), kind=kind, data=data))


async def put_away_idle(parts: Parts) -> None:
    """Store the files of every idle session of this host, and end its processes."""
    older_than_s = parts.settings.sandbox_idle_s
    for session in await sessions.idle(parts.database, host=parts.host, older_than_s=older_than_s):
        try:
            await _put_away(parts, session)
        except (SojournError, LeaseLost) as error:
            log.warning("sandbox.kept", extra={"session": session.id, "code": error.code})


async def _put_away(parts: Parts, session: IdleSession) -> None:
    sandbox = await parts.sandboxes.attach(session.id)
    if sandbox is None:
        return
    async with queue.lent_session(parts.database, parts.worker_id, session.tenant, session.id) as conn:
        archive = await sandbox.suspend()
        digest = await blobs.put(conn, archive.data, bytes_max=ARCHIVE_BYTES_MAX)
        await sessions.save_workspace(conn, session.id, digest=digest)
    log.info("sandbox.put_away", extra={"session": session.id, "bytes": len(archive.data)})
