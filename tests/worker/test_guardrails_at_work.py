"""Guardrails where runs are driven: what models say and tools return is judged before anybody reads it, and a call
before it is made, all by the rules of that moment."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from tests.worker.inside import DONE, Caller, Late, Thinker, Turn, agent, now, working

from sojourn.guardrails.rules import Guardrail, encode
from sojourn.loop import events as ev
from sojourn.loop.agent import Agent, Tool, digest
from sojourn.loop.budget import Limits
from sojourn.loop.continuation import frames
from sojourn.loop.messages import Message, Text, ToolResult
from sojourn.models.model import Request, TextDelta
from sojourn.store import guardrails
from sojourn.store.audit.operator import operator
from sojourn.store.db import Database
from sojourn.store.tenant import usage
from sojourn.tools.tool import Outcome
from sojourn.worker.worker import Worker

MAIL, MARK = "ann@example.com", "[redacted by g]"


class Echo:
    """A tool that returns what it is given, and remembers it."""

    definition = Tool(name="echo")

    def __init__(self) -> None:
        self.ran: list[Any] = []

    async def run(self, args: str, context: Any) -> Outcome:
        self.ran.append(msgspec.json.decode(args))
        context.show(args)
        return Outcome(self.ran[-1]["text"])

    async def stop(self, context: Any) -> None:
        """It holds nothing."""


class Streaming(Thinker):
    """Says a text in pieces, once it may."""

    def __init__(self, *turns: Turn) -> None:
        super().__init__(*turns)
        self.may_end = asyncio.Event()

    async def stream(
        self, request: Request, *, message_id: str, **more: object
    ) -> AsyncGenerator[Message | TextDelta, None]:  # type: ignore[override]
        async for message in super().stream(request, message_id=message_id, **more):
            for part in message.parts:
                text = part.text if isinstance(part, Text) else ""
                for piece in (text[: len(text) // 2], text[len(text) // 2 :]):
                    yield TextDelta(piece)
            await self.may_end.wait()
            yield message


class Company(Caller):
    """A caller whose tenant has guardrails."""

    async def rule(self, worker: Worker | None, kind: str, on: str, name: str = "g", **more: Any) -> None:
        """Bring one rule into force; `worker` knows it at once."""
        spec = encode(msgspec.convert({"rules": [{"kind": kind, "on": [on], **more}]}, Guardrail))
        async with self.database.scoped(self.principal.handle) as conn:
            await guardrails.put(conn, self.principal.tenant, name, spec=spec, by=self.principal.user)
        if worker is not None:
            await worker.parts.guardrails.refresh()

    async def said(self, run_id: str) -> list[str]:
        """The transcript: words, and observations."""
        return [
            part.text
            for message in (await self.transcript(run_id)).root.messages
            for part in message.parts
            if isinstance(part, Text | ToolResult)
        ]

    async def acted(self, run_id: str) -> list[tuple[Any, ...]]:
        """What the journal says of rules: the guardrail, its version, where and what."""
        found = [one for one in await self.events(run_id) if isinstance(one, ev.Noted)]
        return [
            tuple(one.data[name] for name in ("guardrail", "version", "on", "then"))
            for one in found
            if one.kind == "guardrail.acted"
        ]


@asynccontextmanager
async def at_work(database: Database, thinker: Thinker, name: str = "w1") -> AsyncIterator[tuple[Worker, Echo]]:
    """A worker that has the tool."""
    async with working(database, thinker, None, name=name) as worker:
        echo = Echo()
        worker.parts.tools["echo"] = echo  # type: ignore[index]
        yield worker, echo


@pytest.fixture
async def caller(database: Database) -> Company:
    return await Company.of(database)


def calling(*texts: str) -> Turn:
    return tuple(("echo", {"text": text}) for text in texts)


# ---- replies ---------------------------------------------------------------------------------


async def test_a_reply_is_redacted_before_it_is_kept(database: Database, caller: Company) -> None:
    async with at_work(database, Thinker(f"Ask {MAIL} or bob@example.com.")) as (worker, _):
        await caller.rule(worker, "pii", "output", then="redact")
        run_id = await caller.run(agent(), worker)
        row = await caller.until(run_id, "completed")
    assert row.result == f"Ask {MARK} or {MARK}."
    assert await caller.said(run_id) == ["go", row.result]
    assert await caller.acted(run_id) == [("g", 1, "output", "redact")]
    in_force = next(one.data for one in await caller.events(run_id) if isinstance(one, ev.Noted))
    assert in_force == {"g": 1}
    async with database.engine() as engine:
        for table in ("journal", "message", "delta"):
            rows = await engine.fetch(f"select * from {table}")
            assert MAIL not in repr([tuple(row.values()) for row in rows]), table


async def test_a_refused_reply_is_told_once_asked_again_and_paid_for(database: Database, caller: Company) -> None:
    thinker = Thinker(f"Ask {MAIL}.")
    async with at_work(database, thinker) as (worker, _):
        await caller.rule(worker, "pii", "output")
        heard = len(thinker.heard)
        run_id = await caller.run(agent(), worker)
        row = await caller.until(run_id, "failed")
    assert row.error is not None
    assert (row.error.code, MAIL in row.error.detail) == ("guardrail.output", False)
    assert len(thinker.heard) - heard == 2
    told = thinker.heard[-1].messages[-1]
    assert (told.role, "guardrail g (version 1, rule 1: pii) refuses this reply" in told.text) == ("user", True)
    assert not any(message.role == "assistant" for message in thinker.heard[-1].messages)
    async with database.scoped(caller.principal.handle) as conn:
        assert len(await usage.ledger(conn, run_id)) == 2
    assert row.usd_micros == 14


async def test_a_reply_that_keeps_to_it_the_second_time_goes_on(database: Database, caller: Company) -> None:
    class Obedient(Thinker):
        async def stream(self, request: Request, **more: Any) -> AsyncGenerator[Message, None]:
            told = "withheld" in request.messages[-1].text
            async for message in super().stream(request, **more):
                yield msgspec.structs.replace(message, parts=(Text("Ask nobody."),)) if told else message

    async with at_work(database, Obedient(f"Ask {MAIL}.")) as (worker, _):
        await caller.rule(worker, "pii", "output")
        run_id = await caller.run(agent(), worker)
        row = await caller.until(run_id, "completed")
    assert (row.result, row.steps) == ("Ask nobody.", 2)
    await caller.transcript(run_id)  # its journal is whole


async def test_a_reply_that_must_be_judged_is_not_shown_in_pieces(database: Database, caller: Company) -> None:
    async def pieces(run_id: str) -> str:
        async with database.engine() as engine:
            return repr(await engine.fetch("select items from delta where run_id = $1", run_id))

    text = f"Ask {MAIL}!"
    thinker = Streaming(text)
    async with at_work(database, thinker) as (worker, _):
        free = await caller.run(agent(), worker)
        async with asyncio.timeout(60):
            while "ple.com!" not in await pieces(free):  # noqa: ASYNC110 (a worker writes it)
                await asyncio.sleep(0.01)
        await caller.rule(worker, "pii", "output", then="redact")
        held = await caller.run(agent(), worker)
        async with asyncio.timeout(60):
            while len(thinker.heard) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        thinker.may_end.set()
        rows = [await caller.until(run_id, "completed") for run_id in (free, held)]
        assert {row.result for row in rows} == {f"Ask {MARK}!"}, "the first one, too: it was not kept yet"
    assert await pieces(held) == "[]"


# ---- results ---------------------------------------------------------------------------------


async def test_a_result_is_redacted_or_withheld_before_the_model_reads_it(database: Database, caller: Company) -> None:
    thinker = Thinker(calling(f"of {MAIL}", "a bomb", "peace"))
    async with at_work(database, thinker) as (worker, echo):
        await caller.rule(worker, "pii", "tool_result", then="redact")
        await caller.rule(worker, "pattern", "tool_result", "h", pattern="bomb")
        run_id = await caller.run(agent("echo"), worker)
        await caller.until(run_id, "completed")
    assert len(echo.ran) == 3
    _, mail, bomb, peace, _ = await caller.said(run_id)
    assert (mail, peace) == (f"of {MARK}", "peace")
    assert "The guardrail h (version 1, rule 1: pattern) refuses it." in bomb
    assert "a bomb" not in repr([one.messages[2:] for one in thinker.heard])
    async with database.engine() as engine:
        assert not await engine.fetch("select from delta where run_id = $1", run_id), "it was not streamed either"


# ---- calls -----------------------------------------------------------------------------------


async def test_a_refused_call_is_not_made_and_the_model_reads_why(database: Database, caller: Company) -> None:
    async with at_work(database, Thinker(calling("attack", "peace"))) as (worker, echo):
        await caller.rule(worker, "pattern", "tool_arguments", pattern="attack")
        run_id = await caller.run(agent("echo", ask="echo"), worker)
        row = await caller.until(run_id, "suspended")
        assert [wait.call for wait in row.waits] == ["/0.1"], "nobody is asked about what is refused anyway"
        await caller.approve(run_id, worker)
        await caller.until(run_id, "completed")
    assert echo.ran == [{"text": "peace"}]
    assert "The guardrail g (version 1, rule 1: pattern) does not allow this call" in (await caller.said(run_id))[1]
    assert await caller.acted(run_id) == [("g", 1, "tool_arguments", "refuse")]


async def test_a_call_is_asked_about_once_for_each_version_that_asks(database: Database, caller: Company) -> None:
    async with at_work(database, Thinker(calling("attack"), calling("peace"))) as (worker, echo):
        await caller.rule(worker, "pattern", "tool_arguments", pattern="attack", then="ask")
        run_id = await caller.run(agent("echo"), worker)
        row = await caller.until(run_id, "suspended")
        assert [(wait.kind, wait.call) for wait in row.waits] == [("approval", "/0.0")]
        assert echo.ran == []
        await caller.approve(run_id, worker)
        await caller.until(run_id, "completed")
    assert echo.ran == [{"text": "attack"}, {"text": "peace"}]
    assert await caller.acted(run_id) == [("g", 1, "tool_arguments", "ask")]


@pytest.mark.parametrize("then", ["refuse", "ask"])
@pytest.mark.parametrize("asked_by", ["policy", "guardrail"])
async def test_policy_changed_between_approval_and_execution_blocks_again(
    database: Database, caller: Company, then: str, asked_by: str
) -> None:
    thinker = Thinker(calling("attack"))
    by_policy = asked_by == "policy"
    async with at_work(database, thinker) as (worker, before):
        if not by_policy:
            await caller.rule(worker, "pattern", "tool_arguments", pattern="a", then="ask")
        run_id = await caller.run(agent("echo", ask="echo" if by_policy else ""), worker)
        (first,) = (await caller.until(run_id, "suspended")).waits
    await caller.post(run_id, ev.Decided(at=now(), wait=first.id, by="ann", decision="approve"))
    await caller.rule(None, "pattern", "tool_arguments", pattern="attack", then=then)
    async with at_work(database, thinker, "w2") as (worker, after):
        row = await caller.until(run_id, "completed" if then == "refuse" else "suspended")
        assert before.ran == after.ran == []
        if then == "ask":
            (second,) = row.waits
            assert (second.call, second.id != first.id) == ("/0.0", True)
            late = ev.Decided(at=now(), wait=first.id, by="ann", decision="approve")
            await caller.post(run_id, late)
            await caller.post(run_id, ev.Decided(at=now(), wait=second.id, by="ann", decision="approve"))
            worker.parts.doorbell.ring("sojourn_work", ())
            await caller.until(run_id, "completed")
            assert after.ran == [{"text": "attack"}]
    version = 1 if by_policy else 2
    assert (await caller.acted(run_id))[-1] == ("g", version, "tool_arguments", then)
    decided = [type(event) for event in await caller.events(run_id) if isinstance(event, ev.Decided | ev.Judged)]
    assert decided[-2 if then == "refuse" else -3 :][:2] == [ev.Decided, ev.Judged]
    await caller.transcript(run_id)


@pytest.mark.parametrize("then", ["refuse", "ask"])
async def test_a_sub_agent_of_a_commit_that_is_taken_back_begins_by_the_new_rules(
    database: Database, caller: Company, then: str
) -> None:
    tool = Tool(name="help", executor="agent", agent=digest(agent()))
    boss = msgspec.structs.replace(agent(), tools=(tool,), limits=Limits(steps=1, on_exhaust="suspend"))
    async with at_work(database, Thinker((("help", {"input": "attack"}),))) as (worker, _):

        async def late(run_id: str) -> None:
            await caller.say(run_id, "hurry")
            await caller.rule(worker, "pattern", "tool_arguments", pattern="attack", then=then)

        committer = worker.parts.committer
        assert isinstance(committer, Late)
        committer.status, committer.moments = "suspended", [late]
        run_id = await caller.run(boss, worker, agents=(agent(),))
        waits = (await caller.until(run_id, "suspended")).waits
        assert [wait.kind for wait in waits] == (["approval"] if then == "ask" else ["budget"])
    events = await caller.events(run_id)
    assert [event.verdict for event in events if isinstance(event, ev.Judged)] == ["ask" if then == "ask" else "deny"]
    asked = [wait.frame for one in events if isinstance(one, ev.Asked) for wait in one.waits]
    assert asked == [wait.frame for wait in waits] == ["/"], "nobody was told of the sub-agent's own question"
    assert all(frame.step == 0 for frame in frames((await caller.transcript(run_id)).root) if frame.id != "/")


async def test_a_call_that_no_worker_runs_is_judged_before_it_is_handed_out(
    database: Database, caller: Company
) -> None:
    clerk = msgspec.structs.replace(agent(), tools=(Tool(name="ship", executor="client"),))
    assert isinstance(clerk, Agent)
    turn = (("ship", {"to": "attack"}), ("ship", {"to": "peace"}))
    async with at_work(database, Thinker(turn)) as (worker, _):
        await caller.rule(worker, "pattern", "tool_arguments", pattern="attack")
        run_id = await caller.run(clerk, worker)
        (wait,) = (await caller.until(run_id, "suspended")).waits
        assert (wait.kind, wait.call) == ("client_tool", "/0.1")
        asked = [wait.call for one in await caller.events(run_id) if isinstance(one, ev.Asked) for wait in one.waits]
        assert asked == ["/0.1"], "the client never saw the other one"
        await caller.rule(worker, "tools", "tool_arguments", allow=[])
        answer = ev.Decided(at=now(), wait=wait.id, by="ann", decision="answer", text="shipped")
        await caller.post(run_id, answer)
        worker.parts.doorbell.ring("sojourn_work", ())
        await caller.until(run_id, "completed")
    assert "shipped" in await caller.said(run_id), "what was handed out may still be answered"


# ---- changes ---------------------------------------------------------------------------------


async def test_fifty_runs_at_work_are_judged_by_the_rules_of_the_moment(database: Database, caller: Company) -> None:
    other = await Company.of(database, "rival")
    thinker = Streaming(f"Ask {MAIL}.")
    async with at_work(database, thinker) as (worker, _):
        ours = [await caller.run(agent(), worker) for _ in range(50)]
        theirs = await other.run(agent(), worker)
        async with asyncio.timeout(60):
            while len(thinker.heard) < 51:  # noqa: ASYNC110 (they are claimed one after the other)
                await asyncio.sleep(0.01)
        await caller.rule(worker, "pii", "output", then="redact")
        thinker.may_end.set()
        results = {(await caller.until(run_id, "completed")).result for run_id in ours}
        assert results == {f"Ask {MARK}."}
        assert (await other.until(theirs, "completed")).result == f"Ask {MAIL}.", "another tenant's are as they were"
        async with database.scoped(caller.principal.handle) as conn:
            await guardrails.end(conn, "acme", "g", by=caller.principal.user)
        await worker.parts.guardrails.refresh()
        run_id = await caller.run(agent(), worker)
        assert (await caller.until(run_id, "completed")).result == f"Ask {MAIL}."
        assert await caller.acted(run_id) == []


async def test_the_operators_rules_hold_for_every_tenant(database: Database, caller: Company) -> None:
    async with at_work(database, Thinker(calling("attack"))) as (worker, echo):
        await caller.rule(worker, "tools", "tool_arguments", "tools", allow=["*"])
        async with operator(database) as conn:
            spec = '{"rules":[{"kind":"tools","on":["tool_arguments"],"allow":["read_*"]}]}'
            await guardrails.put(conn, guardrails.EVERYBODY, "tools", spec=spec, by="root")
        await worker.parts.guardrails.refresh()
        run_id = await caller.run(agent("echo"), worker)
        row = await caller.until(run_id, "completed")
    assert (row.result, echo.ran) == (DONE, [])
    noted = [one.data for one in await caller.events(run_id) if isinstance(one, ev.Noted)]
    assert noted[0] == {"operator/tools": 1, "tools": 1}
    assert noted[1]["operator"] is True
