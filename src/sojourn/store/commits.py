"""Commits: what a worker's runs did, made durable in groups. Called by the worker, one Committer for a process.

    COMMIT      one statement for a whole group: run rows, journal, bodies, ledger, inbox, leases
    Committer   collects what is waiting, writes it, and tells each run how it went

The rules: every write carries the fence, and one that does not fit fails for its run alone; a group is one statement,
so one wait for the disk; and no run ends or goes to sleep over mail that was not read. Where the connection is lost and
nobody knows what came of a group, it is written again: what had been saved does not fit any more, and is then found in
the journal by its own last event.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

import asyncpg  # type: ignore[import-untyped]
import msgspec

from sojourn.errors import Invalid, LeaseLost, SojournError, StoreUnavailable
from sojourn.loop.continuation import pending
from sojourn.loop.events import Decided
from sojourn.loop.moving.levels import needed
from sojourn.store.budgets import settling
from sojourn.store.db import ANSWER_S, Database
from sojourn.store.rows import Commit, LedgerRow
from sojourn.store.runs.journal import JournalRow, rows
from sojourn.store.runs.snapshots import encode, freeze, text

log = logging.getLogger("sojourn.store")

_WRITTEN = """
with done as materialized (
    select * from unnest($2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bytea[], $8::text[],
        $9::timestamptz[], $10::bigint[], $11::int[], $12::bigint[], $13::bigint[], $14::bigint[], $15::bigint[],
        $16::bigint[], $17::bigint[], $18::json[], $19::text[], $20::text[], $21::text[], $22::json[], $50::integer[],
        $52::integer[])
    with ordinality as done (tenant, id, fence, before, after, snapshot, status, due_at, mail_read, steps, input,
        cache_read, cache_write, output, reasoning, usd_micros, waits, result, error_code, error_detail, limits,
        needs, estimated, n)
), saved as (
    update run r set
        seq = done.after,
        snapshot = done.snapshot,
        claims = case when done.n = any($30::bigint[]) then 0 else r.claims end,
        mail_read = greatest(r.mail_read, done.mail_read),
        steps = done.steps,
        input_tokens = done.input,
        cache_read_tokens = done.cache_read,
        cache_write_tokens = done.cache_write,
        output_tokens = done.output,
        reasoning_tokens = done.reasoning,
        usd_micros = r.usd_micros + done.usd_micros,
        estimated_calls = done.estimated,
        waits = done.waits,
        result = done.result,
        error_code = done.error_code,
        error_detail = done.error_detail,
        limits = coalesce(done.limits, r.limits),
        needs = greatest(r.needs, done.needs),
        lease_worker = case when done.status is null then r.lease_worker end,
        status = coalesce(done.status, r.status),
        due_at = case
            when done.status is null or done.status not in ('queued', 'suspended') then null
            when r.mail_last > greatest(r.mail_read, done.mail_read) then now()
            when done.status = 'queued' then coalesce(done.due_at, now())
            else done.due_at
        end,
        ready = coalesce(done.status in ('queued', 'suspended') and (
            r.mail_last > greatest(r.mail_read, done.mail_read)
            or coalesce(done.due_at, case done.status when 'queued' then now() end) <= now()
        ), false),
        finished_at = case when done.status in ('completed', 'failed', 'cancelled') then now() end
    from done
    where r.tenant = done.tenant and r.id = done.id
        and r.fence = done.fence and coalesce(r.lease_worker, '') = $1 and r.seq = done.before -- not by run_leased
        and (coalesce(done.status, 'queued') = 'queued' or r.mail_last <= greatest(r.mail_read, done.mail_read))
    returning done.n, r.tenant, r.id, r.user_id, r.status, r.due_at
), journaled as (
    insert into journal (tenant, run_id, seq, at, kind, event, frame_id, slot)
    select saved.tenant, saved.id, j.seq, j.at, j.kind, j.event, j.frame_id, j.slot
    from unnest($23::bigint[], $24::bigint[], $25::timestamptz[], $26::text[], $27::bytea[], $28::text[], $29::int[])
        as j (n, seq, at, kind, event, frame_id, slot)
    join saved using (n)
), spoken as (
    insert into message (tenant, run_id, frame_id, slot, body)
    select saved.tenant, saved.id, m.frame_id, m.slot, m.body
    from unnest($30::bigint[], $31::text[], $32::int[], $33::bytea[]) as m (n, frame_id, slot, body)
    join saved using (n)
), paid as (
    insert into ledger (tenant, run_id, seq, at, user_id, agent_name, provider, model, attempt, input, cache_read,
        cache_write, output, reasoning, usd_micros, estimated, judge)
    select saved.tenant, saved.id, l.seq, l.at, l.user_id, l.agent_name, l.provider, l.model, l.attempt, l.input,
        l.cache_read, l.cache_write, l.output, l.reasoning, l.usd_micros, l.estimated, l.judge
    from unnest($34::bigint[], $35::bigint[], $36::timestamptz[], $37::text[], $38::text[], $39::text[], $40::text[],
        $41::int[], $42::bigint[], $43::bigint[], $44::bigint[], $45::bigint[], $46::bigint[], $47::bigint[],
        $51::boolean[], $53::boolean[])
        as l (n, seq, at, user_id, agent_name, provider, model, attempt, input, cache_read, cache_write, output,
            reasoning, usd_micros, estimated, judge)
    join saved using (n)
), heard as (
    delete from inbox i using unnest($48::bigint[], $49::bigint[]) as x (n, id), saved
    where saved.n = x.n and i.tenant = saved.tenant and i.run_id = saved.id and i.id = x.id
)"""
_TOLD = """
select n, status = 'queued' and due_at <= now() as ready from saved
"""
COMMIT = _WRITTEN + _TOLD
COMMIT_PAID = _WRITTEN + settling.SETTLE + _TOLD
"""The same where a commit of the group has something to say to the pools of the day."""

# What became of a commit that did not fit. It had been saved before: so says its last event, or, where it was a mere
# release, the run. Or all but the mail fits.
JUDGE = """
select case
    when exists (select from journal where tenant = $1 and run_id = $2 and seq = $3 and event = $4)
        or $4 is null and $6 and exists (
            select from run where tenant = $1 and id = $2 and seq = $3 and fence = $5 and lease_worker is null
        ) then case when $6 then 'ready' else 'saved' end
    when exists (
        select from run where tenant = $1 and id = $2 and seq = $7 and fence = $5 and lease_worker = $8
    ) then 'mail'
    else 'lost'
end
"""

# A commit that can be read need not have reached the replicas: whoever waited for them was cut off. This waits for all.
BARRIER = "select pg_logical_emit_message(true, 'sojourn', '')"

GROUP_MAX = 256
GROUP_BYTES_MAX = 16 << 20
LANES = 2
"""Groups on their way at the same time: one is put together while another waits for the disk."""
PATIENCE_S = 10.0
RETRY_S, RETRY_MAX_S = 0.05, 1.0

Ring = Callable[[str, Collection[str]], None]
Verdict = Literal["ready", "saved", "mail", "lost"]
"""What became of a commit; a run that is `ready` is due again."""


class MailWaits(Exception):
    """The run would have ended or gone to sleep, and there is mail that it did not read. Nothing was written."""


class _Waiting(NamedTuple):
    """A commit and whoever waits for it."""

    commit: Commit
    answer: asyncio.Future[None]

    def succeed(self) -> None:
        if not self.answer.done():
            self.answer.set_result(None)

    def fail(self, error: BaseException) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class Committer:
    """Writes the commits of one worker process. `ring` is the doorbell's."""

    def __init__(self, db: Database, worker_id: str, ring: Ring) -> None:
        self._db, self._worker_id, self._ring = db, worker_id, ring
        self._waiting: deque[_Waiting] = deque()
        self._lanes: set[asyncio.Task[None]] = set()

    async def commit(self, commit: Commit) -> None:
        """Return when it is durable.

        Raises LeaseLost when the run is another worker's now, MailWaits, StoreUnavailable when the database is away for
        longer than 10 s (the same commit may then be given again), Invalid when it cannot be stored at all.
        """
        waiting = _Waiting(commit, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if len(self._lanes) < LANES:
            self._lanes.add(asyncio.create_task(self._work(), name="committer"))
        await waiting.answer

    async def close(self) -> None:
        """Wait for what was begun."""
        while self._lanes:
            await asyncio.wait([*self._lanes])

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _work(self) -> None:
        """Write groups until nothing waits."""
        try:
            await asyncio.sleep(0)  # let all who are ready now come into the first group
            while group := self._take():
                await self._settle(group)
        finally:
            # Here and not in a callback, which comes later: a commit in between would wait for a lane that has ended.
            self._lanes.discard(asyncio.current_task())

    def _take(self) -> list[_Waiting]:
        """Take what waits, up to a size that keeps one statement quick."""
        group: list[_Waiting] = []
        size = 0
        while self._waiting and len(group) < GROUP_MAX and size < GROUP_BYTES_MAX:
            group.append(self._waiting.popleft())
            size += _weight(group[-1].commit)
        return group

    async def _settle(self, group: list[_Waiting]) -> None:
        """Write a group and answer each of it; what the database refuses is found by writing one by one."""
        try:
            verdicts = await self._patiently(group)
        except StoreUnavailable as error:
            for waiting in group:
                waiting.fail(StoreUnavailable(str(error)))
        except Exception as error:
            if len(group) > 1:
                for waiting in group:
                    await self._settle([waiting])
            else:
                group[0].fail(_refusal(error))
        else:
            self._tell(group, verdicts)

    async def _patiently(self, group: list[_Waiting]) -> list[Verdict]:
        """Write a group, again while the database is away."""
        loop = asyncio.get_running_loop()
        deadline, delay_s = loop.time() + PATIENCE_S, RETRY_S
        while True:
            try:
                return await self._write([waiting.commit for waiting in group])
            except StoreUnavailable:
                if loop.time() + delay_s > deadline:
                    raise
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, RETRY_MAX_S)

    async def _write(self, commits: list[Commit]) -> list[Verdict]:
        """Write a group once."""
        async with self._db.engine() as connection:
            statement, more = COMMIT, []
            if any(commit.paid or commit.starved for commit in commits):
                statement, more = COMMIT_PAID, settling.arrays(commits)
            found = await connection.fetch(statement, self._worker_id, *_arrays(commits), *more, timeout=ANSWER_S)
            saved: dict[int, Verdict] = {row["n"] - 1: "ready" if row["ready"] else "saved" for row in found}
            judged = {
                n: await connection.fetchval(JUDGE, *_evidence(commit), self._worker_id, timeout=ANSWER_S)
                for n, commit in enumerate(commits)
                if n not in saved
            }
            if {"ready", "saved"} & set(judged.values()):
                await connection.execute(BARRIER)
            return [verdict for _, verdict in sorted((saved | judged).items())]

    def _tell(self, group: list[_Waiting], verdicts: list[Verdict]) -> None:
        """Answer each, then ring: readers of these runs, and workers where one is due again."""
        bells: dict[str, list[str]] = {"sojourn_run": [], "sojourn_work": []}
        for waiting, verdict in zip(group, verdicts, strict=True):
            run_id = waiting.commit.run_id
            match verdict:
                case "lost":
                    waiting.fail(LeaseLost(f"Run {run_id} has another worker now."))
                case "mail":
                    waiting.fail(MailWaits())
                case _:
                    waiting.succeed()
                    bells["sojourn_run"].append(run_id)
                    if verdict == "ready":
                        bells["sojourn_work"].append(run_id)
        for channel, ids in bells.items():
            if ids:
                self._ring(channel, ids)


# ---- what the statement is given -------------------------------------------------------------


def _arrays(commits: list[Commit]) -> list[Any]:
    """The statement's arrays, column by column."""
    journal: list[tuple[int, JournalRow]] = []
    for n, commit in enumerate(commits, 1):
        journal.extend((n, row) for row in rows(commit.events, commit.before_seq + 1, commit.bodies))
    return [
        *_columns(21, map(_run, commits)),
        *_columns(7, ((n, *row) for n, row in journal)),
        *_columns(
            4,
            (
                (n, frame, slot, encode(message))
                for n, commit in enumerate(commits, 1)
                for frame, slot, message in commit.bodies
            ),
        ),
        *_columns(14, ((n, *_ledger(row)) for n, commit in enumerate(commits, 1) for row in commit.ledger)),
        *_columns(2, ((n, id) for n, commit in enumerate(commits, 1) for id in commit.inbox_ids)),
        [max(map(needed, (commit.after, *commit.events))) for commit in commits],
        [row.estimated for commit in commits for row in commit.ledger],
        [commit.after.spent.estimated for commit in commits],
        [row.judge for commit in commits for row in commit.ledger],
    ]


def _columns(width: int, found: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Turn rows into columns."""
    return list(zip(*found, strict=True)) or [()] * width


def _run(commit: Commit) -> tuple[Any, ...]:
    after, release = commit.after, commit.release
    usage, root, waits = after.spent.usage, after.root, pending(after)
    limits = any(isinstance(event, Decided) and event.limits is not None for event in commit.events)
    return (
        commit.tenant,
        commit.run_id,
        commit.fence,
        commit.before_seq,
        after.rev,
        freeze(after),
        release.status if release else None,
        release.due_at if release else None,
        max(commit.inbox_ids, default=0),
        after.spent.steps,
        usage.input,
        usage.cache_read,
        usage.cache_write,
        usage.output,
        usage.reasoning,
        _price(commit.ledger),
        msgspec.json.encode(waits) if waits else None,
        text(root.result) if root.result is not None else None,
        text(root.error.code) if root.error else None,
        text(root.error.detail) if root.error else None,
        encode(after.limits) if limits else None,
    )


def _price(ledger: tuple[LedgerRow, ...]) -> int | None:
    """What the commit cost; None where a price is unknown, and then the whole run's cost is."""
    total = 0
    for row in ledger:
        if row.usd_micros is None:
            return None
        total += row.usd_micros
    return total


def _ledger(row: LedgerRow) -> tuple[Any, ...]:
    usage = row.usage
    return (
        row.seq,
        row.at,
        text(row.user_id),
        text(row.agent_name),
        text(row.provider),
        text(row.model),
        row.attempt,
        usage.input,
        usage.cache_read,
        usage.cache_write,
        usage.output,
        usage.reasoning,
        row.usd_micros,
    )


def _evidence(commit: Commit) -> list[Any]:
    """The arguments of JUDGE, but for the worker."""
    written = rows(commit.events, commit.before_seq + 1, commit.bodies)
    last = written[-1].event if written else None
    released = commit.release is not None
    return [commit.tenant, commit.run_id, commit.after.rev, last, commit.fence, released, commit.before_seq]


def _weight(commit: Commit) -> int:
    """About how many bytes a commit is: the text of its messages."""
    return sum(len(getattr(part, "text", "")) for _, _, message in commit.bodies for part in message.parts)


def _refusal(error: Exception) -> Exception:
    """What a worker is told about a commit that cannot be stored."""
    match error:
        case SojournError():
            return error
        case asyncpg.UniqueViolationError():
            return LeaseLost("The run went on elsewhere.")
        case asyncpg.PostgresError() | asyncpg.InterfaceError() | UnicodeError():
            return Invalid(f"This step cannot be stored ({type(error).__name__}).", code="store.refused")
    return error
