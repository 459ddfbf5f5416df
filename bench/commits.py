"""How fast runs are claimed, committed and opened, with every commit on the disk (fsync on).

    python -m bench.commits [--small] [--json] [--runs 1000 ...]

The commits of many runs share a statement and a wait for the disk; those of one run come one after the other. Step 200
of a run with results of 20 KB is compared with step 1 by the bytes that its commits write to the log.
"""

import asyncio
import itertools
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import msgspec
import uvloop

from bench.figure import Figure, chosen, report
from bench.place import empty_database
from sojourn.loop import events as ev
from sojourn.loop.agent import Agent, Tool, ref
from sojourn.loop.budget import Limits
from sojourn.loop.continuation import Continuation, Principal, fresh
from sojourn.loop.machine import apply, begin
from sojourn.loop.messages import Message, ToolCall, Usage, observed, said
from sojourn.loop.policy import Policy
from sojourn.store import queue, runs
from sojourn.store.commits import Committer
from sojourn.store.db import Database
from sojourn.store.rows import Claimed, Commit, NewRun
from sojourn.store.rows import Principal as Caller
from sojourn.store.runs.snapshots import freeze, thaw
from sojourn.store.tenant import keys, sessions

AT = datetime(2026, 1, 1, tzinfo=UTC)
AGENT = Agent(
    name="bench",
    version=1,
    models=("sim:a",),
    tools=(Tool(name="t", effect="read"),),
    policy=Policy(loop_guard=False),
    limits=Limits(steps=None),
)
RESULT = "x" * 20_000


class Sizes(msgspec.Struct, frozen=True):
    """How much is measured."""

    runs: int = 1000
    claims: int = 300
    fifties: int = 4
    """Claims of fifty."""
    steps: int = 200
    """Of the long run."""
    opens: int = 30


SMALL = Sizes(runs=20, claims=10, fifties=1, steps=40, opens=3)


class Driven:
    """A claimed run whose answers are made up here."""

    def __init__(self, claimed: Claimed, state: Continuation) -> None:
        self.claimed, self.state = claimed, state

    def commit(self, *events: ev.Event) -> Commit:
        """Fold events into the run and give the commit that says so."""
        before = self.state
        for event in events:
            self.state = apply({self.state.root.agent.digest: AGENT}, self.state, event)
        return Commit(
            tenant=self.claimed.tenant,
            run_id=self.claimed.run_id,
            fence=self.claimed.fence,
            before_seq=before.rev,
            after=self.state,
            events=events,
            bodies=tuple(fresh(before, self.state)),
        )

    def step(self, text: str) -> tuple[Commit, Commit, Commit]:
        """One step with one tool call: asked; replied and intended; returned."""
        n = self.state.root.step
        message = Message(
            id=f"/#{n}", role="assistant", parts=(ToolCall("c", "t", "{}"),), stop="tool_calls", usage=Usage(output=5)
        )
        call, result = f"/{n}.0", observed(f"/{n}.0", "c", text)
        return (
            self.commit(ev.ModelAsked(at=AT, frame="/", step=n, attempt=1, model="sim:a")),
            self.commit(
                ev.Replied(at=AT, frame="/", step=n, attempt=1, message=message, usd_micros=1),
                ev.Intended(at=AT, call=call, attempt=1),
            ),
            self.commit(ev.Returned(at=AT, call=call, attempt=1, message=result)),
        )


async def submit(db: Database, caller: Caller, count: int) -> None:
    """Create runs, each in a session of its own."""
    for n in range(count):
        async with db.scoped(caller.handle) as conn:
            name = f"{time.time_ns():020}{n:06}"
            await sessions.create(conn, f"ses_{name}")
            began = ev.Began(
                at=AT,
                run_id=f"run_{name}",
                tenant=caller.tenant,
                session_id=f"ses_{name}",
                principal=Principal(caller.user),
                agent=ref(AGENT),
                limits=AGENT.limits,
                message=said("in", "go"),
            )
            await runs.create(conn, NewRun(event=began, continuation=begin(began), agent=AGENT), queued_max=10**9)


async def take(db: Database, n: int) -> list[Driven]:
    """Claim and open runs."""
    return [Driven(one, (await queue.open(db, one)).continuation) for one in await queue.claim(db, "bench", n)]


async def timed(work: Callable[[], Awaitable[object]], rounds: int) -> list[float]:
    """Milliseconds of each round."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        await work()
        times.append((time.perf_counter() - began) * 1000)
    return times


async def grouped(committer: Committer, driven: list[Driven], rounds: int) -> float:
    """Commits a second with all runs at once; the machine's own work is done before."""
    work = [[commit for _ in range(rounds) for commit in run.step("ok")] for run in driven]

    async def drive(commits: list[Commit]) -> None:
        for commit in commits:
            await committer.commit(commit)

    began = time.perf_counter()
    await asyncio.gather(*map(drive, work))
    return sum(map(len, work)) / (time.perf_counter() - began)


async def long_run(db: Database, committer: Committer, driven: Driven, steps: int) -> list[int]:
    """Bytes of write-ahead log that each of many steps with a result of 20 KB took."""
    marks = []
    async with db.engine() as engine:
        for _ in range(steps):
            marks.append(await engine.fetchval("select pg_current_wal_insert_lsn() - '0/0'::pg_lsn"))
            for commit in driven.step(RESULT):
                await committer.commit(commit)
        marks.append(await engine.fetchval("select pg_current_wal_insert_lsn() - '0/0'::pg_lsn"))
    return [int(after - before) for before, after in itertools.pairwise(marks)]


async def measure(db: Database, sizes: Sizes) -> list[Figure]:
    """Run everything once."""
    token = await keys.bootstrap(db, tenant="bench")
    caller = await keys.authenticate(db, token or "")
    life = await queue.register(db, "bench", host="here", pid=os.getpid(), version="0")
    async with Committer(db, "bench", lambda _channel, _ids: None) as committer:
        creates = await timed(lambda: submit(db, caller, 1), sizes.claims + 50 * sizes.fifties)
        ones = await timed(lambda: queue.claim(db, "bench", 1), sizes.claims)
        fifties = await timed(lambda: queue.claim(db, "bench", 50), sizes.fifties)
        await submit(db, caller, sizes.runs)
        driven = await take(db, sizes.runs)
        rate = await grouped(committer, driven, 5)
        commits = [commit for _ in range(sizes.claims) for commit in driven[1].step("ok")]
        singles = await timed(lambda: committer.commit(commits.pop(0)), len(commits))
        wal = await long_run(db, committer, driven[0], sizes.steps)
        last = msgspec.structs.replace(driven[0].claimed, snapshot=thaw(freeze(driven[0].state)))
        opens = await timed(lambda: queue.open(db, last), sizes.opens)
    await life.close()
    growth = statistics.mean(wal[-20:]) / statistics.mean(wal[:20])
    return [
        figure("create a run and its session", "ms", creates),
        figure("claim one run", "ms", ones),
        figure("claim fifty runs", "ms", fifties),
        Figure(
            id="store",
            what=f"small commits of {sizes.runs} runs",
            unit="/s",
            median=rate,
            target=">= 8,000",
            met=rate >= 8000,
            floor=f"one by one {1000 / statistics.median(singles):,.0f} /s",
        ),
        figure("one run's commit", "ms", singles),
        figure(f"load a run of {sizes.steps} steps of 20 KB", "ms", opens),
        Figure(
            id="B8",
            what=f"bytes of step {sizes.steps} / step 1",
            unit="x",
            median=growth,
            target="<= 1.2",
            met=growth <= 1.2,
        ),
    ]


def figure(what: str, unit: str, times: list[float]) -> Figure:
    """A fact with its spread."""
    p99 = statistics.quantiles(times, n=100)[98] if len(times) >= 100 else None
    return Figure(id="", what=what, unit=unit, median=statistics.median(times), p99=p99)


async def run(sizes: Sizes) -> list[Figure]:
    """Measure on a server of our own, whose every commit goes to the disk."""
    async with empty_database() as db:
        return await measure(db, sizes)


if __name__ == "__main__":
    report(uvloop.run(run(chosen(__doc__, Sizes(), SMALL))))
