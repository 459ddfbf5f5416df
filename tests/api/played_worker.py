"""Plays the worker: claims a run and commits what a test says has happened, through the store alone."""

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import msgspec

from sojourn.loop import events as ev
from sojourn.loop.agent import Agent
from sojourn.loop.continuation import Continuation, Failure, fresh, pending
from sojourn.loop.machine import apply, phase
from sojourn.loop.messages import Message, Source, Text, ToolCall, Usage, observed
from sojourn.store import queue
from sojourn.store.commits import Committer
from sojourn.store.db import Database
from sojourn.store.deltas import DeltaWriter
from sojourn.store.rows import Claimed, Commit, LedgerRow, Release

Ring = Callable[[str, Any], None]


class Player:
    """One worker without a loop of its own."""

    def __init__(self, database: Database, ring: Ring, life: Any, *, flush_s: float = 0.001) -> None:
        self.database, self.life = database, life
        self.id = f"player-{os.getpid()}"
        self.committer = Committer(database, self.id, ring)
        self.deltas = DeltaWriter(database, ring, flush_s=flush_s)

    @classmethod
    async def start(cls, database: Database, ring: Ring, *, flush_s: float = 0.001) -> "Player":
        life = await queue.register(database, f"player-{os.getpid()}", host="test", pid=1, version="0")
        return cls(database, ring, life, flush_s=flush_s)

    async def close(self) -> None:
        await self.deltas.close()
        await self.committer.close()
        await self.life.close()

    async def take(self, run_id: str) -> "Play":
        """Claim a run; it must be the one that is due."""
        play = await self.take_any()
        assert play.claimed.run_id == run_id
        return play

    async def take_any(self) -> "Play":
        """Claim the run that is due next."""
        (claimed,) = await queue.claim(self.database, self.id, 1)
        opened = await queue.open(self.database, claimed)
        play = Play(self, claimed, opened.continuation, opened.agents)
        for row, event in opened.inbox:
            play.mail.append(row)
            play.happened(event)
        return play


class Play:
    """One claimed run: `happened` folds an event, `commit` makes it durable."""

    def __init__(self, player: Player, claimed: Claimed, state: Continuation, agents: dict[str, Agent]) -> None:
        self.player, self.claimed, self.agents = player, claimed, agents
        self.committed = self.state = state
        self.events: list[ev.Event] = []
        self.ledger: list[LedgerRow] = []
        self.mail: list[int] = []
        self.phase = phase(agents, state) if state.rev > 1 else None

    def happened(self, event: ev.Event) -> None:
        after = apply(self.agents, self.state, event)
        if after is not self.state:
            self.events.append(event)
            self.state = after

    async def commit(self, release: str | None = None) -> None:
        """Write what has happened, and the phase if it is another one; `release` gives the run back."""
        now = phase(self.agents, self.state)
        if now != self.phase:
            waits = tuple(wait.id for wait in pending(self.state)) if now == "suspended" else ()
            resumed = now == "running" and self.phase is not None
            self.happened(ev.Turned(at=at(), phase=now, resumed=resumed, waits=waits, error=self.state.root.error))
            self.phase = now
        told = {wait.id for wait in pending(self.committed)}
        if asked := tuple(wait for wait in pending(self.state) if wait.id not in told):
            self.happened(ev.Asked(at=at(), waits=asked))
        await self.player.committer.commit(
            Commit(
                tenant=self.claimed.tenant,
                run_id=self.claimed.run_id,
                fence=self.claimed.fence,
                before_seq=self.committed.rev,
                after=self.state,
                events=tuple(self.events),
                bodies=tuple(fresh(self.committed, self.state)),
                ledger=tuple(self.ledger),
                inbox_ids=tuple(self.mail),
                release=Release(status=release) if release else None,  # type: ignore[arg-type]
            )
        )
        self.committed, self.events, self.ledger, self.mail = self.state, [], [], []

    # ---- what may happen ----

    def asked(self) -> None:
        root = self.state.root
        self.happened(ev.ModelAsked(at=at(), frame="/", step=root.step, attempt=root.turn.attempt, model="sim:one"))

    def replied(self, text: str, *calls: ToolCall) -> None:
        root, usage = self.state.root, Usage(input=100, cache_read=20, output=10)
        message = Message(
            id=f"/#{root.step}",
            role="assistant",
            parts=(*((Text(text),) if text else ()), *calls),
            source=Source("openai", "sim", "one"),
            stop="tool_calls" if calls else "end",
            usage=usage,
        )
        event = ev.Replied(
            at=at(),
            frame="/",
            step=root.step,
            attempt=root.turn.attempt,
            message=message,
            usd_micros=1500,
            first_token_ms=12,
        )
        self.ledger.append(
            LedgerRow(
                seq=self.state.rev + 1,
                at=event.at,
                user_id=self.state.principal.user,
                agent_name=root.agent.name,
                provider="sim",
                model="one",
                attempt=event.attempt,
                usage=usage,
                usd_micros=1500,
            )
        )
        self.happened(event)

    def erred(self, code: str = "model.interrupted") -> None:
        root = self.state.root
        self.happened(
            ev.ModelErred(
                at=at(),
                frame="/",
                step=root.step,
                attempt=root.turn.attempt,
                error=Failure(code, "It broke."),
                retry=True,
            )
        )

    def ticked(self) -> None:
        """The pause before another attempt is over."""
        self.happened(ev.Ticked(at=at() + timedelta(hours=1)))

    def intended(self, call: str) -> None:
        self.happened(ev.Intended(at=at(), call=call, attempt=1))

    def returned(self, call: str, text: str) -> None:
        provider_id = next(one.provider_id for one in self.state.root.calls if one.uid == call)
        self.happened(ev.Returned(at=at(), call=call, attempt=1, message=observed(call, provider_id, text)))

    def call(self) -> ToolCall:
        """A request for the shell."""
        return ToolCall(f"c{self.state.root.step}", "shell", '{"command":"ls"}')

    def delta(self, text: str, **more: Any) -> None:
        root = self.state.root
        item = msgspec.json.encode({"type": "message", "text": text, **more})
        claimed = self.claimed
        place = (claimed.tenant, claimed.run_id, claimed.fence, "/", root.step, root.turn.attempt)
        self.player.deltas.add(place, item)

    # ---- whole plays ----

    async def finish(self, text: str = "Done.") -> None:
        """One model call and the end."""
        self.asked()
        await self.commit()
        self.replied(text)
        await self.commit(release="completed")

    async def work(self, text: str = "") -> None:
        """One model call, one tool call, and its result."""
        step = self.state.root.step
        self.asked()
        await self.commit()
        self.replied(text, self.call())
        self.intended(f"/{step}.0")
        await self.commit()
        self.returned(f"/{step}.0", "a.csv\n")


def at() -> datetime:
    return datetime.now(UTC)


def ids() -> Callable[[str], str]:
    """Ids in the order of time, as `wiring` makes them."""
    numbers = count(int(at().timestamp() * 1e6))
    return lambda prefix: f"{prefix}_{next(numbers):026d}"
