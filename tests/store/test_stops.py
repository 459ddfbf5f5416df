"""Stops in the database: what they refuse, what they end, what they say is left."""

import asyncio
import sys
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest
from scripted_runs import AGENT, asked, blocked, enter, hired, new_id, new_run, post, status, submit, words

from sojourn.errors import Conflict, Forbidden, Invalid, NotFound
from sojourn.loop import events as ev
from sojourn.store import queue, runs, stops
from sojourn.store.audit.operator import operator
from sojourn.store.db import Database
from sojourn.store.rows import Principal
from sojourn.store.stops.sweep import TAKE
from sojourn.store.tenant import sessions


def ring(_channel: str, _ids: Collection[str]) -> None:
    """Nobody listens."""


async def stop(
    database: Database, caller: Principal, what: str = "tenant", target: str = "", **more: Any
) -> stops.Stop:
    async with database.scoped(caller.handle) as conn:
        new = stops.NewStop(tenant=caller.tenant, what=what, target=target, **more)  # type: ignore[arg-type]
        return await stops.make(conn, new, stop_id=new_id("stp"), by=caller.user)


async def operator_stop(database: Database, tenant: str, what: str) -> stops.Stop:
    async with operator(database) as conn:
        new = stops.NewStop(tenant=tenant, what=what)  # type: ignore[arg-type]
        return await stops.make(conn, new, stop_id=new_id("stp"), by="operator", operator=True)


async def lift(database: Database, caller: Principal, stop_id: str) -> stops.Stop:
    async with database.scoped(caller.handle) as conn:
        return await stops.lift(conn, stop_id, by=caller.user)


async def report(database: Database, caller: Principal, made: stops.Stop) -> stops.Report:
    async with database.scoped(caller.handle) as conn:
        return await stops.report(conn, made)


async def sweep(database: Database) -> None:
    """Carry out what there is, as one worker does in one go."""
    while await stops.sweep(database, ring, datetime.now(UTC)):
        pass


async def sweep_again(database: Database) -> None:
    """The same once the next look has come."""
    async with database.engine() as engine:
        await engine.execute("update stop set sweep_at = now()")
    await sweep(database)


async def whole(database: Database, caller: Principal, run_id: str) -> list[str]:
    """The kinds of a run's events, once its journal was seen to be what its snapshot says."""
    async with database.scoped(caller.handle) as conn:
        assert await runs.verify_chain(conn, run_id)
        found = await runs.events(conn, run_id)
    assert [seq for seq, _ in found] == list(range(1, len(found) + 1))
    return [str(event.__struct_config__.tag) for _, event in found]


# ---- what is refused ---------------------------------------------------------------------------


async def test_no_run_begins_of_what_is_stopped_and_the_refusal_names_the_stop(database: Database) -> None:
    ann, rival = await enter(database), await enter(database, "rival")
    async with database.scoped(ann.handle) as conn:
        await sessions.create(conn, "ses_1")
    cases = {"tenant": "", "user": "ann", "agent": AGENT.name, "session": "ses_1"}
    for what, target in cases.items():
        made = await stop(database, ann, what, target, reason="the key leaked")
        with pytest.raises(Conflict, match=f"{made.id}.*the key leaked") as refused:
            await submit(database, ann, session_id="ses_1")
        assert refused.value.code == "stop.in_force"
        if what != "session":
            with pytest.raises(Conflict):
                await submit(database, ann)
        else:
            await submit(database, ann)
        await submit(database, rival), "the same user and agent of another tenant"
        await lift(database, ann, made.id)
    await submit(database, ann, session_id="ses_1")


async def test_the_operator_stops_everybody_and_no_key_lifts_it(database: Database) -> None:
    ann, rival = await enter(database), await enter(database, "rival")
    everybody = await operator_stop(database, stops.EVERYBODY, "installation")
    for caller in (ann, rival):
        with pytest.raises(Conflict, match=everybody.id):
            await submit(database, caller)
        with pytest.raises(NotFound):
            await lift(database, caller, everybody.id)
    own = await operator_stop(database, "acme", "tenant")
    with pytest.raises(Forbidden, match="operator"):
        await lift(database, ann, own.id)
    mine = await stop(database, ann)
    assert mine.id != own.id, "a tenant's own stop is another one"
    assert (await lift(database, ann, mine.id)).lifted_by == "ann"


async def test_a_stop_made_twice_is_one_and_a_name_that_is_not_there_is_refused(database: Database) -> None:
    ann = await enter(database)
    first, second = await stop(database, ann), await stop(database, ann, reason="again")
    assert (first.id, first.created_at) == (second.id, second.created_at)
    assert (await stop(database, ann, mode="hold")).id != first.id
    again = await lift(database, ann, first.id)
    assert await lift(database, ann, first.id) == again
    assert (await stop(database, ann)).id != first.id
    with pytest.raises(NotFound):
        await stop(database, ann, "run", "run_none")
    with pytest.raises(Invalid):
        await stop(database, ann, "user")


FORGED = [
    "insert into stop (tenant, id, what, mode, made_by)"
    " values ('rival', 'stp_0123456789abcdef', 'tenant', 'cancel', 'ann')",
    "insert into stop (tenant, id, what, mode, made_by)"
    " values ('*', 'stp_0123456789abcdef', 'installation', 'cancel', 'ann')",
    "insert into stop (tenant, id, what, mode, made_by)"
    " values ('acme', 'stp_0123456789abcdef', 'tenant', 'cancel', 'bob')",
    "insert into stop (tenant, id, what, mode, made_by, operator)"
    " values ('acme', 'stp_0123456789abcdef', 'tenant', 'cancel', 'ann', true)",
    "update stop set operator = false",
    "update stop set reason = 'x'",
    "delete from stop",
    "insert into stopped_run (tenant, stop_id, run_id) values ('acme', 'stp_x', 'run_x')",
]


async def test_a_handle_makes_no_stop_beyond_its_tenant_and_in_nobody_elses_name(database: Database) -> None:
    ann = await enter(database)
    await enter(database, "rival")
    for statement in FORGED:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            async with database.scoped(ann.handle) as conn:
                await conn.execute(statement)
                pytest.fail(statement)


# ---- at the same moment ------------------------------------------------------------------------


async def test_a_run_that_is_being_created_is_waited_for_and_found(database: Database) -> None:
    ann = await enter(database)
    async with database.scoped(ann.handle) as conn:
        await sessions.create(conn, "ses_1")
        new = new_run(ann, "ses_1")
        await runs.create(conn, new, queued_max=10)
        stopping = asyncio.create_task(stop(database, ann))
        await blocked(database)
        assert not stopping.done()
    made = await stopping
    assert (await report(database, ann, made)).runs == 1
    await sweep(database)
    assert await status(database, ann, new.event.run_id) == "cancelled"


async def test_a_run_that_comes_while_a_stop_is_being_made_waits_and_is_refused(database: Database) -> None:
    ann = await enter(database)
    async with database.scoped(ann.handle) as conn:
        new = stops.NewStop(tenant="acme", what="tenant")
        await stops.make(conn, new, stop_id=new_id("stp"), by="ann")
        creating = asyncio.create_task(submit(database, ann))
        await blocked(database)
    with pytest.raises(Conflict, match="stp_"):
        await creating


async def test_of_many_runs_that_race_a_stop_each_is_refused_or_stopped(database: Database) -> None:
    ann = await enter(database)
    made: list[stops.Stop] = []

    async def later() -> None:
        await asyncio.sleep(0.02)
        made.append(await stop(database, ann))

    async def one() -> str | None:
        try:
            return await submit(database, ann)
        except Conflict:
            return None

    stopping = asyncio.create_task(later())
    came: list[str | None] = []
    while not stopping.done():
        came += await asyncio.gather(*(one() for _ in range(8)))
    await stopping
    seen = await report(database, ann, made[0])
    assert seen.runs == sum(run_id is not None for run_id in came), "what was accepted is there to be stopped"
    assert await one() is None
    await sweep(database)
    assert (await report(database, ann, made[0])).settled
    statuses = {await status(database, ann, run_id) for run_id in came if run_id}
    assert statuses <= {"cancelled"}


# ---- what is ended -----------------------------------------------------------------------------


async def test_what_nobody_holds_is_ended_with_a_whole_journal_and_the_rest_is_left(database: Database) -> None:
    ann, rival = await enter(database), await enter(database, "rival")
    queued, other = await submit(database, ann), await submit(database, rival)
    said = await submit(database, ann)
    await post(database, ann, said, words())
    made = await stop(database, ann, reason="enough")
    await sweep(database)
    for run_id in (queued, said):
        assert await status(database, ann, run_id) == "cancelled"
        assert await whole(database, ann, run_id) == ["began", "cancelled", "turned"]
    assert await status(database, rival, other) == "queued"
    seen = await report(database, ann, made)
    assert (seen.settled, seen.hit) == (True, {"cancelled": 2})
    async with database.engine() as engine:
        assert await engine.fetchval("select count(*) from inbox") == 0
        assert await engine.fetchval("select done_at is not null from stop")
    async with database.scoped(ann.handle) as conn:
        hit = await stops.runs(conn, made)
    assert [(one.run_id, one.status) for one in hit] == [(queued, "cancelled"), (said, "cancelled")]


async def test_what_is_held_is_counted_a_few_runs_at_a_time(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["sojourn.store.stops.report"], "BATCH", 2)
    ann = await enter(database)
    run_ids = {await submit(database, ann) for _ in range(4)}
    async with hired(database) as worker:
        for hand in await worker.take(4):
            await worker.committer.commit(hand.prepare(asked(0)))
        seen = await report(database, ann, await stop(database, ann))
    assert (seen.leases, seen.calls, {one.id for one in seen.left}) == (4, 4, run_ids)


async def test_a_held_run_is_told_once_and_what_is_left_of_it_is_said(database: Database) -> None:
    ann = await enter(database)
    run_id = await submit(database, ann)
    async with hired(database) as worker:
        hand = await worker.take_one()
        await hand.step(0)
        made = await stop(database, ann, "run", run_id)
        await sweep(database)
        await sweep_again(database)
        seen = await report(database, ann, made)
        assert (seen.settled, seen.runs, seen.leases, seen.calls) == (False, 1, 1, 0)
        assert seen.left[0].id == run_id and "was told" in seen.left[0].why
        (letters,) = (await queue.mail(database, [("acme", run_id)])).values()
        assert isinstance(letters, list)
        assert [type(event) for _, event in letters] == [ev.Cancelled], "once"
        async with database.engine() as engine:
            await engine.execute("update worker set seen_at = now() - interval '8 seconds'")
        assert "not heard of for 8 s" in (await report(database, ann, made)).left[0].why
    assert await queue.steal(database, 60) == [run_id], "the worker is gone"
    await sweep_again(database)
    assert (await whole(database, ann, run_id))[-2:] == ["cancelled", "turned"]
    async with database.scoped(ann.handle) as conn:
        assert (await runs.get(conn, run_id)).usd_micros == 3, "what was spent is kept"
    assert (await report(database, ann, made)).settled


async def test_a_run_that_is_claimed_under_a_stop_says_so_when_it_is_opened(database: Database) -> None:
    ann = await enter(database)
    run_id = await submit(database, ann)
    made = await stop(database, ann, "user", "ann", reason="why")
    async with hired(database) as worker:
        (claimed,) = await queue.claim(database, worker.id)
        (order,) = (await queue.open(database, claimed)).stops
        assert (order.id, order.mode, order.reason) == (made.id, "cancel", "why")
        await stops.note(database, claimed, [order])
        await stops.note(database, claimed, [order])
    assert (await report(database, ann, made)).hit == {"running": 1}
    async with database.scoped(ann.handle) as conn:
        assert [one.run_id for one in await stops.runs(conn, made)] == [run_id]


async def test_a_dead_letter_is_ended_too_even_where_nobody_can_read_it(database: Database) -> None:
    ann = await enter(database)
    readable, unreadable = await submit(database, ann), await submit(database, ann)
    async with database.engine() as engine:
        await engine.execute("update run set status = 'quarantined', due_at = null")
        newer = (
            """update run set snapshot = convert_to('{"version":99,', 'UTF8') || substr(snapshot, 2) where id = $1"""
        )
        await engine.execute(newer, unreadable)
    made = await stop(database, ann)
    await sweep(database)
    assert (await report(database, ann, made)).settled
    assert await whole(database, ann, readable) == ["began", "cancelled", "turned"]
    async with database.scoped(ann.handle) as conn:
        row, events = await runs.get(conn, unreadable), await runs.events(conn, unreadable)
    assert (row.status, row.seq, [seq for seq, _ in events]) == ("cancelled", 3, [1, 2, 3])
    assert isinstance(events[-1][1], ev.Turned)


async def test_a_stop_that_is_lifted_in_the_middle_leaves_the_rest(database: Database) -> None:
    ann = await enter(database)
    run_id = await submit(database, ann)
    made = await stop(database, ann)
    await lift(database, ann, made.id)
    await sweep(database)
    assert await status(database, ann, run_id) == "queued"


async def test_who_dies_with_a_stop_in_hand_leaves_it_to_the_next(database: Database) -> None:
    ann = await enter(database)
    run_id = await submit(database, ann)
    await stop(database, ann)
    async with database.engine() as engine:
        assert await engine.fetchrow(TAKE, 60), "taken, and nothing more"
    await sweep(database)
    assert await status(database, ann, run_id) == "queued", "nobody else takes it meanwhile"
    await sweep_again(database)
    assert await status(database, ann, run_id) == "cancelled"
