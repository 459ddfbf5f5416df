"""What the audit log tells of requests: every act once, with its act or not at all, and refusals within bounds."""

import asyncio
from typing import Any

import pytest
from acting import SECRETS, everything
from played_worker import Player
from served_api import Reply, Served, serve
from tests.store.scripted_runs import blocked, cut_off

from sojourn.api.app import served
from sojourn.cli.commands.auditing import chain
from sojourn.identity.scopes import SCOPES
from sojourn.store.db import Database

WORK = "the run's journal tells who"
NOT_TOLD = {
    "POST /v1/runs": WORK,
    "POST /v1/runs/{run_id}/cancel": WORK,
    "POST /v1/runs/{run_id}/messages": WORK,
    "POST /v1/runs/{run_id}/hold": WORK,
    "POST /v1/runs/{run_id}/resume": WORK,
    "POST /v1/runs/{run_id}/signals": WORK,
    "POST /v1/runs/{run_id}/tool_results": WORK,
    "POST /v1/hooks/{run_id}": WORK,
    "POST /v1/agents/{name}/run": WORK,
    "POST /v1/schedules/{name}/run": WORK,
    "POST /v1/sessions": "the session tells whose it is",
    "POST /v1/sessions/{session_id}/close": "nothing is lost by it",
    "PUT /v1/sessions/{session_id}/files/{path}": "the runs of the session write them, too",
    "DELETE /v1/sessions/{session_id}/files/{path}": "the runs of the session delete them, too",
    "POST /v1/webhooks/{webhook_id}/test": "the deliveries tell it",
    "POST /v1/webhooks/{webhook_id}/retry": "the deliveries tell it",
    "POST /v1/alerts/{alert_id}/ack": "the alert tells who has seen it",
    "POST /v1/guardrails/test": "it judges a text and keeps nothing",
    "POST /v1/blobs": "it is data, and goes when nothing names it",
}
"""The routes that change something and write nothing into the audit log, and why."""
TOLD = {f"{route.method} {route.path}": route for route in served() if route.audit}


async def log(api: Served, key: str | None = None, **query: Any) -> list[dict[str, Any]]:
    """The rows, oldest first, without the one that the tenant began with."""
    reply = await api.get("/v1/audit", params={"limit": 200, **query}, key=key)
    assert reply.status == 200, reply.body
    return [row for row in reversed(reply.json["data"]) if row["action"] != "tenant.create"]


async def lines(api: Served, **query: Any) -> list[dict[str, Any]]:
    reply = await api.get("/v1/audit", params=query, headers={"Accept": "application/jsonl"})
    assert (reply.status, reply.headers["Content-Type"]) == (200, "application/jsonl")
    return list(chain.parsed(reply.body.splitlines()))


# ---- no route forgets ------------------------------------------------------------------------------


def test_a_route_that_changes_something_tells_the_log_or_says_why_not() -> None:
    writing = {f"{route.method} {route.path}" for route in served() if route.method != "GET"}
    assert writing - TOLD.keys() == NOT_TOLD.keys()
    assert not TOLD.keys() & NOT_TOLD.keys()
    assert {name for name in TOLD if name.startswith("GET")} == {"GET /v1/runs/{run_id}/continuation"}


async def test_every_act_is_told_once_with_who_did_it_and_nothing_that_was_said(api: Served, player: Player) -> None:
    wanted = await everything(api, player)
    rows = await log(api)
    assert [(row["action"], row["subject"]) for row in rows] == wanted
    theirs = await log(api, api.other)
    assert [row["action"] for row in theirs] == ["issuer.trust", "run.import"]
    done = {row["action"] for row in (*rows, *theirs)}
    assert done == {route.audit.action for route in TOLD.values() if route.audit} | {"budget.raise"}
    me = (await api.get("/v1/me")).json
    for row in rows:
        assert (row["user_id"], row["key_id"], row["operator"]) == ("local", me["key_id"], False)
        assert (row["outcome"], row["address"]) == ("done", "127.0.0.1")
        assert row["request_id"].startswith("req_")
    assert not [secret for secret in SECRETS if secret in str(rows)]
    details = {row["action"]: row["detail"] for row in rows}
    assert details["key.create"] == {"name": "ci", "user": "bob", "scopes": "runs:read"}
    assert details["agent.set_live"] == {"version": "2"}
    assert (details["guardrail.set"], details["guardrail.end"]) == ({"version": "1"}, {"version": "2"})
    assert details["budget.set_user"] == {"usd": "none", "tokens": "none"}
    assert details["approval.decide"].keys() == {"decision", "arguments"}
    assert details["budget.raise"] == {"decision": "extend", "limits": '{"steps":9,"usd":"1"}'}
    assert chain.verify(await lines(api)).bad is None


async def test_what_is_refused_for_another_reason_and_what_was_done_before_is_no_act(api: Served) -> None:
    once = {"Idempotency-Key": "once"}
    agent = {"name": "analyst", "model": "sim:one"}
    for _ in range(3):
        assert (await api.post("/v1/agents", agent, headers=once)).status == 201
    assert (await api.post("/v1/agents", agent)).code == "agent.exists"
    assert (await api.post("/v1/agents", {**agent, "model": "none:x"})).status == 422
    assert (await api.call("DELETE", "/v1/keys/key_00000000000000000000")).status == 404
    assert (await api.post("/v1/runs", {"input": "go", "model": "sim:one"})).status == 202
    assert [row["action"] for row in await log(api)] == ["agent.create"]


async def test_a_made_up_request_id_is_told_as_it_came(api: Served) -> None:
    await api.post("/v1/keys", {"name": "ci"}, headers={"X-Request-Id": "abcdefgh-1", "X-Forwarded-For": "192.0.2.9"})
    (row,) = await log(api)
    assert (row["request_id"], row["address"]) == ("abcdefgh-1", "127.0.0.1")


# ---- refusals --------------------------------------------------------------------------------------


async def test_what_a_key_does_not_allow_is_told_once_an_hour(api: Served) -> None:
    narrow = await api.key_with("runs:read", user="mallory")
    for _ in range(3):
        for route in TOLD.values():
            reply = await api.call(route.method, route.path.format_map(NAMES), key=narrow)
            if route.scope != "runs:read":
                assert (reply.status, reply.code) == (403, "auth.forbidden"), route.path
    rows = [row for row in await log(api) if row["outcome"] == "refused"]
    assert {row["user_id"] for row in rows} == {"mallory"}
    wanted = sorted(route.audit.action for route in TOLD.values() if route.audit)
    assert sorted(row["action"] for row in rows) == wanted, "the export needs more scopes than its first"
    assert next(row for row in rows if row["action"] == "key.revoke")["subject"] == NAMES["key_id"]
    for name in ("x" * 5000, "%00", "%C3%A4"):
        assert (await api.call("DELETE", f"/v1/keys/{name}", key=await api.key_with("runs:read"))).status == 403
    second = await api.key_with("runs:read", user="mallory")
    assert (await api.post("/v1/keys", {"name": "x"}, key=second)).status == 403
    assert (await log(api))[-1]["key_id"] != rows[0]["key_id"]


NAMES = {
    "run_id": "run_" + "0" * 26, "session_id": "ses_" + "0" * 26, "key_id": "key_" + "0" * 20, "name": "analyst",
    "stop_id": "stp_" + "0" * 26, "webhook_id": "whk_" + "0" * 26, "issuer": "ed25519:" + "A" * 43,
    "approval_id": f"run_{'0' * 26}.Lw", "user": "ann",
}  # fmt: skip


async def test_a_scope_that_is_missing_inside_is_a_refusal_too(api: Served) -> None:
    narrow = await api.key_with("admin:keys")
    assert (await api.post("/v1/keys", {"name": "wide", "scopes": ["*"]}, key=narrow)).status == 403
    assert [(row["action"], row["outcome"]) for row in await log(api)][-1] == ("key.create", "refused")


async def test_a_refusal_that_cannot_be_told_stays_one(api: Served, database: Database) -> None:
    narrow = await api.key_with("runs:read")
    assert (await api.get("/v1/runs", key=narrow)).status == 200, "the key is known"
    async with database.migrator() as owner, owner.transaction():
        await owner.execute("alter table audit_head no force row level security")
        await owner.execute("select from audit_head for update")
        refused = asyncio.create_task(api.post("/v1/keys", {"name": "x"}, key=narrow))
        await blocked(database)
        await cut_off(database)
        assert (await refused).code == "auth.forbidden"


# ---- crashes ---------------------------------------------------------------------------------------


async def test_a_crash_between_a_key_and_its_row_leaves_neither(api: Served, database: Database) -> None:
    assert await count(api) == 1
    async with database.migrator() as owner, owner.transaction():
        await owner.execute("alter table audit_head no force row level security")
        await owner.execute("select from audit_head for update")
        making = asyncio.create_task(api.post("/v1/keys", {"name": "lost"}))
        await blocked(database)
        await cut_off(database)
        assert (await making).code == "store.unavailable"
    assert (await count(api), await log(api)) == (1, [])
    assert (await api.post("/v1/keys", {"name": "kept"})).status == 201
    assert (await count(api), len(await log(api))) == (2, 1)


async def count(api: Served) -> int:
    return len((await api.get("/v1/keys")).json["data"])


async def test_an_act_that_the_log_cannot_take_is_not_done(api: Served, database: Database) -> None:
    async with database.migrator() as owner:
        await owner.execute(
            "create function fail() returns trigger language plpgsql as $$ begin raise sqlstate '53100'; end $$"
        )
        await owner.execute("create trigger fail before insert on audit for each row execute function fail()")
    for method, path, body in (
        ("POST", "/v1/agents", {"name": "analyst", "model": "sim:one"}),
        ("POST", "/v1/admin/stops", {"what": "tenant"}),
        ("POST", "/v1/keys", {"name": "ci"}),
    ):
        assert (await api.call(method, path, json=body)).code == "store.full", path
    assert (await api.get("/v1/agents")).json["data"] == (await api.get("/v1/admin/stops")).json["data"] == []
    assert await count(api) == 1
    await api.start()


# ---- reading ---------------------------------------------------------------------------------------


@pytest.fixture
async def busy(api: Served) -> Served:
    """An API whose log has rows of two users."""
    bob = (await api.post("/v1/keys", {"name": "bob's", "user": "bob"})).json["key"]
    for n in range(6):
        assert (
            await api.post("/v1/agents", {"name": f"a{n}", "model": "sim:one"}, key=bob if n % 2 else None)
        ).status == 201
    return api


async def test_rows_are_listed_newest_first_page_by_page_and_filtered(busy: Served) -> None:
    first = (await busy.get("/v1/audit?limit=3")).json
    assert [row["subject"] for row in first["data"]] == ["a5", "a4", "a3"]
    second = (await busy.get(f"/v1/audit?limit=50&after={first['next']}")).json
    assert [row["n"] for row in second["data"]] == [5, 4, 3, 2, 1]
    assert (second["has_more"], second["next"]) == (False, None)
    assert [row["subject"] for row in await log(busy, user="bob")] == ["a1", "a3", "a5"]
    assert [row["action"] for row in await log(busy, action="key")] == ["key.create"]
    assert [row["action"] for row in await log(busy, action="key.create")] == ["key.create"]
    assert await log(busy, action="ke") == await log(busy, action="key.") == await log(busy, user="nobody") == []
    third = first["data"][2]["at"]
    assert [row["subject"] for row in await log(busy, since=third)] == ["a3", "a4", "a5"]
    assert [row["subject"] for row in await log(busy, until=third, action="agent")] == ["a0", "a1", "a2"]


async def test_an_export_is_whole_and_may_go_on(busy: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sojourn.api.audit.routes.BATCH", 3)
    rows = await lines(busy)
    head = (await busy.get("/v1/audit/head")).json
    assert [row.get("n") for row in rows] == [*range(1, 9), None]
    assert rows[-1] == {"head": head}
    assert (head["tenant"], head["n"], head["hash"]) == ("acme", 8, rows[-2]["hash"])
    assert chain.verify(rows, chain.Head(8, head["hash"])).bad is None
    assert await lines(busy, after=5) == rows[5:]
    assert await lines(busy, after=8) == rows[8:]
    reply = await busy.get("/v1/audit?format=jsonl&user=bob")
    assert (reply.status, reply.pointer) == (422, "/user")


async def test_an_export_that_breaks_off_does_not_look_whole(
    busy: Served, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sojourn.api.audit.routes.BATCH", 3)
    async with database.migrator() as owner, owner.transaction():
        await owner.execute("alter table audit no force row level security, disable trigger user")
        await owner.execute("delete from audit where tenant = 'acme' and n > 3")
    assert chain.verify(await lines(busy)).bad == 4


async def test_a_tenant_without_any_row_has_a_head_and_an_empty_export(database: Database) -> None:
    async with serve(database) as api:
        async with database.migrator() as owner, owner.transaction():
            await owner.execute("alter table audit no force row level security, disable trigger user")
            await owner.execute("alter table audit_head no force row level security")
            await owner.execute("delete from audit")
            await owner.execute("delete from audit_head")
        assert (await api.get("/v1/audit")).json == {"data": [], "has_more": False, "next": None}
        assert chain.verify(await lines(api)) == chain.Verdict(chain.Head(0, chain.BEGINNING))


async def test_only_a_key_for_it_reads_the_log_and_only_of_its_tenant(busy: Served) -> None:
    without = await busy.key_with(*(SCOPES.keys() - {"admin:audit"}))
    for path in ("/v1/audit", "/v1/audit?format=jsonl", "/v1/audit/head"):
        assert (await busy.get(path, key=without)).code == "auth.forbidden"
    assert await log(busy, busy.other) == []
    foreign: Reply = await busy.get("/v1/audit?format=jsonl", key=busy.other)
    assert b"acme" not in foreign.body
    times = ("until=9999-12-31T23:59:59-23:59", "since=0001-01-01T00:00:00%2B23:59", "since=yesterday")
    for query in (*times, "after=-1", "after=x", "limit=0", "format=csv", "action=" + "x" * 82, "x=1"):
        assert (await busy.get(f"/v1/audit?{query}")).code == "request.invalid", query
