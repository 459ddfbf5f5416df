"""Pools of the day in the database: exact over all who reserve at once, settled by the commit, dropped with the run."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from msgspec.structs import replace
from scripted_runs import Hand, asked, blocked, enter, hired, replied, submit

from sojourn.errors import LeaseLost
from sojourn.loop import events as ev
from sojourn.loop.budget import Bill, Held
from sojourn.loop.messages import Usage
from sojourn.store import stops
from sojourn.store.budgets import pools, reserving, waking
from sojourn.store.budgets.pools import Bounds, Defaults, Pool
from sojourn.store.db import Database
from sojourn.store.rows import Paid, Principal, Release, Starved
from sojourn.store.sharing.limits import set_limits

pytestmark = pytest.mark.usefixtures("whole_day")
NONE = Defaults()


def name(hand: Hand, attempt: int = 1) -> str:
    return f"/#{hand.state.root.step}@{attempt}"


async def reserve(
    db: Database, hand: Hand, usd_micros: int | None, tokens: int = 0, *, defaults: Defaults = NONE, **more: object
) -> reserving.Verdict:
    wanted = reserving.Wanted(**{"call": name(hand), "usd_micros": usd_micros, "tokens": tokens, **more})
    return await reserving.reserve(db, "w1", claimed=hand.claimed, wanted=wanted, defaults=defaults)


async def today(db: Database, caller: Principal, user: str = "ann") -> tuple[Pool, Pool]:
    async with db.scoped(caller.handle) as conn:
        return (await pools.pools(conn, [user], NONE))[0]


async def spent(db: Database, caller: Principal, user: str = "ann") -> list[tuple[int, int]]:
    """What is spent and held in micro-USD of the tenant and of a user."""
    return [(pool.usd, pool.held_usd) for pool in await today(db, caller, user)]


async def pay(hand: Hand, *events: ev.Event, paid: tuple[Paid, ...], release: Release | None = None) -> None:
    """Commit events with what they say to the pools."""
    await hand.committer.commit(replace(hand.prepare(*events, release=release), paid=paid))


async def test_a_hundred_who_ask_at_once_get_as_many_places_as_there_are(database: Database) -> None:
    caller = await enter(database)
    await set_limits(database, "acme", {"user_usd_day_micros": 7 * 10 + 9, "tokens_day": 1000})
    for _ in range(30):
        await submit(database, caller)
    async with hired(database) as worker:
        hands = await worker.take(30)
        found = await asyncio.gather(*(reserve(database, hand, 10, 1) for hand in hands))
        held = [hand for hand, verdict in zip(hands, found, strict=True) if verdict.verdict == "held"]
        assert len(held) == 7
        assert {(v.verdict, v.pool, v.measure, v.bound) for v in found if v.verdict != "held"} == {
            ("later", "user", "usd", 79)
        }
        again = await asyncio.gather(*(reserve(database, hand, 10, 1) for hand in held))
        assert {verdict.verdict for verdict in again} == {"held"}, "the same call is reserved once"
        assert await spent(database, caller) == [(0, 70), (0, 70)]
        await asyncio.gather(*(pay(hand, asked(0), paid=()) for hand in held))
        over = Release(status="completed")
        turned = ev.Turned(at=asked(0).at, phase="completed")
        await asyncio.gather(
            *(pay(h, replied(0, "ok"), turned, paid=(Paid(call="/#0@1", usd_micros=10),), release=over) for h in held)
        )
        assert await spent(database, caller) == [(70, 0), (70, 0)]
        (left,) = {(await reserve(database, hand, 10)).verdict for hand in hands if hand not in held}
        assert left == "exhausted"


async def test_who_asks_at_the_same_moment_waits_for_the_answer_to_the_other(database: Database) -> None:
    caller = await enter(database)
    await set_limits(database, "acme", {"usd_day_micros": 10})
    await submit(database, caller)
    await submit(database, caller)
    async with hired(database) as worker:
        hand, other = await worker.take(2)
        async with database.engine() as engine:
            transaction = engine.transaction()
            await transaction.start()
            first = ("w1", "acme", hand.run_id, hand.claimed.fence, "/#0@1", 10, 1, [], 0, 0, NONE.row)
            assert (await engine.fetchrow(reserving.RESERVE, *first))["verdict"] == "held"
            second = asyncio.create_task(reserve(database, other, 10))
            await blocked(database)
            await transaction.commit()
        assert (await second).verdict == "later"


async def test_both_pools_hold_or_none_does(database: Database) -> None:
    caller = await enter(database)
    await set_limits(database, "acme", {"usd_day_micros": 100, "user_tokens_day": 5})
    await submit(database, caller)
    async with hired(database) as worker:
        hand = await worker.take_one()
        found = await reserve(database, hand, 90, 6)
        assert (found.verdict, found.pool, found.measure, found.bound) == ("exhausted", "user", "tokens", 5)
        assert found.until is not None and found.until > datetime.now(UTC)
        assert await spent(database, caller) == [(0, 0), (0, 0)]
        assert (await reserve(database, hand, None, 5)).verdict == "price"
        assert (await reserve(database, hand, 100, 5)).verdict == "held"


async def test_a_place_is_for_who_has_the_lease(database: Database) -> None:
    caller = await enter(database)
    await set_limits(database, "acme", {"usd_day_micros": 100})
    await submit(database, caller)
    async with hired(database) as worker:
        hand = await worker.take_one()
        await hand.commit(release=Release(status="queued", due_at=asked(0).at))
        with pytest.raises(LeaseLost):
            await reserve(database, hand, 1)
        (new,) = await worker.take()
        with pytest.raises(LeaseLost):
            await reserve(database, hand, 1)
        assert (await reserve(database, new, 1)).verdict == "held"


async def test_the_next_worker_takes_a_reservation_over(database: Database) -> None:
    caller = await enter(database)
    await set_limits(database, "acme", {"usd_day_micros": 10})
    await submit(database, caller)
    async with hired(database) as worker:
        hand = await worker.take_one()
        assert (await reserve(database, hand, 10)).verdict == "held"
        await hand.commit(asked(0))
        lost = ev.ModelLost(at=asked(0).at, frame="/", step=0, attempt=1)
        found = await reserve(database, hand, 10, call=name(hand, 2))
        assert found.verdict == "later", "the first attempt holds it"
        found = await reserve(database, hand, 10, call=name(hand, 2), ending=("/#0@1",))
        assert found.verdict == "held", "it ends with the commit that announces the second"
        again = ev.ModelAsked(at=asked(0).at, frame="/", step=0, attempt=2, model="sim:a")
        await pay(hand, lost, again, paid=(Paid(call="/#0@1", usd_micros=4),))
        assert await spent(database, caller) == [(4, 10), (4, 10)]
        found = await reserve(database, hand, 3, call=name(hand, 3), ending=("/#0@2",), owed_usd_micros=4)
        assert found.verdict == "exhausted", "4 are spent, and 4 are about to be"


async def test_what_is_paid_in_pieces_counts_once_and_holds_on(database: Database) -> None:
    caller = await enter(database)
    await set_limits(database, "acme", {"usd_day_micros": 100})
    await submit(database, caller)
    async with hired(database) as worker:
        hand = await worker.take_one()
        await reserve(database, hand, 10)
        await pay(hand, asked(0), paid=(Paid(call="/#0@1", usd_micros=3, open=True),))
        assert (await spent(database, caller))[0] == (3, 7)
        await reserve(database, hand, 1, call="another")
        await pay(hand, replied(0, calls=1), paid=(Paid(call="/#0@1", usd_micros=2),))
        await reserve(database, hand, 1, call="another")
        assert (await spent(database, caller))[0] == (5, 1)


async def test_every_end_of_a_run_drops_what_it_held(database: Database) -> None:
    caller = await enter(database)
    await set_limits(database, "acme", {"usd_day_micros": 100})
    ids = [await submit(database, caller) for _ in range(4)]
    async with hired(database) as worker:
        hands = await worker.take(4)
        for hand in hands:
            assert (await reserve(database, hand, 10)).verdict == "held"
        assert (await spent(database, caller))[0] == (0, 40)
        await hands[0].commit(release=Release(status="suspended"))
        await hands[1].commit(ev.Cancelled(at=asked(0).at, by="ann"), release=Release(status="cancelled"))
        await hands[2].commit(release=Release(status="queued", due_at=asked(0).at + timedelta(days=10**5)))
        assert (await spent(database, caller))[0] == (0, 20), "one of them goes on, and one has a worker"
        new = stops.NewStop(tenant="acme", what="run", target=ids[2])
        async with database.scoped(caller.handle) as conn:
            await stops.make(conn, new, stop_id="stp_0123456789abcdef", by="ann")
        await stops.sweep(database, lambda _channel, _ids: None, datetime.now(UTC))
        assert (await spent(database, caller))[0] == (0, 10)


async def test_a_stop_that_ends_the_run_of_a_dead_worker_charges_the_pools_what_it_charges_the_run(
    database: Database,
) -> None:
    caller = await enter(database)
    await set_limits(database, "acme", {"usd_day_micros": 100})
    ids = [await submit(database, caller) for _ in range(2)]
    least = Bill(model="sim:a", usage=Usage(input=5), usd_micros=4, estimated=True)
    async with hired(database) as worker:
        one, other = await worker.take(2)
        assert (await reserve(database, one, 10)).verdict == "held"
        for hand in (one, other):
            await hand.commit(replace(asked(0), at=_at(), least=least))
            await hand.commit(release=Release(status="queued", due_at=asked(0).at + timedelta(days=10**5)))
        for n, run_id in enumerate(ids):
            new = stops.NewStop(tenant="acme", what="run", target=run_id)
            async with database.scoped(caller.handle) as conn:
                await stops.make(conn, new, stop_id=f"stp_{n:020}", by="ann")
            await stops.sweep(database, lambda _channel, _ids: None, datetime.now(UTC))
        assert await spent(database, caller) == [(8, 0), (8, 0)], "also for the call that began before there was a pool"
        async with database.engine() as engine:
            assert await engine.fetchval("select sum(usd_micros) from ledger") == 8


async def test_midnight_takes_nothing_along(database: Database) -> None:
    caller = await enter(database)
    await set_limits(database, "acme", {"usd_day_micros": 10})
    await submit(database, caller)
    await submit(database, caller)
    async with hired(database) as worker:
        hand, other = await worker.take(2)
        assert (await reserve(database, hand, 10)).verdict == "held"
        await hand.commit(asked(0))
        await _a_day_passes(database)
        assert (await spent(database, caller))[0] == (0, 0), "yesterday's call holds nothing of today"
        await pay(hand, _today(replied(0, calls=1)), paid=(Paid(call="/#0@1", usd_micros=10),))
        assert (await reserve(database, other, 10)).verdict == "held"
        assert (await spent(database, caller))[0] == (0, 10)
        async with database.engine() as engine:
            days = await engine.fetch("select usd_micros from day_account where user_id = '' order by day")
        assert [row["usd_micros"] for row in days] == [10, 0]


async def _a_day_passes(database: Database) -> None:
    async with database.engine() as engine:
        await engine.execute("update reservation set day = day - 1")
        await engine.execute("update day_account set day = day - 1")


async def test_what_was_paid_before_the_first_pool_is_counted_from_the_ledger(database: Database) -> None:
    caller = await enter(database)
    await submit(database, caller)
    async with hired(database) as worker:
        hand = await worker.take_one()
        await hand.commit(asked(0))
        await hand.commit(_today(replied(0, calls=1)))
        await set_limits(database, "acme", {"user_usd_day_micros": 5, "tokens_day": 100})
        found = await reserve(database, hand, 3)
        assert (found.verdict, found.pool) == ("exhausted", "user"), "3 were paid before"
        assert (await reserve(database, hand, 2, 83)).verdict == "held"
        assert (await today(database, caller))[0].tokens == 17


def _today(event: ev.Replied) -> ev.Replied:
    return replace(event, at=_at())


async def test_the_first_ones_are_woken_and_only_as_many_as_there_is_room_for(database: Database) -> None:
    caller = await enter(database)
    await set_limits(database, "acme", {"usd_day_micros": 0})
    ids = [await submit(database, caller) for _ in range(6)]
    rung: list[str] = []

    async def wake() -> list[str]:
        rung.clear()
        await waking.wake(
            database, lambda channel, ids: rung.extend(ids if channel == "sojourn_work" else ()), _at(), NONE
        )
        return rung

    async with hired(database) as worker:
        hands = {hand.run_id: hand for hand in await worker.take(6)}
        for run_id in ids:
            await _starve(hands[run_id], 10)
        assert await wake() == []
        await set_limits(database, "acme", {"usd_day_micros": 29})
        assert await wake() == ids[:2]
        async with database.engine() as engine:
            letters = await engine.fetch("select run_id, event from inbox order by id")
        assert [row["run_id"] for row in letters] == ids[:2]
        assert all(isinstance(ev.decode(row["event"]), ev.Decided) for row in letters)
        async with database.scoped(caller.handle) as conn:
            await pools.set_bounds(conn, "user", "ann", wanted=Bounds(usd_micros=9), defaults=NONE)
        assert await wake() == [], "the user's own pool holds none of them"
        async with database.scoped(caller.handle) as conn:
            await pools.set_bounds(conn, "user", "ann", wanted=Bounds(), defaults=NONE)
        await set_limits(database, "acme", {"usd_day_micros": None})
        assert await wake() == ids[2:]
        assert await wake() == []


async def _starve(hand: Hand, usd_micros: int) -> None:
    """Let a run suspend for want of room."""
    commit = hand.prepare(ev.Paused(at=_at(), by="ann"), release=Release(status="suspended"))
    assert hand.state.wait is not None
    starved = (Starved(wait=hand.state.wait.id, held=Held(usd_micros=usd_micros)),)
    await hand.committer.commit(replace(commit, starved=starved))


def _at() -> datetime:
    return datetime.now(UTC)


async def test_who_waits_no_longer_is_left_alone(database: Database) -> None:
    caller = await enter(database)
    await set_limits(database, "acme", {"usd_day_micros": 0})
    await submit(database, caller)
    async with hired(database) as worker:
        hand = await worker.take_one()
        await _starve(hand, 10)
        async with database.engine() as engine:
            await engine.execute("update run set status = 'queued', due_at = now(), ready = true")
            await waking.wake(database, lambda _channel, _ids: None, _at(), NONE)
            assert await engine.fetchval("select count(*) from day_wait") == 0
            assert await engine.fetchval("select count(*) from inbox") == 0


async def test_a_reservation_waits_for_no_disk(database: Database) -> None:
    """It is durable with the commit that announces the call, which comes later in the same log."""
    caller = await enter(database)
    await set_limits(database, "acme", {"usd_day_micros": 100})
    await submit(database, caller)
    async with hired(database) as worker:
        hand = await worker.take_one()
        async with database.engine() as engine, engine.transaction():
            values = ("w1", "acme", hand.run_id, hand.claimed.fence, "/#0@1", 1, 1, [], 0, 0, NONE.row)
            await engine.fetchrow(reserving.RESERVE, *values)
            assert await engine.fetchval("show synchronous_commit") == "off"
        async with database.engine() as engine:
            assert await engine.fetchval("show synchronous_commit") == "on"
