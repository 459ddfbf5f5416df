"""Callers with tokens of an identity provider, over HTTP: who they are, what they may, and what they are told."""

import re
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from played_worker import Player
from served_api import GOAL, Served, serve
from tests.identity_provider import ISSUER, TABLE, Published, Signer, published

from sojourn.identity.issuers import Issuer
from sojourn.identity.tokens import TOKEN_CHARS_MAX
from sojourn.store.db import Database

SIGNER = Signer(kid="k1")
BY_CLAIM = {"issuer": "https://all.example.com", "tenant": "", "tenant_claim": "org", "scopes_max": ["*"]}


@pytest.fixture
async def provider() -> AsyncIterator[Published]:
    async with published(SIGNER) as provider:
        yield provider


@pytest.fixture
async def api(database: Database, provider: Published) -> AsyncIterator[Served]:
    tables = {"corp": TABLE, "all": TABLE | BY_CLAIM}
    issuers = {name: msgspec.convert(one | {"jwks_url": provider.url}, Issuer) for name, one in tables.items()}
    async with serve(database, issuers=issuers, public_url="https://agents.example.com/v9") as served:
        yield served


def token(**claims: Any) -> str:
    return SIGNER.token(**{"scope": "runs:* sessions:* agents:*"} | claims)


def powerful(tenant: str = "acme", **claims: Any) -> str:
    return token(**{"iss": "https://all.example.com", "org": tenant, "scope": "*"} | claims)


async def test_a_token_is_as_good_as_a_key(api: Served) -> None:
    me = (await api.get("/v1/me", key=token())).json
    assert me == {
        "tenant": "acme", "user_id": "ann", "key_id": None, "issuer": "corp",
        "scopes": ["agents:*", "runs:*", "sessions:*"], "confined": False,
    }  # fmt: skip
    run_id = await api.start(key=token())
    assert (await api.get(f"/v1/runs/{run_id}", key=token())).json["user_id"] == "ann"
    assert (await api.get(f"/v1/runs/{run_id}")).status == 200, "a key of the tenant sees it, too"


async def test_a_token_stays_in_its_tenant(api: Served) -> None:
    run_id = await api.start(key=token())
    assert (await api.get(f"/v1/runs/{run_id}", key=powerful("acme"))).status == 200
    for stranger in (powerful("rival"), api.other):
        assert (await api.get(f"/v1/runs/{run_id}", key=stranger)).status == 404
        assert (await api.get("/v1/runs", key=stranger)).json["data"] == []


async def test_a_tenant_that_is_not_there_looks_like_any_bad_token(api: Served) -> None:
    there = await api.get("/v1/me", key=powerful("rival"))
    assert (there.status, there.json["tenant"]) == (200, "rival")
    nowhere, bad = [await api.get("/v1/me", key=one) for one in (powerful("nobody"), token(aud="another"))]
    for reply in (nowhere, bad):
        assert (reply.status, reply.code) == (401, "auth.unauthenticated")
    assert {**nowhere.json, "request_id": ""} == {**bad.json, "request_id": ""}
    assert nowhere.headers["WWW-Authenticate"] == bad.headers["WWW-Authenticate"]


async def test_a_user_of_a_token_is_the_user_of_a_key_of_that_name(api: Served) -> None:
    ann = await api.key_with("runs:*", user="ann")
    created = [await api.post("/v1/runs", GOAL, key=one, headers={"Idempotency-Key": "x"}) for one in (ann, token())]
    assert created[0].json["run_id"] == created[1].json["run_id"]


async def test_a_token_manages_keys_where_its_issuer_may_give_that(api: Served) -> None:
    made = await api.post("/v1/keys", {"name": "ci", "scopes": ["runs:read"]}, key=powerful())
    assert made.status == 201
    assert (await api.get("/v1/me", key=made.json["key"])).json["user_id"] == "ann"
    narrow = powerful(scope="admin:keys runs:read")
    replaced = await api.post(f"/v1/keys/{made.json['id']}/replace", key=narrow)
    assert replaced.status == 201
    assert (await api.call("DELETE", f"/v1/keys/{replaced.json['id']}", key=narrow)).status == 204
    assert (await api.post("/v1/keys", {"name": "ci"}, key=token())).status == 403


async def test_an_export_asked_for_with_a_token_is_signed(api: Served, player: Player) -> None:
    run_id = await api.start(key=token())
    play = await player.take(run_id)
    play.asked()
    await play.commit(release="queued")
    assert (await api.get(f"/v1/runs/{run_id}/continuation", key=token())).status == 200


async def test_a_schedule_needs_a_key(api: Served) -> None:
    everything = powerful()
    assert (await api.post("/v1/agents", {"name": "analyst", "model": "sim:one"}, key=everything)).status == 201
    plan = {"name": "nightly", "cron": "@daily", "run": {"input": "go", "agent": "analyst"}}
    reply = await api.post("/v1/schedules", plan, key=everything)
    assert (reply.status, reply.code) == (403, "schedule.needs_key")
    assert (await api.post("/v1/schedules", plan)).status == 201
    change = await api.call("PATCH", "/v1/schedules/nightly", json={"cron": "@hourly"}, key=everything)
    assert (change.status, change.code) == (403, "schedule.needs_key")
    assert (await api.post("/v1/schedules/nightly/resume", key=everything)).code == "schedule.needs_key"
    assert (await api.post("/v1/schedules/nightly/pause", key=everything)).status == 200
    assert (await api.post("/v1/schedules/nightly/run", key=everything)).status == 202


async def test_an_issuer_that_is_away_stops_no_caller_that_is_known_and_is_told_to_others(
    api: Served, provider: Published
) -> None:
    provider.status = 500
    early = await api.get("/v1/me", key=token())
    assert (early.status, early.code) == (503, "auth.issuer_unavailable")
    assert "Retry-After" in early.headers
    assert (await api.get("/v1/me")).status == 200, "keys do not need the issuer"


async def test_a_token_may_be_as_long_as_a_header_and_no_longer(api: Served, provider: Published) -> None:
    room = (TOKEN_CHARS_MAX - len(token(pad=""))) * 3 // 4
    too_long, long = (token(pad="x" * (room + more)) for more in (8, -8))
    assert TOKEN_CHARS_MAX - 30 < len(long) <= TOKEN_CHARS_MAX < len(too_long)
    assert (await api.get("/v1/me", key=too_long)).status == 401
    assert provider.asked == 0, "it is not looked at"
    assert (await api.get("/v1/me", key=long)).status == 200


# ---- what clients are told -------------------------------------------------------------------


METADATA = "https://agents.example.com/.well-known/oauth-protected-resource/v9"


async def test_a_client_learns_where_to_get_a_token(api: Served) -> None:
    reply = await api.get("/v1/runs", headers={"Authorization": ""})
    assert reply.headers["WWW-Authenticate"] == f'Bearer realm="sojourn", resource_metadata="{METADATA}"'
    found = (await api.get("/.well-known/oauth-protected-resource", key="")).json
    assert found["resource"] == "https://agents.example.com/v9"
    assert found["authorization_servers"] == [ISSUER, "https://all.example.com"]
    assert found["bearer_methods_supported"] == ["header"]
    assert "runs:write" in found["scopes_supported"]


async def test_a_refusal_says_in_its_header_what_was_wrong(api: Served) -> None:
    for bad in ("sj_unknown", token(aud="another"), "x"):
        reply = await api.get("/v1/runs", key=bad)
        assert 'error="invalid_token"' in reply.headers["WWW-Authenticate"]
    reply = await api.post("/v1/runs", GOAL, key=token(scope="runs:read"))
    assert reply.status == 403
    said = reply.headers["WWW-Authenticate"]
    assert re.findall(r'(\w+)="([^"]*)"', said)[1:] == [
        ("error", "insufficient_scope"), ("scope", "runs:write"), ("resource_metadata", METADATA),
    ]  # fmt: skip
    assert "WWW-Authenticate" not in (await api.get("/v1/runs/run_00000000000000000000000000")).headers


async def test_without_a_public_url_nothing_is_made_up(database: Database) -> None:
    async with serve(database) as plain:
        reply = await plain.get("/.well-known/oauth-protected-resource", key="")
        assert (reply.status, reply.code) == (404, "request.not_found")
        assert "SOJOURN_PUBLIC_URL" in reply.json["detail"]
        assert (await plain.get("/v1/me", headers={"Authorization": ""})).headers[
            "WWW-Authenticate"
        ] == 'Bearer realm="sojourn"'
        assert (await plain.get("/v1/me", key=token())).status == 401, "no issuer is known"
