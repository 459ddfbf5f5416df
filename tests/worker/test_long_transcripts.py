"""A transcript that outgrows its model's window: the run goes on, and nothing of it is lost."""

import asyncio
from collections.abc import AsyncGenerator

import pytest
from msgspec.structs import replace
from tests.worker.inside import Caller, Thinker, agent, working

from sojourn.loop import events as ev
from sojourn.loop.budget import Limits
from sojourn.loop.messages import Message, Source, Text, ToolResult, Usage
from sojourn.models.estimate import input_tokens
from sojourn.models.model import ModelFailed, Request
from sojourn.store.db import Database
from sojourn.store.tenant import usage
from sojourn.tools import functions
from sojourn.worker.asking import SUMMARY, SUMMARY_TOKENS
from sojourn.worker.worker import Worker

STEPS = 12


@functions.tool(effect="read")
async def dig(n: int, why: str = "") -> str:
    return f"find {n}: " + f"{n}" * 3000


class Digger(Thinker):
    """Digs so many times, and writes notes when it is asked for them."""

    def __init__(self, *, notes: bool = True, window: int = 10**9) -> None:
        super().__init__()
        self.notes, self.window = notes, window
        self.written: list[Request] = []
        self.now = self.most = 0

    async def stream(self, request: Request, *, message_id: str, **_: object) -> AsyncGenerator[Message, None]:
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0)
        try:
            async for message in self._thought(request, message_id):
                yield message
        finally:
            self.now -= 1

    async def _thought(self, request: Request, message_id: str) -> AsyncGenerator[Message, None]:
        source, used = Source("sim", "sim", "sim"), Usage(input=input_tokens(request), output=5)
        if request.system == SUMMARY:
            self.written.append(request)
            if not self.notes:
                raise ModelFailed("server", "no notes today", retry=True)
            text = f"notes {len(self.written)}"
            yield Message(id=message_id, role="assistant", parts=(Text(text),), source=source, stop="end", usage=used)
            return
        if input_tokens(request) > self.window:
            raise ModelFailed("too_long", "the prompt does not fit", retry=False)
        self.heard.append(request)
        turn = (("dig", {"n": len(self.heard), "why": "because " * 200}),) if len(self.heard) <= STEPS else "dug"
        async for message in Thinker(turn).stream(replace(request, messages=()), message_id=message_id):
            yield replace(message, usage=used)


def digger(**fields: object):  # type: ignore[no-untyped-def]
    made = agent("dig")
    return replace(made, tools=(dig.definition,), system="Dig.", **fields)


def small(worker: Worker, tokens: int) -> None:
    """Let every model have this window."""
    worker.parts.prices.tokens = tokens  # type: ignore[attr-defined]
    worker.parts.tools["dig"] = dig  # type: ignore[index]


@pytest.mark.parametrize("notes", [True, False])
async def test_a_long_run_is_told_shorter_and_keeps_its_transcript(database: Database, notes: bool) -> None:
    caller, model = await Caller.of(database), Digger(notes=notes)
    async with working(database, model, None) as worker:
        small(worker, 8_000)
        run_id = await caller.run(digger(), worker)
        row = await caller.until(run_id, "completed", "failed")
    assert (row.status, row.result, row.steps) == ("completed", "dug", STEPS + 1)
    whole = (await caller.transcript(run_id)).root.messages
    assert sum(len(part.text) for m in whole for part in m.parts if isinstance(part, ToolResult)) > STEPS * 3000
    assert all(input_tokens(request) <= 8_000 for request in model.heard), "it always fits"
    compacted = [event for event in await caller.events(run_id) if isinstance(event, ev.Compacted)]
    assert compacted and compacted[-1].compaction.upto > 0 and model.written
    told = [event for event in compacted if event.originals]
    last = model.heard[-1].messages[0].text
    assert last.startswith("go") and ("notes " in last if notes else "called dig" in last)
    async with database.scoped(caller.principal.handle) as conn:
        ledger = await usage.ledger(conn, run_id)
    assert len(ledger) == STEPS + 1 + (len(told) if notes else 0), "notes are paid for, once"
    assert row.usd_micros == sum(line.usd_micros or 0 for line in ledger) > 7 * len(ledger)


async def test_a_provider_with_a_smaller_window_than_we_thought_is_asked_again(database: Database) -> None:
    caller, model = await Caller.of(database), Digger(window=6_000)
    async with working(database, model, None) as worker:
        small(worker, 100_000)
        run_id = await caller.run(digger(), worker)
        row = await caller.until(run_id, "completed", "failed")
    assert (row.status, row.result) == ("completed", "dug")


async def test_notes_stay_inside_the_budget(database: Database) -> None:
    caller, model = await Caller.of(database), Digger()
    limits = Limits(input_tokens=60_000, output_tokens=40_000)
    async with working(database, model, None) as worker:
        small(worker, 8_000)
        run_id = await caller.run(digger(limits=limits), worker)
        row = await caller.until(run_id, "completed", "failed")
    assert row.usage.prompt <= 60_000 and row.usage.output <= 40_000
    assert model.written and all(one.params.max_output_tokens == SUMMARY_TOKENS for one in model.written)


async def test_notes_take_a_slot_of_a_limited_provider_as_other_calls_do(database: Database) -> None:
    caller, model = await Caller.of(database), Digger()
    async with working(database, model, None, calls_max={"sim": 1}) as worker:
        small(worker, 8_000)
        made = [await caller.run(digger(), worker) for _ in range(3)]
        for run_id in made:
            await caller.until(run_id, "completed")
    assert model.written, "notes were asked for"
    assert model.most == 1


async def test_a_reply_is_bounded_by_what_is_left(database: Database) -> None:
    caller, model = await Caller.of(database), Digger()
    limits = Limits(output_tokens=1_000)
    async with working(database, model, None) as worker:
        small(worker, 8_000)
        run_id = await caller.run(digger(limits=limits), worker)
        await caller.until(run_id, "completed", "failed")
    first, second = model.heard[:2]
    assert (first.params.max_output_tokens, second.params.max_output_tokens) == (1_000, 995)
    asked = [event.held for event in await caller.events(run_id) if isinstance(event, ev.ModelAsked)]
    assert asked[0].output_tokens == 1_000 and asked[0].input_tokens > 0
