"""A worker sends what webhooks are owed: each at its own pace, once more after a crash, and never what was deleted."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from served_api import Served, serve
from tests.worker.receiver import Receiver, receiving

from sojourn.settings import Settings
from sojourn.store.db import Database
from sojourn.worker.notices import sending
from sojourn.worker.notices.sending import Sender
from sojourn.worker.shutdown import ended

SETTINGS = {"webhooks_http_allowed": True, "webhook_hosts_allowed": "127.0.0.1"}


@pytest.fixture
async def api(database: Database) -> AsyncIterator[Served]:
    async with serve(database, **SETTINGS) as served:
        yield served


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as made:
        yield made


@asynccontextmanager
async def sending_for(database: Database) -> AsyncIterator[Any]:
    """A worker that only sends."""
    parts: Any = SimpleNamespace(database=database, settings=Settings(**SETTINGS), now=lambda: datetime.now(UTC))
    task = asyncio.create_task(Sender(parts).send(None))
    try:
        yield task
    finally:
        await ended([task])


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "POLL_S", 0.02)


async def made(api: Served, receiver: Receiver, *events: str, key: str | None = None) -> dict[str, Any]:
    """A webhook with its secret."""
    reply = await api.post("/v1/webhooks", {"url": receiver.url, "events": list(events or ("*",))}, key=key)
    assert reply.status == 201, reply.body
    found: dict[str, Any] = reply.json
    return found


async def ran(api: Served) -> str:
    """A run that has ended."""
    run_id = await api.start()
    assert (await api.post(f"/v1/runs/{run_id}/cancel")).status == 202
    async with api.parts.database.engine() as engine:
        await engine.execute(
            "update run set status = 'cancelled', finished_at = now(), due_at = null, ready = false where id = $1",
            run_id,
        )
    return run_id


async def sent(api: Served, webhook: dict[str, Any], state: str, n: int = 1) -> list[Any]:
    """The deliveries of a webhook, once there are so many in a state."""
    async with asyncio.timeout(30):
        while True:
            path = f"/v1/webhooks/{webhook['id']}/deliveries"
            found = (await api.get(path, params={"state": state})).json["data"]
            if len(found) >= n:
                return found
            await asyncio.sleep(0.01)


async def failed(api: Served, webhook: dict[str, Any]) -> Any:
    """The only delivery of a webhook, once an attempt has failed."""
    async with asyncio.timeout(30):
        while True:
            (found,) = (await api.get(f"/v1/webhooks/{webhook['id']}/deliveries")).json["data"]
            if found["error"]:
                return found
            await asyncio.sleep(0.01)


async def test_the_end_of_a_run_reaches_the_receiver_signed(
    api: Served, receiver: Receiver, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    hook = await made(api, receiver)
    with caplog.at_level(logging.DEBUG, logger="sojourn"):
        async with sending_for(database):
            run_id = await ran(api)
            (delivery,) = await sent(api, hook, "delivered")
    assert receiver.ids == [delivery["id"]]
    assert receiver.bodies[0]["data"]["run_id"] == run_id
    assert receiver.all_signed_with(hook["secret"]) and not receiver.all_signed_with("whsec_" + "A" * 43 + "=")
    secret = hook["secret"].removeprefix("whsec_")
    assert not any(secret in str(vars(record)) or receiver.url in str(vars(record)) for record in caplog.records)
    assert hook["secret"] not in str([(await api.get(f"/v1/webhooks{path}")).json for path in ("", f"/{hook['id']}")])


async def test_a_receiver_that_never_answers_holds_up_no_other_and_its_own_waits(
    api: Served, receiver: Receiver, database: Database
) -> None:
    here: list[int] = [0]

    async def silent(_: web.Request) -> web.Response:
        here.append(here[-1] + 1)
        try:
            return await asyncio.Event().wait() or web.Response()
        finally:
            here.append(here[-1] - 1)

    async with receiving(silent) as slow:
        silent_hook, hook = await made(api, slow), await made(api, receiver)
        async with sending_for(database):
            for _ in range(5):
                await ran(api)
            await sent(api, hook, "delivered", 5)
            assert max(here) == 1, "one at a time"
            assert len(await sent(api, silent_hook, "waiting", 5)) == 5


async def test_what_is_refused_waits_and_a_receiver_that_is_gone_ends_it(
    api: Served, receiver: Receiver, database: Database
) -> None:
    receiver.answer = lambda _: web.Response(status=500)
    hook = await made(api, receiver)
    async with sending_for(database):
        await ran(api)
        first = await failed(api, hook)
        assert (first["state"], first["error"]) == ("waiting", "answered 500")
    receiver.answer = lambda _: web.Response(status=410)
    assert (await api.post(f"/v1/webhooks/{hook['id']}/test")).status == 202
    async with sending_for(database):
        await sent(api, hook, "dead", 2)
        assert (await api.get(f"/v1/webhooks/{hook['id']}")).json["disabled_code"] == "gone"
        refused = await api.post(f"/v1/webhooks/{hook['id']}/test")
        assert (refused.status, refused.code) == (409, "webhook.disabled")
        receiver.answer = lambda _: web.Response(status=200)
        await api.call("PATCH", f"/v1/webhooks/{hook['id']}", json={"disabled": False})
        assert (await api.post(f"/v1/webhooks/{hook['id']}/retry")).json == {"retried": 2}
        await sent(api, hook, "delivered", 2)
    assert len(receiver.ids) >= 4 and len(set(receiver.ids)) == 2, "a message keeps its id"


async def test_a_webhook_that_is_deleted_while_a_request_is_on_its_way_is_gone(
    api: Served, receiver: Receiver, database: Database
) -> None:
    here, on = asyncio.Event(), asyncio.Event()

    async def held(_: web.Request) -> web.Response:
        here.set()
        await on.wait()
        return web.Response(status=500)

    other = await made(api, receiver)
    async with receiving(held) as slow:
        hook = await made(api, slow)
        async with sending_for(database) as task:
            await ran(api)
            await asyncio.wait_for(here.wait(), 30)
            assert (await api.call("DELETE", f"/v1/webhooks/{hook['id']}")).status == 204
            on.set()
            await ran(api)
            await sent(api, other, "delivered", 2)
            assert not task.done() and len(slow.ids) == 1


async def test_a_worker_that_dies_before_it_has_written_the_answer_down_sends_once_more_with_the_same_id(
    api: Served, receiver: Receiver, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook, died = await made(api, receiver), asyncio.Event()

    async def dies(*_: object) -> None:
        died.set()
        await asyncio.Event().wait()

    with monkeypatch.context() as patch:
        patch.setattr(sending.deliveries, "settle", dies)
        async with sending_for(database):
            await ran(api)
            await asyncio.wait_for(died.wait(), 30)
    async with database.engine() as engine:  # the time passes for which the webhook was the dead worker's
        await engine.execute("update webhook set rest_until = now()")
    async with sending_for(database):
        await sent(api, hook, "delivered")
    assert len(receiver.ids) == 2 and len(set(receiver.ids)) == 1


async def test_several_workers_send_each_message_once(api: Served, receiver: Receiver, database: Database) -> None:
    hooks = [await made(api, receiver) for _ in range(3)]
    async with sending_for(database), sending_for(database), sending_for(database):
        for _ in range(6):
            await ran(api)
        for hook in hooks:
            await sent(api, hook, "delivered", 6)
    assert len(receiver.ids) == len(set(receiver.ids)) == 18
