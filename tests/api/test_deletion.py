"""What its owner deletes is gone: for everybody, at once, and for good."""

import pytest
from played_worker import Player
from served_api import Served

from sojourn.api.events import stream
from sojourn.store.retention import expiry
from sojourn.store.runs import journal

PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(20)


async def ended(api: Served, player: Player, body: dict[str, object] | None = None) -> str:
    run_id = await api.start(body)
    await (await player.take(run_id)).finish()
    return run_id


async def test_a_deleted_run_is_gone_everywhere(api: Served, player: Player) -> None:
    run_id = await ended(api, player)
    narrow = await api.key_with("runs:read")
    assert (await api.call("DELETE", f"/v1/runs/{run_id}", key=narrow)).status == 403
    assert (await api.call("DELETE", f"/v1/runs/{run_id}", key=api.other)).status == 404
    reply = await api.call("DELETE", f"/v1/runs/{run_id}")
    assert (reply.status, reply.body) == (204, b"")
    assert (await api.call("DELETE", f"/v1/runs/{run_id}")).code == "request.not_found"
    for path in ("", "/events", "/messages", "/trace", "/continuation", "/hook"):
        assert (await api.get(f"/v1/runs/{run_id}{path}")).status == 404, path
    for verb in ("cancel", "hold", "fork"):
        assert (await api.post(f"/v1/runs/{run_id}/{verb}", {})).status == 404, verb
    assert (await api.get("/v1/runs")).json["data"] == []


async def test_a_run_that_goes_on_or_is_read_by_a_later_one_is_not_deleted(api: Served, player: Player) -> None:
    first = await ended(api, player)
    session = (await api.get(f"/v1/runs/{first}")).json["session_id"]
    later = await api.start({"session": session})
    assert (await api.call("DELETE", f"/v1/runs/{later}")).code == "run.unfinished"
    assert (await api.call("DELETE", f"/v1/runs/{first}")).code == "run.continued"
    await (await player.take(later)).finish()
    assert (await api.call("DELETE", f"/v1/runs/{first}")).code == "run.continued"
    assert len((await api.get(f"/v1/runs/{later}/messages")).json["data"]) == 4
    assert (await api.call("DELETE", f"/v1/runs/{later}")).status == 204
    assert (await api.call("DELETE", f"/v1/runs/{first}")).status == 204


async def test_a_closed_session_is_deleted_with_all_that_it_holds(api: Served, player: Player) -> None:
    run_id = await ended(api, player)
    session = (await api.get(f"/v1/runs/{run_id}")).json["session_id"]
    assert (await api.call("DELETE", f"/v1/sessions/{session}")).code == "session.open"
    await api.post(f"/v1/sessions/{session}/close")
    assert (await api.call("DELETE", f"/v1/sessions/{session}", key=api.other)).status == 404
    assert (await api.call("DELETE", f"/v1/sessions/{session}")).status == 204
    assert (await api.call("DELETE", f"/v1/sessions/{session}")).code == "request.not_found"
    for path in (f"/v1/runs/{run_id}", f"/v1/sessions/{session}", f"/v1/sessions/{session}/files"):
        assert (await api.get(path)).status == 404, path
    assert (await api.post("/v1/runs", {"input": "go", "model": "sim:one", "session": session})).status == 404


async def test_a_fork_keeps_what_its_original_said_and_showed(api: Served, player: Player) -> None:
    upload = await api.call("POST", "/v1/blobs", data=PICTURE, headers={"Content-Type": "image/png"})
    digest = upload.json["digest"]
    seen = [{"type": "text", "text": "look"}, {"type": "image", "blob": digest}]
    run_id = await ended(api, player, {"input": seen})
    forked = await api.post(f"/v1/runs/{run_id}/fork", {"input": "again", "files": False})
    assert forked.status == 202, forked.body
    assert (await api.call("DELETE", f"/v1/runs/{run_id}")).status == 204
    await sweep(api)
    assert (await api.get(f"/v1/blobs/{digest}")).body == PICTURE
    fork = forked.json["run_id"]
    said = (await api.get(f"/v1/runs/{fork}/messages")).json["data"]
    assert said[0]["parts"][1]["blob"] == digest
    await (await player.take(fork)).finish()
    assert (await api.call("DELETE", f"/v1/runs/{fork}")).status == 204
    await sweep(api)
    assert (await api.get(f"/v1/blobs/{digest}")).status == 404


async def sweep(api: Served) -> None:
    """Delete what nothing names, as if the time of every upload were over."""
    async with api.parts.database.migrator() as owner:
        await owner.execute("alter table blob no force row level security")
        await owner.execute("update blob set kept_until = now(), look_at = least(look_at, now())")
        await owner.execute("alter table blob force row level security")
    while (await expiry.blobs(api.parts.database)).more:
        pass


async def test_a_stream_of_a_run_that_is_deleted_ends_without_a_gap(
    api: Served, player: Player, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = await ended(api, player)
    read, pages = journal.events, 0

    async def reading(conn: object, of_run: str, **where: int) -> object:
        nonlocal pages
        pages += 1
        if pages == 2:
            assert (await api.call("DELETE", f"/v1/runs/{run_id}")).status == 204
        return await read(conn, of_run, **where)

    monkeypatch.setattr(stream, "PAGE", 2)
    monkeypatch.setattr(stream.runs, "events", reading)
    accept = {"Accept": "text/event-stream"}
    reply = await api.get(f"/v1/runs/{run_id}/events", headers=accept)
    assert reply.status == 200
    assert pages == 2
    seqs = [int(line[4:]) for line in reply.body.decode().splitlines() if line.startswith("id: ")]
    assert seqs
    assert max(seqs) <= 2
    assert b"event: run.completed" not in reply.body
    again = {**accept, "Last-Event-ID": str(max(seqs))}
    assert (await api.get(f"/v1/runs/{run_id}/events", headers=again)).code == "request.not_found"


async def test_a_stream_skips_nothing_of_a_long_run_that_is_half_deleted(
    api: Served, player: Player, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = await ended(api, player)
    read = journal.events

    async def reading(conn: object, of_run: str, **where: int) -> object:
        rows = await read(conn, of_run, **where)
        return rows if not where["after"] else rows[1:]

    monkeypatch.setattr(stream, "PAGE", 2)
    monkeypatch.setattr(stream.runs, "events", reading)
    reply = await api.get(f"/v1/runs/{run_id}/events", headers={"Accept": "text/event-stream"})
    assert b"id: 3" not in reply.body
    assert b"id: 4" not in reply.body
