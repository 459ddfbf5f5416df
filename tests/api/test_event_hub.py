"""How live streams get to the journal: many runs at once, transactions that are held for a moment, and lost ones."""

import asyncio
from contextlib import AsyncExitStack

import pytest
from played_worker import Player
from reading import follow
from served_api import Served
from tests.store.scripted_runs import enter, submit

from sojourn.api.events import hub
from sojourn.store.db import Database
from sojourn.store.doorbell import Doorbell


async def test_many_runs_stream_side_by_side_and_each_reader_hears_its_own(api: Served, player: Player) -> None:
    runs = [await api.start() for _ in range(30)]
    async with AsyncExitStack() as stack:
        readings = {run_id: await stack.enter_async_context(follow(api, run_id)) for run_id in runs}
        plays = []
        for run_id in runs:
            plays.append(await player.take(run_id))
            plays[-1].asked()
            await plays[-1].commit()
        await asyncio.gather(*(reading.until("run.started") for reading in readings.values()))
        for n in range(20):
            for play in plays:
                play.delta(f"{play.claimed.run_id} {n};")
            await asyncio.sleep(0)
        await player.deltas.close()
        for play in plays:
            play.replied("1998.")
            await play.commit(release="completed")
        await asyncio.gather(*(reading.rest() for reading in readings.values()))
    for run_id, reading in readings.items():
        told = "".join(frame.data["text"] for frame in reading.frames if frame.event == "delta.message")
        assert told == "".join(f"{run_id} {n};" for n in range(20))
        assert reading.names[-1] == "run.completed"


async def test_where_many_tenants_ring_each_is_read_in_a_transaction_of_its_own(
    api: Served, player: Player, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "HOLDERS", 0)
    monkeypatch.setattr(hub, "LINGER_S", 60)
    run_id = await api.start()
    async with follow(api, run_id) as reading:
        play = await player.take(run_id)
        play.asked()
        await play.commit()
        for n in range(10):
            play.delta(str(n))
            assert (await reading.until("delta.message")).data["text"] == str(n)
            async with asyncio.timeout(30):
                while await idle_transactions(api):
                    pass
        play.replied("0123456789")
        await play.commit(release="completed")
        assert (await reading.rest())[-1].event == "run.completed"


async def idle_transactions(api: Served) -> int:
    """How many connections stand in an open transaction and do nothing."""
    async with api.parts.database.api() as connection:
        count: int = await connection.fetchval(
            "select count(*) from pg_stat_activity where datname = current_database()"
            " and state = 'idle in transaction' and pid <> pg_backend_pid()"
        )
    return count


async def test_a_transaction_is_held_while_it_rings_and_not_afterwards(
    api: Served, player: Player, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "LINGER_S", 60)
    monkeypatch.setattr(hub, "HOLD_S", 0)
    run_id = await api.start()
    async with follow(api, run_id) as reading:
        play = await player.take(run_id)
        play.asked()
        await play.commit()
        await reading.until("run.started")
        async with asyncio.timeout(30):
            while await idle_transactions(api):
                pass
        monkeypatch.setattr(hub, "HOLD_S", 3600)
        play.delta("1")
        await reading.until("delta.message")
        async with asyncio.timeout(30):
            while not await idle_transactions(api):
                pass
        for n in range(10):
            play.delta(str(n))
            assert (await reading.until("delta.message")).data["text"] == str(n)
        play.replied("1998.")
        await play.commit(release="completed")
        assert (await reading.rest())[-1].event == "run.completed"


async def test_who_heard_more_elsewhere_is_told_nothing_twice(
    api: Served, player: Player, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This process was cut off for a while; another one told the client what happened, and went away."""
    joined, join, run_id = asyncio.Event(), hub.Hub.join, await api.start()

    async def told(self: hub.Hub, reader: hub.Reader, run_id: str, follower: hub.Follower) -> tuple[int, bytes]:
        place = await join(self, reader, run_id, follower)
        if follower.seq:
            joined.set()
        return place

    async def deaf(*_: object) -> None:
        pass

    monkeypatch.setattr(hub.Hub, "join", told)
    async with follow(api, run_id) as first:
        await first.until("user.message")
        with monkeypatch.context() as cut_off:
            cut_off.setattr(hub, "_advance", deaf)
            joined.clear()
            play = await player.take(run_id)
            await play.work("Let me look.")
            await play.commit()
            heard = play.committed.rev
            second = asyncio.create_task(all_after(api, run_id, heard))
            await joined.wait()
        await play.finish("1998.")
        seqs = [frame.id for frame in await first.rest() if frame.id is not None]
    assert seqs == sorted(set(seqs)) and seqs[-1] == play.committed.rev, "those who were there missed nothing"
    assert await second == [seq for seq in seqs if seq > heard]


async def all_after(api: Served, run_id: str, seq: int) -> list[int]:
    """The ids that a client hears who comes back after this one."""
    async with follow(api, run_id, Last_Event_ID=str(seq)) as reading:
        return [frame.id for frame in await reading.rest() if frame.id is not None]


async def test_a_held_transaction_that_is_lost_costs_no_event(
    api: Served, player: Player, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "LINGER_S", 60)
    monkeypatch.setattr(hub, "POLL_S", 0.05)
    run_id = await api.start()
    async with follow(api, run_id) as reading:
        play = await player.take(run_id)
        play.asked()
        await play.commit()
        play.delta("1")
        await reading.until("delta.message")
        async with api.parts.database.api() as connection:
            while not await connection.fetch(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database()"
                " and state = 'idle in transaction'"
            ):
                pass
        await play.work("Let me look.")
        await play.finish("1998.")
        frames = await reading.rest()
    seqs = [frame.id for frame in frames if frame.id is not None]
    assert seqs == sorted(set(seqs))
    assert reading.names.count("agent.tool_result") == 1
    assert reading.names[-1] == "run.completed"


async def test_an_end_that_is_told_while_a_stream_joins_holds(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its task is woken for nothing, again and again, and no other task of the process has its turn."""
    principal = await enter(database)
    run_id = await submit(database, principal)
    live = hub.Hub(database, Doorbell(database, ()), followers_max=1, tenant_max=1)
    follower = hub.Follower(principal, asyncio.Transport(), chunked=True)
    begin = hub._begin

    async def stops(*given):
        live.close()
        return await begin(*given)

    monkeypatch.setattr(hub, "_begin", stops)
    with live.follow(run_id, follower) as reader:
        await live.join(reader, run_id, follower)
        follower.hear(b"", b"", reader.tape)
        assert follower.ended
    late = hub.Follower(principal, asyncio.Transport(), chunked=True)
    with live.follow(run_id, late) as reader:
        await live.join(reader, run_id, late)
        assert late.ended, "the process stopped before it came"


async def test_deltas_of_an_attempt_that_begins_while_a_reader_joins_are_heard(
    api: Served, player: Player, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks at the run before the attempt is announced, and at the deltas when the first one is there."""
    run_id = await api.start()
    play = await player.take(run_id)
    look = hub.runs.continuation

    async def looked(*given):
        found = await look(*given)
        if not play.state.root.turn.sent:
            play.asked()
            await play.commit()
            play.delta("it is said once")
            async with database.engine() as engine, asyncio.timeout(30):
                while not await engine.fetchval("select count(*) from delta where run_id = $1", run_id):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        return found

    monkeypatch.setattr(hub.runs, "continuation", looked)
    async with follow(api, run_id) as reading, asyncio.timeout(30):
        assert "it is said once" in str((await reading.until("delta.message")).data)
