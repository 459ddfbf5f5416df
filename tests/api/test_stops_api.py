"""Stops and dead letters over HTTP: who may, what is refused, and what a client that waits is told."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from played_worker import Player
from reading import follow
from served_api import Served

from sojourn.errors import UnknownFormat
from sojourn.store import queue, runs, stops
from sojourn.store.db import Database

WHAT: dict[str, Any] = {"what": "user", "id": "local", "reason": "why"}


async def swept(database: Database) -> None:
    """Carry out what there is, as a worker does."""
    while await stops.sweep(database, lambda _channel, _ids: None, datetime.now(UTC)):
        pass


async def test_a_stop_is_made_seen_listed_and_lifted(api: Served) -> None:
    run_id = await api.start()
    made = await api.post("/v1/admin/stops", WHAT)
    assert made.status == 202
    path = made.headers["Location"]
    assert path == f"/v1/admin/stops/{made.json['id']}"
    assert (made.json["progress"]["settled"], made.json["progress"]["runs"]) == (False, 1)
    (left,) = made.json["progress"]["left"]
    assert left == {"kind": "run", "id": run_id, "why": "no worker has come to end it; it holds nothing meanwhile"}
    again = await api.post("/v1/admin/stops", {**WHAT, "reason": "another"})
    assert (again.json["id"], again.json["reason"]) == (made.json["id"], "why")
    refused = await api.post("/v1/runs", {"input": "go", "model": "sim:a"})
    assert (refused.status, refused.code) == (409, "stop.in_force")
    assert made.json["id"] in refused.json["detail"]
    await swept(api.parts.database)
    seen = (await api.get(path)).json
    assert (seen["progress"]["settled"], seen["progress"]["hit"]) == (True, {"cancelled": 1})
    assert (await api.get(f"{path}/runs")).json["data"][0]["run_id"] == run_id
    assert [one["id"] for one in (await api.get("/v1/admin/stops")).json["data"]] == [made.json["id"]]
    lifted = (await api.call("DELETE", path)).json
    assert (lifted["lifted_by"], lifted["progress"]) == ("local", None)
    assert (await api.call("DELETE", path)).json == lifted
    assert (await api.get("/v1/admin/stops")).json["data"] == []
    assert len((await api.get("/v1/admin/stops?all=true")).json["data"]) == 1
    await api.start()


async def test_a_stop_is_made_and_seen_by_those_alone_who_may(api: Served) -> None:
    made = await api.post("/v1/admin/stops", WHAT)
    path = f"/v1/admin/stops/{made.json['id']}"
    narrow = await api.key_with("runs:*", "admin:runs")
    for method, place in (("GET", path), ("DELETE", path), ("GET", f"{path}/runs"), ("GET", "/v1/admin/stops")):
        assert (await api.call(method, place, key=narrow)).code == "auth.forbidden"
        if place != "/v1/admin/stops":
            assert (await api.call(method, place, key=api.other)).code == "request.not_found"
    assert (await api.post("/v1/admin/stops", WHAT, key=narrow)).code == "auth.forbidden"
    assert (await api.get("/v1/admin/stops", key=api.other)).json["data"] == []
    await api.start(key=api.other)
    theirs = await api.start(key=api.other)
    assert (await api.post("/v1/admin/stops", {"what": "run", "id": theirs})).code == "request.not_found"


@pytest.mark.parametrize(
    "body",
    [
        {"what": "installation"},
        {"what": "user"},
        {"what": "tenant", "id": "rival"},
        {"what": "user", "id": "x" * 201},
        {"what": "run", "id": "x", "mode": "kill"},
    ],
)
async def test_a_stop_that_names_nothing_or_another_tenant_is_refused(api: Served, body: Any) -> None:
    assert (await api.post("/v1/admin/stops", body)).code == "request.invalid"
    assert (await api.get("/v1/admin/stops")).json["data"] == []


async def test_no_import_or_fork_begins_under_a_stop(api: Served, player: Player) -> None:
    run_id = await api.start()
    play = await player.take(run_id)
    await play.finish()
    await api.post("/v1/admin/stops", {"what": "tenant"})
    assert (await api.post(f"/v1/runs/{run_id}/fork", {"input": "again"})).code == "stop.in_force"


async def claimed(api: Served, player: Player) -> queue.Lease:
    """Claim a run that is on its way."""
    async with asyncio.timeout(30):
        while not (found := await queue.claim(api.parts.database, player.id, 1)):  # noqa: ASYNC110 (it is posted)
            await asyncio.sleep(0.01)
    return found[0].run_id, found[0].fence


async def test_a_client_that_waits_is_told_of_a_dead_letter(api: Served, player: Player) -> None:
    waiting = asyncio.create_task(api.post("/v1/runs?wait=30", {"input": "go", "model": "sim:a"}))
    lease = await claimed(api, player)
    async with follow(api, lease[0]) as reading:
        await reading.until("user.message")
        await runs.quarantine(api.parts.database, player.id, lease, UnknownFormat("A newer release wrote it."))
        api.parts.doorbell.ring("sojourn_run", (lease[0],))
        told = await reading.until("run.quarantined")
        assert (told.id, told.data["error"]["code"]) == (None, "continuation.unknown_format")
    answer = await waiting
    assert (answer.status, answer.json["status"]) == (200, "quarantined")
    async with follow(api, lease[0], Last_Event_ID="1") as late:
        await late.until("run.quarantined")


async def test_a_client_of_a_run_that_nobody_can_read_is_told_and_sent_away(api: Served, player: Player) -> None:
    run_id = await api.start()
    lease = await claimed(api, player)
    await runs.quarantine(api.parts.database, player.id, lease, UnknownFormat("A newer release wrote it."))
    async with api.parts.database.engine() as engine:
        await engine.execute("""update run set snapshot = '{"version":99}'""")
    async with asyncio.timeout(30), follow(api, run_id) as reading:
        assert [frame.event for frame in await reading.rest()] == ["run.queued", "user.message", "run.quarantined"]
