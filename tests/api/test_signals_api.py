"""Holds, signals and signed webhooks: the world speaks to a run, once, and only to the run that it was told of."""

import base64
import hashlib
import hmac
from datetime import UTC, datetime
from typing import Any

import msgspec
from played_worker import Player
from served_api import Reply, Served

from sojourn.loop.messages import ToolCall

AWAITS = {"tools": ["shell", "wait_for_event"]}


async def started(api: Served, player: Player, *calls: ToolCall) -> str:
    """A run whose model has asked for these calls, given back."""
    run_id = await api.start(AWAITS)
    play = await player.take(run_id)
    play.asked()
    await play.commit()
    if calls:
        play.replied("", *calls)
        await play.commit(release="suspended")
    else:
        await play.commit(release="queued")
    return run_id


def awaits(name: str, index: int = 0) -> ToolCall:
    return ToolCall(f"c{index}", "wait_for_event", msgspec.json.encode({"name": name}).decode())


async def deliver(api: Served, run_id: str, secret: str, *, id: str = "msg_1", **how: Any) -> Reply:
    """Send a webhook as a Standard Webhooks library does."""
    body = how.get("body") or msgspec.json.encode({"type": how.get("name", "paid"), "data": {"cents": 1}})
    stamp = str(how.get("at", int(datetime.now(UTC).timestamp())))
    key = base64.b64decode(secret.removeprefix("whsec_"))
    made = hmac.new(key, f"{id}.{stamp}.".encode() + body, hashlib.sha256).digest()
    signature = how.get("signature") or f"v1,{base64.b64encode(made).decode()}"
    headers = {"webhook-id": id, "webhook-timestamp": stamp, "webhook-signature": signature}
    body = how.get("sent") or body
    return await api.call(
        "POST", f"/v1/hooks/{run_id}", key="", data=body, headers={**headers, "Content-Type": "application/json"}
    )


async def secret_of(api: Served, run_id: str) -> str:
    found = (await api.get(f"/v1/runs/{run_id}/hook")).json
    assert found["path"] == f"/v1/hooks/{run_id}"
    return found["secret"]


async def test_webhook_twice_or_out_of_order(api: Served, player: Player) -> None:
    run_id = await started(api, player, awaits("first"), awaits("second", 1))
    secret = await secret_of(api, run_id)
    for id_, name in (("m2", "second"), ("m2", "second"), ("m1", "first"), ("m1", "first")):
        assert (await deliver(api, run_id, secret, id=id_, name=name)).status == 202
    play = await player.take(run_id)
    assert [message.parts[0].text for message in play.state.root.messages[-2:]] == ['{"cents":1}'] * 2  # type: ignore[union-attr]
    assert play.state.signals == () and set(play.state.heard) == {"hook:m1", "hook:m2"}


async def test_event_before_its_wait_is_kept_and_matched(api: Served, player: Player) -> None:
    run_id = await started(api, player)
    reply = await api.post(f"/v1/runs/{run_id}/signals", {"name": "paid", "data": "in full", "id": "e1"})
    assert reply.status == 202
    play = await player.take(run_id)
    assert [signal.name for signal in play.state.signals] == ["paid"]
    play.asked()
    play.replied("", awaits("paid"))
    assert play.state.root.messages[-1].parts[0].text == "in full"  # type: ignore[union-attr]
    assert play.state.signals == ()


async def test_a_webhook_that_is_not_signed_for_this_run_is_refused(api: Served, player: Player) -> None:
    run_id, other = await started(api, player, awaits("paid")), await api.start()
    secret = await secret_of(api, run_id)
    now = int(datetime.now(UTC).timestamp())
    nowhere = "run_" + "0" * 26
    for why, reply in {
        "another run's secret": await deliver(api, run_id, await secret_of(api, other)),
        "another run": await deliver(api, other, secret),
        "no such run": await deliver(api, nowhere, secret),
        "too old": await deliver(api, run_id, secret, at=now - 400),
        "from the future": await deliver(api, run_id, secret, at=now + 400),
        "no time": await deliver(api, run_id, secret, at="soon"),
        "another body": await deliver(api, run_id, secret, sent=b'{"type":"paid","data":{"cents":2}}'),
        "no signature": await deliver(api, run_id, secret, signature="v1,"),
        "noise": await deliver(api, run_id, secret, signature="v1,!!!! v2,AAAA v1"),
        "no ASCII": await deliver(api, run_id, secret, signature="v1,ä"),
        "no id": await deliver(api, run_id, secret, id=""),
    }.items():
        assert (reply.status, reply.code) == (401, "hook.signature"), why
    assert (await api.get(f"/v1/runs/{run_id}")).json["status"] == "suspended", "nothing woke it"
    good = (await deliver(api, run_id, secret, signature=None)).status
    assert good == 202


async def test_another_tenant_learns_no_secret(api: Served) -> None:
    run_id = await api.start()
    assert (await api.get(f"/v1/runs/{run_id}/hook", key=api.other)).code == "request.not_found"
    reader = await api.key_with("runs:read")
    assert (await api.get(f"/v1/runs/{run_id}/hook", key=reader)).code == "auth.forbidden"


async def test_a_signal_is_bounded_and_may_be_anything(api: Served, player: Player) -> None:
    run_id = await started(api, player, awaits("paid"))
    path = f"/v1/runs/{run_id}/signals"
    assert (await api.post(path, {"name": "paid", "data": "x" * 70_000})).code == "request.too_large"
    assert (await api.post(path, {"name": ""})).status == 422
    assert (await api.post(path, {"name": "paid", "data": {"a": "\0"}})).pointer == "/data/a"
    assert (await api.post(path, {"name": "paid", "data": [None, 10**30, {"toString": 1}]})).status == 202
    assert (await player.take(run_id)).state.root.state == "ready"


async def test_a_run_is_held_and_goes_on(api: Served, player: Player) -> None:
    run_id = await api.start()
    assert (await api.post(f"/v1/runs/{run_id}/resume")).code == "run.not_waiting"
    for _ in range(2):  # holding twice is holding once
        assert (await api.post(f"/v1/runs/{run_id}/hold", {"reason": "the vendor is down"})).status == 202
    play = await player.take(run_id)
    await play.commit(release="suspended")
    (held,) = (await api.get("/v1/approvals")).json["data"]
    assert (held["kind"], held["allowed"]) == ("hold", ["approve"])
    assert held["title"] == "local put the run on hold. the vendor is down"
    assert (await api.post(f"/v1/runs/{run_id}/resume")).json == {"accepted": True, "replayed": False}
    play = await player.take(run_id)
    await play.finish()
    assert (await api.post(f"/v1/runs/{run_id}/hold")).code == "run.ended"
    assert (await api.get(f"/v1/runs/{run_id}")).json["status"] == "completed"


async def test_the_stream_tells_of_holds_and_signals(api: Served, player: Player) -> None:
    run_id = await api.start()
    await api.post(f"/v1/runs/{run_id}/hold", {"reason": "lunch"})
    await api.post(f"/v1/runs/{run_id}/signals", {"name": "paid", "id": "e1"})
    play = await player.take(run_id)
    await play.commit(release="suspended")
    events = {one["type"]: one for one in (await api.get(f"/v1/runs/{run_id}/events")).json["data"]}
    assert (events["run.held"]["by"], events["run.held"]["reason"]) == ("local", "lunch")
    assert (events["signal.received"]["name"], events["signal.received"]["id"]) == ("paid", "e1")
