"""A worker in the test's own process, so that a test can look into it: real database, real sandboxes, a model of words.

Thinker     a model that plays a list of replies to each run
working     a running Worker; the block's end stops it
Caller      what an API process does for a run: submit, say, decide, look
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import msgspec
from msgspec.structs import replace
from tests.store.scripted_runs import enter, submit

from sojourn.guardrails.in_force import BELL, InForce
from sojourn.loop import events as ev
from sojourn.loop.agent import Agent, Tool
from sojourn.loop.budget import Price, Tariff
from sojourn.loop.continuation import Continuation
from sojourn.loop.messages import Message, Source, Text, ToolCall, Usage, said
from sojourn.loop.policy import Policy, Rule
from sojourn.models.model import Request
from sojourn.sandboxes.bwrap import BwrapProvider
from sojourn.sandboxes.sandbox import Provider, Spec
from sojourn.settings import Settings
from sojourn.store import runs
from sojourn.store.commits import Committer
from sojourn.store.db import Database
from sojourn.store.deltas import DeltaWriter
from sojourn.store.doorbell import Doorbell
from sojourn.store.rows import Commit, Principal, RunRow, SessionRow
from sojourn.store.tenant import sessions
from sojourn.tools import toolbox
from sojourn.worker.budgets.pools import DayPools
from sojourn.worker.parts import Parts
from sojourn.worker.shutdown import Shutdown
from sojourn.worker.slots import CallSlots
from sojourn.worker.tenure import Tenure
from sojourn.worker.worker import Worker

CHANNELS = (
    "sojourn_run", "sojourn_delta", "sojourn_work", "sojourn_inbox", "sojourn_wanted", "sojourn_stop", BELL,
)  # fmt: skip
DONE = "all done"
Turn = str | tuple[tuple[str, dict[str, Any]], ...]
"""A reply: words, or calls of tools with their arguments."""


def now() -> datetime:
    return datetime.now(UTC)


class Thinker:
    """Answers the n-th request of a conversation with the n-th turn, and then with DONE."""

    provider, dialect = "sim", "sim"

    def __init__(self, *turns: Turn) -> None:
        self.turns = turns
        self.heard: list[Request] = []

    def resolve(self, reference: str) -> tuple["Thinker", str]:
        return self, reference

    async def stream(self, request: Request, *, message_id: str, **_: object) -> AsyncGenerator[Message, None]:
        self.heard.append(request)
        place = sum(message.role == "assistant" for message in request.messages)
        turn = self.turns[place] if place < len(self.turns) else DONE
        parts: tuple[Any, ...] = (Text(turn),) if isinstance(turn, str) else tuple(_calls(turn))
        yield Message(
            id=message_id,
            role="assistant",
            parts=parts,
            source=Source("sim", "sim", "sim"),
            stop="end" if isinstance(turn, str) else "tool_calls",
            usage=Usage(input=1, output=1),
        )


def _calls(turn: tuple[tuple[str, dict[str, Any]], ...]) -> AsyncIterator[ToolCall] | Any:
    return (ToolCall(f"c{i}", name, msgspec.json.encode(args).decode()) for i, (name, args) in enumerate(turn))


class Late(Committer):
    """Lets something happen at the last moment before a run is given back as `status`, once for each of `moments`."""

    def __init__(self, database: Database, worker_id: str, ring: Callable[[str, Collection[str]], None]) -> None:
        super().__init__(database, worker_id, ring)
        self.status = ""
        self.moments: list[Callable[[str], Any]] = []

    async def commit(self, commit: Commit) -> None:
        if commit.release and commit.release.status == self.status and self.moments:
            await self.moments.pop(0)(commit.run_id)
        await super().commit(commit)


class Unasked:
    """A database that has no pools of the day, and nothing else."""

    @asynccontextmanager
    async def engine(self) -> AsyncIterator[Any]:
        yield self

    async def fetch(self, *_: object, **__: object) -> list[Any]:
        return []


class SevenEach:
    """Prices: a call of one token in and one out costs 7 micro-USD, and every model has the window of `tokens`."""

    tokens = 1_000_000

    def tariff(self, reference: str) -> Tariff:
        return Tariff(Price(3_500_000, 3_500_000, 0, 0))

    def window(self, reference: str) -> int:
        return self.tokens


@asynccontextmanager
async def working(
    database: Database,
    thinker: Thinker,
    sandboxes: Provider | None,
    *,
    name: str = "w1",
    host: str = "here",
    calls_max: Mapping[str, int] | None = None,
    prices: Any = SevenEach(),  # noqa: B008 (it holds nothing)
    **settings: Any,
) -> AsyncIterator[Worker]:
    """A worker that runs."""
    async with (
        Doorbell(database, CHANNELS) as doorbell,
        InForce(database, doorbell) as guardrails,
        Late(database, name, doorbell.ring) as committer,
    ):
        deltas = DeltaWriter(database, doorbell.ring)
        parts = Parts(
            worker_id=name,
            host=host,
            settings=replace(Settings(beat_s=0.2, drain_s=1.0), **settings),
            database=database,
            doorbell=doorbell,
            committer=committer,
            deltas=deltas,
            models=thinker,
            tools=toolbox.fill(),
            sandboxes=sandboxes,  # type: ignore[arg-type]
            guardrails=guardrails,
            sandbox_spec=Spec(),
            prices=prices,
            calls=CallSlots(database, name, calls_max or {}, lease_s=settings.get("lease_s", 15.0)),
            pools=DayPools(database, name, Settings(**settings).day_defaults),
            now=now,
            tenure=Tenure(settings.get("lease_s", 15.0)),
        )
        worker, shutdown = Worker(parts), Shutdown()
        task = asyncio.create_task(worker.run(shutdown))
        try:
            yield worker
        finally:
            shutdown.told.set()
            await task
            await deltas.close()


@asynccontextmanager
async def ground(folder: Path) -> AsyncIterator[BwrapProvider]:
    """Sandboxes of a folder, none of which is left."""
    provider = BwrapProvider(folder, idle_s=2.0)
    try:
        yield provider
    finally:
        await provider.reap(frozenset())
        await provider.close()


class Caller:
    """What an API process does for a caller."""

    def __init__(self, database: Database, principal: Principal) -> None:
        self.database, self.principal = database, principal

    @classmethod
    async def of(cls, database: Database, tenant: str = "acme") -> Self:
        return cls(database, await enter(database, tenant))

    async def run(self, agent: Agent, worker: Worker, **fields: Any) -> str:
        run_id = await submit(self.database, self.principal, agent=agent, **fields)
        worker.parts.doorbell.ring("sojourn_work", ())
        return run_id

    async def post(self, run_id: str, event: ev.Said | ev.Decided | ev.Cancelled) -> None:
        async with self.database.scoped(self.principal.handle) as conn:
            await runs.post(conn, run_id, event)

    async def say(self, run_id: str, text: str) -> None:
        await self.post(run_id, ev.Said(at=now(), message=said(text, text)))

    async def approve(self, run_id: str, worker: Worker) -> None:
        """Approve whatever the run waits for."""
        for wait in (await self.row(run_id)).waits:
            await self.post(run_id, ev.Decided(at=now(), wait=wait.id, by="ann", decision="approve"))
        worker.parts.doorbell.ring("sojourn_work", ())

    async def row(self, run_id: str) -> RunRow:
        async with self.database.scoped(self.principal.handle) as conn:
            return await runs.get(conn, run_id)

    async def session(self, run_id: str) -> SessionRow:
        async with self.database.scoped(self.principal.handle) as conn:
            return await sessions.get(conn, (await runs.get(conn, run_id)).session_id)

    async def transcript(self, run_id: str) -> Continuation:
        """The run with its messages, once its journal was seen to be whole."""
        async with self.database.scoped(self.principal.handle) as conn:
            assert await runs.verify_chain(conn, run_id)
            return await runs.transcript(conn, run_id)

    async def events(self, run_id: str) -> list[ev.Event]:
        async with self.database.scoped(self.principal.handle) as conn:
            return [event for _, event in await runs.events(conn, run_id)]

    async def until(self, run_id: str, *status: str, within_s: float = 60) -> RunRow:
        async with asyncio.timeout(within_s):
            while (row := await self.row(run_id)).status not in status:  # noqa: ASYNC110 (a worker gets it there)
                await asyncio.sleep(0.01)
        return row

    async def unread(self) -> int:
        async with self.database.engine() as engine:
            return int(await engine.fetchval("select count(*) from inbox"))


def agent(*tools: str, ask: str = "") -> Agent:
    """An agent with these server tools, whose calls of `ask` need an approval."""
    known = toolbox.fill()
    return Agent(
        name="clerk",
        version=1,
        models=("sim:a",),
        tools=tuple(known[name].definition if name in known else Tool(name=name) for name in tools),
        policy=Policy(rules=(Rule(ask, "ask"),) if ask else ()),
    )
