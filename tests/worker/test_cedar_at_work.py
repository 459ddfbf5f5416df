"""Cedar policies where runs are driven: what they forbid is not made, what they do not decide waits for a person, and
an approval is for the very arguments and the very policies that were asked about."""

import asyncio
from typing import Any

import msgspec
import pytest
from tests.worker.inside import DONE, Thinker, agent, now
from tests.worker.test_guardrails_at_work import Company, at_work, calling

from sojourn.guardrails.policies.engine import Absent
from sojourn.guardrails.rules import Guardrail, encode
from sojourn.loop import events as ev
from sojourn.store import guardrails
from sojourn.store.audit.operator import operator
from sojourn.store.db import Database

PEACE = """
permit(principal in Tenant::"acme", action == Action::"echo", resource == Agent::"clerk")
when { context.arguments.text == "peace" };
"""
NO_WAR = '@id("no-war") forbid(principal, action, resource) when { context.arguments.text like "*war*" };'


def spec(policies: str) -> str:
    rule = {"kind": "cedar", "on": ["tool_arguments"], "policies": policies}
    return encode(msgspec.convert({"rules": [rule]}, Guardrail))


@pytest.fixture
async def caller(database: Database) -> Company:
    return await Company.of(database)


async def decide(caller: Company, worker: Any, policies: str, name: str = "g") -> None:
    """Bring policies into force; `worker` knows them at once."""
    async with caller.database.scoped(caller.principal.handle) as conn:
        await guardrails.put(conn, caller.principal.tenant, name, spec=spec(policies), by=caller.principal.user)
    if worker is not None:
        await worker.parts.guardrails.refresh()


async def test_forbidden_is_refused_permitted_is_made_and_the_rest_waits_for_a_person(
    database: Database, caller: Company
) -> None:
    async with at_work(database, Thinker(calling("war", "peace", "lunch"))) as (worker, echo):
        await decide(caller, worker, PEACE + NO_WAR)
        run_id = await caller.run(agent("echo"), worker)
        row = await caller.until(run_id, "suspended")
        assert [(wait.kind, wait.call) for wait in row.waits] == [("approval", "/0.2")]
        await caller.approve(run_id, worker)
        row = await caller.until(run_id, "completed")
    assert (row.result, sorted(one["text"] for one in echo.ran)) == (DONE, ["lunch", "peace"])
    said = await caller.said(run_id)
    assert "(version 1, rule 1: cedar, forbidden by no-war) does not allow this call" in said[1]
    assert await caller.acted(run_id) == [("g", 1, "tool_arguments", "refuse"), ("g", 1, "tool_arguments", "ask")]
    await caller.transcript(run_id)


@pytest.mark.parametrize(("edited", "ran"), [("war", []), ("peace", ["peace"])])
async def test_an_approval_that_edits_the_arguments_is_judged_by_what_they_are_now(
    database: Database, caller: Company, edited: str, ran: list[str]
) -> None:
    async with at_work(database, Thinker(calling("lunch"))) as (worker, echo):
        await decide(caller, worker, PEACE + NO_WAR)
        run_id = await caller.run(agent("echo"), worker)
        (wait,) = (await caller.until(run_id, "suspended")).waits
        args = msgspec.json.encode({"text": edited}).decode()
        edit = ev.Decided(at=now(), wait=wait.id, by="ann", decision="edit", args=args, args_digest=wait.args_digest)
        await caller.post(run_id, edit)
        worker.parts.doorbell.ring("sojourn_work", ())
        await caller.until(run_id, "completed")
    assert [one["text"] for one in echo.ran] == ran


async def test_an_approval_is_for_the_call_that_was_asked_about_and_no_other(
    database: Database, caller: Company
) -> None:
    async with at_work(database, Thinker(calling("lunch"), calling("dinner"))) as (worker, echo):
        await decide(caller, worker, PEACE)
        run_id = await caller.run(agent("echo"), worker)
        (first,) = (await caller.until(run_id, "suspended")).waits
        other = ev.Decided(at=now(), wait=first.id, by="ann", decision="approve", args_digest="sha256:of-others")
        await caller.post(run_id, other)
        await caller.approve(run_id, worker)
        await until_asked(caller, run_id, "/1.0")
        assert [one["text"] for one in echo.ran] == ["lunch"]
        await caller.approve(run_id, worker)
        await caller.until(run_id, "completed")
    assert [one["text"] for one in echo.ran] == ["lunch", "dinner"]


async def until_asked(caller: Company, run_id: str, call: str) -> None:
    """Wait until a person is asked about a call."""
    async with asyncio.timeout(60):
        while [wait.call for wait in (await caller.row(run_id)).waits] != [call]:  # noqa: ASYNC110 (a worker gets it there)
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("policies", [PEACE + NO_WAR.replace("war", "lunch"), "permit(nobody);"])
async def test_policies_that_change_between_approval_and_execution_decide_again(
    database: Database, caller: Company, policies: str
) -> None:
    thinker = Thinker(calling("lunch"))
    async with at_work(database, thinker) as (worker, before):
        await decide(caller, worker, PEACE)
        run_id = await caller.run(agent("echo"), worker)
        (wait,) = (await caller.until(run_id, "suspended")).waits
    await caller.post(run_id, ev.Decided(at=now(), wait=wait.id, by="ann", decision="approve"))
    await decide(caller, None, policies)
    async with at_work(database, thinker, "w2") as (_, after):
        await caller.until(run_id, "completed")
    assert before.ran == after.ran == []
    assert (await caller.acted(run_id))[-1] == ("g", 2, "tool_arguments", "refuse")
    await caller.transcript(run_id)


async def test_a_tenants_policies_permit_nothing_that_the_operators_do_not(database: Database, caller: Company) -> None:
    async with at_work(database, Thinker(calling("war", "lunch", "peace"))) as (worker, echo):
        async with operator(database) as conn:
            await guardrails.put(conn, guardrails.EVERYBODY, "ours", spec=spec(PEACE + NO_WAR), by="root")
        await decide(caller, worker, "permit(principal, action, resource);", "ours")
        run_id = await caller.run(agent("echo"), worker)
        (wait,) = (await caller.until(run_id, "suspended")).waits
        assert wait.call == "/0.1"
        await caller.post(run_id, ev.Decided(at=now(), wait=wait.id, by="ann", decision="reject"))
        worker.parts.doorbell.ring("sojourn_work", ())
        await caller.until(run_id, "completed")
    assert [one["text"] for one in echo.ran] == ["peace"]
    assert "The operator's guardrail ours" in (await caller.said(run_id))[1]


async def test_a_worker_without_the_engine_refuses_what_policies_are_about(database: Database, caller: Company) -> None:
    async with at_work(database, Thinker(calling("peace"))) as (worker, echo):
        worker.parts.guardrails.engine = Absent()
        await decide(caller, worker, PEACE)
        run_id = await caller.run(agent("echo"), worker)
        await caller.until(run_id, "completed")
    assert echo.ran == []
    assert "cedarpy is not installed on this worker: pip install 'sojourn[cedar]'" in (await caller.said(run_id))[1]
