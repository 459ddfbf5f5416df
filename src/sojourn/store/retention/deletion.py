"""Deletes a run or a session at once, before its time, through a scoped connection. Called by the API.

The rule: it goes for everybody in one moment. What is left of a long one follows piece by piece, by `expiry`.
"""

from sojourn.errors import Conflict, NotFound
from sojourn.store.db import Connection


async def run(conn: Connection, run_id: str) -> None:
    """Delete a finished run and all that it said; the ledger keeps what it cost.

    Raises NotFound, and Conflict where it goes on, or where a later run of its session reads it.
    """
    match await conn.fetchval("select delete_run($1)", run_id):
        case None:
            raise NotFound(f"There is no run {run_id}.")
        case "unfinished":
            raise Conflict(f"Run {run_id} has not ended; cancel it first.", code="run.unfinished")
        case "continued":
            raise Conflict(
                f"A later run of its session goes on from run {run_id}. Delete that one first, or the session.",
                code="run.continued",
            )


async def session(conn: Connection, session_id: str) -> None:
    """Delete a closed session with its runs and its files. Raises NotFound, and Conflict where it is not closed."""
    match await conn.fetchval("select delete_session($1)", session_id):
        case None:
            raise NotFound(f"There is no session {session_id}.")
        case "open":
            raise Conflict(f"Session {session_id} is not closed; close it first.", code="session.open")
