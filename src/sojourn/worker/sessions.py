"""A session's sandbox as a worker uses it: opened when a tool first asks, put away when nobody uses it.

`perform.py` opens, the tidy loop of `worker.py` puts away. The rule: each acts in the scope of a run or session that
this worker may act for, lent by the database.
"""

import logging

from sojourn.errors import SojournError
from sojourn.loop.events import Noted
from sojourn.sandboxes import placing
from sojourn.sandboxes.sandbox import Sandbox
from sojourn.store import queue
from sojourn.store.tenant import sessions
from sojourn.worker.parts import Parts, Place

log = logging.getLogger("sojourn.worker")


async def sandbox_of(parts: Parts, place: Place) -> Sandbox:
    """The session's sandbox, with its files. Raises SandboxUnavailable, LeaseLost."""
    async with place.opening:
        if not place.opened:
            await _open(parts, place)
            place.opened.append(parts.host)
        return await parts.sandboxes.create(place.session_id, parts.sandbox_spec)


async def _open(parts: Parts, place: Place) -> None:
    """Bring the session here, and tell the run's journal if its sandbox was not alive."""
    async with parts.opening, queue.lent(parts.database, parts.worker_id, place.claimed) as conn:
        _, came = await placing.open_here(
            conn, parts.sandboxes, session_id=place.session_id, host=parts.host, spec=parts.sandbox_spec
        )
    if came is not None:
        found = await parts.sandboxes.probe()
        data = {"backend": found.provider, "isolation": found.isolation.name.lower(), "host": parts.host}
        kind = "sandbox.opened" if came == "opened" else "sandbox.restored"
        place.note(Noted(at=parts.now(), kind=kind, data=data))


async def put_away_idle(parts: Parts) -> None:
    """Store the files of every idle session of this host, and end its processes."""
    older_than_s = parts.settings.sandbox_idle_s
    for session in await sessions.idle(parts.database, host=parts.host, older_than_s=older_than_s):
        try:
            async with queue.lent_session(parts.database, parts.worker_id, session.tenant, session.id) as conn:
                stored_bytes = await placing.put_away(conn, parts.sandboxes, session)
            if stored_bytes is not None:
                log.info("sandbox.put_away", extra={"session": session.id, "bytes": stored_bytes})
        except SojournError as error:
            log.warning("sandbox.kept", extra={"session": session.id, "code": error.code})
