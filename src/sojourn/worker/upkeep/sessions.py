"""A session's sandbox as a worker uses it: opened when a tool first asks, put away when nobody uses it.

`perform.py` opens; `worker.py` puts away what a suspended run leaves, and tidies up. The rule: each acts in the scope
of a run or session that this worker may act for, lent by the database, and holds no connection while files are moved.
"""

import asyncio
import logging
from functools import partial

from sojourn.errors import LeaseLost, SandboxUnavailable, SojournError
from sojourn.loop.events import Noted
from sojourn.sandboxes import placing
from sojourn.sandboxes.sandbox import Sandbox
from sojourn.store import queue
from sojourn.store.rows import IdleSession
from sojourn.store.tenant import sessions
from sojourn.worker.parts import Parts, Place

log = logging.getLogger("sojourn.worker")

WANTED = "sojourn_wanted"
"""The doorbell for sessions whose files another host asks for."""
AWAY_S, AWAY_TRY_S = 60.0, 0.25
"""How long a call waits for files that a living host has."""


async def sandbox_of(parts: Parts, place: Place) -> Sandbox:
    """The session's sandbox, with its files. Raises SandboxUnavailable, LeaseLost."""
    async with place.opening:
        if not (place.opened and await place.opened[0].sandbox.alive()):
            opened = await _open(parts, place)
            place.opened[:] = [opened]
            if opened.came is not None:
                await _tell(parts, place, opened.came)
        return place.opened[0].sandbox


async def _open(parts: Parts, place: Place) -> placing.Opened:
    """Bring the session here, if need be from another host, which is asked to put it away and may take its time."""
    lend = partial(queue.lent, parts.database, parts.worker_id, place.claimed)
    where = {"session_id": place.session_id, "host": parts.host, "spec": parts.sandbox_spec}
    deadline = asyncio.get_running_loop().time() + AWAY_S
    while True:
        try:
            async with parts.moving:
                return await placing.open_here(lend, parts.sandboxes, **where)
        except placing.Elsewhere as error:
            if not await queue.lives(parts.database, error.host):
                raise SandboxUnavailable(f"{error} No worker has run there for ten minutes; start one.") from None
            if asyncio.get_running_loop().time() > deadline:
                raise
        async with lend() as conn:
            await sessions.want(conn, place.session_id)
        parts.doorbell.ring(WANTED, [place.session_id])
        await asyncio.sleep(AWAY_TRY_S)


async def _tell(parts: Parts, place: Place, came: placing.Came) -> None:
    """Tell the run's journal of a sandbox that was not alive."""
    found = await parts.sandboxes.probe()
    data = {"backend": found.provider, "isolation": found.isolation.name.lower(), "host": parts.host}
    kind = "sandbox.opened" if came == "opened" else "sandbox.restored"
    place.note(Noted(at=parts.now(), kind=kind, data=data))


async def put_away(parts: Parts, session: IdleSession) -> None:
    """Store the files of a session of this host and end its processes, unless somebody uses it; never raises."""
    lend = partial(queue.lent_session, parts.database, parts.worker_id, session.tenant, session.id)
    try:
        async with parts.moving:
            stored_bytes = await placing.put_away(
                lend, parts.sandboxes, session=session, host=parts.host, spec=parts.sandbox_spec
            )
        if stored_bytes is not None:
            log.info("sandbox.put_away", extra={"session": session.id, "bytes": stored_bytes})
    except LeaseLost:
        log.debug("sandbox.used_again", extra={"session": session.id})
    except SojournError as error:
        log.warning("sandbox.kept", extra={"session": session.id, "code": error.code})
    except Exception:
        log.exception("sandbox.bug", extra={"session": session.id})


async def put_away_idle(parts: Parts) -> None:
    """Put away every session of this host that is idle, over or wanted elsewhere."""
    older_than_s = parts.settings.sandbox_idle_s
    for session in await sessions.idle(parts.database, host=parts.host, older_than_s=older_than_s):
        await put_away(parts, session)


async def clear(parts: Parts, before: frozenset[str]) -> frozenset[str]:
    """Remove files that lay here `before` already and belong to no session of this host; name those to remove next.

    The time between is for readers that were at it when the files were put away.
    """
    there = await parts.sandboxes.sessions()
    left = frozenset(there) - await sessions.kept(parts.database, host=parts.host, ids=there)
    for session_id in left & before:
        try:
            if await placing.clear(parts.database, parts.sandboxes, session_id, host=parts.host):
                log.info("sandbox.cleared", extra={"session": session_id})
        except SandboxUnavailable as error:
            log.warning("sandbox.not_cleared", extra={"session": session_id, "detail": str(error)})
    return left - before
