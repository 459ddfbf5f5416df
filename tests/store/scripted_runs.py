"""Tenants, runs and a small worker for the tests of the store: real rows, driven through the real machine."""

import asyncio
import itertools
import secrets
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from msgspec.structs import replace

from sojourn.identity import seal
from sojourn.loop import events as ev
from sojourn.loop.agent import Agent, Tool, ref
from sojourn.loop.continuation import Continuation, Principal, fresh
from sojourn.loop.machine import apply, begin
from sojourn.loop.messages import Message, Source, Text, ToolCall, Usage, observed, said
from sojourn.store import guardrails, queue, runs, stops
from sojourn.store.budgets import pools, reserving
from sojourn.store.commits import Committer
from sojourn.store.db import Connection, Database
from sojourn.store.deltas import DeltaWriter
from sojourn.store.notices import webhooks
from sojourn.store.rows import Claimed, Commit, LedgerRow, NewRun, Paid, Release, ScheduleRow, StopOrder
from sojourn.store.rows import Principal as Caller
from sojourn.store.tenant import blobs, catalog, idempotency, issuers, keys, schedules, sessions
from sojourn.store.vault import roots, sealed
from sojourn.store.vault.sealed import Secret, Wrapped

AT = datetime(2026, 1, 1, tzinfo=UTC)
AGENT = Agent(name="clerk", version=1, models=("sim:a",), tools=(Tool(name="look", effect="read"),))
OPENED = """
insert into alert (tenant, id, kind, what, value, bound, detail, opened_at)
values ($1, fresh_id('alr'), 'queue', 'tenant', 1, 1, 'it waits', now())
"""
numbers = itertools.count(1)


def new_id(kind: str) -> str:
    return f"{kind}_{next(numbers):012}{secrets.token_hex(7)}"


async def enter(db: Database, tenant: str = "acme", user: str = "ann") -> Caller:
    """Give a caller of a new tenant."""
    token = await keys.bootstrap(db, tenant=tenant, user=user)
    assert token is not None
    return await keys.authenticate(db, token)


async def confined(db: Database, caller: Caller, user: str, *scopes: str) -> Caller:
    """A confined caller of a tenant, by a key that may do all that there is."""
    async with db.scoped(caller.handle) as conn:
        _, token = await keys.create(conn, user=user, name=user, scopes=scopes or ["*"], confined=True)
    return await keys.authenticate(db, token)


def new_run(caller: Caller, session_id: str, text: str = "go", **fields: object) -> NewRun:
    history = fields.pop("history", ())
    agent = fields.pop("agent", AGENT)
    began = ev.Began(
        at=AT,
        run_id=new_id("run"),
        tenant=caller.tenant,
        session_id=session_id,
        principal=Principal(caller.user, caller.key_id),
        agent=ref(agent),
        limits=agent.limits,
        history=history,
        message=said("in", text),
    )
    return NewRun(event=began, continuation=begin(began), agent=agent, input=text, **fields)


async def submit(db: Database, caller: Caller, text: str = "go", *, session_id: str | None = None, **fields) -> str:
    """Create a run, in a session of its own unless one is named; give its id."""
    async with db.scoped(caller.handle) as conn:
        if session_id is None:
            session_id = new_id("ses")
            await sessions.create(conn, session_id)
        else:
            fields.setdefault("history", (await runs.conversation(conn, session_id)).segments)
        new = new_run(caller, session_id, text, **fields)
        await runs.create(conn, new, queued_max=1_000_000)
    return new.event.run_id


def words(text: str = "more") -> ev.Said:
    return ev.Said(at=AT, message=said(text, text))


async def post(database: Database, caller: Caller, run_id: str, event: ev.Said | ev.Cancelled) -> None:
    async with database.scoped(caller.handle) as conn:
        await runs.post(conn, run_id, event)


async def status(database: Database, caller: Caller, run_id: str) -> str:
    async with database.scoped(caller.handle) as conn:
        return (await runs.get(conn, run_id)).status


def soon() -> datetime:
    return datetime.now(UTC) + timedelta(hours=1)


def asked(frame: int) -> ev.ModelAsked:
    return ev.ModelAsked(at=AT + timedelta(seconds=frame), frame="/", step=frame, attempt=1, model="sim:a")


def replied(step: int, text: str = "", calls: int = 0, usd_micros: int | None = 3) -> ev.Replied:
    parts = tuple(ToolCall(f"c{i}", "look", '{"at":1}') for i in range(calls))
    message = Message(
        id=f"/#{step}",
        role="assistant",
        parts=(Text(text), *parts) if text else parts,
        source=Source("openai", "sim", "a"),
        stop="tool_calls" if calls else "end",
        usage=Usage(input=10, cache_read=5, output=2),
    )
    return ev.Replied(at=AT, frame="/", step=step, attempt=1, message=message, usd_micros=usd_micros)


def intended(step: int, index: int = 0) -> ev.Intended:
    return ev.Intended(at=AT, call=f"/{step}.{index}", attempt=1)


def returned(step: int, index: int = 0, text: str = "seen") -> ev.Returned:
    call = f"/{step}.{index}"
    return ev.Returned(at=AT, call=call, attempt=1, message=observed(call, f"c{index}", text))


@dataclass
class Hand:
    """A held run and how far it has come."""

    committer: Committer
    claimed: Claimed
    state: Continuation
    agents: dict[str, Agent]
    ledger: list[LedgerRow] = field(default_factory=list)

    @property
    def run_id(self) -> str:
        return self.claimed.run_id

    def prepare(self, *events: ev.Event, release: Release | None = None, inbox: Iterable[int] = ()) -> Commit:
        """Fold events, and write down what a worker would commit."""
        before, taken, ledger = self.state, [], []
        for event in events:
            after = apply(self.agents, self.state, event)
            assert after is not self.state, f"{event} answers nothing"
            self.state = after
            taken.append(event)
            if isinstance(event, ev.Replied):
                ledger.append(paid(after.rev, event))
        return Commit(
            tenant=self.claimed.tenant,
            run_id=self.claimed.run_id,
            fence=self.claimed.fence,
            before_seq=before.rev,
            after=self.state,
            events=tuple(taken),
            bodies=tuple(fresh(before, self.state)),
            ledger=tuple(ledger),
            inbox_ids=tuple(inbox),
            release=release,
        )

    async def commit(self, *events: ev.Event, release: Release | None = None, inbox: Iterable[int] = ()) -> None:
        await self.committer.commit(self.prepare(*events, release=release, inbox=inbox))

    async def step(self, number: int, text: str = "seen") -> None:
        """One whole step with one tool call, as a worker commits it."""
        await self.commit(asked(number))
        await self.commit(replied(number, calls=1), intended(number))
        await self.commit(returned(number, text=text))

    async def finish(self, number: int, text: str = "done") -> None:
        await self.commit(asked(number))
        await self.commit(
            replied(number, text), ev.Turned(at=AT, phase="completed"), release=Release(status="completed")
        )


def paid(seq: int, event: ev.Replied) -> LedgerRow:
    assert event.message is not None
    return LedgerRow(
        seq=seq,
        at=event.at,
        user_id="ann",
        agent_name="clerk",
        provider="sim",
        model="a",
        attempt=event.attempt,
        usage=event.message.usage or Usage(),
        usd_micros=event.usd_micros,
    )


@dataclass
class Worker:
    """A registered worker without a loop: tests are its loop."""

    db: Database
    id: str
    life: Connection
    committer: Committer
    rung: list[tuple[str, tuple[str, ...]]]

    async def take(self, n: int = 1) -> list[Hand]:
        hands = []
        for claimed in await queue.claim(self.db, self.id, n):
            opened = await queue.open(self.db, claimed)
            hands.append(Hand(self.committer, claimed, opened.continuation, opened.agents))
        return hands

    async def take_one(self) -> Hand:
        (hand,) = await self.take()
        return hand


@asynccontextmanager
async def hired(db: Database, name: str = "w1") -> AsyncIterator[Worker]:
    """Register a worker for as long as the block lasts."""
    rung: list[tuple[str, tuple[str, ...]]] = []
    life = await queue.register(db, name, host="here", pid=1, version="0")
    committer = Committer(db, name, lambda channel, ids: rung.append((channel, tuple(ids))))
    try:
        yield Worker(db, name, life, committer, rung)
    finally:
        await committer.close()
        await life.close()


async def furnish(database: Database, tenant: str) -> Caller:
    """Give a tenant with a row in every table."""
    caller = await enter(database, tenant)
    run_id = await submit(database, caller)
    await roots.register(database, "0123456789abcdef")
    async with hired(database) as worker:
        hand = await worker.take_one()
        await hand.step(0)
        writer = DeltaWriter(database, lambda _channel, _ids: None, flush_s=0)
        writer.add((tenant, run_id, hand.claimed.fence, "/", 0, 1), b"{}")
        await writer.close()
        async with database.scoped(caller.handle) as conn:
            await catalog.create(conn, AGENT, by="ann")
            await blobs.use(conn, await blobs.put(conn, f"secret of {tenant}".encode(), bytes_max=100), run_id=run_id)
            await idempotency.begin(conn, "once", route="r", request_digest="d", ttl_s=60)
            await issuers.sealing(conn, seal.new())
            key = Wrapped(tenant, "dk_1", await roots.current(conn) or "", bytes(60))
            await sealed.add(conn, Secret("hook", 1, bytes(32), await sealed.offer(conn, key)))
            await issuers.trust(conn, seal.new()[0], "another")
            await schedules.create(conn, scheduled(caller), most=1)
            await schedules.made(conn, "nightly", run_id, AT)
            await runs.arrive(conn, replace(hand.state, run_id="run_elsewhere"), run_id)
            new = stops.NewStop(tenant=tenant, what="user", target="nobody")
            stop = await stops.make(conn, new, stop_id=new_id("stp"), by="ann")
            await guardrails.put(conn, tenant, "g", spec="{}", by="ann")
            await pools.set_bounds(conn, "tenant", "", wanted=pools.Bounds(tokens=10**9), defaults=pools.Defaults())
            await webhooks.create(conn, webhook(), secret=bytes(32))
        wanted = reserving.Wanted(call="/#1@1", usd_micros=1, tokens=1)
        await reserving.reserve(database, "w1", claimed=hand.claimed, wanted=wanted, defaults=pools.Defaults())
        await stops.note(database, hand.claimed, [StopOrder(id=stop.id, mode="cancel", reason="")])
        released = hand.prepare(release=Release(status="suspended"))
        await hand.committer.commit(replace(released, paid=(Paid(call="/#1@1", tokens=1),)))
        async with database.engine() as engine:
            await engine.execute(OPENED, tenant)
    return caller


def webhook(url: str = "https://example.org", *events: str) -> webhooks.WebhookRow:
    return webhooks.WebhookRow(
        id=new_id("whk"), url=url, events=events or ("*",), description="", made_by="ann", created_at=AT
    )


def scheduled(caller: Caller, name: str = "nightly", *, due_at: datetime | None = None) -> ScheduleRow:
    who = {"user_id": caller.user, "key_id": caller.key_id}
    return ScheduleRow(name=name, spec=b"{}", created_at=AT, since=AT, next_at=due_at, due_at=due_at, **who)


async def blocked(database: Database) -> None:
    """Wait until a connection waits for another one's lock."""
    async with asyncio.timeout(30), database.api() as conn:
        while not await conn.fetchval("select exists (select from pg_locks where not granted)"):  # noqa: ASYNC110
            await asyncio.sleep(0.002)


async def cut_off(database: Database) -> None:
    """End every connection of the API that is in a transaction, as the death of its process does."""
    async with database.api() as conn:
        await conn.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database()"
            " and usename = current_user and pid <> pg_backend_pid() and xact_start is not null"
        )
