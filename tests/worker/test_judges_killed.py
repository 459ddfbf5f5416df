"""Workers that are killed round a verdict: what it is about is done once, and what is durable is not asked again."""

import asyncio

from msgspec.structs import replace
from tests.conftest import until
from tests.installation import at
from tests.worker.restarted import Company, asks, company, plays
from tests.worker.test_edges_of_crashes import WAITING, no_commit

from sojourn.models.simulator.script import Call, Rule, Script, Stall, When
from sojourn.store.roles import Dsns

PASSES = Rule(when=When(model="justice"), calls=(Call("verdict", {"breaks": False}),))
CHARGES = Script(rules=(PASSES, *plays("payer", (Call("charge", {"n": 1}),))))
PONDERS = replace(CHARGES, faults=(Stall(when=When(model="justice"), times=1, for_s=3.0),))
PAYER = {"model": "openai:payer", "tools": ["charge"]}


async def judged(here: Company) -> None:
    """Bring a judge of calls into force."""
    rule = {"kind": "judge", "on": ["tool_arguments"], "model": "openai:justice", "criteria": "It costs too much."}
    async with here.http.put("/v1/guardrails/g", json={"rules": [rule]}) as response:
        assert response.status == 201, await response.text()


async def test_crash_between_the_verdict_and_its_commit_asks_again_and_pays_once(dsns: Dsns) -> None:
    async with company(PONDERS, **at(dsns)) as here:
        await judged(here)
        run_id = await here.run(agent=PAYER, input="go")
        await until(lambda: bool(here.simulator.requests(model="justice")))
        async with no_commit(dsns, run_id) as watch:
            await until(lambda: here.simulator.requests(model="justice")[0].outcome == "finished")
            async with asyncio.timeout(30):
                while not await watch.fetch(WAITING):  # noqa: ASYNC110 (the worker's commit comes to the lock)
                    await asyncio.sleep(0.01)
            await here.kill_workers()
        await here.start_worker()
        await here.until(run_id)
        assert here.done(run_id) == ["charge 1"]
        assert len(here.simulator.requests(model="justice")) == 2
        (told,) = await here.of(run_id, "guardrail.consulted")
        assert (told["verdict"], told["model"]) == ("passes", "openai:justice")


async def test_crash_after_the_verdicts_commit_does_not_ask_again(dsns: Dsns) -> None:
    async with company(CHARGES, **at(dsns)) as here:
        await judged(here)
        run_id = await here.run(agent={**PAYER, "policy": asks("charge")}, input="go")
        wait = await here.asked(run_id, "approval")
        await here.restart()
        await here.decide(wait, "approve")
        await here.until(run_id)
        assert here.done(run_id) == ["charge 1"]
        assert len(here.simulator.requests(model="justice")) == 1
        fork = await here.post(f"/v1/runs/{run_id}/fork", {"step": 0})
        await here.asked(fork["run_id"], "approval")
        assert len(here.simulator.requests(model="justice")) == 1, "a fork knows it, too"
