"""What a decision is judged by: the run as it will be once its mail is read, and what was decided before.

Called by the API in the transaction that posts the decision. The rule: the run's row stays locked until then, so of two
decisions that cross each other the second one sees the first.
"""

from typing import NamedTuple

import msgspec

from sojourn.errors import Conflict, NotFound, Unreadable
from sojourn.loop.agent import Agent
from sojourn.loop.continuation import Continuation
from sojourn.loop.events import Decided, decode
from sojourn.loop.machine import apply
from sojourn.store.db import Connection
from sojourn.store.runs.journal import for_us
from sojourn.store.runs.snapshots import thaw
from sojourn.store.tenant import catalog

LOCK = """
select snapshot, needs, finished_at is not null as finished from run
where tenant = (select scope_tenant()) and id = $1 for no key update
"""
MAIL = "select event from inbox where tenant = (select scope_tenant()) and run_id = $1 order by id"
# Answers may be long, and a run may have thousands: only the beginnings of the others are looked at.
DECIDED = """
select event from journal where tenant = (select scope_tenant()) and run_id = $1 and kind = 'decided'
    and position($2 in substr(event, 1, 1000)) > 0
order by seq
"""


class Asked(NamedTuple):
    """A run that somebody wants to decide on."""

    continuation: Continuation
    """Without bodies, and with the unread mail applied."""
    agents: dict[str, Agent]
    mail: tuple[Decided, ...]
    """The decisions that are on their way."""


async def asked(conn: Connection, run_id: str) -> Asked:
    """Lock a run and read what is open. Raises NotFound, TooNew, Unreadable, and Conflict with the code run.ended."""
    row = await conn.fetchrow(LOCK, run_id)
    if row is None:
        raise NotFound(f"There is no run {run_id}.")
    if row["finished"]:
        raise Conflict(f"Run {run_id} has ended.", code="run.ended")
    continuation = thaw(for_us(row))
    agents = await catalog.closure(conn, [continuation.root.agent.digest])
    try:
        events = [decode(mail["event"]) for mail in await conn.fetch(MAIL, run_id)]
    except msgspec.DecodeError:
        raise Unreadable(f"Run {run_id} has mail that cannot be read.") from None
    for event in events:
        continuation = apply(agents, continuation, event)
    return Asked(continuation, agents, tuple(event for event in events if isinstance(event, Decided)))


async def decided(conn: Connection, run_id: str, wait: str) -> tuple[Decided, ...]:
    """Read what was decided on the waits whose id begins so, in order; what is still on its way is not among it."""
    begins = b'"wait":' + msgspec.json.encode(wait)[:-1]
    found = [decode(row["event"]) for row in await conn.fetch(DECIDED, run_id, begins)]
    return tuple(event for event in found if isinstance(event, Decided) and event.wait.startswith(wait))
