"""With 100,000 finished runs in the table, what happens all the time touches only what it needs."""

import asyncio
import re

import pytest
from scripted_runs import AT, Worker, asked, enter, hired, submit

from sojourn.loop import events as ev
from sojourn.loop.messages import said
from sojourn.store import commits, health, queue, runs
from sojourn.store.audit import reading
from sojourn.store.audit.reading import Wanted
from sojourn.store.db import Database, connect
from sojourn.store.roles import Dsns
from sojourn.store.rows import Principal, Release, RunFilter
from sojourn.store.sharing import turns
from sojourn.store.tenant import sessions

FILL = """
insert into session (tenant, id, user_id)
select tenant.id, 'ses_' || lpad(n::text, 12, '0'), 'ann' from tenant, generate_series(1, 10000) n;

insert into run (tenant, id, session_id, user_id, agent_name, agent_version, agent_digest, status, seq, limits, labels,
    snapshot, finished_at)
select tenant, 'run_' || right(id, 8) || lpad(n::text, 4, '0'), id, 'ann', 'clerk', 1, 'sha256:x', 'completed', 3, '{}',
    '{}', 'x', now()
from session, generate_series(1, 5) n;

insert into journal (tenant, run_id, seq, at, kind, event)
select tenant, id, 1, now(), 'noted', 'x' from run;

insert into message (tenant, run_id, frame_id, slot, body) select tenant, id, '/', 0, 'x' from run;

analyze;
"""
BIG = ("run", "session", "journal", "message")


@pytest.fixture
async def crowd(database: Database) -> Principal:
    """Fill the database with two tenants' finished runs, and give a caller."""
    caller, _ = await enter(database, "acme"), await enter(database, "rival")
    walls = [f"alter table {table} {{}} row level security" for table in ("tenant", *BIG)]
    async with database.migrator() as owner:
        await owner.execute(";".join(walls).format(*["no force"] * len(walls)))
        await owner.execute(FILL)
        await owner.execute(";".join(walls).format(*["force"] * len(walls)))
    return caller


async def explain(database: Database, statement: str, arguments: list[object]) -> str:
    """Run a statement, undo it, and say how it went."""
    async with database.engine() as engine:
        transaction = engine.transaction()
        await transaction.start()
        rows = await engine.fetch(f"explain (analyze, buffers, costs off, timing off) {statement}", *arguments)
        await transaction.rollback()
    return "\n".join(row[0] for row in rows)


def pages(plan: str) -> int:
    """The pages that a plan touched, in all."""
    found = re.search(r"Buffers: shared (.*)", plan)
    assert found, plan
    return sum(int(n) for n in re.findall(r"(?:hit|read)=(\d+)", found[1]))


async def test_a_claim_and_a_commit_go_by_the_index_and_nothing_reads_much(
    database: Database, dsns: Dsns, crowd: Principal
) -> None:
    async with hired(database) as worker:
        await see_plans(database, worker, crowd)
    before = await counters(database)
    async with await connect(dsns) as busy, hired(busy, "busy") as worker:
        for _ in range(20):
            await live(busy, worker, crowd)
    after = await counters(database)
    for table in BIG:
        scans, rows = (now - then for now, then in zip(after[table], before[table], strict=True))
        assert scans == 0, f"{table} was read from end to end"
        assert 20 <= rows < 20 * 400, f"{rows} rows of {table} were read"


ACTS = """
insert into audit
    (tenant, n, at, action, subject, operator, user_id, key_id, request_id, address, outcome, detail, hash)
select 'acme', n, now(), case when n % 10000 = 0 then 'key.create' else 'run.delete' end, 'x', false,
    case when n % 10000 = 1 then 'ann' else 'bob' end, 'k', 'r', 'a', 'done', '{}', sha256('x')
from generate_series(100, 50000) n;
analyze audit;
"""


async def test_rows_of_the_audit_log_are_found_among_many(database: Database) -> None:
    caller = await enter(database, "acme")
    async with database.migrator() as owner:
        await owner.execute(f"alter table audit no force row level security; {ACTS}")
        await owner.execute("alter table audit force row level security")
    async with database.scoped(caller.handle) as conn:
        for wanted in (Wanted(action="key"), Wanted(action="key.create"), Wanted(user="ann"), Wanted()):
            found = [one.n for one in await reading.page(conn, "acme", wanted, before=None, limit=4)]
            assert len(found) == 4 and found == sorted(found, reverse=True)
            statement, where = reading.selected(wanted)
            explained = f"explain (analyze, buffers, costs off, timing off) {statement}"
            rows = await conn.fetch(explained, "acme", reading.NEWEST, 4, *where)
            plan = "\n".join(row[0] for row in rows)
            assert pages(plan) < 100, plan


async def see_plans(database: Database, worker: Worker, caller: Principal) -> None:
    for _ in range(10):
        await submit(database, caller)
    plan = await explain(database, turns.TURN, [worker.id, 5, "", None])
    used = set(re.findall(r"using (\w+) on run", plan))
    assert used == {"run_ready", "run_timer", "run_held", "run_pkey"}, plan
    assert not re.search(r"Seq Scan on run|Sort Key: run", plan), plan
    assert pages(plan) < 400, plan
    for hand in await worker.take(10):
        commit = hand.prepare(asked(0), release=Release(status="failed"))
        arguments = [worker.id, *commits._arrays([commit])]
        plan = await explain(database, commits.COMMIT, arguments)
        assert "using run_pkey on run" in plan, plan
        assert set(re.findall(r"Seq Scan on (\w+)", plan)) <= {"inbox"}, plan
        assert pages(plan) < 200, plan
        await worker.committer.commit(commit)


async def live(busy: Database, worker: Worker, caller: Principal) -> None:
    """Do everything once that callers and workers do all the time."""
    await submit(busy, caller)
    hand = await worker.take_one()
    session_id = hand.state.session_id
    await hand.step(0)
    async with busy.scoped(caller.handle) as conn:
        await runs.post(conn, hand.run_id, ev.Said(at=AT, message=said("x", "x")))
        await runs.get(conn, hand.run_id)
        await runs.page(conn)
        await runs.page(conn, RunFilter(session_id=session_id))
        await runs.page(conn, RunFilter(status="running"), limit=1)
        for rare in ({"agent": "nobody's"}, {"user_id": "nobody"}, {"status": "failed", "agent": "nobody's"}):
            assert not (await runs.page(conn, RunFilter(**rare))).rows
        assert len((await runs.page(conn, RunFilter(agent="clerk"), limit=10)).rows) == 10
        await runs.waiting(conn)
        await runs.events(conn, hand.run_id)
        await runs.events(conn, hand.run_id, bytes_max=1 << 20)
        await runs.transcript(conn, hand.run_id)
        await runs.conversation(conn, session_id)
        await sessions.page(conn)
    mail = (await queue.mail(busy, [(caller.tenant, hand.run_id)]))[hand.run_id]
    assert await queue.beat(worker.life, worker.id) == {(hand.run_id, hand.claimed.fence)}
    await queue.steal(busy, 3600)
    await health.counts(busy)
    await hand.commit(release=Release(status="queued"), inbox=[id for id, _ in mail])
    await (await worker.take_one()).finish(1)


async def counters(database: Database) -> dict[str, tuple[int, int]]:
    """How often each table was read from end to end, and how many rows by index, once all other connections ended."""
    others = "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
    async with asyncio.timeout(30), database.migrator() as conn:
        await database.close()
        while await conn.fetchval(others):  # noqa: ASYNC110 (the server ends them)
            await asyncio.sleep(0.005)
        rows = await conn.fetch("select relname, seq_scan, idx_tup_fetch from pg_stat_user_tables")
    return {row["relname"]: (row["seq_scan"], row["idx_tup_fetch"] or 0) for row in rows}
