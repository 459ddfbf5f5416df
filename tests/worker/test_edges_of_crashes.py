"""Workers that die or sleep at the worst moment: a reply that was read to its end and never committed, and a zombie."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
from tests.conftest import until
from tests.installation import at
from tests.worker.restarted import Company, Follower, company, plays

from sojourn.models.simulator.script import Call, Pacing, Rule, Script, Stall, When
from sojourn.store.roles import Dsns

WORDS = "a whole answer of quite some words that nobody can have forgotten"
TALKS = Script(pacing=Pacing(chunk_tokens=1, tokens_per_s=20), rules=(Rule(text=WORDS),))
WAITING = "select pid from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"


@asynccontextmanager
async def no_commit(dsns: Dsns, run_id: str) -> AsyncIterator[asyncpg.Connection]:
    """Let no worker write to a run; what tried to is thrown away, as if it had never been sent."""
    door, watch = await asyncpg.connect(dsns.engine), await asyncpg.connect(dsns.engine)
    try:
        async with door.transaction():
            await door.execute("select from run where id = $1 for update", run_id)
            yield watch
            while pids := await watch.fetch(WAITING):
                for (pid,) in pids:
                    await watch.execute("select pg_terminate_backend($1)", pid)
                await asyncio.sleep(0.01)
    finally:
        await door.close()
        await watch.close()


async def test_crash_after_reply_before_commit_reissues_and_resets_stream(dsns: Dsns) -> None:
    async with company(TALKS, **at(dsns)) as here:
        run_id = await here.run(model="openai:talker", input="go")
        follower = Follower(here, run_id)
        following = asyncio.create_task(follower.read("run.completed"))
        await until(lambda: follower.said() != [])
        async with no_commit(dsns, run_id) as watch:
            await until(lambda: follower.said() == [WORDS])
            async with asyncio.timeout(30):
                while not await watch.fetch(WAITING):  # noqa: ASYNC110 (the worker's commit comes to the lock)
                    await asyncio.sleep(0.01)
            here.workers[0].kill()
            await here.workers[0].wait()
        assert [entry.outcome for entry in here.simulator.requests()] == ["finished"]
        await here.start_worker()
        run = await here.until(run_id)
        async with asyncio.timeout(30):
            await following
        assert (run["output"], run["steps"]) == (WORDS, 1)
        assert len(here.simulator.requests()) == 2, "it was asked again"
        first, second = follower.said()
        assert first == WORDS and WORDS.startswith(second), "between the two the stream was reset"
        kinds = [event["type"] for event in follower.durable]
        assert kinds.count("agent.message") == kinds.count("model.request_finished") == 1
        (lost,) = (event for event in follower.durable if event["type"] == "error")
        assert lost["error"]["code"] == "worker.lost"
        assert follower.durable == await here.events(run_id)


HANGS = Script(
    rules=tuple(plays("sleeper", (Call("charge", {"n": 1}),))),
    faults=(Stall(when=When(model="sleeper", step=0), times=1, for_s=2.0),),
)


def leases_lost(here: Company) -> int:
    return (here.data_dir / "worker.log").read_text().count("run.lease_lost")


async def test_zombie_after_lease_steal_cannot_commit_or_send(dsns: Dsns) -> None:
    async with company(HANGS, **at(dsns), SOJOURN_LEASE_S="4") as here:
        run_id = await here.run(agent={"model": "openai:sleeper", "tools": ["charge"]}, input="go")
        await until(lambda: here.simulator.requests() != [])
        zombie = here.workers[0]
        zombie.send_signal(signal.SIGSTOP)
        await here.start_worker()
        run = await here.until(run_id)
        assert (run["status"], here.done(run_id)) == ("completed", ["charge 1"])
        await until(lambda: here.simulator.requests()[0].outcome == "finished")  # the reply lies in the zombie's socket
        events = await here.events(run_id)
        before = leases_lost(here)
        zombie.send_signal(signal.SIGCONT)
        await until(lambda: leases_lost(here) > before)
        assert here.done(run_id) == ["charge 1"], "it called no tool"
        assert len(here.simulator.requests(model="sleeper")) == 3, "and asked no model"
        assert (await here.get(f"/v1/runs/{run_id}"))["rev"] == run["rev"]
        assert await here.events(run_id) == events, "and wrote nothing"
        assert zombie.returncode is None
