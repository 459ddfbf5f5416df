"""/v1/budgets from the outside: who sees and sets what, and a run that finds its pool empty."""

from datetime import UTC, datetime
from typing import Any

import pytest
from served_api import GOAL, Reply, Served, serve

from sojourn.store.db import Database
from sojourn.store.sharing.limits import set_limits

pytestmark = pytest.mark.usefixtures("whole_day")

USERS, TENANT = "/v1/budgets/users", "/v1/budgets/tenant"


async def put(api: Served, path: str, body: Any, **more: Any) -> Reply:
    return await api.call("PUT", path, json=body, **more)


async def pools(api: Served, query: str = "", **more: Any) -> dict[str, Any]:
    reply = await api.get(f"/v1/budgets{query}", **more)
    assert reply.status == 200, reply.body
    return {pool["user"] or "": pool for pool in reply.json["data"]}


async def test_a_tenant_without_bounds_sees_what_it_spends(api: Served) -> None:
    found = await pools(api)
    assert list(found) == [""]
    assert found[""]["usd"] == {"limit": None, "spent": "0.000000", "held": "0.000000", "left": None}
    assert found[""]["tokens"] == {"limit": None, "spent": 0, "held": 0, "left": None}


async def test_the_lesser_bound_holds_and_the_tenants_own_is_never_wider(api: Served, database: Database) -> None:
    await set_limits(database, "acme", {"usd_day_micros": 50_000_000, "user_tokens_day": 1000})
    assert (await pools(api))[""]["usd"]["limit"] == "50.000000"
    assert (await put(api, TENANT, {"usd": 20.5})).json == {
        "whose": "tenant",
        "user": None,
        "usd": "20.500000",
        "tokens": None,
    }
    assert (await pools(api))[""]["usd"]["left"] == "20.500000"
    wider = await put(api, TENANT, {"usd": "50.01"})
    assert (wider.status, wider.code, wider.pointer) == (422, "request.invalid", "/usd")
    assert (await put(api, f"{USERS}/ann", {"tokens": 1001})).pointer == "/tokens"
    await set_limits(database, "acme", {"usd_day_micros": 10_000_000})
    assert (await pools(api))[""]["usd"]["limit"] == "10.000000"
    await set_limits(database, "acme", {"usd_day_micros": 50_000_000})
    assert (await put(api, TENANT, {})).status == 200
    assert (await pools(api))[""]["usd"]["limit"] == "50.000000"


async def test_a_user_has_the_bounds_of_each_unless_there_are_own_ones(api: Served, database: Database) -> None:
    await put(api, USERS, {"usd": 2})
    await put(api, f"{USERS}/ann", {"usd": 5, "tokens": 7})
    await put(api, f"{USERS}/a%2Fb%20%C3%A4", {"usd": 1})
    found = await pools(api)
    assert list(found) == ["", "a/b ä", "ann"]
    assert [found[name]["usd"]["limit"] for name in found] == [None, "1.000000", "5.000000"]
    made_up = await pools(api, "?user=nobody")
    assert made_up["nobody"]["usd"]["limit"] == "2.000000"
    reply = await api.get("/v1/budgets?limit=1")
    assert (reply.json["has_more"], reply.json["next"], len(reply.json["data"])) == (True, "a/b ä", 2)
    assert list(await pools(api, "?limit=1&after=a/b%20%C3%A4")) == ["ann"]
    await set_limits(database, "acme", {"user_usd_day_micros": 3_000_000})
    assert (await pools(api, "?user=ann"))["ann"]["usd"]["limit"] == "3.000000"


async def test_what_is_no_amount_or_no_user_is_refused(api: Served) -> None:
    money = [{"usd": usd} for usd in (-1, "NaN", "Infinity", 1e300, "0.0000001", True)]
    for body in (*money, {"tokens": -1}, {"tokens": 10**16}, {"tokens": 1.5}, {"usd": 1, "more": 1}, []):
        reply = await put(api, TENANT, body)
        assert (reply.status, reply.code) == (422, "request.invalid"), body
    assert (await pools(api))[""]["usd"]["limit"] is None
    for name in ("a%7Cb", "%00", "%0A", "x" * 201):
        assert (await put(api, f"{USERS}/{name}", {"usd": 1})).status == 404, name
        assert (await api.get(f"/v1/budgets?user={name}")).code == "request.invalid", name


async def test_only_who_may_sets_bounds(api: Served) -> None:
    agents_own = await api.key_with("runs:write", "runs:read", "budgets:raise")
    for path in (TENANT, USERS, f"{USERS}/ann"):
        reply = await put(api, path, {"usd": 10}, key=agents_own)
        assert (reply.status, reply.code) == (403, "auth.forbidden")
    assert "admin:budgets" in reply.json["detail"]
    admin = await api.key_with("admin:budgets")
    assert (await put(api, TENANT, {"usd": 10}, key=admin)).status == 200
    assert (await api.get("/v1/budgets", key=admin)).status == 403
    assert (await pools(api, key=agents_own))[""]["usd"]["limit"] == "10.000000"


async def test_another_tenant_sees_and_sets_its_own(api: Served) -> None:
    await put(api, TENANT, {"usd": 10})
    await put(api, f"{USERS}/ann", {"usd": 1})
    assert list(await pools(api, key=api.other)) == [""]
    assert (await put(api, f"{USERS}/ann", {"usd": 3}, key=api.other)).status == 200
    assert (await pools(api))["ann"]["usd"]["limit"] == "1.000000"
    assert (await pools(api, "?user=ann", key=api.other))["ann"]["usd"]["limit"] == "3.000000"


async def test_an_empty_pool_lets_no_run_begin(api: Served) -> None:
    await put(api, USERS, {"usd": 0})
    reply = await api.post("/v1/runs", GOAL)
    assert (reply.status, reply.code, reply.json["retryable"]) == (429, "budget.day_exhausted", True)
    left_s = (datetime.fromisoformat((await pools(api))[""]["resets_at"]) - datetime.now(UTC)).total_seconds()
    assert 0 < left_s <= 86_400 and abs(int(reply.headers["Retry-After"]) - left_s) < 60
    assert "user local" in reply.json["detail"]
    assert (await api.get("/v1/runs")).json["data"] == []
    await put(api, USERS, {})
    run_id = await api.start()
    await put(api, USERS, {"tokens": 0})
    assert (await api.post(f"/v1/runs/{run_id}/fork", {"input": "again"})).code == "budget.day_exhausted"
    await put(api, USERS, {})
    assert (await api.post(f"/v1/runs/{run_id}/fork", {"input": "again"})).status == 202


async def test_a_price_must_be_known_where_money_is_bound(api: Served) -> None:
    await put(api, TENANT, {"usd": 5})
    reply = await api.post("/v1/runs", {**GOAL, "model": "sim:unpriced"})
    assert (reply.status, reply.code, reply.pointer) == (422, "budget.price_unknown", "/model")
    await put(api, TENANT, {"tokens": 500})
    assert (await api.post("/v1/runs", {**GOAL, "model": "sim:unpriced"})).status == 202


async def test_the_settings_hold_where_nobody_said_anything(database: Database) -> None:
    async with serve(database, tenant_usd_day=5.0, user_tokens_day=0) as api:
        assert (await pools(api))[""]["usd"]["limit"] == "5.000000"
        assert (await api.post("/v1/runs", GOAL)).code == "budget.day_exhausted"
        await set_limits(database, "acme", {"user_tokens_day": 10})
        await api.start()
        await set_limits(database, "acme", {"usd_day_micros": 0})
        assert (await api.post("/v1/runs", GOAL)).code == "budget.day_exhausted"
