"""What judges cost: it is set aside before they are asked, in the run's budget and in the pools of the day."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from msgspec.structs import replace
from tests.conftest import until
from tests.worker.court import COST, Bench, Court
from tests.worker.inside import SevenEach, Thinker, agent, working
from tests.worker.test_day_budgets import today
from tests.worker.test_guardrails_at_work import Echo, at_work, calling

from sojourn.loop import events as ev
from sojourn.loop.agent import Params, Tool, digest
from sojourn.loop.budget import Limits, Tariff
from sojourn.loop.messages import Message
from sojourn.models.model import ModelFailed, Request
from sojourn.store.db import Database
from sojourn.store.sharing.limits import set_limits
from sojourn.tools.tool import Outcome

pytestmark = pytest.mark.usefixtures("whole_day")

SHORT = Params(max_output_tokens=300)


@pytest.fixture
async def caller(database: Database) -> Bench:
    return await Bench.of(database)


async def test_a_judge_is_not_asked_where_the_run_has_no_room_for_it(database: Database, caller: Bench) -> None:
    court = Court(calling("peace"))
    async with at_work(database, court) as (worker, echo):
        await caller.judge(worker, "tool_arguments")
        clerk = replace(agent("echo"), params=SHORT, limits=Limits(output_tokens=900))
        run_id = await caller.run(clerk, worker)
        await caller.until(run_id, "completed")
    assert (echo.ran, court.texts) == ([], [])
    assert await caller.consulted(run_id) == [("tool_arguments", "failed", "budget.exhausted")]


async def test_a_judge_without_a_price_is_not_asked_where_money_is_bounded(database: Database, caller: Bench) -> None:
    class Unpriced(SevenEach):
        def tariff(self, reference: str) -> Tariff | None:  # type: ignore[override]
            return None if reference == "sim:judge" else super().tariff(reference)

    court = Court(calling("peace"), "done")
    async with working(database, court, None, prices=Unpriced()) as worker:
        await caller.judge(worker, "output")
        clerk = replace(agent(), params=SHORT)
        free = await caller.run(clerk, worker)
        await caller.until(free, "completed")
        assert await caller.paid(free) == [None], "what is not bounded may be unpriced, as replies may"
        bound = await caller.run(replace(clerk, limits=Limits(usd_micros=10**9)), worker)
        await caller.until(bound, "failed")
    assert set(await caller.consulted(bound)) == {("output", "failed", "budget.price_unknown")}


async def test_what_a_judge_may_cost_is_held_in_the_pools_of_the_day_while_it_is_asked(
    database: Database, caller: Bench
) -> None:
    court = Court(calling("peace"))
    court.may_judge.clear()
    await set_limits(database, "acme", {"usd_day_micros": 10**9})
    async with at_work(database, court) as (worker, _):
        await caller.judge(worker, "tool_result")
        run_id = await caller.run(agent("echo"), worker)
        await until(lambda: bool(court.begun))
        held = await today(caller)
        assert (held.usd, held.held_tokens > 1_000) == (7, True)
        court.may_judge.set()
        row = await caller.until(run_id, "completed")
        pool = await today(caller)
    assert (pool.usd, pool.held_usd, pool.held_tokens) == (row.usd_micros, 0, 0)
    assert row.usd_micros == 2 * 7 + COST


async def test_a_judge_that_a_pool_has_no_room_for_is_not_asked(database: Database, caller: Bench) -> None:
    court = Court(calling("peace"))
    await set_limits(database, "acme", {"tokens_day": 900})
    async with at_work(database, court) as (worker, echo):
        await caller.judge(worker, "tool_arguments")
        run_id = await caller.run(replace(agent("echo"), params=SHORT), worker)
        await caller.until(run_id, "completed")
        pool = await today(caller)
    assert (echo.ran, court.texts) == ([], [])
    assert await caller.consulted(run_id) == [("tool_arguments", "failed", "budget.day_exhausted")]
    assert (pool.held_tokens, pool.tokens) == (0, 4), "nothing is held for it"


async def test_nothing_is_held_for_a_judge_that_failed_for_nothing(database: Database, caller: Bench) -> None:
    def away(_: str) -> ModelFailed:
        court.may_reply.clear()
        failed = ModelFailed("refused_request", "It does not take this.", retry=False)
        failed.refused = True
        return failed

    court = Court(calling("peace"), verdict=away)
    await set_limits(database, "acme", {"tokens_day": 10**9})
    async with at_work(database, court) as (worker, _):
        await caller.judge(worker, "tool_result")
        run_id = await caller.run(agent("echo"), worker)
        await until(lambda: len(court.heard) == 2)
        async with database.engine() as engine:
            held = await engine.fetch("select call from reservation where open and run_id = $1", run_id)
        court.may_reply.set()
        await caller.until(run_id, "completed")
    assert [row["call"] for row in held] == ["/#1@1"], "only for the reply that is on its way"


async def test_a_judge_waits_for_room_that_calls_in_flight_hold(database: Database, caller: Bench) -> None:
    court = Court(calling("peace"))
    court.may_judge.clear()
    await set_limits(database, "acme", {"tokens_day": 2_000})
    async with at_work(database, court) as (worker, echo):
        await caller.judge(worker, "tool_arguments")
        clerk = replace(agent("echo"), params=SHORT)
        ids = [await caller.run(clerk, worker) for _ in range(2)]
        await until(lambda: bool(court.begun))
        court.may_judge.set()
        for run_id in ids:
            await caller.until(run_id, "completed")
    assert len(echo.ran) == len(court.texts) == 2
    assert all([await caller.consulted(one) == [("tool_arguments", "passes", "")] for one in ids])


async def test_what_judges_hold_is_not_spent_on_replies_meanwhile(database: Database, caller: Bench) -> None:
    """A sub-agent's next reply waits while a judge holds the room that the limit leaves for both."""

    class Gate(Echo):
        definition = Tool(name="gate")

        async def run(self, args: str, context: Any) -> Outcome:
            await asyncio.wait_for(opened.wait(), 60)
            return Outcome("open")

    class Both(Court):
        async def stream(self, request: Request, **more: Any) -> AsyncGenerator[Message, None]:
            helps = [tool.name for tool in request.tools] == ["gate"]
            said = Thinker((("gate", {}),)).stream(request, **more) if helps else super().stream(request, **more)
            async for message in said:
                yield message

    opened = asyncio.Event()
    helper = replace(agent("gate"), name="helper", params=SHORT)
    tools = (Tool(name="echo"), Tool(name="help", executor="agent", agent=digest(helper)))
    boss = replace(agent(), tools=tools, params=SHORT, limits=Limits(output_tokens=1_200))
    court = Both((("echo", {"text": "peace"}), ("help", {"input": "gate"})))
    court.may_judge.clear()

    async def step(agent_of: str) -> int:
        return sum(isinstance(one, ev.ModelAsked) and one.frame == agent_of for one in await caller.events(run_id))

    async with at_work(database, court) as (worker, _):
        worker.parts.tools["gate"] = Gate()  # type: ignore[index]
        await caller.judge(worker, "tool_result")
        run_id = await caller.run(boss, worker, agents=(helper,))
        await until(lambda: bool(court.begun))
        opened.set()
        async with asyncio.timeout(60):
            while not any(isinstance(one, ev.Returned) for one in await caller.events(run_id)):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert await step("/0.1") == 1, "its second reply is due, and waits"
        court.may_judge.set()
        await caller.until(run_id, "completed")
        assert await step("/0.1") == 2
    await caller.transcript(run_id)
