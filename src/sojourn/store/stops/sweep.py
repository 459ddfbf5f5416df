"""Carrying stops out. Called by every worker, again and again, until nothing is left to be done.

    sweep     take a stop that is not done, and go on with it for a moment
    note      write down that a claimed run is hit
    ordered   a stop as the event that a run hears

A run that nobody holds is ended here, by a commit in nobody's name: it fits where nobody has claimed the run since it
was read. A run that a worker holds is told by mail. The rules: one worker at a time takes a stop, for moments; who dies
in the middle leaves nothing half done, and another worker goes on.
"""

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from datetime import datetime

import asyncpg  # type: ignore[import-untyped]
import msgspec

from sojourn.errors import LeaseLost, SojournError, TooNew, Unreadable
from sojourn.loop import events as ev
from sojourn.loop.continuation import Wait
from sojourn.loop.machine import apply, given_up
from sojourn.store.budgets.tally import Tally
from sojourn.store.commits import Committer, MailWaits, Ring
from sojourn.store.db import Connection, Database
from sojourn.store.rows import Claimed, Commit, Release, StopOrder
from sojourn.store.runs.journal import for_us
from sojourn.store.runs.mailing import post_all
from sojourn.store.runs.quarantine import bury
from sojourn.store.runs.snapshots import thaw
from sojourn.store.stops.matching import NAMES_RUN, NAMES_SESSION
from sojourn.store.stops.orders import COLUMNS, Stop
from sojourn.store.tenant import usage

log = logging.getLogger("sojourn.store")

BATCH, BATCH_BYTES_MAX = 256, 32 << 20
"""So many runs are read at a time, with so much of snapshots."""
ROUND_S, TAKEN_S, AGAIN_S = 3.0, 10.0, 1.0
"""How long a worker goes on before it takes the stop anew, after how long it is taken for dead, and when what is left
is looked at again."""
NOBODY = ""

TAKE = f"""
update stop set sweep_at = now() + make_interval(secs => $1) where (tenant, id) in (
    select tenant, id from stop where done_at is null and sweep_at <= now() order by sweep_at limit 1
    for no key update skip locked
) returning {COLUMNS}
"""
LEAVE = """
update stop set done_at = case when $4 then now() end, sweep_at = now() + make_interval(
    secs => case when $3 > 0 then least(10, greatest($3, extract(epoch from now() - created_at) / 60)) else 0 end
)
where tenant = $1 and id = $2 and (lifted_at is not null) = $5
"""
FOUND = f"""
select * from (
    select r.tenant, r.id, r.fence, r.seq, r.snapshot, r.needs, r.lease_worker is not null as leased,
        array(select i.id from inbox i where i.tenant = r.tenant and i.run_id = r.id order by i.id) as mail,
        exists (select from day_account d where d.tenant = r.tenant) as pooled,
        sum(octet_length(r.snapshot)) over (order by r.id) - octet_length(r.snapshot) as bytes_before
    from (
        select r.* from stop s join run r on {NAMES_RUN}
        where s.tenant = $1 and s.id = $2 and s.lifted_at is null and r.finished_at is null and r.id > $3
            and (s.mode = 'cancel' or r.lease_worker is not null)
        order by r.id limit {BATCH}
    ) as r
) as found where bytes_before < {BATCH_BYTES_MAX} order by id
"""
NOTE = """
insert into stopped_run (tenant, stop_id, run_id)
select tenant, $1, run_id from unnest($2::text[], $3::text[]) as hit (tenant, run_id)
on conflict do nothing
"""
TELL = """
insert into stopped_run (tenant, stop_id, run_id, told)
select tenant, $1, run_id, true from unnest($2::text[], $3::text[]) as hit (tenant, run_id)
on conflict (tenant, stop_id, run_id) do update set told = true where not stopped_run.told
returning tenant, run_id
"""
REMAINS = f"""
select exists (
    select from stop s join run r on {NAMES_RUN}
    where s.tenant = $1 and s.id = $2 and r.finished_at is null and (s.mode = 'cancel' or r.lease_worker is not null)
) as runs, exists (
    select from stop s join session z on z.host is not null and {NAMES_SESSION} where s.tenant = $1 and s.id = $2
) as sandboxes
"""
HELD = """
select x.tenant, x.run_id, r.finished_at is not null as over, r.waits,
    r.lease_worker is not null or r.mail_last > r.mail_read as awake
from stopped_run x join run r on r.tenant = x.tenant and r.id = x.run_id
where x.stop_id = $2 and ($1 = '*' or x.tenant = $1) and not x.released
order by x.run_id limit $3
"""
RELEASED = """
update stopped_run x set released = true from unnest($2::text[], $3::text[]) as free (tenant, run_id)
where x.tenant = free.tenant and x.stop_id = $1 and x.run_id = free.run_id
"""

_waits = msgspec.json.Decoder(tuple[Wait, ...])


def ordered(order: StopOrder | Stop, at: datetime) -> ev.Cancelled | ev.Paused:
    """Say a stop as a run hears it; `by` is its id."""
    kind = ev.Paused if order.mode == "hold" else ev.Cancelled
    return kind(at=at, by=order.id, reason=order.reason)


async def note(db: Database, claimed: Claimed, orders: Iterable[StopOrder]) -> None:
    """Write down that stops hit a run which a worker has just claimed."""
    async with db.engine() as engine:
        for order in orders:
            await engine.execute(NOTE, order.id, [claimed.tenant], [claimed.run_id])


async def sweep(db: Database, ring: Ring, at: datetime) -> bool:
    """Take one stop and carry on with it; false where none is due."""
    async with db.engine() as engine:
        row = await engine.fetchrow(TAKE, TAKEN_S)
    if row is None:
        return False
    stop = Stop(**row)
    more = await (_let_go if stop.lifted_at else _hit)(db, ring, stop, at)
    done = not more and (stop.lifted_at is not None or not await _remains(db, ring, stop))
    if done and stop.lifted_at is not None:
        done = not await _still_held(db, stop)
    async with db.engine() as engine:
        await engine.execute(LEAVE, stop.tenant, stop.id, 0.0 if more else AGAIN_S, done, stop.lifted_at is not None)
    if done:
        log.info("stop.done", extra={"stop": stop.id, "what": stop.what, "lifted": stop.lifted_at is not None})
    return True


# ---- in force ----------------------------------------------------------------------------------


async def _hit(db: Database, ring: Ring, stop: Stop, at: datetime) -> bool:
    """End or tell what the stop names; true where there may be more of it."""
    after, event, ends_at = "", ordered(stop, at), time.monotonic() + ROUND_S
    async with Committer(db, NOBODY, ring) as nobody:
        while time.monotonic() < ends_at:
            async with db.engine() as engine:
                found = await engine.fetch(FOUND, stop.tenant, stop.id, after)
                if held := [row for row in found if row["leased"]]:
                    _wake(ring, await _tell(engine, stop, held, event))
                free = [row for row in found if not row["leased"]]
                await engine.execute(NOTE, stop.id, [row["tenant"] for row in free], [row["id"] for row in free])
            await asyncio.gather(*(_end(db, nobody, row, event) for row in free))
            if not found:
                return False
            after = found[-1]["id"]
    return True


async def _tell(
    engine: Connection, stop: Stop, held: Sequence[asyncpg.Record], event: ev.Cancelled | ev.Paused
) -> list[str]:
    """Tell the workers of held runs, once; which runs were told now."""
    async with engine.transaction():
        hit = await engine.fetch(TELL, stop.id, [row["tenant"] for row in held], [row["id"] for row in held])
        await post_all(engine, [(row["tenant"], row["run_id"], event) for row in hit])
    return [row["run_id"] for row in hit]


async def _end(db: Database, nobody: Committer, row: asyncpg.Record, event: ev.Cancelled | ev.Paused) -> None:
    """End a run that nobody holds; where somebody was faster, or mail came, the next round sees it."""
    try:
        before = thaw(for_us(row))
    except (TooNew, Unreadable):
        await bury(db, NOBODY, (row["id"], row["fence"]), event)
        return
    ended = apply({}, before, event)  # no agent is asked: what has ended does nothing more
    lost = given_up(before, ended, event)  # its worker died, and nobody took it over
    after, ledger, tally = before, [], Tally()
    for one in (*lost, event):
        was, after = after, apply({}, after, one)
        ledger += [paid] if (paid := usage.entry(was, one)) else []
        tally.take(was, one, after)
    turned = ev.Turned(at=event.at, phase="cancelled", spent=after.spent)
    after = apply({}, after, turned)
    commit = Commit(
        tenant=row["tenant"],
        run_id=row["id"],
        fence=row["fence"],
        before_seq=before.rev,
        after=after,
        events=(*lost, event, turned),
        ledger=tuple(ledger),
        paid=tally.paid if row["pooled"] else (),
        inbox_ids=tuple(row["mail"]),
        release=Release(status="cancelled"),
    )
    try:
        await nobody.commit(commit)
    except (LeaseLost, MailWaits):
        pass
    except SojournError as error:
        log.warning("stop.not_ended", extra={"run": row["id"], "code": error.code})


async def _remains(db: Database, ring: Ring, stop: Stop) -> bool:
    """Whether anything is left; hosts are told to put away the sandboxes that are."""
    async with db.engine() as engine:
        row = await engine.fetchrow(REMAINS, stop.tenant, stop.id)
    if row["sandboxes"]:
        ring("sojourn_wanted", ())
    return bool(row["runs"] or row["sandboxes"])


# ---- lifted ------------------------------------------------------------------------------------


async def _let_go(db: Database, ring: Ring, stop: Stop, at: datetime) -> bool:
    """End the holds that a lifted stop has put on runs; true where there may be more of them."""
    letters: list[tuple[str, str, ev.Event]] = []
    async with db.engine() as engine, engine.transaction():
        found = await engine.fetch(HELD, stop.tenant, stop.id, BATCH)
        free: list[asyncpg.Record] = []
        for row in found:
            wait = None if row["over"] or not row["waits"] else _hold(stop, _waits.decode(row["waits"]))
            if wait is not None:
                by = str(stop.lifted_by)
                decided = ev.Decided(at=at, wait=wait, by=by, decision="approve", reason=f"stop {stop.id} was lifted")
                letters.append((row["tenant"], row["run_id"], decided))
            if wait is not None or row["over"] or not row["awake"]:
                free.append(row)
        await post_all(engine, letters)
        await engine.execute(RELEASED, stop.id, [row["tenant"] for row in free], [row["run_id"] for row in free])
    _wake(ring, [run_id for _, run_id, _ in letters])
    return bool(free)


def _hold(stop: Stop, waits: Iterable[Wait]) -> str | None:
    """The wait that this stop has put on a run: who puts a run on hold stands first in its title."""
    return next((wait.id for wait in waits if wait.kind == "hold" and wait.title.startswith(f"{stop.id} ")), None)


async def _still_held(db: Database, stop: Stop) -> bool:
    async with db.engine() as engine:
        return bool(await engine.fetch(HELD, stop.tenant, stop.id, 1))


def _wake(ring: Ring, run_ids: Sequence[str]) -> None:
    if run_ids:  # none would say: look at everything
        ring("sojourn_work", run_ids)
        ring("sojourn_inbox", run_ids)
