"""Events over HTTP: pages, replay, live streams, and what happens to slow, late and lost readers."""

import asyncio
from contextlib import AsyncExitStack

import pytest
from played_worker import Player
from reading import Frame, follow
from served_api import GOAL, Served, serve

from sojourn.api.events import hub, stream
from sojourn.api.events.stream import Stream
from sojourn.store import deltas
from sojourn.store.db import Database

WHOLE = [
    "run.queued", "user.message", "model.request_started", "run.started", "model.request_finished", "agent.message",
    "agent.tool_use", "agent.tool_started", "agent.tool_result", "model.request_started", "model.request_finished",
    "agent.message", "run.completed",
]  # fmt: skip


async def played(api: Served, player: Player) -> str:
    """A run with one tool call that has ended."""
    run_id = await api.start()
    play = await player.take(run_id)
    await play.work("Let me look.")
    await play.finish("1998.")
    return run_id


async def test_pages_and_a_replayed_stream_tell_the_same(api: Served, player: Player) -> None:
    run_id = await played(api, player)
    paged, after = [], 0
    while True:
        page = (await api.get(f"/v1/runs/{run_id}/events?limit=2&after={after}")).json
        paged += page["data"]
        after = page["next"]
        if not page["has_more"]:
            break
    assert [event["type"] for event in paged] == WHOLE
    async with follow(api, run_id) as reading:
        frames = await reading.rest()
    assert [frame.data for frame in frames] == paged


async def test_only_the_last_event_of_a_row_carries_an_id(api: Served, player: Player) -> None:
    async with follow(api, await played(api, player)) as reading:
        frames = await reading.rest()
    by_seq: dict[int, list[int | None]] = {}
    for frame in frames:
        by_seq.setdefault(frame.data["seq"], []).append(frame.id)
    assert all(ids == [None] * (len(ids) - 1) + [seq] for seq, ids in by_seq.items())


async def test_a_stream_goes_on_after_the_last_event_that_was_seen(api: Served, player: Player) -> None:
    run_id = await played(api, player)
    async with follow(api, run_id) as reading:
        whole = await reading.rest()
    ids = [frame.id for frame in whole if frame.id is not None]
    for last in ids:
        async with follow(api, run_id, Last_Event_ID=str(last)) as reading:
            rest = await reading.rest()
        assert [frame.data for frame in rest] == [frame.data for frame in whole if frame.data["seq"] > last]


async def test_a_stream_is_what_proxies_and_browsers_need(api: Served, player: Player) -> None:
    async with follow(api, await played(api, player)) as reading:
        headers = reading.response.headers
        assert headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert headers["Cache-Control"] == "no-store, no-transform"
        assert headers["X-Accel-Buffering"] == "no"
        assert headers["X-Request-Id"]


async def test_a_live_stream_shows_deltas_then_the_whole_and_ends_with_the_run(api: Served, player: Player) -> None:
    run_id = await api.start()
    async with follow(api, run_id) as reading:
        await reading.until("user.message")
        play = await player.take(run_id)
        play.asked()
        await play.commit()
        await reading.until("run.started")
        play.delta("19")
        first = await reading.next()
        assert first is not None
        assert (first.event, first.id) == ("delta.message", None)
        assert first.data == {"frame": "/", "step": 0, "attempt": 1, "text": "19"}
        play.replied("1998.")
        await play.commit(release="completed")
        await reading.rest()
    assert reading.names[-3:] == ["model.request_finished", "agent.message", "run.completed"]


async def test_deltas_of_an_attempt_that_broke_are_taken_back(api: Served, player: Player) -> None:
    run_id = await api.start()
    async with follow(api, run_id) as reading:
        play = await player.take(run_id)
        play.asked()
        await play.commit()
        play.delta("19")
        await reading.until("delta.message")
        play.erred()
        play.ticked()
        play.asked()
        await play.commit()
        reset = await reading.until("delta.reset")
        assert (reset.data["frame"], reset.data["step"], reset.data["attempt"]) == ("/", 0, 2)
        play.delta("1998")
        assert (await reading.until("delta.message")).data["attempt"] == 2
        play.replied("1998.")
        await play.commit(release="completed")
        assert (await reading.rest())[-1].event == "run.completed"


async def test_a_late_reader_is_shown_what_is_being_made(api: Served, player: Player) -> None:
    run_id = await api.start()
    play = await player.take(run_id)
    play.asked()
    await play.commit()
    async with follow(api, run_id) as early:
        play.delta("19")
        await early.until("delta.message")
        async with follow(api, run_id) as late:
            await late.until("delta.reset")
            assert (await late.until("delta.message")).data["text"] == "19"
            play.replied("1998.")
            await play.commit(release="completed")
            assert (await late.rest())[-1].event == "run.completed"
        assert (await early.rest())[-1].event == "run.completed"


async def test_a_late_reader_is_told_that_what_a_tool_printed_begins_anew(api: Served, player: Player) -> None:
    run_id = await api.start()
    play = await player.take(run_id)
    play.asked()
    await play.commit()
    play.replied("", play.call())
    play.intended("/0.0")
    await play.commit()
    async with follow(api, run_id) as early:
        play.delta("one\n", type="tool_output", call="/0.0")
        await early.until("delta.tool_output")
        async with follow(api, run_id) as late:
            reset = await late.until("delta.reset")
            assert reset.data == {"frame": "/", "step": 0, "attempt": 1, "call": "/0.0"}
            assert (await late.until("delta.tool_output")).data["text"] == "one\n"


async def test_readers_of_another_process_see_the_same(api: Served, player: Player, database: Database) -> None:
    """The doorbell carries over; `api` rings, the other application hears it through the database."""
    async with serve(database, tenants=("third", "fourth")) as elsewhere:
        elsewhere.key = api.key
        run_id = await api.start()
        async with follow(elsewhere, run_id) as reading:
            play = await player.take(run_id)
            play.asked()
            await play.commit()
            await reading.until("model.request_started")
            play.delta("19")
            await reading.until("delta.message")
            play.replied("1998.")
            await play.commit(release="completed")
            assert (await reading.rest())[-1].event == "run.completed"


async def test_many_readers_of_one_run_cost_one_reader(api: Served, player: Player) -> None:
    run_id = await api.start()
    async with AsyncExitStack() as stack:
        readings = [await stack.enter_async_context(follow(api, run_id)) for _ in range(50)]
        await asyncio.gather(*(reading.until("user.message") for reading in readings))
        play = await player.take(run_id)
        await play.work("Let me look.")
        await play.finish("1998.")
        await asyncio.gather(*(reading.rest() for reading in readings))
    assert all(reading.names == WHOLE for reading in readings)


async def test_a_reader_that_cannot_keep_up_reads_the_past_again(
    api: Served, player: Player, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "UNSENT_BYTES_MAX", 0)  # whatever is underway is too much
    run_id = await api.start()
    async with follow(api, run_id) as reading:
        await reading.until("user.message")
        play = await player.take(run_id)
        for step in range(5):
            await play.work(f"{step}" * 100_000)
            await play.commit()
        await play.finish("1998.")
        frames = await reading.rest()
    seqs = [frame.id for frame in frames if frame.id is not None]
    assert seqs == sorted(set(seqs)), "an event came twice or out of order"
    assert reading.names.count("agent.tool_result") == 5
    assert reading.names[-1] == "run.completed"


async def test_what_happens_while_the_past_is_read_is_neither_lost_nor_told_twice(
    api: Served, player: Player, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "HELD_BYTES_MAX", 0)  # whatever comes meanwhile is too much to hold
    run_id = await api.start()
    play = await player.take(run_id)
    replay, slow = Stream.replay, True

    async def replay_slowly(stream: Stream, *, until: int) -> bool:
        nonlocal slow
        if slow:
            slow = False
            await play.work("Let me look.")
            await play.commit()
            async with asyncio.timeout(30):
                while not stream.follower.behind:
                    await stream.follower.woken.wait()
        return await replay(stream, until=until)

    monkeypatch.setattr(Stream, "replay", replay_slowly)
    async with follow(api, run_id) as reading:
        await reading.until("agent.tool_result")
        await play.finish("1998.")
        await reading.rest()
    assert reading.names == WHOLE


async def test_a_place_that_the_stream_never_had_is_refused(api: Served) -> None:
    run_id = await api.start()
    beyond, senseless = ("3", "99", "9" * 18), ("9" * 19, "9" * 4000, "-1", "1.5", "x", run_id, "\u0661")
    for last in beyond + senseless:
        headers = {"Accept": "text/event-stream", "Last-Event-ID": last}
        reply = await api.get(f"/v1/runs/{run_id}/events", headers=headers)
        assert (reply.status, reply.code) == (422, "stream.beyond_end" if last in beyond else "request.invalid")


async def test_a_reader_without_a_place_begins_at_the_beginning(api: Served) -> None:
    run_id = await api.start()
    for last in ("", " ", "0"):
        async with follow(api, run_id, Last_Event_ID=last) as reading:
            assert (await reading.next()) == (await first(api, run_id))


async def first(api: Served, run_id: str) -> Frame | None:
    async with follow(api, run_id) as reading:
        return await reading.next()


async def test_a_reader_that_comes_back_after_deltas_were_forgotten_misses_no_event(
    api: Served, player: Player, database: Database
) -> None:
    run_id = await api.start()
    play = await player.take(run_id)
    play.asked()
    await play.commit()
    async with follow(api, run_id) as early:
        play.delta("19")
        await early.until("delta.message")
    last = max(frame.id for frame in early.frames if frame.id is not None)
    assert await deltas.prune(database, 0) > 0
    async with serve(database, tenants=("third", "fourth")) as elsewhere, AsyncExitStack() as stack:
        elsewhere.key = api.key
        late = await stack.enter_async_context(follow(elsewhere, run_id, Last_Event_ID=str(last)))
        play.delta("98")
        assert (await late.until("delta.message")).data["text"] == "98"
        play.replied("1998.")
        await play.commit(release="completed")
        await late.rest()
    told = [frame for frame in early.frames + late.frames if not frame.event.startswith("delta.")]
    async with follow(api, run_id) as whole:
        assert told == await whole.rest()


async def test_a_page_beyond_the_end_is_refused(api: Served) -> None:
    reply = await api.get(f"/v1/runs/{await api.start()}/events?after=2")
    assert (reply.status, reply.code) == (422, "stream.beyond_end")


async def test_no_more_streams_than_the_limit(database: Database) -> None:
    async with serve(database, stream_clients_max=1) as api:
        run_id = await api.start()
        async with follow(api, run_id) as reading:
            await reading.until("user.message")
            refused = await api.get(f"/v1/runs/{run_id}/events", headers={"Accept": "text/event-stream"})
            assert (refused.status, refused.code) == (429, "limit.streams")
            assert int(refused.headers["Retry-After"]) >= 1
            assert (await api.get(f"/v1/runs/{run_id}/events")).status == 200, "pages go on"


async def test_a_client_that_has_gone_leaves_its_place_to_the_next(database: Database) -> None:
    async with serve(database, stream_clients_max=1) as api:
        run_id, status = await api.start(), 429
        async with follow(api, run_id) as reading:
            await reading.until("user.message")
            reading.response.close()
        wanted = {"Authorization": f"Bearer {api.key}", "Accept": "text/event-stream"}
        async with asyncio.timeout(30):
            while status == 429:
                async with api.http.get(f"{api.url}/v1/runs/{run_id}/events", headers=wanted) as response:
                    status = response.status
        assert status == 200


async def test_no_tenant_takes_all_streams(database: Database) -> None:
    async with serve(database, stream_clients_max=3, stream_clients_tenant_max=2) as api, AsyncExitStack() as stack:
        run_id, sse = await api.start(), {"Accept": "text/event-stream"}
        for _ in range(2):
            await (await stack.enter_async_context(follow(api, run_id))).until("user.message")
        refused = await api.get(f"/v1/runs/{run_id}/events", headers=sse)
        assert (refused.status, refused.code) == (429, "limit.streams")
        assert "2 event streams of yours" in refused.json["detail"]
        theirs = await api.start(key=api.other)
        async with follow(api, theirs, Authorization=f"Bearer {api.other}") as reading:
            await reading.until("user.message")
            full = await api.get(f"/v1/runs/{theirs}/events", headers=sse, key=api.other)
            assert (full.status, full.code) == (429, "limit.streams")


async def test_a_stream_ends_after_its_life_and_the_client_comes_back(database: Database) -> None:
    async with serve(database, stream_life_s=0.2) as api:
        run_id = await api.start()
        async with follow(api, run_id) as reading:
            frames = await reading.rest()
        assert frames[-1].event == "user.message"
        async with follow(api, run_id, Last_Event_ID=str(frames[-1].id)) as reading:
            assert await reading.rest() == []


async def test_an_idle_stream_breathes_and_ends_when_its_key_is_revoked(
    api: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "COMMENT_S", 0.05)
    run_id = await api.start()
    made = (await api.post("/v1/keys", {"name": "guest", "scopes": ["runs:read"]})).json
    async with follow(api, run_id, Authorization=f"Bearer {made['key']}") as reading:
        await reading.until("user.message")
        assert (await reading.response.content.readline()).startswith(b":")
        assert (await api.call("DELETE", f"/v1/keys/{made['id']}")).status == 204
        assert (await reading.rest())[-1].event == "user.message"


async def test_streams_end_when_the_server_stops(database: Database) -> None:
    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(serve(database))
        run_id = (await api.post("/v1/runs", GOAL)).json["run_id"]
        reading = await stack.enter_async_context(follow(api, run_id))
        await reading.until("user.message")
        api.app.freeze()
        async with asyncio.timeout(20):
            await api.app.shutdown()
            assert (await reading.rest())[-1].event == "user.message"


async def test_a_reader_that_went_away_is_forgotten(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "COMMENT_S", 0.05)
    run_id = await api.start()
    async with follow(api, run_id) as reading:
        await reading.until("user.message")
        assert "sojourn_streams_open 1" in (await api.get("/metrics")).body.decode()
        reading.response.close()
    async with asyncio.timeout(30):
        while "sojourn_streams_open 0" not in (await api.get("/metrics")).body.decode():
            pass
