"""Schedules over HTTP: made, changed, paused and fired by hand; whose they are, and what is refused."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from served_api import Served, serve

from sojourn.store.db import Database

RUN = {"agent": "clerk", "input": "Tidy up."}
NIGHTLY = {"name": "nightly", "cron": "30 2 * * *", "timezone": "Europe/Berlin", "run": RUN}


@pytest.fixture
async def clerk(api: Served) -> Served:
    """The application, with an agent for both tenants."""
    for key in (api.key, api.other):
        made = await api.post("/v1/agents", {"name": "clerk", "model": "sim:one"}, key=key)
        assert made.status == 201, made.body
    return api


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


async def test_a_schedule_is_made_read_listed_and_deleted(clerk: Served) -> None:
    made = await clerk.post("/v1/schedules", NIGHTLY)
    assert (made.status, made.headers["Location"]) == (201, "/v1/schedules/nightly"), made.body
    seen = (await clerk.get("/v1/schedules/nightly")).json
    assert seen == made.json
    assert (seen["status"], seen["cron"], seen["missed"], seen["overlap"]) == ("active", "30 2 * * *", "once", "skip")
    assert seen["run"]["session"] == "new"
    assert (await clerk.get("/v1/schedules")).json["data"] == [seen]
    upcoming = (await clerk.get("/v1/schedules/nightly/next?n=3")).json["data"]
    assert (len(upcoming), upcoming[0]) == (3, seen["next_at"])
    assert (await clerk.call("DELETE", "/v1/schedules/nightly")).status == 204
    assert (await clerk.get("/v1/schedules/nightly")).code == "request.not_found"


async def test_a_schedule_fires_by_itself_and_its_runs_carry_its_name(clerk: Served) -> None:
    soon = (datetime.now(UTC) + timedelta(seconds=0.5)).isoformat()
    made = await clerk.post("/v1/schedules", {"name": "soon", "every_s": 3600, "start_at": soon, "run": RUN})
    assert made.status == 201, made.body
    async with asyncio.timeout(20):
        while not (found := (await clerk.get("/v1/runs?schedule=soon")).json["data"]):
            pass
    (run,) = found
    assert (run["schedule"], moment(run["fire_at"]), run["agent"]["name"]) == ("soon", moment(soon), "clerk")
    seen = (await clerk.get("/v1/schedules/soon")).json
    assert (seen["last_run_id"], seen["fires"]["made"]) == (run["id"], 1)
    assert moment(seen["next_at"]) == moment(soon) + timedelta(hours=1)
    assert (await clerk.get("/v1/runs?schedule=nightly")).json["data"] == []


async def test_a_schedule_is_fired_by_hand_as_the_caller(clerk: Served) -> None:
    await clerk.post("/v1/schedules", NIGHTLY)
    ann = await clerk.key_with("schedules:write", "runs:*", user="ann")
    headers = {"Idempotency-Key": "once"}
    first, second = [await clerk.post("/v1/schedules/nightly/run", key=ann, headers=headers) for _ in range(2)]
    assert (first.status, first.json) == (202, second.json), first.body
    (run,) = (await clerk.get("/v1/runs?schedule=nightly")).json["data"]
    assert (run["id"], run["user_id"], run["fire_at"]) == (first.json["run_id"], "ann", None)


async def test_pausing_keeps_it_from_firing_and_resuming_leaves_out_the_time_between(clerk: Served) -> None:
    await clerk.post("/v1/schedules", NIGHTLY)
    paused = (await clerk.post("/v1/schedules/nightly/pause")).json
    assert (paused["status"], paused["next_at"]) == ("paused", None)
    assert len((await clerk.get("/v1/schedules/nightly/next")).json["data"]) == 5
    resumed = (await clerk.post("/v1/schedules/nightly/resume")).json
    assert (resumed["status"], moment(resumed["next_at"]) > datetime.now(UTC)) == ("active", True)
    born = (await clerk.post("/v1/schedules", {**NIGHTLY, "name": "born", "paused": True})).json
    assert (born["status"], born["next_at"]) == ("paused", None)


async def test_a_change_counts_from_now_and_keeps_what_it_does_not_say(clerk: Served) -> None:
    before = (await clerk.post("/v1/schedules", NIGHTLY)).json
    after = (await clerk.call("PATCH", "/v1/schedules/nightly", json={"cron": None, "every_s": 120})).json
    assert (after["cron"], after["every_s"], after["timezone"]) == (None, 120, "Europe/Berlin")
    assert moment(after["next_at"]) - datetime.now(UTC) <= timedelta(seconds=120)
    again = (await clerk.call("PATCH", "/v1/schedules/nightly", json={"run": {**RUN, "input": "More."}})).json
    assert (again["run"]["input"], again["next_at"], again["created_at"]) == (
        "More.",
        after["next_at"],
        before["created_at"],
    )


async def test_whoever_changes_a_schedule_is_whom_it_acts_as(clerk: Served) -> None:
    await clerk.post("/v1/schedules", NIGHTLY)
    ann = await clerk.key_with("schedules:write", "runs:write", user="ann")
    assert (await clerk.get("/v1/schedules/nightly")).json["user_id"] == "local"
    for call in (
        clerk.call("PATCH", "/v1/schedules/nightly", json={}, key=ann),
        clerk.call("PATCH", "/v1/schedules/nightly", json={}),
        clerk.post("/v1/schedules/nightly/resume", key=ann),
    ):
        before = (await clerk.get("/v1/schedules/nightly")).json
        after = (await call).json
        assert (after["user_id"], after["key_id"]) != (before["user_id"], before["key_id"])


async def test_a_key_makes_no_schedule_that_does_more_than_it_may(clerk: Served) -> None:
    blind = await clerk.key_with("schedules:*")
    refused = await clerk.post("/v1/schedules", NIGHTLY, key=blind)
    assert (refused.code, "runs:write" in refused.json["detail"]) == ("auth.forbidden", True)
    poor = await clerk.key_with("schedules:*", "runs:*")
    wide = {**NIGHTLY, "run": {**RUN, "limits": {"steps": 1000}}}
    refused = await clerk.post("/v1/schedules", wide, key=poor)
    assert (refused.code, "budgets:raise" in refused.json["detail"]) == ("auth.forbidden", True)
    assert (await clerk.post("/v1/schedules", wide)).status == 201
    for call in (
        clerk.call("PATCH", "/v1/schedules/nightly", json={"cron": "@daily"}, key=poor),
        clerk.post("/v1/schedules/nightly/run", key=poor),
        clerk.post("/v1/schedules/nightly/run", key=blind),
        clerk.post("/v1/schedules/nightly/resume", key=blind),
    ):
        assert (await call).code == "auth.forbidden"
    assert (await clerk.get("/v1/runs")).json["data"] == []


async def test_another_tenants_schedule_is_not_there(clerk: Served) -> None:
    await clerk.post("/v1/schedules", NIGHTLY)
    calls = [
        ("GET", ""), ("GET", "/next"), ("PATCH", ""), ("POST", "/pause"), ("POST", "/resume"), ("POST", "/run"),
        ("DELETE", ""),
    ]  # fmt: skip
    for method, path in calls:
        reply = await clerk.call(
            method, f"/v1/schedules/nightly{path}", key=clerk.other, json={} if method == "PATCH" else None
        )
        assert reply.code == "request.not_found", (method, path)
    assert (await clerk.get("/v1/schedules", key=clerk.other)).json["data"] == []
    theirs = await clerk.post("/v1/schedules", {**NIGHTLY, "cron": "@hourly"}, key=clerk.other)
    assert theirs.status == 201
    assert (await clerk.get("/v1/schedules/nightly")).json["cron"] == "30 2 * * *"


async def test_a_repeated_request_makes_one_schedule_and_a_name_is_taken_once(clerk: Served) -> None:
    first, second = [await clerk.post("/v1/schedules", NIGHTLY, headers={"Idempotency-Key": "k"}) for _ in range(2)]
    assert (first.status, first.json) == (201, second.json)
    assert (await clerk.post("/v1/schedules", NIGHTLY)).code == "schedule.exists"


async def test_a_tenant_has_so_many_schedules_and_no_more(database: Database) -> None:
    async with serve(database, schedules_max=3) as api:
        await api.post("/v1/agents", {"name": "clerk", "model": "sim:one"})
        made = await asyncio.gather(*(api.post("/v1/schedules", {**NIGHTLY, "name": f"n{i}"}) for i in range(6)))
        assert sorted(one.status for one in made) == [201, 201, 201, 429, 429, 429]
        assert {one.code for one in made if one.status == 429} == {"limit.schedules"}


BAD = {
    "never": ({"cron": "0 0 30 2 *"}, "/cron"),
    "never, and no rule says so": ({"cron": "* * */20 * 1L"}, "/cron"),
    "four fields": ({"cron": "0 0 * *"}, "/cron"),
    "seconds": ({"cron": "0 0 0 * * *"}, "/cron"),
    "reboot": ({"cron": "@reboot"}, "/cron"),
    "out of range": ({"cron": "61 * * * *"}, "/cron"),
    "a step of nothing": ({"cron": "*/0 * * * *"}, "/cron"),
    "backwards": ({"cron": "0 0 * * fri-mon"}, "/cron"),
    "huge": ({"cron": "0," * 100_000 + "0 * * * *"}, "/cron"),
    "a huge number": ({"cron": "9" * 190 + " * * * *"}, "/cron"),
    "none": ({"cron": ""}, "/cron"),
    "neither": ({"cron": None}, "/cron"),
    "both": ({"every_s": 60}, "/cron"),
    "too often": ({"cron": None, "every_s": 59}, "/every_s"),
    "no zone": ({"timezone": "Europe/Atlantis"}, "/timezone"),
    "a path": ({"timezone": "../../etc/passwd"}, "/timezone"),
    "an absolute path": ({"timezone": "/etc/localtime"}, "/timezone"),
    "a folder": ({"timezone": "Europe"}, "/timezone"),
    "an empty zone": ({"timezone": ""}, "/timezone"),
    "odd letters": ({"timezone": "\u0130stanbul\ud7ff"}, "/timezone"),
    "no zone in a time": ({"start_at": "2027-01-01T00:00:00"}, "/start_at"),
    "over before it starts": ({"start_at": "2027-01-02T00:00:00Z", "end_at": "2027-01-01T00:00:00Z"}, "/end_at"),
    "over already": ({"end_at": "2020-01-01T00:00:00Z"}, "/end_at"),
    "the end of time": ({"start_at": "9999-12-31T23:59:59-12:00"}, "/start_at"),
    "the beginning of time": ({"end_at": "0001-01-01T00:00:00+14:00"}, "/end_at"),
    "runs of one session side by side": ({"overlap": "allow", "run": {**RUN, "session": "kept"}}, "/overlap"),
    "an unknown agent": ({"run": {**RUN, "agent": "nobody"}}, "/run/agent"),
    "an unknown version": ({"run": {**RUN, "version": 7}}, "/run/agent"),
    "no words": ({"run": {**RUN, "input": " "}}, "/run/input"),
    "a name with a slash": ({"name": "a/b"}, "/name"),
    "an unknown field": ({"crom": "@daily"}, "/crom"),
}


@pytest.mark.parametrize("what", BAD)
async def test_what_cannot_be_kept_is_refused_and_says_where(clerk: Served, what: str) -> None:
    changes, pointer = BAD[what]
    reply = await clerk.post("/v1/schedules", {**NIGHTLY, **changes})
    assert (reply.status, reply.pointer) == (422, pointer), reply.body
    assert (await clerk.get("/v1/schedules")).json["data"] == []


async def test_a_schedule_is_short_enough_for_a_list(clerk: Served) -> None:
    reply = await clerk.post("/v1/schedules", {**NIGHTLY, "run": {**RUN, "input": "x" * 65_537}})
    assert (reply.status, reply.pointer) == (422, "/run/input")


async def test_a_schedule_of_a_session_that_is_not_there_or_closed_is_refused(clerk: Served) -> None:
    session = (await clerk.post("/v1/sessions", {})).json["id"]
    kept = {**NIGHTLY, "run": {**RUN, "session": session}}
    assert (await clerk.post("/v1/schedules", kept, key=clerk.other)).code == "request.not_found"
    await clerk.post(f"/v1/sessions/{session}/close")
    assert (await clerk.post("/v1/schedules", kept)).code == "session.closed"
