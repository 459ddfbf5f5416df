"""What happens to runs is written down for the webhooks that want it: with the event, for its tenant, and bounded."""

import base64
import hashlib
import hmac
from datetime import timedelta
from typing import Any

import asyncpg
import msgspec
import pytest
from scripted_runs import AT, enter, hired, submit, webhook

from sojourn.errors import OverLimit
from sojourn.loop import events as ev
from sojourn.store.db import Database
from sojourn.store.notices import deliveries, webhooks
from sojourn.store.notices.deliveries import Delivery, Outcome
from sojourn.store.rows import Principal, Release

SECRET = bytes(range(32))
TOOK, DOWN = Outcome(status=204), Outcome(status=503)


async def wanted(database: Database, caller: Principal, *events: str) -> str:
    """Make a webhook and give its id."""
    async with database.scoped(caller.handle) as conn:
        return (await webhooks.create(conn, webhook("https://example.org", *events), secret=SECRET)).id


async def waiting(database: Database, caller: Principal, webhook_id: str, **more: Any) -> list[webhooks.DeliveryRow]:
    async with database.scoped(caller.handle) as conn:
        return await webhooks.history(conn, webhook_id, **more)


async def cancelled(database: Database, caller: Principal, n: int = 1) -> list[str]:
    """Runs that have ended."""
    ids = [await submit(database, caller) for _ in range(n)]
    async with hired(database) as worker:
        for hand in await worker.take(n):
            await hand.commit(release=Release(status="cancelled"))
    return ids


async def rest_over(database: Database) -> None:
    """Let the time pass that webhooks and deliveries wait."""
    async with database.engine() as engine, engine.transaction():
        await engine.execute("update webhook set rest_until = '-infinity'")
        await engine.execute("update webhook_delivery set due_at = now() where due_at is not null")


async def the_one(database: Database) -> Delivery:
    (found,) = await deliveries.claim(database, 10)
    return found


async def test_the_end_of_a_run_is_told_to_the_webhooks_of_its_tenant_that_want_it(database: Database) -> None:
    ann, bob = await enter(database, "acme"), await enter(database, "rival")
    ends, all_, fails = [
        await wanted(database, ann, *events) for events in (("run.cancelled",), ("*",), ("run.failed",))
    ]
    other = await wanted(database, bob, "*")
    (run_id,) = await cancelled(database, ann)
    for one in (ends, all_):
        (delivery,) = await waiting(database, ann, one)
        assert delivery.type == "run.cancelled" and delivery.due_at is not None
    assert await waiting(database, ann, fails) == await waiting(database, bob, other) == []
    (first, second) = await deliveries.claim(database, 10)
    body = msgspec.json.decode(first.body)
    assert body["type"] == "run.cancelled" and body["timestamp"].endswith("Z")
    assert (body["data"]["run_id"], body["data"]["status"]) == (run_id, "cancelled")
    assert (body["data"]["user_id"], body["data"]["agent"]) == ("ann", "clerk")
    assert first.id != second.id


async def test_a_run_that_waits_is_told_with_its_waits_and_none_of_their_words(database: Database) -> None:
    caller = await enter(database)
    hook = await wanted(database, caller, "run.suspended")
    await submit(database, caller)
    async with hired(database) as worker:
        hand = await worker.take_one()
        paused = ev.Paused(at=AT, by="bob", reason="secret plan \x00 and more")
        await hand.commit(paused, release=Release(status="suspended"))
    (delivery,) = await deliveries.claim(database, 1)
    data = msgspec.json.decode(delivery.body)["data"]
    assert delivery.webhook_id == hook
    assert data["status"] == "suspended" and "secret plan" not in delivery.body


async def test_what_is_rolled_back_is_not_told(database: Database) -> None:
    caller = await enter(database)
    hook = await wanted(database, caller)
    run_id = await submit(database, caller)
    async with database.engine() as engine:
        transaction = engine.transaction()
        await transaction.start()
        await engine.execute(
            "update run set status = 'cancelled', due_at = null, finished_at = now() where id = $1", run_id
        )
        assert await engine.fetchval("select count(*) from webhook_delivery") == 1
        await transaction.rollback()
    assert await waiting(database, caller, hook) == []


async def test_a_webhook_that_is_disabled_is_told_nothing_and_gives_up_what_waits(database: Database) -> None:
    caller = await enter(database)
    hook = await wanted(database, caller)
    await cancelled(database, caller)
    async with database.scoped(caller.handle) as conn:
        at = (await webhooks.get(conn, hook)).created_at
        await webhooks.change(conn, hook, disabled_code="caller", disabled_at=at)
    await cancelled(database, caller)
    (dead,) = await waiting(database, caller, hook)
    assert dead.dead_at is not None
    assert await deliveries.claim(database, 10) == []
    async with database.scoped(caller.handle) as conn:
        await webhooks.change(conn, hook, disabled_code=None, disabled_at=None)
        assert await webhooks.retry(conn, hook, None) == 1
    assert (await the_one(database)).id == dead.id


async def test_the_signature_is_that_of_standard_webhooks(database: Database) -> None:
    caller = await enter(database)
    await wanted(database, caller)
    await cancelled(database, caller)
    sent = await the_one(database)
    signed = f"{sent.id}.{sent.sent_s}.{sent.body}".encode()
    expected = base64.b64encode(hmac.new(SECRET, signed, hashlib.sha256).digest()).decode()
    assert sent.signature == f"v1,{expected}"


async def test_a_replaced_secret_signs_beside_the_new_one_until_its_time_is_over(database: Database) -> None:
    caller = await enter(database)
    hook = await wanted(database, caller)
    other, third = b"b" * 32, b"c" * 32

    async def signed_with(*keys: bytes) -> bool:
        await cancelled(database, caller)
        sent = await the_one(database)
        await deliveries.settle(database, sent, TOOK)
        signed = f"{sent.id}.{sent.sent_s}.{sent.body}".encode()
        macs = (base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode() for key in keys)
        return sent.signature == " ".join(f"v1,{mac}" for mac in macs)

    async def replaced(secret: bytes, overlap: timedelta) -> None:
        async with database.scoped(caller.handle) as conn:
            await webhooks.replace_secret(conn, hook, secret, overlap)

    await replaced(other, timedelta(hours=1))
    assert await signed_with(other, SECRET)
    await replaced(third, timedelta(hours=1))
    assert await signed_with(third, other), "two are good at most"
    await replaced(SECRET, timedelta(0))
    assert await signed_with(SECRET)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with database.scoped(caller.handle) as conn:
            await conn.fetch("select former_secret from webhook")


async def test_one_webhook_is_sent_one_message_at_a_time_and_others_meanwhile(database: Database) -> None:
    caller = await enter(database)
    slow, quick = await wanted(database, caller), await wanted(database, caller)
    await cancelled(database, caller, 2)
    first = {one.webhook_id: one for one in await deliveries.claim(database, 10)}
    assert first.keys() == {slow, quick}
    assert await deliveries.claim(database, 10) == []
    await deliveries.settle(database, first[quick], TOOK)
    second = await the_one(database)
    assert second.webhook_id == quick and second.id != first[quick].id
    await deliveries.settle(database, second, TOOK)
    assert await deliveries.claim(database, 10) == []
    assert [one.status for one in await waiting(database, caller, quick, state="delivered")] == [204, 204]


async def test_a_delivery_is_tried_for_about_a_day_and_is_then_dead_until_somebody_asks(database: Database) -> None:
    caller = await enter(database)
    hook = await wanted(database, caller)
    await cancelled(database, caller)
    ids, waits_s = set(), []
    for attempt in range(1, len(deliveries.WAITS_S) + 2):
        sent = await the_one(database)
        ids.add(sent.id)
        assert sent.attempts == attempt
        await deliveries.settle(database, sent, DOWN)
        async with database.engine() as engine:
            assert await engine.fetchval("select rest_until > attempted_at from webhook, webhook_delivery"), "it rests"
        (row,) = await waiting(database, caller, hook)
        if row.due_at and row.attempted_at:
            waits_s.append((row.due_at - row.attempted_at).total_seconds())
        await rest_over(database)
    assert len(ids) == 1 and row.dead_at is not None and row.error == "answered 503"
    assert all(least <= wait_s <= least * 1.2 + 60 for least, wait_s in zip(deliveries.WAITS_S, waits_s, strict=True))
    assert 20 * 3600 < sum(waits_s) < 32 * 3600
    assert await deliveries.claim(database, 10) == []
    async with database.scoped(caller.handle) as conn:
        assert await webhooks.retry(conn, hook, None) == 1
    again = await the_one(database)
    assert (again.id, again.tries, again.attempts) == (sent.id, 1, sent.attempts + 1)


async def test_an_answer_that_comes_after_its_time_changes_nothing(database: Database) -> None:
    caller = await enter(database)
    hook = await wanted(database, caller)
    await cancelled(database, caller)
    late = await the_one(database)
    await rest_over(database)
    sent = await the_one(database)
    assert (sent.id, sent.attempts) == (late.id, late.attempts + 1)
    await deliveries.settle(database, late, DOWN)
    (row,) = await waiting(database, caller, hook)
    assert row.due_at is not None and row.error is None
    await deliveries.settle(database, sent, TOOK)
    await deliveries.settle(database, sent, DOWN)
    (row,) = await waiting(database, caller, hook)
    assert row.delivered_at is not None and row.error is None


async def test_a_webhook_that_says_it_is_gone_or_fails_for_days_is_disabled(database: Database) -> None:
    caller = await enter(database)
    gone, failing = await wanted(database, caller), await wanted(database, caller)
    await cancelled(database, caller, 2)
    claimed = {one.webhook_id: one for one in await deliveries.claim(database, 10)}
    assert await deliveries.settle(database, claimed[gone], Outcome(status=410)) == "gone"
    assert await deliveries.settle(database, claimed[failing], DOWN) is None
    async with database.engine() as engine:
        await engine.execute("update webhook set failing_since = now() - interval '73 hours' where id = $1", failing)
    await rest_over(database)
    assert await deliveries.settle(database, await the_one(database), DOWN) == "failing"
    for one, code in ((gone, "gone"), (failing, "failing")):
        assert [row.dead_at is not None for row in await waiting(database, caller, one)] == [True, True]
        async with database.scoped(caller.handle) as conn:
            assert (await webhooks.get(conn, one)).disabled_code == code


async def test_a_webhook_may_be_deleted_while_it_is_sent_to(database: Database) -> None:
    caller = await enter(database)
    hook = await wanted(database, caller)
    await cancelled(database, caller)
    for outcome in (TOOK, DOWN):
        sent = await the_one(database)
        async with database.scoped(caller.handle) as conn:
            await webhooks.delete(conn, hook)
        assert await deliveries.settle(database, sent, outcome) is None
        hook = await wanted(database, caller)
        await cancelled(database, caller)


async def test_what_waits_for_one_webhook_is_bounded(database: Database) -> None:
    caller = await enter(database)
    hook = await wanted(database, caller)
    async with database.scoped(caller.handle) as conn:
        await conn.execute(
            "insert into webhook_delivery (tenant, id, webhook_id, type, body, due_at)"
            " select 'acme', fresh_id('msg'), $1, 'run.failed', '{}', now() from generate_series(1, $2)",
            hook,
            webhooks.WAITING_MAX - 1,
        )
    await cancelled(database, caller, 2)
    found = await waiting(database, caller, hook, limit=2 * webhooks.WAITING_MAX)
    assert len(found) == webhooks.WAITING_MAX
    with pytest.raises(OverLimit):
        async with database.scoped(caller.handle) as conn:
            await webhooks.post(conn, hook, "webhook.test", b"{}")


async def test_a_tenant_has_so_many_webhooks_and_no_more(database: Database) -> None:
    caller = await enter(database)
    for _ in range(webhooks.WEBHOOKS_MAX):
        await wanted(database, caller)
    with pytest.raises(OverLimit):
        await wanted(database, caller)


async def test_old_deliveries_go_whatever_became_of_them(database: Database) -> None:
    caller = await enter(database)
    hook = await wanted(database, caller)
    await cancelled(database, caller, 2)
    async with database.migrator() as owner, owner.transaction():
        await owner.execute("alter table webhook_delivery no force row level security")
        await owner.execute(
            "update webhook_delivery set created_at = now() - interval '8 days'"
            " where id = (select min(id) from webhook_delivery)"
        )
        await owner.execute("alter table webhook_delivery force row level security")
    async with database.engine() as engine:
        await deliveries.tidy(engine)
    assert len(await waiting(database, caller, hook)) == 1


async def test_a_worker_cannot_read_a_secret(database: Database) -> None:
    caller = await enter(database)
    await wanted(database, caller)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with database.engine() as engine:
            await engine.fetch("select secret from webhook")
