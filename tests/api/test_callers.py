"""Who may call: keys, scopes, and the wall between tenants on every route there is."""

import asyncio
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from played_worker import Player
from served_api import GOAL, Served

from sojourn.api.app import served
from sojourn.api.route import Route
from sojourn.api.runs.shapes import approval_id
from sojourn.identity.scopes import SCOPES
from sojourn.store.db import Database
from sojourn.store.tenant import keys

GUARDED = [route for route in served() if not route.public]
NAMED = [route for route in GUARDED if "{" in route.path.replace("{user}", "")]
"""A user is no thing: every tenant has all of them, and bounds of its own for each."""


def named(route: Route) -> str:
    return f"{route.method} {route.path}"


def anywhere(route: Route) -> str:
    """A path of the route that leads to nothing."""
    return re.sub(r"\{\w+\}", "x", route.path)


@pytest.mark.parametrize("header", ["", "Basic bG9jYWw6", "Bearer", "Bearer wrong", "Bearer a b", "Bearer \xe9"])
async def test_every_route_asks_for_a_key(api: Served, header: str) -> None:
    for route in GUARDED:
        headers = {"Authorization": header} if header else {}
        async with api.http.request(route.method, api.url + anywhere(route), headers=headers) as reply:
            assert reply.status == 401, named(route)
            assert reply.headers["WWW-Authenticate"].startswith("Bearer")
            assert (await reply.json(content_type=None))["code"] == "auth.unauthenticated"


async def test_every_route_needs_its_scope_and_names_it(api: Served) -> None:
    without = {scope: await api.key_with(*(SCOPES.keys() - {scope})) for scope in SCOPES}
    for route in GUARDED:
        if route.scope:
            reply = await api.call(route.method, anywhere(route), key=without[route.scope])
            assert (reply.status, reply.code) == (403, "auth.forbidden"), named(route)
            assert route.scope in reply.json["detail"]


@pytest.fixture
async def things(api: Served, player: Player) -> dict[str, str]:
    """One of everything that has a name, all of them our tenant's."""
    agent = {"name": "analyst", "model": "sim:one", "tools": ["shell"], "policy": {"otherwise": "ask"}}
    assert (await api.post("/v1/agents", agent)).status == 201
    made = (await api.post("/v1/runs", {"input": "go", "agent": "analyst"})).json
    play = await player.take(made["run_id"])
    play.asked()
    await play.commit()
    play.replied("", play.call())
    await play.commit(release="suspended")
    wait = (await api.get(f"/v1/runs/{made['run_id']}")).json["waits"][0]
    key = (await api.post("/v1/keys", {"name": "second"})).json["id"]
    schedule = {"name": "analyst", "cron": "@yearly", "run": {"agent": "analyst", "input": "go"}}
    assert (await api.post("/v1/schedules", schedule)).status == 201
    seal = (await api.post("/v1/seals/rotate")).json["data"][0]["issuer"]
    blob = (await api.call("POST", "/v1/blobs", data=b"notes")).json["digest"]
    stop = (await api.post("/v1/admin/stops", {"what": "user", "id": "nobody"})).json["id"]
    webhook = (await api.post("/v1/webhooks", {"url": "https://example.org"})).json["id"]
    async with api.parts.database.engine() as engine:
        alert = await engine.fetchval(OPENED, "acme")
    return {
        "run_id": made["run_id"], "session_id": made["session_id"], "name": "analyst", "version": "1",
        "approval_id": wait["approval"], "key_id": key, "path": "a.csv", "digest": blob,
        "issuer": seal, "stop_id": stop,
        "webhook_id": webhook, "alert_id": alert,
    }  # fmt: skip


OPENED = """
insert into alert (tenant, id, kind, what, value, bound, detail, opened_at)
values ($1, fresh_id('alr'), 'queue', 'tenant', 1, 1, 'it waits', now()) returning id
"""
BODIES: dict[str, Any] = {
    "/v1/webhooks/{webhook_id}": {"disabled": True},
    "/v1/runs/{run_id}/messages": {"input": "hello"},
    "/v1/agents/{name}/versions": {"model": "sim:one"},
    "/v1/agents/{name}/live": {"version": 1},
    "/v1/agents/{name}/run": {"input": "go", "wait": 0},
    "/v1/agents/{name}/runs_max": {"runs_max": 1},
    "/v1/schedules/{name}": {"cron": "@daily"},
    "/v1/approvals/{approval_id}": {"decision": "approve"},
    "/v1/runs/{run_id}/signals": {"name": "paid"},
    "/v1/runs/{run_id}/tool_results": {"call": "/0.0", "output": "done"},
}


async def test_another_tenants_things_are_not_found(api: Served, things: dict[str, str]) -> None:
    rules = {"rules": [{"kind": "secrets", "on": ["input"]}]}
    assert (await api.call("PUT", f"/v1/guardrails/{things['name']}", json=rules)).status == 201
    for route in NAMED:
        if (route.method, route.path) == ("PUT", "/v1/guardrails/{name}"):
            continue  # it makes one of the caller's own
        path = route.path.format_map(things)
        more = {"json": BODIES[route.path]} if route.path in BODIES and route.method != "GET" else {}
        reply = await api.call(route.method, path, key=api.other, **more)
        assert (reply.status, reply.code) == (404, "request.not_found"), named(route)


async def test_another_tenants_session_and_agent_cannot_be_used_in_a_body(api: Served, things: dict[str, str]) -> None:
    reply = await api.post("/v1/runs", {**GOAL, "session": things["session_id"]}, key=api.other)
    assert (reply.status, reply.code) == (404, "request.not_found")
    reply = await api.post("/v1/runs", {"input": "go", "agent": "analyst"}, key=api.other)
    assert (reply.status, reply.code) == (422, "agent.unknown")


async def test_another_tenants_lists_are_empty(api: Served, things: dict[str, str]) -> None:
    for path in (
        "/v1/runs",
        "/v1/sessions",
        "/v1/agents",
        "/v1/schedules",
        "/v1/approvals",
        "/v1/webhooks",
        "/v1/alerts",
    ):
        assert (await api.get(path)).json["data"], path
        assert (await api.get(path, key=api.other)).json["data"] == [], path
    assert things["key_id"] not in str((await api.get("/v1/keys", key=api.other)).json)


async def test_an_expired_key_is_refused(api: Served, database: Database) -> None:
    principal = await keys.authenticate(database, api.key)
    async with database.scoped(principal.handle) as connection:
        soon = datetime.now(UTC) + timedelta(seconds=4)
        _, token = await keys.create(connection, user="ann", name="short", scopes=["runs:read"], expires_at=soon)
    assert (await api.get("/v1/runs", key=token)).status == 200
    async with asyncio.timeout(30):
        while (reply := await api.get("/v1/runs", key=token)).status == 200:
            pass
    assert (reply.status, reply.code) == (401, "auth.unauthenticated")


async def test_a_revoked_key_is_refused_at_once_where_it_was_revoked(api: Served) -> None:
    made = (await api.post("/v1/keys", {"name": "guest", "scopes": ["runs:read"]})).json
    assert (await api.get("/v1/runs", key=made["key"])).status == 200
    assert (await api.call("DELETE", f"/v1/keys/{made['id']}")).status == 204
    assert (await api.get("/v1/runs", key=made["key"])).status == 401


async def test_a_key_allows_no_more_than_the_one_that_made_it(api: Served) -> None:
    narrow = await api.key_with("admin:keys", "runs:read")
    reply = await api.post("/v1/keys", {"name": "wide", "scopes": ["runs:write"]}, key=narrow)
    assert (reply.status, reply.code) == (403, "auth.forbidden")
    reply = await api.post("/v1/keys", {"name": "same"}, key=narrow)
    assert (reply.status, reply.json["scopes"]) == (201, ["admin:keys", "runs:read"])
    reply = await api.post("/v1/keys", {"name": "odd", "scopes": ["runs:fly"]})
    assert (reply.status, reply.pointer) == (422, "/scopes/0")


async def test_a_key_acts_for_a_user_whose_name_can_be_read(api: Served) -> None:
    for user in ("", "a|b", "ann\n", "ann\u202e", "a\u2028b", "x" * 201):
        reply = await api.post("/v1/keys", {"name": "guest", "user": user})
        assert (reply.status, reply.pointer) == (422, "/user"), user
    assert (await api.post("/v1/keys", {"name": "guest", "user": "Zoë Ångström 张伟"})).status == 201


async def test_keys_come_in_pages_newest_first_and_none_of_another_tenant(api: Served) -> None:
    made = [(await api.post("/v1/keys", {"name": str(n)})).json["id"] for n in range(4)]
    await api.post("/v1/keys", {"name": "foreign"}, key=api.other)
    seen, after = [], ""
    while after is not None:
        page = (await api.get(f"/v1/keys?limit=2{after}")).json
        seen += [key["id"] for key in page["data"]]
        after = f"&after={page['next']}" if page["has_more"] else None
    assert len(seen) == 5 and seen[:4] == made[::-1]
    for wrong in ("key_1", "1", ".key_1", "-1.key_1", "9" * 18 + ".key_1", "1.key_1%0A", "%D9%A3.key_1"):
        refused = await api.get(f"/v1/keys?after={wrong}")
        assert (refused.status, refused.pointer) == (422, "/after"), wrong


async def test_a_secret_is_shown_once(api: Served) -> None:
    made = (await api.post("/v1/keys", {"name": "guest", "user": "ann", "expires_in_s": 3600})).json
    listed = (await api.get("/v1/keys")).body.decode()
    assert made["id"] in listed
    assert made["key"] not in listed
    me = (await api.get("/v1/me", key=made["key"])).json
    assert me == {
        "tenant": "acme",
        "user_id": "ann",
        "key_id": made["id"],
        "issuer": None,
        "scopes": ["*"],
        "confined": False,
    }


async def test_an_approval_id_that_is_made_up_is_not_found(api: Served, things: dict[str, str]) -> None:
    for made_up in (things["run_id"] + ".!!", things["run_id"] + ".gA", "run_00000000000000000000000000.Lw"):
        assert (await api.post(f"/v1/approvals/{made_up}", {"decision": "approve"})).status == 404
    reply = await api.post(f"/v1/approvals/{approval_id(things['run_id'], '/9.9?0')}", {"decision": "approve"})
    assert (reply.status, reply.code) == (409, "run.not_waiting")


async def test_a_question_is_listed_answered_and_reaches_the_run(
    api: Served, player: Player, things: dict[str, str]
) -> None:
    (open_,) = (await api.get("/v1/approvals")).json["data"]
    assert (open_["id"], open_["kind"], open_["allowed"][0]) == (things["approval_id"], "approval", "approve")
    path = f"/v1/approvals/{open_['id']}"
    reply = await api.post(path, {"decision": "retry"})
    assert (reply.status, reply.pointer) == (422, "/decision")
    without = await api.key_with("runs:*", "approvals:read")
    assert (await api.post(path, {"decision": "approve"}, key=without)).status == 403
    assert (await api.post(path, {"decision": "reject", "reason": "not today"})).status == 202
    play = await player.take(things["run_id"])
    assert play.state.root.messages[-1].parts[0].text == "A person rejected this call. not today"
