"""POST /v1/keys/{key_id}/replace: what a manager gets, and what no manager gets."""

import pytest
from served_api import Served


async def made(api: Served, *scopes: str) -> dict:
    return (await api.post("/v1/keys", {"name": "ci", "user": "bob", "scopes": list(scopes)})).json


async def test_a_key_is_replaced_and_both_are_good_for_a_day(api: Served) -> None:
    old = await made(api, "runs:read")
    reply = await api.post(f"/v1/keys/{old['id']}/replace")
    assert reply.status == 201
    new = reply.json
    assert new["key"] != old["key"]
    assert (new["name"], new["user_id"], new["scopes"]) == ("ci", "bob", ["runs:read"])
    for key in (old["key"], new["key"]):
        assert (await api.get("/v1/runs", key=key)).status == 200
    listed = {key["id"]: key for key in (await api.get("/v1/keys")).json["data"]}
    assert listed[old["id"]]["replaced_by"] == new["id"]
    assert listed[old["id"]]["expires_at"]
    assert listed[new["id"]]["replaced_by"] is None


async def test_a_key_that_is_replaced_without_overlap_is_refused_at_once_where_that_was_asked(api: Served) -> None:
    old = await made(api, "runs:read")
    assert (await api.get("/v1/runs", key=old["key"])).status == 200
    new = (await api.post(f"/v1/keys/{old['id']}/replace", {"overlap_s": 0})).json
    assert (await api.get("/v1/runs", key=old["key"])).status == 401
    assert (await api.get("/v1/runs", key=new["key"])).status == 200


async def test_a_key_is_replaced_once_and_its_successor_is_named(api: Served) -> None:
    old = await made(api, "runs:read")
    path = f"/v1/keys/{old['id']}/replace"
    new = (await api.post(path)).json
    again = await api.post(path, {"overlap_s": 0})
    assert (again.status, again.code) == (409, "key.ended")
    assert new["id"] in again.json["detail"]
    assert (await api.get("/v1/runs", key=old["key"])).status == 200, "asking again takes nothing away"


async def test_nobody_gets_a_key_that_allows_more_than_his_own(api: Served) -> None:
    manager = await api.key_with("admin:keys", "runs:read")
    wide, narrow = await made(api, "runs:write"), await made(api, "runs:read")
    reply = await api.post(f"/v1/keys/{wide['id']}/replace", key=manager)
    assert (reply.status, reply.code) == (403, "auth.forbidden")
    assert (await api.post(f"/v1/keys/{narrow['id']}/replace", key=manager)).status == 201
    assert (await api.get("/v1/me", key=wide["key"])).status == 200


@pytest.mark.parametrize("overlap", [-1, 90 * 86400 + 1, "1d", None, 0.5])
async def test_an_overlap_is_a_number_of_seconds(api: Served, overlap: object) -> None:
    old = await made(api, "runs:read")
    reply = await api.post(f"/v1/keys/{old['id']}/replace", {"overlap_s": overlap})
    assert (reply.status, reply.pointer) == (422, "/overlap_s")
