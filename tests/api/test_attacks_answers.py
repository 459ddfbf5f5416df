"""Answers that ask for too much, hooks of others, and secrets: what a caller may not get stays where it is."""

import base64
import hashlib
import hmac
import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from played_worker import Player
from served_api import Reply, Served

from sojourn.api.approvals.routes import EXTENDED_MAX
from sojourn.loop.messages import ToolCall
from sojourn.store.db import Database
from sojourn.store.tenant import keys

EXPIRES = {"policy": {"otherwise": "ask", "ask": {"expires_s": 3600, "on_expire": "keep"}}}
POOR = {"limits": {"steps": 1, "on_exhaust": "suspend"}}


async def waiting(api: Served, player: Player, **spec: Any) -> str:
    """The question of a run that waits for an answer."""
    run_id = await api.start(spec)
    play = await player.take(run_id)
    play.asked()
    await play.commit()
    play.replied("", play.call())
    if not spec.get("policy"):
        play.intended("/0.0")
        play.returned("/0.0", "a.csv\n")
    await play.commit(release="suspended")
    (question,) = (await api.get("/v1/approvals", params={"run": run_id})).json["data"]
    found: str = question["id"]
    return found


@pytest.mark.parametrize("end", ["9999-12-31T23:59:59-14:00", "9999-12-31T23:59:59Z", "0001-01-01T00:00:00+14:00"])
async def test_no_end_is_so_far_that_a_worker_could_not_write_it_down(api: Served, player: Player, end: str) -> None:
    question = await waiting(api, player, **EXPIRES)
    reply = await api.post(f"/v1/approvals/{question}", {"decision": "extend", "expires_at": end})
    assert (reply.status, reply.code, reply.pointer) == (422, "approval.no_end", "/expires_at")
    far = datetime.now(UTC) + EXTENDED_MAX - timedelta(hours=1)
    body = {"decision": "extend", "expires_at": far.isoformat()}
    assert (await api.post(f"/v1/approvals/{question}", body)).status == 202
    play = await player.take(question.partition(".")[0])
    await play.commit(release="suspended")


async def test_no_money_is_limited_where_nobody_knows_the_price(api: Served, player: Player) -> None:
    question = await waiting(api, player, model="sim:unpriced", **POOR)
    body: dict[str, Any] = {"decision": "extend", "limits": {"steps": 9, "usd": "1"}}
    reply = await api.post(f"/v1/approvals/{question}", body)
    assert (reply.status, reply.code) == (422, "budget.no_price")
    del body["limits"]["usd"]
    narrow = await api.key_with("approvals:decide")
    assert (await api.post(f"/v1/approvals/{question}", body, key=narrow)).code == "auth.forbidden"
    assert (await api.post(f"/v1/approvals/{question}", body)).status == 202


@pytest.mark.parametrize("seconds", ["1e300", "inf", "nan", "-1"])
async def test_no_time_to_come_is_a_bug(api: Served, player: Player, seconds: str) -> None:
    await waiting(api, player, **EXPIRES)
    reply = await api.get("/v1/approvals", params={"expires_within_s": seconds})
    assert (reply.status, reply.code, reply.pointer) == (422, "request.invalid", "/expires_within_s")
    (one,) = (await api.get("/v1/approvals", params={"expires_within_s": "1e9"})).json["data"]
    assert one["expires_at"] is not None


# ---- webhooks --------------------------------------------------------------------------------


async def deliver(api: Served, run_id: str, secret: bytes) -> Reply:
    body, stamp = b'{"type":"paid"}', str(int(datetime.now(UTC).timestamp()))
    made = hmac.new(secret, f"m.{stamp}.".encode() + body, hashlib.sha256).digest()
    headers = {
        "webhook-id": "m",
        "webhook-timestamp": stamp,
        "webhook-signature": f"v1,{base64.b64encode(made).decode()}",
        "Content-Type": "application/json",
    }
    return await api.call("POST", f"/v1/hooks/{run_id}", key="", data=body, headers=headers)


async def secret_of(api: Served, run_id: str) -> bytes:
    text: str = (await api.get(f"/v1/runs/{run_id}/hook")).json["secret"]
    return base64.b64decode(text.removeprefix("whsec_"))


async def test_a_stranger_learns_from_a_hook_of_no_run(api: Served, player: Player) -> None:
    there, ended = await api.start(), await api.start()
    secret = await secret_of(api, ended)
    assert (await deliver(api, ended, secret)).status == 202
    await (await player.take(there)).commit(release="queued")
    play = await player.take(ended)
    await play.finish()
    replies = [
        await deliver(api, there, b"guessed"),
        await deliver(api, ended, b"guessed"),
        await deliver(api, ended, secret),
        await deliver(api, "run_" + "0" * 26, b"guessed"),
    ]
    told = [{**reply.json, "request_id": ""} for reply in replies]
    assert told[0]["code"] == "hook.signature" and all(one == told[0] for one in told)


# ---- secrets ---------------------------------------------------------------------------------

CANARY = "CANARY-5f1c9e"


async def test_no_secret_leaves_the_server(
    api: Served, player: Player, database: Database, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    caplog.set_level(logging.DEBUG)
    question = await waiting(api, player, policy={"otherwise": "ask"})
    run_id = question.partition(".")[0]
    secret = await secret_of(api, run_id)
    export = await api.get(f"/v1/runs/{run_id}/continuation")
    assert export.status == 200
    async with database.migrator() as owner:
        await owner.execute("set role sojourn_keyring")
        pads = await owner.fetchrow("select inner_pad, outer_pad from hook_key")
        scope_pads = await owner.fetchrow("select inner_pad, outer_pad from scope_key")
        sealed = await owner.fetchval("select sealed from seal_key where state = 'active'")
        hashes = [row["hash"] for row in await owner.fetch("select hash from api_key")]
    async with database.scoped((await keys.authenticate(database, api.key)).handle) as conn:
        _, sealing = await api.parts.vault.signing_key(conn)
    await deliver(api, run_id, secret)
    hostile = {"decision": "edit", "arguments": {"a": CANARY + "-said"}, "grant": {"count": 0}}
    seen = [
        export,
        await api.post(f"/v1/approvals/{question}", hostile),
        await api.post(f"/v1/approvals/{question}", {"decision": "approve"}, headers={"Idempotency-Key": "one"}),
        *[
            await api.get(path)
            for path in (
                f"/v1/runs/{run_id}",
                f"/v1/runs/{run_id}/events",
                f"/v1/runs/{run_id}/trace",
                f"/v1/approvals/{question}",
                "/v1/approvals",
                "/v1/seals",
                "/v1/models",
                "/v1/keys",
                "/openapi.json",
                "/metrics",
            )
        ],
        await api.post("/v1/runs/import", {}),
        await deliver(api, run_id, b"guessed"),
    ]
    said = b"\n".join(reply.body for reply in seen) + repr([vars(line) for line in caplog.records]).encode()
    async with database.engine() as engine:
        for table in ("journal", "run", "message", "inbox"):
            said += repr([dict(row) for row in await engine.fetch(f"select * from {table}")]).encode()
    assert CANARY.encode() not in said
    assert api.key.encode() not in said and api.other.encode() not in said
    secrets = {"hook": secret, "seal": sealing, "sealed": sealed, "pads": b"".join([*pads, *scope_pads])}
    for name, value in secrets.items():
        for part in (value, value[:24]):
            spellings = (part.hex(), base64.b64encode(part).decode().rstrip("="), repr(part))
            assert not any(one.encode() in said for one in spellings), name
    assert not any(one.hex().encode() in said for one in hashes)
    assert msgspec.json.decode(export.body)["continuation"]["principal"] == {"user": "local"}


async def test_a_narrow_key_hears_of_its_scope_before_anything_of_the_run(api: Served) -> None:
    """So a refusal tells, and takes, the same for a run that is there and for one that is not."""
    run_id = await api.start()
    narrow = await api.key_with("agents:read")
    for there in (run_id, "run_" + "0" * 26):
        for method, path in (
            ("POST", f"/v1/runs/{there}/fork"),
            ("GET", f"/v1/runs/{there}/continuation"),
            ("POST", f"/v1/runs/{there}/retry"),
            ("POST", f"/v1/runs/{there}/hold"),
            ("GET", f"/v1/runs/{there}/hook"),
            ("POST", f"/v1/approvals/{there}.LzA"),
        ):
            reply = await api.call(method, path, key=narrow)
            assert (reply.status, reply.code) == (403, "auth.forbidden"), path
    for path in ("fork", "hold", "signals", "tool_results"):
        body = {"signals": {"name": "x"}, "tool_results": {"call": "/0.0", "output": ""}}.get(path, {})
        mine = await api.post(f"/v1/runs/{run_id}/{path}", body, key=api.other)
        none = await api.post(f"/v1/runs/{'run_' + '0' * 26}/{path}", body, key=api.other)
        assert (mine.code, none.code) == ("request.not_found",) * 2
        assert mine.json["detail"].replace(run_id, "") == none.json["detail"].replace("run_" + "0" * 26, "")


async def test_an_edited_yes_with_a_grant_covers_what_was_edited_and_nothing_else(api: Served, player: Player) -> None:
    question = await waiting(api, player, policy={"otherwise": "ask"})
    body = {"decision": "edit", "arguments": {"command": "pwd"}, "grant": {"count": 5}}
    assert (await api.post(f"/v1/approvals/{question}", body)).status == 202
    play = await player.take(question.partition(".")[0])
    play.intended("/0.0")
    play.returned("/0.0", "/work")
    play.asked()
    play.replied("", play.call(), ToolCall("c9", "shell", '{"command":"pwd"}'))
    first, second = play.state.root.calls
    assert (first.state, second.state) == ("waiting", "authorized")
    await play.commit(release="suspended")
