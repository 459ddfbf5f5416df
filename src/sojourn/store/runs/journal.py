"""The journal: events as rows, read back whole. Called by `commits`, `queue` and the API.

The rule: a message is kept once. An event whose message took its place in the transcript in the same commit is stored
without it and with the place; readers put it back.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from sojourn.errors import NotFound, TooNew
from sojourn.loop import events as ev
from sojourn.loop.continuation import Continuation, Origin, Segment, frames
from sojourn.loop.machine import link
from sojourn.loop.messages import Message
from sojourn.loop.moving.adoption import bodies
from sojourn.loop.moving.levels import LEVEL
from sojourn.loop.step.taints import below, merged
from sojourn.store.db import Connection
from sojourn.store.runs.snapshots import body, thaw, whole

EVENTS = """
select j.seq, j.event, m.body
from journal j
left join message m on m.tenant = j.tenant and m.run_id = j.run_id and m.frame_id = j.frame_id and m.slot = j.slot
where j.run_id = $1 and j.tenant = (select scope_tenant()) and j.seq > $2
order by j.seq limit $3
"""
# Lengths of what is stored beside the row are known without reading it.
SMALL = f"""
select seq, event, body from (
    select seq, event, body, sum(size) over (order by seq rows unbounded preceding) - size as before from (
        select *, octet_length(event) + coalesce(octet_length(body), 0) as size from ({EVENTS}) row
    ) row
) row
where before < $4 order by seq
"""

SNAPSHOT = "select snapshot, needs from run where tenant = (select scope_tenant()) and id = $1"

BODIES = """
select frame_id, slot, body from message
where tenant = (select scope_tenant()) and run_id = $1 and frame_id = any($2::text[])
union all
select '/', m.slot, m.body
from unnest($3::text[], $4::int[], $5::int[]) as segment (run_id, start, stop)
join message m on m.tenant = (select scope_tenant()) and m.run_id = segment.run_id and m.frame_id = '/'
    and m.slot >= segment.start and m.slot < segment.stop
"""

LAST_OF_SESSION = """
select snapshot, needs from run
where tenant = (select scope_tenant()) and session_id = $1 and finished_at is not null
order by finished_at desc limit 1 for key share
"""


class JournalRow(NamedTuple):
    """One event as it is stored; `frame_id` and `slot` say where its message is, when that was taken out."""

    seq: int
    at: datetime
    kind: str
    event: bytes
    frame_id: str | None
    slot: int | None


Bodies = Iterable[tuple[str, int, Message]]


def rows(events: Iterable[ev.Event], first_seq: int, spoken: Bodies) -> list[JournalRow]:
    """Write events as rows, without the messages that are among `spoken`."""
    places = {id(message): (frame, slot) for frame, slot, message in spoken}
    return [_row(event, seq, places) for seq, event in enumerate(events, first_seq)]


def _row(event: ev.Event, seq: int, places: dict[int, tuple[str, int]]) -> JournalRow:
    kind = str(event.__struct_config__.tag)
    if isinstance(event, ev.Began | ev.Replied | ev.Returned | ev.Said) and event.message is not None:
        place = places.get(id(event.message))
        if place is not None:
            return JournalRow(seq, event.at, kind, ev.encode(replace(event, message=None)), *place)
    return JournalRow(seq, event.at, kind, ev.encode(event), None, None)


def put_back(event: bytes, message: bytes | None) -> ev.Event:
    """Read an event, with its message in place."""
    stored = ev.decode(event)
    if message is None:
        return stored
    assert isinstance(stored, ev.Began | ev.Replied | ev.Returned | ev.Said)
    return replace(stored, message=body(message))


async def events(
    conn: Connection, run_id: str, *, after: int = 0, limit: int = 1000, bytes_max: int | None = None
) -> list[tuple[int, ev.Event]]:
    """Read a run's events with a seq above `after`, in order; no further than the one that passes `bytes_max`.

    Raises TooNew where a newer release wrote one.
    """
    if bytes_max is None:
        found = await conn.fetch(EVENTS, run_id, after, limit)
    else:
        found = await conn.fetch(SMALL, run_id, after, limit, bytes_max)
    try:
        return [(row["seq"], put_back(row["event"], row["body"])) for row in found]
    except msgspec.DecodeError:
        await _snapshot(conn, run_id)
        raise


async def continuation(conn: Connection, run_id: str) -> Continuation:
    """Read a run's snapshot, without bodies. Raises NotFound, TooNew."""
    return thaw(await _snapshot(conn, run_id))


async def _snapshot(conn: Connection, run_id: str) -> bytes:
    row = await conn.fetchrow(SNAPSHOT, run_id)
    if row is None:
        raise NotFound(f"There is no run {run_id}.")
    return for_us(row)


def for_us(row: Mapping[str, Any]) -> bytes:
    """The snapshot of a row, where this release can read its run. Raises TooNew."""
    if row["needs"] > LEVEL:
        raise TooNew("A newer release wrote this run; this server cannot read it, one of that release can.")
    data: bytes = row["snapshot"]
    return data


async def transcript(conn: Connection, run_id: str) -> Continuation:
    """Read a run's continuation with all its messages, those of the session's earlier runs included.

    Calls that the end of the run cut short are left out: not all of them have an answer.
    """
    snapshot = await continuation(conn, run_id)
    if snapshot.root.ended:
        snapshot = replace(snapshot, root=replace(snapshot.root, calls=()))
    return await filled(conn, snapshot)


async def filled(conn: Connection, snapshot: Continuation) -> Continuation:
    """The continuation with all its messages. Raises BadSeal where one is missing."""
    found = await conn.fetch(BODIES, snapshot.run_id, *places(snapshot))
    return whole(snapshot, {(row["frame_id"], row["slot"]): body(row["body"]) for row in found})


def places(snapshot: Continuation) -> tuple[list[str], list[str], list[int], list[int]]:
    """Name where the bodies of a snapshot are: its frames, then runs, starts and stops of its history."""
    history = snapshot.root.history
    return (
        [frame.id for frame in frames(snapshot.root)],
        [segment.run_id for segment in history],
        [segment.start for segment in history],
        [segment.stop for segment in history],
    )


class _Tainted(msgspec.Struct, frozen=True):
    """Of a frame or a call, in whatever release's snapshot, what was read."""

    taints: tuple[dict[str, str], ...] = ()
    calls: tuple["_Tainted", ...] = ()


class _Spent(msgspec.Struct, frozen=True):
    children: int = 0


class _Run(msgspec.Struct, frozen=True):
    root: _Tainted = _Tainted()
    spent: _Spent = _Spent()


class More(NamedTuple):
    """What a snapshot tells beside a run's row: what was read, and how many sub-agents were begun."""

    taints: tuple[Origin, ...] = ()
    children: int = 0


_more = msgspec.json.Decoder(_Run)


async def more(conn: Connection, run_id: str) -> More:
    """Say what a run's snapshot tells a reader of it; nothing of a run that cannot be read."""
    try:
        run = _more.decode(await conn.fetchval(SNAPSHOT, run_id) or b"{}")
    except msgspec.MsgspecError:
        return More()
    found = (one for place in (run.root, *run.root.calls) for one in place.taints)
    origins = merged(Origin(one["taint"], one["source"], one.get("tool", "")) for one in found)  # type: ignore[arg-type]
    return More(origins, run.spent.children)


class Conversation(NamedTuple):
    """What was said in a session, and what was read."""

    segments: tuple[Segment, ...] = ()
    taints: tuple[Origin, ...] = ()


async def conversation(conn: Connection, session_id: str) -> Conversation:
    """Name the messages of a session's conversation, as its last finished run left it; that run stays until the
    transaction ends.

    A step that was cut short is left out: a request for tools without all of its answers is no conversation.
    """
    row = await conn.fetchrow(LAST_OF_SESSION, session_id)
    if row is None:
        return Conversation()
    last = thaw(for_us(row))
    start = last.root.history[-1].stop if last.root.history else 0
    stop = last.root.length - (1 if last.root.calls else 0)
    known = tuple(replace(origin, source=last.run_id) for origin in below(last.root))
    return Conversation((*last.root.history, Segment(last.run_id, start, stop)), known)


async def verify_chain(conn: Connection, run_id: str) -> bool:
    """Say whether the journal, read back whole, is what the snapshot's seal was made over."""
    snapshot, head, seq = await continuation(conn, run_id), "", 0
    while page := await events(conn, run_id, after=seq):
        for number, event in page:
            if number != seq + 1 or not await _has_its_bodies(conn, snapshot, event):
                return False
            seq, head = number, link(head, event)
    return (seq, head) == (snapshot.rev, snapshot.head)


async def _has_its_bodies(conn: Connection, snapshot: Continuation, event: ev.Event) -> bool:
    """Whether an adopted run has the messages that it began with; other events hold theirs."""
    if not isinstance(event, ev.Adopted):
        return True
    return bodies((await filled(conn, replace(snapshot, root=event.root))).root) == event.bodies
