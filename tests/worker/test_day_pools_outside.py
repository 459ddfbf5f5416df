"""A pool of the day over real processes: as many calls as there is room for, whoever makes them, and whoever dies."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import until
from tests.installation import Installation

from sojourn.models.simulator import Simulator
from sojourn.models.simulator.script import Charge, Pacing, Rule, Script, When

pytestmark = pytest.mark.usefixtures("whole_day")

PRICES = '[prices."openai:*"]\ninput = 0.0\noutput = 1000000.0\n'
"""A dollar a token: a reply costs as many dollars as it may have tokens."""
TOKENS = 10
SLOW = Pacing(first_token_s=0.3)
SCRIPT = Script(
    rules=(
        Rule(when=When(model="stuck", attempt=1), text="never", pacing=Pacing(first_token_s=60)),
        Rule(text="done", usage=Charge(output=TOKENS), pacing=SLOW),
    )
)


def goal(model: str, **more: Any) -> dict[str, Any]:
    return {"input": "go", "model": f"openai:{model}", "params": {"max_output_tokens": TOKENS}, **more}


async def pool(installation: Installation) -> dict[str, Any]:
    (found,) = (await installation.get("/v1/budgets?user=local"))["data"]
    return found["usd"]  # type: ignore[no-any-return]


async def bounded(installation: Installation, usd: int) -> None:
    async with installation.http.put("/v1/budgets/users", json={"usd": usd}) as response:
        assert response.status == 200, await response.text()


async def test_fifty_runs_on_three_workers_make_the_calls_that_there_is_room_for(data_dir: Path) -> None:
    (data_dir / "sojourn.toml").write_text(PRICES)
    async with Simulator(SCRIPT) as simulator:
        installation = Installation(data_dir, simulator.url, {"SOJOURN_BEAT_S": "0.2", "SOJOURN_ALERTS_EVERY_S": "1"})
        try:
            await installation.start_api("--no-worker")
            await bounded(installation, 7 * TOKENS + 5)
            ids = [await installation.run(**goal("quick")) for _ in range(50)]
            for _ in range(3):
                await installation.start_worker()
            ends = [await installation.until(run_id) for run_id in ids]
            assert sum(run["status"] == "completed" for run in ends) == 7
            errors = {run["error"]["code"] for run in ends if run["status"] == "failed"}
            assert errors == {"budget.day_exhausted"}
            assert len(simulator.requests()) == 7
            assert await pool(installation) == {
                "limit": "75.000000",
                "spent": "70.000000",
                "held": "0.000000",
                "left": "5.000000",
            }
            await _told(installation)
            await _killed(installation, simulator)
        finally:
            await installation.stop()


async def _told(installation: Installation) -> None:
    """A worker looks, and says that the pool is nearly spent."""
    told: list[dict[str, Any]] = []
    async with asyncio.timeout(60):
        while not told:
            await asyncio.sleep(0.1)
            told = [one for one in (await installation.get("/v1/alerts"))["data"] if one["kind"] == "budget"]
    (alert,) = told
    assert (alert["what"], alert["subject"], alert["bound"]) == ("user", "local", 75_000_000)
    assert 0.8 * 75_000_000 <= alert["value"] <= 70_000_000


async def _killed(installation: Installation, simulator: Simulator) -> None:
    """All workers die in the middle of calls; the next one takes their places over, and they leave none behind."""
    await bounded(installation, 7 * TOKENS + 2 * TOKENS)
    limits = {"on_exhaust": "suspend"}
    stuck = [await installation.run(**goal("stuck", input=f"go {n}", limits=limits)) for n in range(2)]
    await until(lambda: len(simulator.requests()) == 9)
    assert (await pool(installation))["held"] == "20.000000"
    for worker in installation.workers:  # all at once, so that none takes over from another
        worker.kill()
    await asyncio.gather(*(worker.wait() for worker in installation.workers))
    assert (await pool(installation))["held"] == "20.000000", "nobody knows yet what became of the calls"
    await bounded(installation, 7 * TOKENS + 4 * TOKENS)
    await installation.start_worker()
    for run_id in stuck:
        await installation.until(run_id, "completed")
    found = await pool(installation)
    assert found["held"] == "0.000000"
    assert 90 <= float(found["spent"]) <= 110, "two replies, and what is charged for the two that were cut"
