"""Runs that begin later: there at once, taken by no worker before, and cancelled or talked to meanwhile."""

from datetime import UTC, datetime, timedelta

import pytest
from played_worker import Player
from served_api import GOAL, Served, serve

from sojourn.store import queue
from sojourn.store.db import Database

HOUR_S = 3600


def ahead(**by: float) -> str:
    return (datetime.now(UTC) + timedelta(**by)).isoformat()


async def come(database: Database, run_id: str) -> None:
    """Let a run's time come: what is true of it then, written a little earlier."""
    async with database.migrator() as owner, owner.transaction():
        await owner.execute("alter table run no force row level security")
        await owner.execute("update run set start_at = now(), due_at = now() where id = $1 and due_at > now()", run_id)
        await owner.execute("alter table run force row level security")


async def nothing_is_due(player: Player) -> bool:
    return await queue.claim(player.database, player.id, 10) == []


async def test_a_run_is_there_at_once_and_begins_when_its_time_has_come(api: Served, player: Player) -> None:
    at = ahead(hours=2)
    run_id = await api.start({"start_at": at})
    for run in ((await api.get(f"/v1/runs/{run_id}")).json, (await api.get("/v1/runs")).json["data"][0]):
        assert (run["status"], datetime.fromisoformat(run["start_at"]).isoformat()) == ("queued", at)
    line = queue.Line(player.database, player.id)
    assert await line.claim(10) == []
    assert line.next_at == datetime.fromisoformat(at)
    await come(api.parts.database, run_id)
    await (await player.take(run_id)).finish("1998.")
    run = (await api.get(f"/v1/runs/{run_id}")).json
    assert (run["status"], run["output"]) == ("completed", "1998.")


async def test_a_delay_is_counted_from_now_and_short_ones_pass_by_themselves(api: Served, player: Player) -> None:
    run_id = await api.start({"delay_s": HOUR_S})
    start_at = datetime.fromisoformat((await api.get(f"/v1/runs/{run_id}")).json["start_at"])
    assert abs(start_at - datetime.now(UTC) - timedelta(hours=1)) < timedelta(minutes=1)
    soon = await api.start({"delay_s": 0.3})
    while not (claimed := await queue.claim(player.database, player.id, 1)):
        pass
    assert [one.run_id for one in claimed] == [soon]


async def test_a_time_that_has_passed_is_now(api: Served, player: Player) -> None:
    run_id = await api.start({"start_at": "2020-02-29T00:00:00Z"})
    assert (await api.get(f"/v1/runs/{run_id}")).json["start_at"] is None
    await player.take(run_id)


@pytest.mark.parametrize(
    ("given", "pointer"),
    [
        ({"start_at": "2027-01-01T00:00:00"}, "/start_at"),
        ({"start_at": "tomorrow"}, "/start_at"),
        ({"start_at": ahead(days=367)}, "/start_at"),
        ({"start_at": "9999-12-31T23:59:59-12:00"}, "/start_at"),
        ({"delay_s": 0}, "/delay_s"),
        ({"delay_s": 367 * 86400}, "/delay_s"),
        ({"start_at": ahead(hours=1), "delay_s": 1}, "/delay_s"),
    ],
)
async def test_a_start_that_cannot_be_is_refused(api: Served, given: dict[str, object], pointer: str) -> None:
    reply = await api.post("/v1/runs", {**GOAL, **given})
    assert (reply.status, reply.pointer) == (422, pointer)
    assert (await api.get("/v1/runs")).json["data"] == []


async def test_a_run_is_cancelled_before_its_time_and_ends_at_once(api: Served, player: Player) -> None:
    run_id = await api.start({"delay_s": HOUR_S})
    await api.post(f"/v1/runs/{run_id}/cancel")
    await api.post(f"/v1/runs/{run_id}/messages", {"input": "Too late."})
    play = await player.take(run_id)
    await play.commit(release="cancelled")
    assert (await api.get(f"/v1/runs/{run_id}")).json["status"] == "cancelled"


async def test_what_is_said_before_its_time_does_not_begin_a_run_and_is_heard_when_it_begins(
    api: Served, player: Player
) -> None:
    run_id = await api.start({"delay_s": HOUR_S})
    await api.post(f"/v1/runs/{run_id}/messages", {"input": "And the coldest?"})
    await api.post(f"/v1/runs/{run_id}/signals", {"name": "paid", "id": "1"})
    await api.post(f"/v1/runs/{run_id}/hold")
    await api.post(f"/v1/runs/{run_id}/resume")
    assert await nothing_is_due(player)
    await come(api.parts.database, run_id)
    play = await player.take(run_id)
    assert [message.text for message in play.state.root.messages][-1] == "And the coldest?"


async def test_its_session_is_taken_meanwhile(api: Served) -> None:
    session = (await api.post("/v1/sessions", {})).json["id"]
    await api.start({"delay_s": HOUR_S, "session": session})
    again = await api.post("/v1/runs", {**GOAL, "session": session})
    assert (again.code, "later" in again.json["detail"]) == ("session.busy", True)
    assert (await api.post(f"/v1/sessions/{session}/close")).code == "session.busy"


async def test_it_counts_among_those_that_wait_for_a_worker_only_once_its_time_has_come(api: Served) -> None:
    run_id = await api.start({"delay_s": HOUR_S})

    async def told() -> dict[str, str]:
        lines = (await api.get("/metrics")).body.decode().splitlines()
        return dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))

    values = await told()
    assert (values["sojourn_queue_depth"], values["sojourn_runs_delayed"]) == ("0", "1")
    assert values["sojourn_queue_oldest_seconds"] == "0.0"
    assert values['sojourn_runs{status="queued"}'] == "1"
    await come(api.parts.database, run_id)
    values = await told()
    assert (values["sojourn_queue_depth"], values["sojourn_runs_delayed"]) == ("1", "0")


async def test_runs_that_begin_later_take_no_place_in_the_queue_and_have_a_limit_of_their_own(
    database: Database,
) -> None:
    async with serve(database, queued_runs_max=2, delayed_runs_max=3) as api:
        first, *_ = [await api.start({"delay_s": HOUR_S}) for _ in range(3)]
        refused = await api.post("/v1/runs", {**GOAL, "delay_s": HOUR_S})
        assert (refused.code, "begin later" in refused.json["detail"]) == ("limit.queue", True)
        assert (await api.post(f"/v1/runs/{first}/fork", {})).status == 202
        last = await api.start()
        assert (await api.post("/v1/runs", GOAL)).code == "limit.queue"
        assert (await api.post(f"/v1/runs/{last}/fork", {})).code == "limit.queue"
        assert (await api.post("/v1/runs", GOAL, key=api.other)).status == 202
