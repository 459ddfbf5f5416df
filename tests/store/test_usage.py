"""What was paid, summed up: groups, pages, estimates, unknown prices, and what was deleted."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from aged_runs import expire
from msgspec.structs import replace
from scripted_runs import AT, asked, enter, hired, replied, submit
from test_stops import stop, sweep, whole

from sojourn.loop import events as ev
from sojourn.loop.budget import Bill
from sojourn.loop.continuation import Failure
from sojourn.loop.messages import Usage
from sojourn.store import queue, runs
from sojourn.store.db import Database
from sojourn.store.deltas import DeltaWriter
from sojourn.store.rows import LedgerRow, Principal
from sojourn.store.tenant import usage

EVER = datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
LEAST = Bill(model="sim:a", usage=Usage(input=10), usd_micros=40, estimated=True)
PAY = """
insert into ledger (tenant, run_id, seq, at, user_id, agent_name, provider, model, attempt, input, cache_read,
    cache_write, output, reasoning, usd_micros, estimated)
select $1, 'run_' || n, n, timestamptz '2026-03-01 12:00Z' + make_interval(days => n % 3), 'user' || n % 2, 'clerk',
    'p', 'm' || n % 5, 1, 1, 0, 0, 2, 0, case when n % 7 > 0 then n end, n % 4 = 0
from generate_series(1, $2::int) n
"""


async def pay(database: Database, tenant: str, rows: int) -> None:
    async with database.engine() as engine:
        await engine.execute(PAY, tenant, rows)


async def sums(database: Database, caller: Principal, *by: Any, **more: Any) -> tuple[usage.UsageRow, Any]:
    async with database.scoped(caller.handle) as conn:
        return await usage.totals(conn, usage.Span(*more.pop("span", EVER)), by=by, **more)


async def test_sums_are_by_what_is_asked_for_and_of_the_tenant_alone(database: Database) -> None:
    ann, rival = await enter(database), await enter(database, "rival")
    await pay(database, "acme", 30)
    await pay(database, "rival", 3)
    total, groups = await sums(database, ann)
    assert (total.calls, total.unpriced_calls, total.estimated_calls, groups) == (30, 4, 7, [])
    assert total.usd_micros == sum(n for n in range(1, 31) if n % 7)
    assert total.estimated_usd_micros == sum(n for n in range(4, 31, 4) if n % 7)
    assert total.usage == Usage(input=30, output=60)
    for by in (("user",), ("model", "user"), ("day", "agent"), ("tenant", "user", "agent", "model", "day")):
        whole_, found = await sums(database, ann, *by)
        assert whole_ == total and sum(row.calls for row in found) == 30
        assert [row.keys for row in found] == sorted(row.keys for row in found)
    _, days = await sums(database, ann, "day")
    assert [row.keys for row in days] == [(date(2026, 3, day),) for day in (1, 2, 3)]
    assert (await sums(database, rival, "tenant"))[1][0].keys == ("rival",)


async def test_a_time_begins_with_its_start_and_ends_before_its_end(database: Database) -> None:
    ann = await enter(database)
    await pay(database, "acme", 3)
    noon = datetime(2026, 3, 1, 12, tzinfo=UTC)
    for span, calls in (((noon, noon + timedelta(days=1)), 1), ((noon - timedelta(days=9), noon), 0)):
        assert (await sums(database, ann, "user", span=span))[0].calls == calls


async def test_pages_hold_every_group_once(database: Database) -> None:
    ann = await enter(database)
    await pay(database, "acme", 60)
    total, every = await sums(database, ann, "user", "model", "day")
    found: list[usage.UsageRow] = []
    while True:
        after = found[-1].keys if found else ()
        again, page = await sums(database, ann, "user", "model", "day", after=after, limit=4)
        assert again == total
        if not page:
            break
        found += page
    assert found == every and len(every) == 30


async def test_what_was_deleted_is_said(database: Database) -> None:
    ann, rival = await enter(database), await enter(database, "rival")
    for tenant in ("acme", "rival"):
        await pay(database, tenant, 3)
    async with database.scoped(ann.handle) as conn:
        assert await usage.complete_since(conn) is None
    async with database.engine() as engine:
        days = (await engine.fetchval("select now()") - datetime(2026, 3, 1, 12, tzinfo=UTC)).days
    async with database.migrator() as owner:
        await owner.execute("set role sojourn_keyring; update tenant set ledger_kept_days = 0 where id = 'rival'")
    assert (await expire(database, ledger_days=days))["ledger"] == 1
    for caller, since, calls in ((ann, datetime(2026, 3, 1, 12, 0, 0, 1, tzinfo=UTC), 2), (rival, None, 3)):
        async with database.scoped(caller.handle) as conn:
            assert await usage.complete_since(conn) == since
        assert (await sums(database, caller))[0].calls == calls


# ---- rows --------------------------------------------------------------------------------------


async def rows(database: Database, caller: Principal, run_id: str) -> list[LedgerRow]:
    async with database.scoped(caller.handle) as conn:
        return await usage.ledger(conn, run_id)


async def test_a_run_says_how_many_of_its_calls_are_estimated(database: Database) -> None:
    ann = await enter(database)
    async with hired(database) as worker:
        run_id = await submit(database, ann)
        hand = await worker.take_one()
        await hand.commit(replace(asked(0), least=LEAST))
        erred = ev.ModelErred(
            at=AT, frame="/", step=0, attempt=1, error=Failure("model.interrupted"), retry=True, bill=LEAST
        )
        row = usage.entry(hand.state, erred)
        commit = replace(hand.prepare(erred), ledger=(row,))
        await hand.committer.commit(commit)
    (found,) = await rows(database, ann, run_id)
    assert found == row and (found.estimated, found.provider, found.model, found.user_id) == (True, "sim", "a", "ann")
    async with database.scoped(ann.handle) as conn:
        run = await runs.get(conn, run_id)
    assert (run.estimated_calls, run.usd_micros, run.usage.input) == (1, 40, 10)


async def test_a_call_whose_worker_died_is_paid_for_by_the_stop_that_ends_its_run_once(database: Database) -> None:
    ann = await enter(database)
    run_id = await submit(database, ann)
    async with hired(database) as worker:
        hand = await worker.take_one()
        await hand.commit(replace(asked(0), least=LEAST))
    await queue.steal(database, 0)
    await stop(database, ann)
    for _ in range(2):
        await sweep(database)
    assert await whole(database, ann, run_id) == ["began", "model_asked", "model_lost", "cancelled", "turned"]
    (paid,) = await rows(database, ann, run_id)
    assert (paid.usd_micros, paid.usage, paid.estimated, paid.seq) == (40, Usage(input=10), True, 3)
    async with database.scoped(ann.handle) as conn:
        assert ((await runs.get(conn, run_id)).usd_micros, (await runs.get(conn, run_id)).estimated_calls) == (40, 1)


async def test_what_readers_saw_of_a_dead_workers_reply_is_told_to_the_next(database: Database) -> None:
    ann = await enter(database)
    run_id = await submit(database, ann)
    async with hired(database) as worker:
        hand = await worker.take_one()
        await hand.commit(replace(asked(0), least=LEAST))
        writer = DeltaWriter(database, lambda _channel, _ids: None, flush_s=0)
        for attempt, item in (
            (1, '{"type":"message","text":"four"}'),
            (1, '{"type":"thinking","text":"\u00fc"}'),
            (2, '{"type":"message","text":"x"}'),
            (1, '{"type":"tool_output","text":"long"}'),
        ):
            writer.add(("acme", run_id, hand.claimed.fence, "/", 0, attempt), item.encode())
        await writer.close()
    await queue.steal(database, 0)
    async with hired(database, "w2") as other:
        (claimed,) = await queue.claim(database, other.id, 1)
        assert (await queue.open(database, claimed)).streamed == {("/", 0, 1): 6}


@pytest.mark.parametrize("least", [None, LEAST])
async def test_a_row_is_written_for_what_costs_something(database: Database, least: Bill | None) -> None:
    ann = await enter(database)
    async with hired(database) as worker:
        await submit(database, ann)
        hand = await worker.take_one()
        await hand.commit(asked(0))
        lost = ev.ModelLost(at=AT, frame="/", step=0, attempt=1, bill=least)
        assert (usage.entry(hand.state, lost) is None) == (least is None)
        assert usage.entry(hand.state, replied(0)) is not None and usage.entry(hand.state, asked(0)) is None
