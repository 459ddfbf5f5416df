"""The clock fires what is due: with the rights of the moment, and what was missed or overlaps by its policy."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from played_worker import Player
from served_api import Served, serve
from wound_clock import HOUR, RUN, furnished, made, rewritten, runs_of, seen, ticked, wind

from sojourn.api.schedules import clock
from sojourn.store.db import Database
from sojourn.store.tenant import schedules


@pytest.fixture
async def still(api: Served) -> Served:
    return await furnished(api)


# ---- missed and overlapping ------------------------------------------------------------------


async def test_after_a_time_away_the_last_fire_is_made_up_for(still: Served, database: Database) -> None:
    await made(still)
    await wind(database, timedelta(hours=3, minutes=30))
    assert await ticked(still) == 1
    (run,) = await runs_of(still)
    schedule = await seen(still)
    assert schedule["fires"] == {"made": 1, "missed": 2, "skipped": 0, "refused": 0}
    assert schedule["last_fire_at"] == run["fire_at"]
    since = datetime.fromisoformat(schedule["created_at"])
    assert datetime.fromisoformat(run["fire_at"]) == since + 3 * HOUR
    assert datetime.fromisoformat(schedule["next_at"]) == since + 4 * HOUR
    assert await ticked(still) == 0


async def test_a_schedule_that_skips_leaves_out_what_it_missed(still: Served, database: Database) -> None:
    await made(still, missed="skip")
    await wind(database, timedelta(hours=3, minutes=30))
    assert await ticked(still) == 1
    assert (await seen(still))["fires"]["missed"] == 3
    assert await runs_of(still) == []


async def test_a_schedule_that_makes_up_for_all_fires_one_by_one(still: Served, database: Database) -> None:
    await made(still, missed="all", overlap="allow")
    await wind(database, timedelta(hours=3, minutes=30))
    assert await ticked(still) == 3
    fires = [datetime.fromisoformat(run["fire_at"]) for run in await runs_of(still)]
    since = datetime.fromisoformat((await seen(still))["created_at"])
    assert fires == [since + n * HOUR for n in (1, 2, 3)]


async def test_while_a_run_goes_on_the_next_fire_is_left_out(still: Served, database: Database, player: Player) -> None:
    await made(still)
    for _ in range(2):
        await wind(database, HOUR)
        await ticked(still)
    (first,) = await runs_of(still)
    assert (await seen(still))["fires"]["skipped"] == 1
    await (await player.take(first["id"])).finish()
    await wind(database, HOUR)
    await ticked(still)
    assert len(await runs_of(still)) == 2


async def test_a_fire_may_wait_for_the_run_before(still: Served, database: Database, player: Player) -> None:
    await made(still, overlap="wait")
    for _ in range(2):
        await wind(database, HOUR)
        assert await ticked(still) == 1
    (first,) = await runs_of(still)
    waiting = await seen(still)
    assert (waiting["fires"]["skipped"], waiting["fires"]["made"]) == (0, 1)
    await (await player.take(first["id"])).finish()
    await wind(database, timedelta())
    await ticked(still)
    _, second = await runs_of(still)
    assert second["fire_at"] == waiting["next_at"]


async def test_runs_may_go_on_side_by_side(still: Served, database: Database) -> None:
    await made(still, overlap="allow")
    for _ in range(2):
        await wind(database, HOUR)
        await ticked(still)
    assert [run["status"] for run in await runs_of(still)] == ["queued", "queued"]


async def test_a_kept_session_carries_on_and_a_new_one_begins_anew(
    still: Served, database: Database, player: Player
) -> None:
    await made(still, name="kept", run={**RUN, "session": "kept"})
    await made(still, name="new")
    for _ in range(2):
        await wind(database, HOUR)
        await ticked(still)
        for _ in range(2):
            await (await player.take_any()).finish()
    kept, new = [[run["session_id"] for run in await runs_of(still, name)] for name in ("kept", "new")]
    assert (len(set(kept)), len(set(new))) == (1, 2)
    assert (await seen(still, "kept"))["run"]["session"] == kept[0]
    last = (await runs_of(still, "kept"))[1]["id"]
    assert len((await still.get(f"/v1/runs/{last}/messages")).json["data"]) == 4


async def test_a_session_that_is_busy_otherwise_counts_as_the_run_before(still: Served, database: Database) -> None:
    session = (await still.post("/v1/sessions", {})).json["id"]
    await made(still, run={**RUN, "session": session})
    await still.start({"session": session})
    await wind(database, HOUR)
    await ticked(still)
    assert (await seen(still))["fires"] == {"made": 0, "missed": 0, "skipped": 1, "refused": 0}


async def test_a_paused_schedule_does_not_fire_and_misses_nothing(still: Served, database: Database) -> None:
    await made(still, missed="all")
    await still.post("/v1/schedules/hourly/pause")
    await wind(database, 5 * HOUR)
    assert await ticked(still) == 0
    await still.post("/v1/schedules/hourly/resume")
    assert await ticked(still) == 0
    schedule = await seen(still)
    assert datetime.fromisoformat(schedule["next_at"]) > datetime.now(UTC)
    assert set(schedule["fires"].values()) == {0}


# ---- rights and refusals ---------------------------------------------------------------------


async def test_a_promoted_version_runs_from_the_next_fire_on(still: Served, database: Database) -> None:
    await made(still, overlap="allow")
    await made(still, name="pinned", overlap="allow", run={**RUN, "version": 1})
    await wind(database, HOUR)
    await ticked(still)
    await still.post("/v1/agents/clerk/versions", {"model": "sim:two"})
    await still.call("PUT", "/v1/agents/clerk/live", json={"version": 2})
    await wind(database, HOUR)
    await ticked(still)
    assert [run["agent"]["version"] for run in await runs_of(still)] == [1, 2]
    assert [run["agent"]["version"] for run in await runs_of(still, "pinned")] == [1, 1]


async def test_a_revoked_key_stops_its_schedules_and_another_one_takes_them_over(
    still: Served, database: Database
) -> None:
    ann = await still.key_with("schedules:*", "runs:*", "agents:*", user="ann")
    await made(still, key=ann)
    key_id = (await seen(still))["key_id"]
    await still.call("DELETE", f"/v1/keys/{key_id}")
    await wind(database, HOUR)
    await ticked(still)
    stopped = await seen(still)
    assert (stopped["status"], stopped["last_error"]["code"]) == ("paused", "schedule.key_ended")
    assert key_id in stopped["last_error"]["detail"]
    assert await runs_of(still) == []
    going = (await still.post("/v1/schedules/hourly/resume")).json
    assert (going["status"], going["user_id"], going["last_error"]) == ("active", "local", None)
    await wind(database, HOUR)
    await ticked(still)
    (run,) = await runs_of(still)
    assert run["user_id"] == "local"


async def test_a_fire_may_do_what_its_key_may_do_at_that_moment(still: Served, database: Database) -> None:
    ann = await still.key_with("schedules:*", "runs:*", "budgets:*", user="ann")
    await made(still, key=ann, name="wide", run={**RUN, "limits": {"steps": 500}})
    await made(still, key=ann, name="plain", overlap="allow")
    for scopes, codes in ((["runs:write"], ["auth.forbidden", None]), (["runs:read"], ["auth.forbidden"] * 2)):
        async with database.migrator() as owner, owner.transaction():
            await owner.execute("set local role sojourn_keyring")
            await owner.execute("update api_key set scopes = $1 where user_id = 'ann'", scopes)
        await wind(database, HOUR)
        await ticked(still)
        errors = [(await seen(still, name))["last_error"] for name in ("wide", "plain")]
        assert [error and error["code"] for error in errors] == codes
    assert (await seen(still, "wide"))["fires"]["refused"] == 2
    assert (len(await runs_of(still, "wide")), len(await runs_of(still, "plain"))) == (0, 1)


async def test_a_refused_fire_is_written_down_and_the_schedule_goes_on(still: Served, database: Database) -> None:
    await made(still)
    await still.post("/v1/agents/clerk/archive")
    await wind(database, HOUR)
    await ticked(still)
    schedule = await seen(still)
    assert (schedule["status"], schedule["fires"]["refused"]) == ("active", 1)
    assert schedule["last_error"]["code"] == "agent.archived"
    assert datetime.fromisoformat(schedule["next_at"]) > datetime.now(UTC)


async def test_a_fire_that_finds_the_queue_full_is_tried_again_until_there_is_room(
    database: Database,
) -> None:
    async with serve(database, queued_runs_max=1) as api:
        await furnished(api)
        player = await Player.start(database, api.parts.doorbell.ring)
        await made(api)
        ahead = await api.start()
        await wind(database, HOUR)
        assert await ticked(api) == 1
        full = await seen(api)
        assert (full["last_error"]["code"], full["fires"]["refused"]) == ("limit.queue", 0)
        assert await ticked(api) == 0, "it rests before it is tried again"
        await (await player.take(ahead)).finish()
        await wind(database, timedelta())
        await ticked(api)
        (run,) = await runs_of(api)
        assert (run["fire_at"], (await seen(api))["last_error"]) == (full["next_at"], None)
        await player.close()


async def test_a_schedule_that_nobody_can_read_keeps_nothing_from_firing(still: Served, database: Database) -> None:
    for name in ("broken", "whole"):
        await made(still, name=name)
    await wind(database, HOUR)
    broken = "update schedule set spec = '{\"newer\": true}', due_at = due_at - $1::interval where name = 'broken'"
    await rewritten(database, broken, HOUR)
    assert await ticked(still) == 2
    assert len(await runs_of(still, "whole")) == 1
    assert (await still.get("/v1/runs?schedule=broken")).json["data"] == []


async def test_tenants_fire_their_own_schedules(still: Served, database: Database) -> None:
    await made(still)
    await made(still, key=still.other)
    await wind(database, HOUR)
    assert await ticked(still) == 2
    for key in (still.key, still.other):
        found = (await still.get("/v1/runs?schedule=hourly", key=key)).json["data"]
        assert len(found) == 1


# ---- changes of the clock --------------------------------------------------------------------


async def test_the_clock_is_moved_over_a_change_and_each_day_fires_once(still: Served, database: Database) -> None:
    await made(still, cron="30 2 * * *", every_s=None, timezone="Europe/Berlin", overlap="allow")
    await rewritten(database, "update schedule set since = $1", datetime(2026, 3, 28, 12, tzinfo=UTC))
    for now in ("2026-03-29T00:59", "2026-03-29T01:00", "2026-03-29T01:30", "2026-03-30T00:29", "2026-03-30T00:30"):
        await looked_at(still, datetime.fromisoformat(now).replace(tzinfo=UTC))
    assert [run["fire_at"] for run in await runs_of(still)] == ["2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"]
    await rewritten(database, "update schedule set since = $1", datetime(2026, 10, 24, 12, tzinfo=UTC))
    for now in ("2026-10-25T00:30", "2026-10-25T01:30", "2026-10-26T01:30"):
        await looked_at(still, datetime.fromisoformat(now).replace(tzinfo=UTC))
    assert [run["fire_at"] for run in await runs_of(still)][2:] == ["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]


async def looked_at(api: Served, now: datetime) -> None:
    """Look at the only schedule at another time."""
    await wind(api.parts.database, timedelta())
    async with schedules.lent(api.parts.database) as lent:
        assert lent is not None
        await clock.looked_at(api.parts, lent[0], msgspec.structs.replace(lent[1], now_at=now))


async def test_a_fire_that_is_far_away_is_looked_at_once_a_day(still: Served, database: Database) -> None:
    """So that new rules of a time zone come into force before it."""
    await made(still, every_s=30 * 86400)
    due = await schedules.next_at(database)
    assert due is not None and timedelta(hours=23) < due - datetime.now(UTC) <= timedelta(days=1)
    await wind(database, timedelta(days=1))
    assert await ticked(still) == 1
    assert await runs_of(still) == []
    assert await schedules.next_at(database) > datetime.now(UTC) + timedelta(hours=23)
