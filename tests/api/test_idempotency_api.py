"""Idempotency-Key: the same request twice is one request, whoever crashes in between."""

import asyncio

import pytest
from served_api import GOAL, Served

KEY = {"Idempotency-Key": "one"}


async def count(api: Served) -> int:
    return len((await api.get("/v1/runs")).json["data"])


async def test_the_same_request_again_is_answered_as_before(api: Served) -> None:
    first = await api.post("/v1/runs", GOAL, headers=KEY)
    again = await api.post("/v1/runs", GOAL, headers=KEY)
    assert (again.status, again.json) == (202, first.json)
    assert "Idempotency-Replayed" not in first.headers
    assert again.headers["Idempotency-Replayed"] == "true"
    assert again.headers["Location"] == first.headers["Location"]
    assert await count(api) == 1


async def test_another_body_or_path_with_the_same_key_is_refused(api: Served) -> None:
    await api.post("/v1/runs", GOAL, headers=KEY)
    for path, body in (("/v1/runs", {**GOAL, "input": "Another."}), ("/v1/sessions", {}), ("/v1/runs?wait=1", GOAL)):
        reply = await api.post(path, body, headers=KEY)
        assert (reply.status, reply.code) == (422, "request.idempotency_reused")


async def test_a_refusal_is_not_remembered(api: Served) -> None:
    busy = (await api.post("/v1/runs", GOAL)).json
    body = {**GOAL, "session": busy["session_id"]}
    assert (await api.post("/v1/runs", body, headers=KEY)).code == "session.busy"
    assert (await api.post("/v1/runs", body, headers=KEY)).code == "session.busy"
    assert (await api.post("/v1/runs", GOAL, headers=KEY)).status == 202


async def test_twenty_at_once_make_one_run(api: Served) -> None:
    replies = await asyncio.gather(*(api.post("/v1/runs", GOAL, headers=KEY) for _ in range(20)))
    assert {reply.status for reply in replies} <= {202, 409}
    assert len({reply.body for reply in replies if reply.status == 202}) == 1
    assert await count(api) == 1


async def test_a_key_belongs_to_one_user_of_one_tenant(api: Served) -> None:
    ann = await api.key_with("*", user="ann")
    made = [await api.post("/v1/runs", GOAL, headers=KEY, key=key) for key in (api.key, ann, api.other)]
    assert len({reply.json["run_id"] for reply in made}) == 3


@pytest.mark.parametrize("key", ["", "x" * 256, "é"])
async def test_what_cannot_be_a_key_is_refused(api: Served, key: str) -> None:
    async with api.http.post(
        f"{api.url}/v1/runs", json=GOAL, headers={"Authorization": f"Bearer {api.key}", "Idempotency-Key": key}
    ) as reply:
        assert reply.status == 422
    assert await count(api) == 0
