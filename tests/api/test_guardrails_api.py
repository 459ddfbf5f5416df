"""Guardrails over HTTP: versions, what is refused and redacted at the door, and another tenant's that do not exist."""

import asyncio
import base64
import hashlib
import hmac
import time
from typing import Any

import pytest
from played_worker import Player
from served_api import Served

from sojourn.guardrails.in_force import BELL
from sojourn.loop.messages import ToolCall
from sojourn.store import guardrails
from sojourn.store.audit.operator import operator

MAIL = "ann@example.com"
MARK = "[redacted by g]"


def rule(kind: str, *on: str, **more: Any) -> dict[str, Any]:
    return {"kind": kind, "on": list(on), **more}


async def put(api: Served, *rules: dict[str, Any], name: str = "g", expect: int = 201, **more: Any) -> Any:
    reply = await api.call("PUT", f"/v1/guardrails/{name}", json={"rules": rules}, **more)
    assert reply.status == expect, reply.body
    return reply.json


async def by_operator(api: Served, spec: str, name: str = "g") -> None:
    async with operator(api.parts.database) as conn:
        await guardrails.put(conn, guardrails.EVERYBODY, name, spec=spec, by="root")
    await api.parts.guardrails.refresh()


async def test_a_guardrail_is_made_changed_read_and_ended(api: Served) -> None:
    assert (await api.get("/v1/guardrails")).json == {"data": [], "operator": [], "has_more": False}
    made = await put(api, rule("pii", "input", then="redact"))
    assert (made["name"], made["version"], made["ended"], made["made_by"]) == ("g", 1, False, "local")
    assert (await put(api, rule("pii", "input", then="redact"), expect=200))["version"] == 1
    assert (await put(api, rule("secrets", "input")))["version"] == 2
    assert (await api.get("/v1/guardrails/g")).json["rules"] == [{"kind": "secrets", "on": ["input"]}]
    ended = await api.call("DELETE", "/v1/guardrails/g")
    assert (ended.status, ended.json["version"], ended.json["ended"]) == (200, 3, True)
    for method in ("GET", "DELETE"):
        assert (await api.call(method, "/v1/guardrails/g")).code == "request.not_found"
    kept = (await api.get("/v1/guardrails/g/versions")).json["data"]
    assert [one["version"] for one in kept] == [3, 2, 1]
    assert (await api.get("/v1/guardrails")).json["data"] == []


async def test_what_is_no_rule_is_refused_with_its_place(api: Served) -> None:
    body = {"rules": [rule("secrets", "input"), rule("pattern", "input", pattern="(a+")]}
    reply = await api.call("PUT", "/v1/guardrails/g", json=body)
    assert (reply.code, reply.pointer) == ("request.invalid", "/rules/1/pattern")
    reply = await api.call("PUT", "/v1/guardrails/g", json={"rules": [rule("tools", "input", allow=["x"])] * 1000})
    assert (reply.code, reply.pointer) == ("request.invalid", "/rules")
    assert (await api.get("/v1/guardrails")).json["data"] == []


async def test_another_tenants_guardrail_is_not_there_and_does_not_hold(api: Served) -> None:
    await put(api, rule("pattern", "input", pattern="warm"))
    assert (await api.post("/v1/runs", {"input": "warm", "model": "sim:one"})).code == "guardrail.refused"
    other = {"key": api.other}
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/versions")):
        theirs = await api.call(method, f"/v1/guardrails/g{path}", **other)
        nobodys = await api.call(method, f"/v1/guardrails/h{path}", **other)
        assert (theirs.status, theirs.json["detail"].replace(" g.", " h.")) == (404, nobodys.json["detail"])
    assert (await api.get("/v1/guardrails", **other)).json["data"] == []
    assert (await api.post("/v1/runs", {"input": "warm", "model": "sim:one"}, **other)).status == 202
    assert (await put(api, rule("secrets", "input"), **other))["version"] == 1


async def test_scopes_are_asked_for(api: Served) -> None:
    reader, none = await api.key_with("guardrails:read"), await api.key_with("runs:write")
    await put(api, rule("secrets", "input"))
    assert (await api.get("/v1/guardrails", key=reader)).status == 200
    assert (await api.call("DELETE", "/v1/guardrails/g", key=reader)).code == "auth.forbidden"
    assert (await api.get("/v1/guardrails", key=none)).code == "auth.forbidden"
    assert (await api.post("/v1/guardrails/test", {"text": "x"}, key=none)).code == "auth.forbidden"


# ---- at the door -----------------------------------------------------------------------------


async def test_a_refusal_names_the_guardrail_and_never_the_text(api: Served, caplog: pytest.LogCaptureFixture) -> None:
    await put(api, rule("pii", "input"))
    with caplog.at_level("INFO", logger="sojourn.api"):
        reply = await api.post("/v1/runs", {"input": f"Write to {MAIL}", "model": "sim:one"})
    assert (reply.status, reply.code, reply.pointer) == (422, "guardrail.refused", "/input")
    assert "guardrail g (version 1, rule 1: pii)" in reply.json["detail"]
    line = next(one for one in caplog.records if one.getMessage() == "guardrail.refused")
    assert line.__dict__["guardrail"] == "g@1"
    assert MAIL not in reply.body.decode() + repr([one.__dict__ for one in caplog.records])
    assert (await api.get("/v1/runs")).json["data"] == []


async def test_what_is_redacted_is_written_nowhere(api: Served, player: Player) -> None:
    await put(api, rule("pii", "input", then="redact"))
    parts = [{"type": "text", "text": "Write to ann@"}, {"type": "text", "text": "example.com"}]
    run_id = await api.start({"input": parts})
    run = (await api.get(f"/v1/runs/{run_id}")).json
    assert run["input"] == f"Write to {MARK}"
    play = await player.take(run_id)
    await play.commit()
    assert (await api.post(f"/v1/runs/{run_id}/messages", {"input": f"or to {MAIL}"})).status == 202
    signal = {"name": "paid", "data": {"by": MAIL}}
    assert (await api.post(f"/v1/runs/{run_id}/signals", signal)).status == 202
    async with api.parts.database.engine() as engine:
        for table in ("run", "journal", "message", "inbox"):
            rows = await engine.fetch(f"select * from {table}")
            assert rows
            assert MAIL.encode() not in repr([tuple(row.values()) for row in rows]).encode(), table


async def test_messages_signals_and_webhooks_are_refused(api: Served) -> None:
    run_id = await api.start()
    secret = base64.b64decode((await api.get(f"/v1/runs/{run_id}/hook")).json["secret"].removeprefix("whsec_"))
    await put(api, rule("pattern", "input", pattern="attack"))
    for path, body in (("messages", {"input": "attack"}), ("signals", {"name": "x", "data": ["attack"]})):
        assert (await api.post(f"/v1/runs/{run_id}/{path}", body)).code == "guardrail.refused"
    for text, code in (("attack", 422), ("peace", 202)):
        raw, stamp = f'{{"type":"x","data":"{text}"}}'.encode(), str(int(time.time()))
        made = hmac.new(secret, f"msg_{text}.{stamp}.".encode() + raw, hashlib.sha256).digest()
        headers = {
            "webhook-id": f"msg_{text}",
            "webhook-timestamp": stamp,
            "webhook-signature": f"v1,{base64.b64encode(made).decode()}",
            "Content-Type": "application/json",
        }
        reply = await api.call("POST", f"/v1/hooks/{run_id}", key="", data=raw, headers=headers)
        assert reply.status == code, reply.body


async def test_what_a_client_answers_in_a_tools_place_is_a_result(api: Served, player: Player) -> None:
    tool = {"name": "ship", "schema": {"type": "object"}}
    run_id = await api.start({"tools": [tool]})
    play = await player.take(run_id)
    play.asked()
    play.replied("", ToolCall("c", "ship", "{}"))
    await play.commit(release="suspended")
    path = f"/v1/runs/{run_id}/tool_results"
    await put(api, rule("pattern", "tool_result", pattern="bomb"), rule("pii", "tool_result", then="redact"))
    reply = await api.post(path, {"call": "/0.0", "output": "a bomb"})
    assert (reply.code, reply.pointer) == ("guardrail.refused", "/output")
    assert (await api.post(path, {"call": "/0.0", "error": f"ask {MAIL}"})).status == 202
    assert (await api.post(path, {"call": "/0.0", "error": f"ask {MAIL}"})).json["replayed"]
    play = await player.take(run_id)
    assert play.state.root.messages[-1].parts[0].text == f"ask {MARK}"  # type: ignore[union-attr]


async def test_a_request_that_was_answered_is_answered_so_again(api: Served) -> None:
    body, headers = {"input": "attack", "model": "sim:one"}, {"Idempotency-Key": "once"}
    first = await api.post("/v1/runs", body, headers=headers)
    await put(api, rule("pattern", "input", pattern="attack"))
    again = await api.post("/v1/runs", body, headers=headers)
    assert (again.status, again.json) == (202, first.json)
    assert (await api.post("/v1/runs", body)).code == "guardrail.refused"


# ---- the operator's --------------------------------------------------------------------------


async def test_no_tenant_weakens_or_removes_what_the_operator_set(api: Served) -> None:
    await by_operator(api, '{"rules":[{"kind":"pattern","on":["input"],"pattern":"attack"}]}')
    listed = (await api.get("/v1/guardrails")).json
    assert listed == {"data": [], "operator": [{"name": "g", "version": 1}], "has_more": False}
    assert (await api.call("DELETE", "/v1/guardrails/g")).code == "request.not_found"
    await put(api, rule("pattern", "input", pattern="peace"))
    await api.call("DELETE", "/v1/guardrails/g")
    for key in (api.key, api.other):
        reply = await api.post("/v1/runs", {"input": "attack", "model": "sim:one"}, key=key)
        assert "The operator's guardrail g" in reply.json["detail"]


async def test_a_change_elsewhere_is_known_within_a_moment(api: Served) -> None:
    async with operator(api.parts.database) as conn:
        spec = '{"rules":[{"kind":"pattern","on":["input"],"pattern":"attack"}]}'
        await guardrails.put(conn, guardrails.EVERYBODY, "g", spec=spec, by="root")
    api.parts.doorbell.ring(BELL, ())
    async with asyncio.timeout(20):
        while (await api.post("/v1/guardrails/test", {"text": "attack"})).json["verdict"] != "refuse":  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_a_text_is_tried_and_not_kept(api: Served) -> None:
    await put(api, rule("pii", "output", then="redact"), rule("tools", "tool_arguments", allow=["read_*"], then="ask"))
    tried = (await api.post("/v1/guardrails/test", {"text": f"to {MAIL}", "on": "output"})).json
    assert (tried["verdict"], tried["text"]) == ("redact", f"to {MARK}")
    assert tried["found"] == [
        {"guardrail": "g", "version": 1, "operator": False, "rule": 1, "kind": "pii", "then": "redact", "why": ""}
    ]
    call = {"text": "{}", "on": "tool_arguments", "tool": "shell"}
    assert (await api.post("/v1/guardrails/test", call)).json["verdict"] == "ask"
    assert (await api.post("/v1/guardrails/test", {"text": MAIL})).json["verdict"] == "pass"
    assert (await api.post("/v1/guardrails/test", {"text": "x" * 300_000})).code == "request.invalid"
