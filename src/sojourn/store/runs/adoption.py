"""Runs that are made of other runs: read whole, written whole. Called by the API, in one transaction each.

    source    a run that stands still, with every message
    adopt     a new run that begins where another one stood
    arrive    keeps older exports, and those that were imported before, from being let in

The rule: a run is read under its row's lock, so that no worker takes it up meanwhile, and it is not changed.
"""

import asyncpg  # type: ignore[import-untyped]
import msgspec
from msgspec.structs import replace

from sojourn.errors import Conflict, Invalid, NotFound
from sojourn.loop.continuation import Continuation, fresh, pending
from sojourn.loop.moving.levels import needed
from sojourn.store.db import Connection
from sojourn.store.rows import AdoptedRun, SourceRun
from sojourn.store.runs.creation import INPUT_MAX, queue_full, stopped
from sojourn.store.runs.journal import filled, for_us, rows
from sojourn.store.runs.pins import pin
from sojourn.store.runs.snapshots import encode, freeze, text, thaw

SOURCE = """
select status, snapshot, needs, priority, input, labels, mail_last > mail_read as mail from run
where tenant = (select scope_tenant()) and id = $1 for no key update
"""
PLACE = """
select closed_at is not null as closed, queued_max, queue_is_full(queued_max, false) as full
from session s cross join lateral (
    select coalesce(queued_max, $2) as queued_max from tenant where id = s.tenant offset 0
) as t
where tenant = (select scope_tenant()) and id = $1 for share of s
"""
ADOPT = """
insert into run (tenant, id, session_id, user_id, agent_name, agent_version, agent_digest, status, priority, due_at,
    ready, seq, input, limits, labels, waits, snapshot, steps, input_tokens, cache_read_tokens, cache_write_tokens,
    output_tokens, reasoning_tokens, usd_micros, needs)
values (scope_tenant(), $1, $2, scope_user(), $3, $4, $5, $6, $7, $8, coalesce($8 <= now(), false), 1, $9, $10, $11,
    $12, $13, $14, $15, $16, $17, $18, $19, $20, $21)
"""
JOURNAL = "insert into journal (tenant, run_id, seq, at, kind, event) values (scope_tenant(), $1, $2, $3, $4, $5)"
SPOKEN = """
insert into message (tenant, run_id, frame_id, slot, body)
select scope_tenant(), $1, frame_id, slot, body
from unnest($2::text[], $3::int[], $4::bytea[]) as message (frame_id, slot, body)
"""
ARRIVE = """
insert into imported_run as known (tenant, run_id, rev, became)
values (scope_tenant(), coalesce(scope_own() || '|', '') || $1, $2, $3)
on conflict (tenant, run_id) do update set rev = excluded.rev, became = excluded.became, imported_at = now()
where known.rev < excluded.rev
returning true
"""
KNOWN = """
select rev, became from imported_run
where tenant = (select scope_tenant()) and run_id = coalesce(scope_own() || '|', '') || $1
"""
LIVES = "select exists (select from run where tenant = (select scope_tenant()) and id = $1)"

_labels = msgspec.json.Decoder(dict[str, str])


async def source(conn: Connection, run_id: str) -> SourceRun:
    """Read a run that stands still, and hold its row until the transaction ends.

    Raises NotFound, TooNew, Unreadable, and Conflict (run.running) while a worker drives it, or is about to.
    """
    row = await conn.fetchrow(SOURCE, run_id)
    if row is None:
        raise NotFound(f"There is no run {run_id}.")
    if row["status"] == "running" or row["mail"]:
        raise Conflict(
            f"Run {run_id} is being worked on. Put it on hold first, or wait until it stands still.", code="run.running"
        )
    whole = await filled(conn, thaw(for_us(row)))
    whole = replace(whole, root=replace(whole.root, history=()))
    return SourceRun(
        continuation=whole, priority=row["priority"], input=row["input"], labels=_labels.decode(row["labels"])
    )


async def adopt(conn: Connection, new: AdoptedRun, *, queued_max: int) -> None:
    """Write a run that begins where another one stood; ring `sojourn_work` after the transaction.

    Raises NotFound for the session, QueueFull, Conflict when the session is closed or another run of it goes on, and
    Invalid for what no column can hold.
    """
    event = new.event
    place = await conn.fetchrow(PLACE, event.session_id, queued_max)
    if place is None:
        raise NotFound(f"There is no session {event.session_id}.")
    if place["closed"]:
        raise Conflict(f"Session {event.session_id} is closed; say another one.", code="session.closed")
    if place["full"] and new.status == "queued":
        raise await queue_full(conn, place["queued_max"])
    try:
        await _write(conn, new)
    except asyncpg.UniqueViolationError as error:
        if error.constraint_name != "run_one_per_session":
            raise
        raise Conflict(f"Another run of session {event.session_id} has not ended.", code="session.busy") from None
    except asyncpg.ObjectNotInPrerequisiteStateError as error:
        raise stopped(error) from None
    except (asyncpg.DataError, OverflowError):
        raise Invalid("The run holds a text or a number that cannot be kept here.") from None


async def _write(conn: Connection, new: AdoptedRun) -> None:
    event, whole = new.event, new.continuation
    usage, waits = whole.spent.usage, pending(whole)
    await pin(conn, new.agents.values())
    await conn.execute(
        ADOPT,
        event.run_id,
        event.session_id,
        event.root.agent.name,
        event.root.agent.version,
        event.root.agent.digest,
        new.status,
        new.priority,
        new.due_at,
        text(new.input)[:INPUT_MAX],
        encode(event.limits),
        msgspec.json.encode(new.labels),
        msgspec.json.encode(waits) if waits else None,
        freeze(whole),
        whole.spent.steps,
        usage.input,
        usage.cache_read,
        usage.cache_write,
        usage.output,
        usage.reasoning,
        whole.spent.usd_micros if whole.spent.usd_micros or not usage.prompt else None,  # no price, no cost
        max(map(needed, (whole, *new.agents.values()))),
    )
    (first,) = rows([event], 1, ())
    await conn.execute(JOURNAL, event.run_id, first.seq, first.at, first.kind, first.event)
    spoken = list(fresh(None, whole))
    await conn.execute(
        SPOKEN,
        event.run_id,
        [frame for frame, _, _ in spoken],
        [slot for _, slot, _ in spoken],
        [encode(message) for _, _, message in spoken],
    )


async def arrive(conn: Connection, exported: Continuation, became: str) -> None:
    """Note that a run was imported. Raises Conflict where it began here, came before, or is older than what came."""
    if await conn.fetchval(LIVES, exported.run_id):
        raise Conflict(f"Run {exported.run_id} is here itself: fork it instead.", code="import.original_here")
    if await conn.fetchval(ARRIVE, exported.run_id, exported.rev, became):
        return
    known = await conn.fetchrow(KNOWN, exported.run_id)
    if exported.rev < known["rev"]:
        raise Conflict(
            f"Run {known['became']} was made of a newer export of this run (rev {known['rev']}, this is "
            f"{exported.rev}): fork that one instead.",
            code="import.stale",
        )
    raise Conflict(f"This export was imported before, as run {known['became']}.", code="import.replayed")
