"""`sojourn schedules`, and runs that begin later."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from console_script import Console
from scripted_api import AT, ScriptedApi

NEXT = (datetime.now(UTC) + timedelta(hours=5, minutes=30)).isoformat()
SCHEDULE: dict[str, Any] = {
    "name": "nightly", "status": "active", "cron": "30 2 * * *", "every_s": None, "timezone": "Europe/Berlin",
    "missed": "once", "overlap": "skip", "run": {"agent": "clerk", "input": "Tidy \x1b[2Jup.", "session": "new"},
    "user_id": "ann", "key_id": "key_1", "next_at": NEXT, "last_fire_at": AT, "last_run_id": "run_1",
    "last_error": None, "fires": {"made": 3, "missed": 1, "skipped": 0, "refused": 0},
}  # fmt: skip
ENDED = {**SCHEDULE, "status": "paused", "next_at": None}
ENDED |= {"last_error": {"code": "schedule.key_ended", "detail": "The key ended.", "at": AT}}
RUN = ("run", "Look again", "--agent", "clerk")


async def test_schedules_are_listed_with_what_they_do_next(sojourn: Console, api: ScriptedApi):
    api.answers["GET /v1/schedules"] = {"data": [SCHEDULE, {**ENDED, "name": "other"}], "has_more": False, "next": None}
    lines = (await sojourn("schedules", "list")).out.splitlines()
    assert lines[1].split()[:4] == ["nightly", "active", "in", "5"] and lines[1].endswith("30 2 * * * Europe/Berlin")
    assert lines[2].split()[:2] == ["other", "schedule.key_ended"]
    assert len((await sojourn("schedules", "list", "--json")).json["data"]) == 2


async def test_a_schedule_is_shown_with_its_next_fires_and_how_it_went(sojourn: Console, api: ScriptedApi):
    api.answers["GET /v1/schedules/nightly"] = SCHEDULE
    api.answers["GET /v1/schedules/nightly/next"] = {"data": [NEXT], "timezone": "Europe/Berlin"}
    out = (await sojourn("schedules", "get", "nightly")).out
    assert f"{NEXT} (in 5 h)" in out and "3 made, 1 missed" in out and "ann (key_1)" in out and "\x1b" not in out
    assert (await sojourn("schedules", "get", "nightly", "--json")).json["next"] == [NEXT]
    api.answers["GET /v1/schedules/nightly"] = ENDED
    assert "The key ended. (schedule.key_ended" in (await sojourn("schedules", "get", "nightly")).out


async def test_a_schedule_is_made_from_flags(sojourn: Console, api: ScriptedApi):
    api.answers["POST /v1/schedules"] = SCHEDULE
    words = ("schedules", "create", "nightly", "Tidy up.", "--agent", "clerk")
    first = await sojourn(*words, "--cron", "30 2 * * *", "--zone", "Europe/Berlin", "--max-steps", "9")
    assert first.code == 0 and f"nightly fires next at {NEXT} (in 5 h)" in first.out
    more = ("--every", "15m", "--start", "2027-01-31T09:00+01:00", "--jitter", "90s", "--session", "kept")
    await sojourn(*words, *more, "--missed", "all", "--overlap", "wait")
    cron, every = [one.json for one in api.asked("POST /v1/schedules")]
    assert cron == {
        "name": "nightly", "cron": "30 2 * * *", "timezone": "Europe/Berlin", "missed": "once", "overlap": "skip",
        "run": {"agent": "clerk", "input": "Tidy up.", "session": "new", "limits": {"steps": 9}},
    }  # fmt: skip
    assert (every["every_s"], every["jitter_s"], every["run"]["session"]) == (900, 90, "kept")
    assert datetime.fromisoformat(every["start_at"]) == datetime(2027, 1, 31, 8, tzinfo=UTC)
    for mistake in (
        (),
        ("--cron", "@daily", "--every", "1h"),
        ("--every", "soon"),
        ("--every", "1h", "--end", "never"),
    ):
        assert (await sojourn(*words, *mistake)).code == 2
    assert len(api.asked("POST /v1/schedules")) == 2


@pytest.mark.parametrize(
    ("verb", "told"), [("pause", "nightly is paused"), ("resume", "nightly fires next at"), ("run", "run_7")]
)
async def test_a_schedule_is_told_what_to_do(sojourn: Console, api: ScriptedApi, verb: str, told: str):
    path = f"POST /v1/schedules/nightly/{verb}"
    api.answers[path] = {**SCHEDULE, "run_id": "run_7"}
    result = await sojourn("schedules", verb, "nightly")
    assert result.code == 0 and told in result.out
    assert api.asked(path)[0].headers["Idempotency-Key"]
    assert (await sojourn("schedules", verb, "nightly", "--json")).json["name"] == "nightly"


async def test_a_schedule_is_deleted_and_a_missing_one_says_where_to_look(sojourn: Console, api: ScriptedApi):
    api.answers["DELETE /v1/schedules/nightly"] = None
    assert "its runs stay" in (await sojourn("schedules", "delete", "nightly")).out
    missing = await sojourn("schedules", "get", "nobody")
    assert missing.code == 5 and "sojourn schedules list" in missing.err


async def test_a_run_that_begins_later_is_left_at_once(sojourn: Console, api: ScriptedApi):
    api.answers["POST /v1/runs"] = {"run_id": "run_1", "session_id": "ses_1", "status": "queued"}
    later = await sojourn(*RUN, "--in", "2h")
    assert (later.code, later.out) == (0, "run_1\n")
    assert (await sojourn(*RUN, "--at", "2027-01-31T09:00Z")).code == 0
    in_, at = [one.json for one in api.asked("POST /v1/runs")]
    assert (in_["delay_s"], datetime.fromisoformat(at["start_at"])) == (7200, datetime(2027, 1, 31, 9, tzinfo=UTC))
    for mistake in (("--in", "2h", "--at", "2027-01-31"), ("--in", "later"), ("--at", "2027-02-30"), ("--at", "2h")):
        assert (await sojourn(*RUN, *mistake)).code == 2
    assert len(api.asked("POST /v1/runs")) == 2
