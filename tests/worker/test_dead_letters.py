"""A run that kills its workers, with innocent ones beside it: it alone is set aside, and goes on once mended."""

import asyncio
import os
from collections.abc import AsyncIterator

import pytest
from tests.worker.restarted import Company, Follower, company, plays
from tests.worker.stoppable import database

from sojourn.models.simulator.script import Call, Pacing, Rule, Script, When
from sojourn.store.db import Database
from sojourn.store.queue import CLAIMS_MAX

DEATHS = CLAIMS_MAX if os.environ.get("SOJOURN_DRILL") == "full" else 3
"""So many workers really die; the short size is told of the others after the first one."""
INNOCENT = 6
SCRIPT = Script(
    rules=(
        *plays("killer", (Call("charge", {"n": 1}),), (Call("crash"),), (Call("charge", {"n": 2}),), text="survived"),
        *(
            Rule(
                when=When(model="innocent", step=n),
                calls=(Call("ship", {"to": str(n)}),),
                pacing=Pacing(first_token_s=0.4),
            )
            for n in range(4)
        ),
        Rule(text="all done"),
    )
)


@pytest.fixture
async def here() -> AsyncIterator[Company]:
    async with company(SCRIPT) as made:
        yield made


async def revive(here: Company, db: Database, killer: str) -> None:
    """Start a worker for each that dies, and let the killer not rest in between, until it is set aside."""
    told = DEATHS == CLAIMS_MAX
    while (await here.get(f"/v1/runs/{killer}"))["status"] != "quarantined":
        async with db.engine() as engine:
            if here.workers[-1].returncode is not None:
                if not told:
                    await engine.execute("update run set claims = $2 where id = $1", killer, CLAIMS_MAX - DEATHS + 1)
                told = True
                await here.start_worker()
            await engine.execute("update run set due_at = now() where id = $1 and due_at > now()", killer)
        await asyncio.sleep(0.05)


@pytest.mark.drill
async def test_a_run_that_kills_its_workers_is_set_aside_alone_and_goes_on_once_mended(here: Company) -> None:
    killer = await here.run(model="openai:killer", tools=["charge", "crash"], input="go")
    innocent = [await here.run(model="openai:innocent", tools=["ship"], input="go") for _ in range(INNOCENT)]
    follower = Follower(here, killer)
    told = asyncio.create_task(follower.read("run.quarantined"))
    async with database(here) as db:
        await asyncio.wait_for(revive(here, db, killer), 240)
        for run_id in innocent:
            assert (await here.until(run_id))["status"] == "completed"
        async with asyncio.timeout(30):
            await told

        (letter,) = (await here.get("/v1/dead_letters"))["data"]
        assert (letter["run"]["id"], letter["run"]["error"]["code"]) == (killer, "run.not_driven")
        assert (letter["claims"], len(set(letter["workers"]))) == (CLAIMS_MAX, DEATHS)
        assert here.done(killer) == ["charge 1"]
        refused = await here.post(
            "/v1/runs", {"model": "openai:sim", "session": letter["run"]["session_id"], "input": "x"}, expect=409
        )
        assert refused["code"] == "session.busy", "it has not ended"
        async with here.http.get("/metrics") as response:
            assert "\nsojourn_dead_letters 1\n" in await response.text()

        (here.effects.parent / "effects.mended").touch()
        await here.post(f"/v1/runs/{killer}/retry")
        run = await here.until(killer)
    assert (run["status"], run["output"], run["error"]) == ("completed", "survived", None)
    assert here.done(killer) == ["charge 1", "charge 2"]
    await follower.read("run.completed")
    assert follower.durable == await here.events(killer), "no gap, and nothing twice"
    assert (await here.get("/v1/dead_letters"))["data"] == []
    again = await here.post(f"/v1/runs/{killer}/retry", expect=409)
    assert again["code"] == "run.not_quarantined"
