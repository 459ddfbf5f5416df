"""Runs made of other runs, as rows; and runs that nobody can read."""

import asyncio
from datetime import timedelta

import pytest
from msgspec.structs import replace
from scripted_runs import AT, enter, hired, new_id, replied, submit, words
from tests.loop.exported_runs import RUNS, every_wait, nested
from tests.loop.run_kit import Run

from sojourn.errors import Conflict, Forbidden, Invalid, NotFound, QueueFull, UnknownFormat
from sojourn.identity import seal
from sojourn.loop import events as ev
from sojourn.loop.agent import Agent, Tool
from sojourn.loop.continuation import Principal as Owner
from sojourn.loop.continuation import attach, fresh, pending
from sojourn.loop.machine import apply, begin, phase
from sojourn.loop.moving.adoption import Home, imported
from sojourn.loop.policy import Policy
from sojourn.store import queue, runs
from sojourn.store.db import Database
from sojourn.store.rows import AdoptedRun, Principal, Release
from sojourn.store.runs import snapshots
from sojourn.store.tenant import issuers, keys, sessions


def moved(run: Run, caller: Principal, session_id: str) -> AdoptedRun:
    """What the API writes of an imported run."""
    owner = Owner(caller.user, caller.key_id)
    home = Home(at=AT, run_id=new_id("run"), tenant=caller.tenant, session_id=session_id, principal=owner)
    adoption = imported(run.agents, run.state, home)
    status = "suspended" if phase(run.agents, adoption.continuation) == "suspended" else "queued"
    return AdoptedRun(
        event=adoption.event,
        continuation=adoption.continuation,
        agents=run.agents,
        status=status,
        due_at=None if status == "suspended" else AT,
        input="go\0",
        labels={"team": "a"},
    )


async def land(database: Database, caller: Principal, run: Run, *, queued_max: int = 10) -> AdoptedRun:
    async with database.scoped(caller.handle) as conn:
        session_id = new_id("ses")
        await sessions.create(conn, session_id)
        new = moved(run, caller, session_id)
        await runs.adopt(conn, new, queued_max=queued_max)
    return new


@pytest.mark.parametrize("name", RUNS)
async def test_an_adopted_run_is_there_as_a_whole(database: Database, name: str) -> None:
    caller = await enter(database)
    new = await land(database, caller, RUNS[name]())
    run_id, state = new.event.run_id, new.continuation
    async with database.scoped(caller.handle) as conn:
        row = await runs.get(conn, run_id)
        assert (row.status, row.seq, row.input, row.labels) == (new.status, 1, "go\ufffd", {"team": "a"})
        assert (row.waits, row.steps, row.usage) == (pending(state), state.spent.steps, state.spent.usage)
        assert (row.usd_micros or 0) == state.spent.usd_micros
        assert await runs.events(conn, run_id) == [(1, new.event)]
        assert (await runs.source(conn, run_id)).continuation == state
        assert await runs.verify_chain(conn, run_id)
        waiting = [one.id for one in (await runs.waiting(conn)).rows]
        assert waiting == ([run_id] if pending(state) else [])


async def test_the_snapshot_of_an_adopted_run_is_the_fold_of_its_journal(database: Database) -> None:
    caller = await enter(database)
    run = nested()
    new = await land(database, caller, run)
    async with database.scoped(caller.handle) as conn:
        for by in ("boss1", "ann"):
            decided = ev.Decided(at=AT, wait="/0.0/0.0/0.0?0", by=by, decision="approve")
            await runs.post(conn, new.event.run_id, decided)
    async with hired(database) as worker:
        hand = await worker.take_one()
        assert hand.state == new.continuation
        opened = await queue.open(database, hand.claimed)
        numbers, letters = zip(*opened.inbox, strict=True)
        intended = ev.Intended(at=AT, call="/0.0/0.0/0.0", attempt=1)
        await hand.commit(*letters, intended, inbox=numbers, release=Release(status="queued"))
    async with database.scoped(caller.handle) as conn:
        journal = [event for _, event in await runs.events(conn, new.event.run_id)]
        assert isinstance(journal[0], ev.Adopted)
        kept = {(frame, slot): message for frame, slot, message in fresh(None, new.continuation)}
        state = begin(journal[0])
        state = replace(state, root=attach(state.root, kept))
        for event in journal[1:]:
            state = apply(run.agents, state, event)
        assert snapshots.freeze(state) == snapshots.freeze(hand.state)
        assert await runs.continuation(conn, new.event.run_id) == snapshots.thaw(snapshots.freeze(state))
        assert await runs.verify_chain(conn, new.event.run_id)


async def test_a_message_of_an_adopted_run_that_was_changed_is_seen(database: Database) -> None:
    caller = await enter(database)
    new = await land(database, caller, nested())
    async with database.migrator() as owner:
        await owner.execute("alter table message disable trigger append_only, no force row level security")
        await owner.execute(
            "update message set body = convert_to(replace(convert_from(body, 'UTF8'), 'I ask', 'I beg'), 'UTF8')"
        )
    async with database.scoped(caller.handle) as conn:
        assert not await runs.verify_chain(conn, new.event.run_id)


async def test_only_a_run_that_stands_still_is_read(database: Database) -> None:
    caller, other = await enter(database), await enter(database, "rival")
    run_id = await submit(database, caller)
    async with database.scoped(other.handle) as conn:
        with pytest.raises(NotFound):
            await runs.source(conn, run_id)
    async with hired(database) as worker:
        hand = await worker.take_one()
        async with database.scoped(caller.handle) as conn:
            with pytest.raises(Conflict) as refused:
                await runs.source(conn, run_id)
        await hand.commit(release=Release(status="suspended"))
    assert refused.value.code == "run.running"
    async with database.scoped(caller.handle) as conn:
        found = await runs.source(conn, run_id)
        assert found.continuation == hand.state and found.input == "go"
        await runs.post(conn, run_id, ev.Cancelled(at=AT, by="ann"))
        with pytest.raises(Conflict):
            await runs.source(conn, run_id)


async def test_no_worker_takes_a_run_while_it_is_read(database: Database) -> None:
    caller = await enter(database)
    run_id = await submit(database, caller)
    async with hired(database) as worker:
        async with database.scoped(caller.handle) as conn:
            await runs.source(conn, run_id)
            assert await worker.take() == []
        assert (await worker.take_one()).run_id == run_id


async def test_the_words_of_earlier_runs_are_among_a_runs_own_when_it_moves(database: Database) -> None:
    caller = await enter(database)
    async with hired(database) as worker:
        await submit(database, caller, "first")
        hand = await worker.take_one()
        await hand.step(0)
        await hand.finish(1, "answer")
        second = await submit(database, caller, "second", session_id=hand.state.session_id)
        async with database.scoped(caller.handle) as conn:
            root = (await runs.source(conn, second)).continuation.root
            whole = await runs.transcript(conn, second)
        assert (root.history, root.stored) == ((), 0)
        assert root.messages == whole.root.messages and root.messages[0].text == "first"
        run = Run()
        run.state, run.agents = replace(whole, root=root), hand.agents
        new = await land(database, caller, run)
        async with database.scoped(caller.handle) as conn:
            assert (await runs.transcript(conn, new.event.run_id)).root.messages == root.messages
            assert await runs.verify_chain(conn, new.event.run_id)


async def test_what_a_new_run_is_refused_an_adopted_one_is_too(database: Database) -> None:
    caller = await enter(database)
    run = nested()
    async with database.scoped(caller.handle) as conn:
        with pytest.raises(NotFound):
            await runs.adopt(conn, moved(run, caller, "ses_none"), queued_max=5)
        await sessions.create(conn, "ses_closed")
        await sessions.close(conn, "ses_closed")
        with pytest.raises(Conflict) as refused:
            await runs.adopt(conn, moved(run, caller, "ses_closed"), queued_max=5)
    assert refused.value.code == "session.closed"
    new = await land(database, caller, run)
    with pytest.raises(Conflict) as refused:
        async with database.scoped(caller.handle) as conn:
            await runs.adopt(conn, moved(run, caller, new.event.session_id), queued_max=5)
    assert refused.value.code == "session.busy"
    due = Run()
    await land(database, caller, due, queued_max=1)
    with pytest.raises(QueueFull):
        await land(database, caller, due, queued_max=1)
    await land(database, caller, every_wait(), queued_max=1)
    big = replace(run.state, spent=replace(run.state.spent, usd_micros=2**63))
    run.state = big
    with pytest.raises(Invalid):
        await land(database, caller, run)


# ---- imported before -------------------------------------------------------------------------


async def test_replay_of_an_older_valid_export_refused(database: Database) -> None:
    caller, other = await enter(database), await enter(database, "rival")
    state = nested().state

    async def arrive(rev: int, became: str, who: Principal = caller) -> str:
        try:
            async with database.scoped(who.handle) as conn:
                await runs.arrive(conn, replace(state, rev=rev), became)
        except Conflict as refused:
            assert "run_" in str(refused)
            return refused.code
        return "taken"

    assert await arrive(7, "run_a") == "taken"
    assert await arrive(7, "run_b") == "import.replayed"
    assert await arrive(6, "run_b") == "import.stale"
    assert await arrive(9, "run_c") == "taken", "it went on over there"
    assert await arrive(8, "run_d") == "import.stale"
    assert await arrive(7, "run_a", other) == "taken", "another tenant knows nothing of it"
    came = await asyncio.gather(*(arrive(11, f"run_{n}") for n in range(6)))
    assert sorted(came) == ["import.replayed"] * 5 + ["taken"]
    run_id = await submit(database, caller)
    state = replace(state, run_id=run_id)
    assert await arrive(99, "run_e") == "import.original_here"


# ---- keys ------------------------------------------------------------------------------------


async def test_a_tenants_key_is_made_once_and_signs_until_it_is_rotated(database: Database) -> None:
    caller, other = await enter(database), await enter(database, "rival")

    async def key(who: Principal = caller) -> tuple[str, bytes]:
        async with database.scoped(who.handle) as conn:
            return await issuers.sealing(conn, seal.new())

    first = {await key() for _ in range(3)}
    assert len(first) == 1
    ((issuer, secret),) = first
    assert seal.issuer(secret) == issuer != (await key(other))[0]
    async with database.scoped(caller.handle) as conn:
        await issuers.rotate(conn, seal.new())
        second, _ = await issuers.sealing(conn, seal.new())
        assert {row.issuer: row.state for row in await issuers.own(conn)} == {issuer: "retired", second: "active"}
        await issuers.revoke(conn, second)
        third, _ = await issuers.sealing(conn, seal.new())
        states = {row.issuer: (row.state, row.ended_at is None) for row in await issuers.own(conn)}
        assert states == {issuer: ("retired", False), second: ("revoked", False), third: ("active", True)}
        with pytest.raises(NotFound):
            await issuers.revoke(conn, (await issuers.sealing(conn, seal.new()))[0][:-1] + "!")
    async with database.migrator() as owner:
        await owner.execute("alter table seal_key no force row level security")
        assert await owner.fetchval("select count(*) from seal_key where secret is not null and tenant = 'acme'") == 1


async def test_who_is_trusted_is_a_key_managers_to_say(database: Database) -> None:
    caller, other = await enter(database), await enter(database, "rival")
    theirs = seal.new()[0]
    async with database.scoped(caller.handle) as conn:
        await issuers.trust(conn, theirs, "staging")
        await issuers.trust(conn, theirs, "again")
        found = await issuers.find(conn, theirs)
        assert found is not None and (found.state, found.name) == ("trusted", "staging")
        _, token = await keys.create(conn, user="bob", name="narrow", scopes=["runs:write"])
        _, reader = await keys.create(conn, user="bob", name="reader", scopes=["runs:read"])
    async with database.scoped(other.handle) as conn:
        assert await issuers.find(conn, theirs) is None and await issuers.trusted(conn) == []
        with pytest.raises(NotFound):
            await issuers.distrust(conn, theirs)
    narrow, reads = await keys.authenticate(database, token), await keys.authenticate(database, reader)
    for act in (
        lambda conn: issuers.trust(conn, seal.new()[0], "x"),
        lambda conn: issuers.distrust(conn, theirs),
        lambda conn: issuers.rotate(conn, seal.new()),
        lambda conn: issuers.revoke(conn, theirs),
        lambda conn: issuers.sealing(conn, seal.new()),
    ):
        with pytest.raises(Forbidden):
            async with database.scoped(narrow.handle) as conn:
                await act(conn)
    async with database.scoped(reads.handle) as conn:
        assert await issuers.sealing(conn, seal.new())
    async with database.scoped(caller.handle) as conn:
        await issuers.distrust(conn, theirs)
        assert await issuers.find(conn, theirs) is None


# ---- quarantine ------------------------------------------------------------------------------


async def test_newer_version_quarantined_not_modified(database: Database) -> None:
    caller = await enter(database)
    run_id = await submit(database, caller)
    newer = b'{"version":2,"anything":[]}'
    async with database.migrator() as owner:
        await owner.execute("alter table run no force row level security")
        await owner.execute("update run set snapshot = $1", newer)
    async with hired(database) as worker:
        async with database.engine() as engine:
            fence = await engine.fetchval(
                "update run set status = 'running', due_at = null, lease_worker = $1, fence = fence + 1, claims = 9"
                " returning fence",
                worker.id,
            )
        reason = UnknownFormat("A newer release wrote it (format version 2).")
        assert not await runs.quarantine(database, worker.id, (run_id, fence - 1), reason)
        assert await runs.quarantine(database, worker.id, (run_id, fence), reason)
        async with database.scoped(caller.handle) as conn:
            found = await runs.get(conn, run_id)
            assert (found.status, found.finished_at) == ("quarantined", None)
            assert found.error is not None and found.error.code == "continuation.unknown_format"
            assert await conn.fetchval("select snapshot from run where id = $1", run_id) == newer
            with pytest.raises(UnknownFormat):
                await runs.source(conn, run_id)
            await runs.post(conn, run_id, words())
            assert (await runs.get(conn, run_id)).status == "quarantined", "mail does not wake it"
        assert await queue.claim(database, worker.id, 5) == []
        async with database.migrator() as owner:
            await owner.execute("update run set snapshot = $1", snapshots.freeze(fresh_state(run_id)))
        async with database.scoped(caller.handle) as conn:
            await runs.retry(conn, run_id)
            assert (await runs.get(conn, run_id)).status == "queued"
            with pytest.raises(Conflict) as refused:
                await runs.retry(conn, run_id)
            assert refused.value.code == "run.not_quarantined"
            with pytest.raises(NotFound):
                await runs.retry(conn, "run_none")
        (claimed,) = await queue.claim(database, worker.id, 5)
        assert (claimed.run_id, claimed.claims) == (run_id, 1), "it begins anew to count those that try in vain"


def fresh_state(run_id: str):
    state = nested().state
    return replace(state, run_id=run_id, updated_at=AT + timedelta(seconds=1))


async def test_a_closed_policy_is_as_closed_for_an_adopted_run(database: Database) -> None:
    caller = await enter(database)
    asks = Agent(
        name="one", models=("sim:a",), tools=(Tool(name="look", effect="read"),), policy=Policy(otherwise="ask")
    )
    async with hired(database) as worker:
        await submit(database, caller, agent=asks)
        hand = await worker.take_one()
        asked = ev.ModelAsked(at=AT, frame="/", step=0, attempt=1, model="sim:a")
        await hand.commit(asked)
        decided = ev.Decided(at=AT, wait="/0.0?0", by="boss", decision="approve")
        await hand.commit(replied(0, calls=1), decided, release=Release(status="queued"))
        async with database.scoped(caller.handle) as conn:
            source = (await runs.source(conn, hand.run_id)).continuation
        assert source.root.calls[0].state == "authorized"
        run = Run()
        run.state, run.agents = source, hand.agents
        new = await land(database, caller, run)
    assert (new.status, [wait.kind for wait in pending(new.continuation)]) == ("suspended", ["approval"])
