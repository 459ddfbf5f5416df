"""Hostile JSON Schemas: none keeps the server busy or reaches out, and what cannot be checked is refused in words."""

import asyncio
import time
from typing import Any

import msgspec
import pytest
from played_worker import Player
from served_api import Served

from sojourn.loop.messages import ToolCall

BUSY_S = 5.0
"""Longer than a bounded check takes on a busy machine; without the bound each of these takes minutes."""
PATTERN = "^(a+)+$"
EVIL = "a" * 40 + "b"


def doubling(depth: int) -> dict[str, Any]:
    """A schema that is looked at twice as often with every level."""
    defs: dict[str, Any] = {f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(depth)}
    return {"type": "object", "$defs": {**defs, f"a{depth}": {}}, "$ref": "#/$defs/a0"}


MIXED = [{"x": n} if n % 2 else [n] for n in range(20_000)]
CHECKED = {
    "doubling": (doubling(60), {}, 422),
    "itself": ({"type": "object", "$ref": "#"}, {}, 422),
    "a request": ({"type": "object", "$ref": "http://127.0.0.1:9/schema"}, {}, 422),
    "a file": ({"type": "object", "$ref": "file:///etc/passwd"}, {}, 422),
    "nowhere": ({"type": "object", "$ref": "#/$defs/none"}, {}, 422),
    "a huge number": ({"type": "object", "properties": {"a": {"multipleOf": 0.5}}}, {"a": 10**400}, 422),
    "unique": ({"type": "object", "properties": {"a": {"uniqueItems": True}}}, {"a": MIXED}, 202),
    "twice": ({"type": "object", "properties": {"a": {"uniqueItems": True}}}, {"a": [{"x": 1}, {"x": 1}]}, 422),
    "pattern": ({"type": "object", "properties": {"a": {"pattern": PATTERN}}}, {"a": EVIL}, 202),
    "names": ({"type": "object", "patternProperties": {PATTERN: {}}}, {EVIL: 1}, 202),
    "other names": (
        {"type": "object", "patternProperties": {PATTERN: {}}, "additionalProperties": False},
        {EVIL: 1},
        202,
    ),
    "unevaluated": (
        {"type": "object", "patternProperties": {PATTERN: {}}, "unevaluatedProperties": False},
        {EVIL: 1},
        202,
    ),
    "another dialect": (
        {
            "type": "object",
            "properties": {"a": {"$schema": "https://json-schema.org/draft/2020-12/schema", "pattern": PATTERN}},
        },
        {"a": EVIL},
        202,
    ),
}


@pytest.mark.parametrize("name", CHECKED)
async def test_no_schema_keeps_an_edit_busy(api: Served, player: Player, name: str) -> None:
    schema, arguments, status = CHECKED[name]
    tool = {"name": "ship", "schema": schema}
    run_id = await api.start({"policy": {"otherwise": "ask"}, "tools": [tool]})
    play = await player.take(run_id)
    play.asked()
    await play.commit()
    play.replied("", ToolCall("c0", "ship", "{}"))
    await play.commit(release="suspended")
    (question,) = (await api.get("/v1/approvals", params={"run": run_id})).json["data"]
    body = msgspec.json.encode({"decision": "edit", "arguments": arguments})
    async with asyncio.timeout(60):
        began = time.thread_time()
        reply = await api.call(
            "POST", f"/v1/approvals/{question['id']}", data=body, headers={"Content-Type": "application/json"}
        )
    assert reply.status == status, reply.body
    assert status == 202 or reply.code == "approval.edit_invalid"
    assert time.thread_time() - began < BUSY_S


CREATED = {
    "long": {"type": "object", "properties": {f"p{n}": {} for n in range(60_000)}},
    "unique": {"type": "object", "required": MIXED},
    "repeats": {"type": "object", "properties": {"a": {"pattern": "a{99999999999}"}}},
    "deep": {"type": "object", "properties": {"a": {"pattern": "(" * 5000 + ")" * 5000}}},
}


@pytest.mark.parametrize("name", CREATED)
async def test_no_schema_keeps_the_server_from_others_while_it_is_checked(api: Served, name: str) -> None:
    tools = [{"name": "fine", "schema": {"type": "object"}}, {"name": "ship", "schema": CREATED[name]}]
    body = {"name": "clerk", "model": "sim:one", "tools": tools}
    slow = asyncio.create_task(api.post("/v1/agents", body))
    async with asyncio.timeout(60):
        began = time.thread_time()
        assert (await api.get("/v1/me")).status == 200
        reply = await slow
    assert (reply.status, reply.code) == (422, "tool.schema")
    assert reply.pointer.startswith("/tools/1/schema")
    assert time.thread_time() - began < BUSY_S


async def test_no_policy_keeps_a_worker_from_its_other_runs(api: Served) -> None:
    rule = {"tool": "shell", "verdict": "deny", "when": [{"argument": "command", "like": "*" + "?" * 400 + "b"}]}
    body = {"name": "clerk", "model": "sim:one", "policy": {"rules": [rule] * 3}}
    reply = await api.post("/v1/agents", body)
    assert (reply.status, reply.code, reply.pointer) == (422, "request.invalid", "/policy/rules")
    assert (await api.post("/v1/agents", {**body, "policy": {"rules": [rule] * 2}})).status == 201
