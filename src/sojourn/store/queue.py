"""The queue: which worker drives which run. Called by the worker.

    register   a worker is alive while its connection holds a lock that others can probe
    Line       take runs that are due, tenant by tenant; each claim counts the run's fence up
    open       load all that is needed to drive a run, in one round trip
    mail       what callers posted to runs that are held
    beat       renew the leases of a worker, and learn which runs are still its own
    give_back  put back runs that a worker holds and cannot drive
    steal      put the runs of dead workers back into the queue
    lives      ask whether a host has had a worker of late
    lent       borrow the scope of a held run, for its files

The rules: a run is claimable exactly when `due_at` has come and this release can read it; nobody waits for a row that
another claimer looks at; and a lease, named by run and fence, is as good as its worker: seen dead at once when its
connection drops, and after `lease_s` when it is cut off.
"""

import logging
from collections.abc import AsyncIterator, Collection, Iterable
from contextlib import asynccontextmanager
from datetime import datetime

import asyncpg  # type: ignore[import-untyped]
import msgspec

from sojourn.errors import LeaseLost, MissingPin, SojournError, Unreadable
from sojourn.loop import events as ev
from sojourn.loop.agent import Agent
from sojourn.loop.continuation import frames
from sojourn.loop.messages import Message
from sojourn.loop.moving.levels import LEVEL
from sojourn.store import deltas
from sojourn.store.db import ANSWER_S, Connection, Database, closed_on_error, edge
from sojourn.store.rows import Claimed, Opened, StopOrder
from sojourn.store.runs.journal import places
from sojourn.store.runs.quarantine import bury, ending, quarantine
from sojourn.store.runs.snapshots import body, thaw, whole
from sojourn.store.sharing import turns
from sojourn.store.stops.matching import NAMES_RUN

log = logging.getLogger("sojourn.store")

CLAIMS_MAX = 8
"""A run that was claimed so often in a row and came no further is a dead letter."""
POISON = (
    f"{CLAIMS_MAX} workers took it up in a row and none came any further; their logs say why. Once that is mended, "
    "retry goes on where it stood."
)
LOCKS = 0x504A
"""The space of the advisory locks that workers hold."""

LOCK = "select key from nextval('worker_key') as key, lateral pg_advisory_lock($1, key::integer)"
# The server must not let the lock of a cut-off worker go before its lease is over, whatever its own settings say.
LASTING = "set tcp_keepalives_idle = 600; set tcp_user_timeout = 600000"
REGISTER = f"""
with known as (
    insert into worker (id, lock_key, host, pid, version, reads) values ($1, $2, $3, $4, $5, {LEVEL})
    on conflict (id) do update
        set lock_key = excluded.lock_key, host = excluded.host, pid = excluded.pid, version = excluded.version,
            reads = excluded.reads, locked_at = now(), seen_at = now()
    returning id
)
insert into worker_lock (worker) select id from known on conflict do nothing
"""

# Who had it in vain, one after the other. It begins anew with the first claim after some progress.
LOST_BY = """lost_workers = case when r.claims > 1 then array_append(r.lost_workers, r.lease_worker)
    else array[r.lease_worker] end"""
# The more often it was claimed in vain, the longer it rests: 2 s, 4 s, ... at most a minute.
GIVE_BACK = f"""
update run r set status = 'queued', lease_worker = null, {LOST_BY},
    due_at = now() + make_interval(secs => least(60, power(2, least(r.claims, 6))))
from unnest($2::text[], $3::bigint[]) as lease (id, fence)
where r.lease_worker = $1 and r.id = lease.id and r.fence = lease.fence
"""

# One answer of five kinds of rows; an agent brings the sub-agents that its tools name. A history is of the run's own
# session, whatever its snapshot says: who wrote that may be confined, and a worker is not.
OPEN = f"""
with recursive agent (digest, subs, spec) as (
    select digest, subs, spec from agent_spec where tenant = $1 and digest = any($7::text[])
    union
    select s.digest, s.subs, s.spec from agent a join agent_spec s on s.tenant = $1 and s.digest = any(a.subs)
    where s.digest <> all ($8::text[])
)
select 'body' as kind, frame_id as name, slot::bigint as number, body as data
from message where tenant = $1 and run_id = $2 and frame_id = any($3::text[])
union all
select 'body', '/', m.slot, m.body
from unnest($4::text[], $5::int[], $6::int[]) as segment (run_id, start, stop)
join run before on before.tenant = $1 and before.id = segment.run_id
join run r on r.tenant = $1 and r.id = $2 and r.session_id = before.session_id
join message m on m.tenant = $1 and m.run_id = segment.run_id and m.frame_id = '/'
    and m.slot >= segment.start and m.slot < segment.stop
union all
select 'mail', '', id, event from inbox where tenant = $1 and run_id = $2
union all
select 'agent', digest, 0, convert_to(spec, 'UTF8') from agent
union all
select s.mode, s.id, 0, convert_to(s.reason, 'UTF8') from stop s join run r on {NAMES_RUN}
where r.tenant = $1 and r.id = $2 and s.lifted_at is null
"""

MAIL = """
select i.run_id, i.id, i.event
from unnest($1::text[], $2::text[]) as held (tenant, run_id)
join inbox i on i.tenant = held.tenant and i.run_id = held.run_id
order by i.run_id, i.id
"""

BEAT = """
with beaten as (update worker set seen_at = now() where id = $1)
select id, fence from run where lease_worker = $1
"""

# A free lock tells of a death only on the server that held it: after a restart, a crash or a failover heartbeats alone
# count, until the worker has taken its lock again. A heartbeat from the future was written by another server's clock.
# A run whose workers die again and again rests for a while, at random: the one that kills them then dies alone, and
# those that were only held beside it are not taken for it.
STEAL = f"""
with dead as materialized (
    select id from worker w
    where seen_at not between now() - make_interval(secs => $1) and now() + make_interval(secs => $1)
        or locked_at > pg_postmaster_start_time() and exists (select from worker_lock l where l.worker = w.id)
            and pg_try_advisory_xact_lock_shared({LOCKS}, lock_key)
), stranded as (
    select r.tenant, r.id from run r join dead on r.lease_worker = dead.id
    for no key update of r skip locked
)
update run r set status = 'queued', lease_worker = null, ready = claims < 3, {LOST_BY},
    due_at = now() + make_interval(secs => case when claims < 3 then 0 else random() * power(2, least(claims, 6)) end)
from stranded s where r.tenant = s.tenant and r.id = s.id
returning r.id
"""

FORGET = """
delete from worker w
where seen_at < now() - interval '10 minutes' and not exists (select from run where lease_worker = w.id)
"""

Lease = tuple[str, int]
"""A run and the fence of its claim."""
Letters = list[tuple[int, ev.Event]]
"""A run's mail, oldest first: the number of each inbox row, and what it says."""

_agent = msgspec.json.Decoder(Agent)


async def register(db: Database, worker_id: str, *, host: str, pid: int, version: str) -> Connection:
    """Make a worker known, and give the connection that it lives as long as; the caller closes it.

    Call it again with the same id when that connection is lost, or does not answer: the lock of the one before counts
    no more.
    """
    life = await db.life()
    async with closed_on_error(life):
        with edge():
            await life.execute(LASTING)
            lock_key = await life.fetchval(LOCK, LOCKS)
            await life.execute(REGISTER, worker_id, lock_key, host, pid, version)
    return life


class Line:
    """The tenants that wait for this worker: who was served last, and when to look again."""

    def __init__(self, db: Database, worker_id: str, *, tenant_runs_max: int | None = None) -> None:
        """`tenant_runs_max` is how many runs of a tenant may be held at once, over all workers, unless it says so."""
        self._db, self._worker_id, self._runs_max = db, worker_id, tenant_runs_max
        self._served = ""
        self.held_back = False
        """Runs were ready that the last claim did not give: a limit holds them back, or others are at them."""
        self.next_at: datetime | None = None
        """When the next timer comes, as the last claim saw it."""

    async def claim(self, n: int) -> list[Claimed]:
        """Lease up to `n` runs that are due. Raises LeaseLost where the worker is not registered."""
        claimed: list[Claimed] = []
        again = True
        while again and len(claimed) < n:
            turn = await self._turn(n - len(claimed))
            claimed += await self._read(turn)
            self._served = turn.claims[-1].tenant if turn.claims else self._served
            again = turn.again
            self.held_back, self.next_at = turn.left, turn.next_at
        return claimed

    async def _turn(self, n: int) -> turns.Turn:
        try:
            async with self._db.engine() as engine:
                return await turns.turn(engine, self._worker_id, n, after=self._served, runs_max=self._runs_max)
        except asyncpg.ForeignKeyViolationError:
            raise LeaseLost("This worker was taken for dead; register it again.") from None

    async def _read(self, turn: turns.Turn) -> list[Claimed]:
        """Read the claimed rows; those that this release cannot read, and those that kill workers, are given away."""
        claimed = []
        for row in turn.claims:
            try:
                one = _claimed(row)
            except Unreadable as error:
                await refuse(self._db, self._worker_id, (row.run_id, row.fence), claims=row.claims, reason=error)
                continue
            if one.claims <= CLAIMS_MAX or not await _set_aside(self._db, self._worker_id, one):
                claimed.append(one)
        return claimed


def _claimed(one: turns.Claim) -> Claimed:
    """Read a claimed row. Raises Unreadable."""
    snapshot = thaw(one.snapshot)
    return Claimed(run_id=one.run_id, tenant=one.tenant, fence=one.fence, snapshot=snapshot, claims=one.claims)


async def _set_aside(db: Database, worker_id: str, claimed: Claimed) -> bool:
    """Make a dead letter of a run that one worker after the other did not survive, unless it only has to be ended."""
    lease = (claimed.run_id, claimed.fence)
    if claimed.claims <= 2 * CLAIMS_MAX and await ending(db, worker_id, lease) is not None:
        return False
    log.error("run.poison", extra={"run": claimed.run_id, "claims": claimed.claims})
    await quarantine(db, worker_id, lease, SojournError(POISON, code="run.not_driven"))
    return True


async def claim(db: Database, worker_id: str, n: int = 1) -> list[Claimed]:
    """Lease up to `n` runs as somebody who has served nobody yet. Raises LeaseLost."""
    return await Line(db, worker_id).claim(n)


async def refuse(db: Database, worker_id: str, lease: Lease, *, claims: int, reason: Unreadable) -> None:
    """Leave a claimed run that this release cannot read to a newer worker; in quarantine where none came for it.

    One that somebody has cancelled is ended unread.
    """
    log.error("run.unreadable", extra={"run": lease[0], "code": reason.code, "detail": str(reason), "claims": claims})
    if (end := await ending(db, worker_id, lease)) is not None:
        await bury(db, worker_id, lease, end)
    elif claims > CLAIMS_MAX:
        await quarantine(db, worker_id, lease, reason)
    else:
        await give_back(db, worker_id, {lease})


async def open(db: Database, claimed: Claimed, *, known: Collection[str] = ()) -> Opened:
    """Load a claimed run: its messages, its mail, and its agents but for those whose digest is `known`.

    Whoever knows an agent must know those that its tools name, as they came together. Raises MissingPin, and Unreadable
    for mail of a newer release.
    """
    wanted = {frame.agent.digest for frame in frames(claimed.snapshot.root)} - set(known)
    arguments = [claimed.tenant, claimed.run_id, *places(claimed.snapshot), list(wanted), list(known)]
    async with db.engine() as engine:
        found = await engine.fetch(OPEN, *arguments, timeout=ANSWER_S)
        asked = [(one.id, one.step, one.turn.attempt) for one in frames(claimed.snapshot.root) if one.turn.least]
        streamed = await deltas.streamed(engine, (claimed.tenant, claimed.run_id), asked) if asked else {}
    bodies: dict[tuple[str, int], Message] = {}
    inbox: list[tuple[int, bytes]] = []
    agents: dict[str, Agent] = {}
    stops: list[StopOrder] = []
    for kind, name, number, data in found:
        match kind:
            case "body":
                bodies[name, number] = body(data)
            case "mail":
                inbox.append((number, data))
            case "agent":
                agents[name] = _agent.decode(data)
            case "cancel" | "hold" as mode:
                stops.append(StopOrder(id=name, mode=mode, reason=data.decode()))
    if missing := wanted - agents.keys():
        raise MissingPin(f"Run {claimed.run_id} needs agent version {min(missing)}, which is not stored.")
    letters = _letters(claimed.run_id, sorted(inbox))
    continuation = whole(claimed.snapshot, bodies)
    return Opened(continuation=continuation, agents=agents, inbox=tuple(letters), stops=tuple(stops), streamed=streamed)


async def mail(db: Database, runs: Collection[tuple[str, str]]) -> dict[str, Letters | Unreadable]:
    """Read what was posted to these runs (tenant, run id); runs without mail are left out."""
    async with db.engine() as engine:
        asked = [tenant for tenant, _ in runs], [run_id for _, run_id in runs]
        found = await engine.fetch(MAIL, *asked, timeout=ANSWER_S)
    rows: dict[str, list[tuple[int, bytes]]] = {}
    for run_id, number, data in found:
        rows.setdefault(run_id, []).append((number, data))
    letters: dict[str, Letters | Unreadable] = {}
    for run_id, its in rows.items():
        try:
            letters[run_id] = _letters(run_id, its)
        except Unreadable as error:
            letters[run_id] = error
    return letters


def _letters(run_id: str, rows: Iterable[tuple[int, bytes]]) -> Letters:
    """Decode a run's mail. Raises Unreadable: it is all read or none of it, for its order counts."""
    try:
        return [(number, ev.decode(data)) for number, data in rows]
    except msgspec.DecodeError as error:
        raise Unreadable(f"Run {run_id} has mail that this release cannot read: {error}.") from None


async def beat(life: Connection, worker_id: str) -> frozenset[Lease]:
    """Renew the worker's leases over the connection of `register`, and name those that it still holds."""
    with edge():
        return frozenset(_lease(row) for row in await life.fetch(BEAT, worker_id))


async def give_back(db: Database, worker_id: str, leases: Collection[Lease]) -> None:
    """Put back runs that the worker holds and does not drive: they failed to open, or their claim's answer was lost."""
    async with db.engine() as engine:
        await engine.execute(GIVE_BACK, worker_id, [run_id for run_id, _ in leases], [fence for _, fence in leases])


async def steal(db: Database, lease_s: float | None) -> list[str]:
    """Make the runs of dead workers due, and name them.

    Dead is who lost the connection of `register`, or was not heard of for `lease_s`, where that is given.
    """
    async with db.engine() as engine:
        stolen = [row["id"] for row in await engine.fetch(STEAL, lease_s, timeout=ANSWER_S)]
        await engine.execute(FORGET)
    return stolen


async def lives(db: Database, host: str) -> bool:
    """Say whether a host has a worker, or had one within the last ten minutes."""
    async with db.engine() as engine:
        return bool(await engine.fetchval("select exists (select from worker where host = $1)", host))


@asynccontextmanager
async def lent(db: Database, worker_id: str, claimed: Claimed) -> AsyncIterator[Connection]:
    """Lend a transaction in the scope of a held run's tenant and user. Raises LeaseLost."""
    proof = (worker_id, claimed.tenant, claimed.run_id, claimed.fence)
    async with db.engine() as engine, engine.transaction():
        await _enter(engine, await engine.fetchval("select engine_scope($1, $2, $3, $4)", *proof))
        yield engine


@asynccontextmanager
async def lent_session(db: Database, worker_id: str, tenant: str, session_id: str) -> AsyncIterator[Connection]:
    """Lend the same for a session on this worker's host that no worker of the host drives. Raises LeaseLost."""
    async with db.engine() as engine, engine.transaction():
        await _enter(engine, await engine.fetchval("select session_scope($1, $2, $3)", worker_id, tenant, session_id))
        yield engine


async def _enter(engine: Connection, handle: str | None) -> None:
    if handle is None:
        raise LeaseLost("The lease on this run or session is not this worker's.")
    await engine.execute("select set_config('app.scope', $1, true)", handle)


def _lease(row: asyncpg.Record) -> Lease:
    return row["id"], row["fence"]
