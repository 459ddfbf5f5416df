"""A primary that dies, or only reads any more, and a replica that takes its place while runs are in flight."""

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.installation import RECORD, Installation, installed, offer_tools
from tests.own_postgres import OwnPostgres, either, replicated
from tests.store.scripted_runs import asked, enter, hired, replied, submit

from sojourn.models.simulator.script import Call, Pacing, Rule, Script, When
from sojourn.store import commits, queue
from sojourn.store.db import Database, connect
from sojourn.store.migrate import migrate

RUNS, STEPS = 8, 3
TOOLS = (
    RECORD
    + '''
@tool(effect="at_most_once")
def charge(n: int, *, context) -> str:
    """Has an effect that must not be had twice."""
    record(f"charge {context.key}")
    time.sleep(0.2)
    return f"charged {n}"

@tool(effect="idempotent")
def ship(n: int, *, context) -> str:
    """Has an effect that the outside deduplicates by key."""
    record(f"ship {context.key}")
    return f"shipped {n}"
'''
)
SCRIPT = Script(
    pacing=Pacing(chunk_tokens=1, tokens_per_s=60),
    rules=(
        *(
            Rule(
                when=When(step=step),
                text="Working on it now.",
                calls=(Call("charge", {"n": step}), Call("ship", {"n": step})),
            )
            for step in range(STEPS)
        ),
        Rule(text="all done"),
    ),
)
IN_COMMIT = "exists (select from pg_stat_activity where wait_event = 'SyncRep')"
END_COMMITS = "select pg_terminate_backend(pid) from pg_stat_activity where wait_event = 'SyncRep'"


@pytest.fixture
async def pair() -> AsyncIterator[tuple[OwnPostgres, OwnPostgres]]:
    async with replicated() as pair:
        yield pair


async def promote(replica: OwnPostgres) -> None:
    """Make a primary of it; without waiting in a query, which what is left to replay may end."""
    await replica.say("select pg_promote(wait => false)")
    await replica.until("not pg_is_in_recovery()")


async def die(primary: OwnPostgres, replica: OwnPostgres) -> None:
    """The primary crashes, and the replica takes its place."""
    await primary.stop(signal.SIGQUIT)
    await promote(replica)


async def be_fenced_late(primary: OwnPostgres, replica: OwnPostgres) -> None:
    """The replica takes its place while the primary lives, whose commits wait for ever; then that one is demoted."""
    await promote(replica)
    await primary.until(IN_COMMIT)
    await primary.say(END_COMMITS)  # what had waited is in the primary now, and nowhere else
    await primary.until(IN_COMMIT)
    await primary.say(
        "alter system set default_transaction_read_only = on",
        "select pg_reload_conf()",
        "select pg_sleep(0.2)",
        END_COMMITS,
    )


@pytest.mark.parametrize("fail", [die, be_fenced_late])
async def test_database_failover_mid_commit(data_dir: Path, pair: tuple[OwnPostgres, OwnPostgres], fail) -> None:
    primary, replica = pair
    effects = data_dir / "effects"
    env = {**offer_tools(data_dir, TOOLS, "charge", "ship"), "EFFECTS": str(effects)}
    env |= {"SOJOURN_DATABASE_URL": either(primary, replica), "SOJOURN_LEASE_S": "300", "SOJOURN_BEAT_S": "0.2"}
    async with installed(data_dir, SCRIPT, workers=2, env=env) as installation:
        await primary.until("(select count(*) = 2 from worker_lock)")
        agent = {"model": "openai:sim", "tools": ["charge", "ship"]}
        runs = [await installation.run(agent=agent, input=f"order {n}") for n in range(RUNS)]
        async with asyncio.timeout(60):
            while not effects.exists() or len(effects.read_text().splitlines()) < RUNS:  # noqa: ASYNC110 (tools do it)
                await asyncio.sleep(0.01)
        await fail(primary, replica)
        await ready(installation)
        ended = [await installation.until(run_id) for run_id in runs]
        assert Counter(run["status"] for run in ended) == {"completed": RUNS}, installation.tail()
        had = Counter(effects.read_text().splitlines())
        assert len(had) == 2 * STEPS * RUNS and set(had.values()) == {1}, (
            "each effect once: no worker was taken for dead"
        )
        for run_id in runs:
            events = await installation.events(run_id)
            assert [event["type"] for event in events].count("agent.tool_result") == 2 * STEPS
        assert "worker.stole" not in installation.tail(10_000)
        await see_a_death(installation, replica)


async def ready(installation: Installation) -> None:
    """Wait until the API can write again."""
    async with asyncio.timeout(60):
        while True:
            async with installation.http.get("/readyz") as response:
                if response.status == 200:
                    return
            await asyncio.sleep(0.05)


async def see_a_death(installation: Installation, replica: OwnPostgres) -> None:
    """A worker that is killed is seen at once on the new primary too, for the lease is five minutes."""
    await replica.until("(select count(*) = 2 from worker_lock)")
    run_id = await installation.run(agent={"model": "openai:sim-tokens-200-rate-20"}, input="go")
    await installation.until(run_id, "running")
    ((holder,),) = await replica.say(
        f"select pid from worker join run on lease_worker = worker.id and run.id = '{run_id}'"
    )
    (victim,) = (worker for worker in installation.workers if worker.pid == holder)
    victim.kill()
    assert (await installation.until(run_id))["status"] == "completed"


# ---- the store alone -----------------------------------------------------------------------------


@pytest.fixture
async def doubled(pair: tuple[OwnPostgres, OwnPostgres]) -> AsyncIterator[Database]:
    """Connections to the one that writes."""
    async with await connect(either(*pair)) as database:
        await migrate(database)
        yield database


async def test_a_commit_that_no_replica_has_is_not_taken_for_saved(
    pair: tuple[OwnPostgres, OwnPostgres], doubled: Database
) -> None:
    primary, replica = pair
    caller = await enter(doubled)
    run_id = await submit(doubled, caller)
    async with hired(doubled) as worker:
        hand = await worker.take_one()
        await replica.stop()
        saving = asyncio.create_task(hand.commit(asked(0)))
        await primary.until(IN_COMMIT)
        await primary.say(END_COMMITS)
        await primary.until(f"(select seq = 2 from run where id = '{run_id}')")
        await primary.until(IN_COMMIT)
        assert not saving.done(), "it is in the primary, and would be lost with it"
        await replica.start()
        async with asyncio.timeout(60):
            await saving
        await hand.commit(replied(0, "done"))
        assert worker.rung.count(("sojourn_run", (run_id,))) == 2


async def test_nobody_is_dead_for_a_lock_that_the_new_primary_never_held(
    pair: tuple[OwnPostgres, OwnPostgres], doubled: Database
) -> None:
    primary, replica = pair
    caller = await enter(doubled)
    runs = {await submit(doubled, caller) for _ in range(2)}
    async with hired(doubled, "living") as living, hired(doubled, "dying") as dying:
        await living.take_one()
        await dying.take_one()
        await die(primary, replica)
        async with asyncio.timeout(60):
            while (stolen := await robbed(doubled)) is None:  # noqa: ASYNC110 (the connections find the new primary)
                await asyncio.sleep(0.02)
        assert stolen == []
        async with hired(doubled, "living") as again:
            assert await queue.steal(doubled, None) == []
            await replica.say("update worker set seen_at = now() + interval '1 hour' where id = 'dying'")
            (stolen,) = await queue.steal(doubled, 15)
            assert stolen in runs, "the other is found by its silence, whatever the old primary's clock said"
            assert len(await queue.beat(again.life, "living")) == 1


async def robbed(database: Database) -> list[str] | None:
    """Take the runs of those whose lock is free; None while the database is away."""
    try:
        return await queue.steal(database, None)
    except commits.StoreUnavailable:
        return None
