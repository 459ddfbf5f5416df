"""A model that is asked as a judge, too: it says of each text what a test wants, and remembers what it was asked."""

import asyncio
import re
from collections.abc import AsyncGenerator, Callable
from typing import Any

import msgspec
from msgspec.structs import replace
from tests.worker.inside import Thinker, Turn
from tests.worker.test_guardrails_at_work import Company

from sojourn.loop import events as ev
from sojourn.loop.messages import Message, Source, Text, ToolCall, Usage
from sojourn.models.model import Request
from sojourn.store.tenant import usage
from sojourn.worker.worker import Worker

JUDGE = {"model": "sim:judge", "criteria": "It speaks of war."}
Verdict = Callable[[str], bool | str | Exception]


COST = 14
"""Micro-USD of a judge's answer: three tokens in and one out."""


class Bench(Company):
    """A company whose guardrail has a judge."""

    async def judge(self, worker: Worker | None, on: str, **more: Any) -> None:
        await self.rule(worker, "judge", on, **JUDGE | more)

    async def consulted(self, run_id: str) -> list[tuple[str, str, str]]:
        """What the journal says of judges: where, what, and why not."""
        found = [one for one in await self.events(run_id) if isinstance(one, ev.Consulted)]
        return [(one.on, one.verdict, one.error) for one in found]

    async def paid(self, run_id: str) -> list[int | None]:
        """What the ledger says of judges."""
        async with self.database.scoped(self.principal.handle) as conn:
            rows = [row for row in await usage.ledger(conn, run_id) if row.judge]
        assert all(
            (row.user_id, row.agent_name, row.provider, row.model) == ("ann", "clerk", "sim", "judge") for row in rows
        )
        return [row.usd_micros for row in rows]


def wars(text: str) -> bool | str | Exception:
    """The judge who is right."""
    return "war" in text


class Court(Thinker):
    """Judges by `verdict`: a truth value, words in the place of a verdict, or an error."""

    def __init__(self, *turns: Turn, verdict: Verdict = wars) -> None:
        super().__init__(*turns)
        self.verdict = verdict
        self.texts: list[str] = []
        self.begun: list[str] = []
        self.may_judge, self.at_once, self.most_at_once = asyncio.Event(), 0, 0
        self.may_judge.set()
        self.may_reply = asyncio.Event()
        self.may_reply.set()

    async def stream(self, request: Request, **more: Any) -> AsyncGenerator[Message, None]:
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        try:
            if [tool.name for tool in request.tools] == ["verdict"]:
                yield await self._judge(request, more["may_send"])
            else:
                async for message in super().stream(request, **more):
                    await self.may_reply.wait()
                    yield message
        finally:
            self.at_once -= 1

    async def _judge(self, request: Request, may_send: Callable[[], None]) -> Message:
        (message,) = request.messages
        found = re.fullmatch(r'Criteria: (".*")\n\nText: (".*")', message.text)
        assert found is not None, "each is one JSON string on one line"
        criteria, text = (msgspec.json.decode(one, type=str) for one in found.groups())
        assert criteria == JUDGE["criteria"]
        may_send()
        self.begun.append(text)
        for _ in range(20):
            await asyncio.sleep(0)  # others have a chance to begin
        await self.may_judge.wait()
        self.texts.append(text)
        said = self.verdict(text)
        if isinstance(said, Exception):
            raise said
        part = Text(said) if isinstance(said, str) else verdict(breaks=said)
        return Message(
            id="judge",
            role="assistant",
            parts=(part,),
            source=Source("sim", "sim", "judge"),
            stop="end",
            usage=Usage(input=3, output=1),
        )


def verdict(**arguments: Any) -> ToolCall:
    return ToolCall("v", "verdict", msgspec.json.encode(arguments).decode())


def answering(*parts: Any) -> Message:
    """A judge's answer, whatever it is."""
    return replace(Message(id="judge", role="assistant", parts=()), parts=parts)
