"""This release and the next one over one database, as real processes: what the guard keeps, and what needs no guard."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from tests.releases.next_release import next_release
from tests.worker.restarted import Company, asks, company, plays

from sojourn.models.simulator.script import Call, Script

SCRIPT = Script(
    rules=(
        *plays("clerk", (Call("charge", {"n": 1}),)),
        *plays("slow", (Call("shell", {"command": "echo begun >> log; sleep 2"}),), (Call("charge", {"n": 1}),)),
    )
)
CLERK = {"model": "openai:clerk", "tools": ["charge"], "policy": asks("charge")}
SLOW = {"model": "openai:slow", "tools": ["shell", "charge"]}


class Releases:
    """A company whose API and workers are of either release; `here` speaks to the API of this one."""

    def __init__(self, here: Company, newer: dict[str, str]) -> None:
        self.here, self.newer = here, newer
        self.next_api: aiohttp.ClientSession

    async def start_next_api(self) -> None:
        process = await self.here.start("serve", "--port", "0", "--no-worker", name="next-api", env=self.newer)
        self.next_api = self.here.caller(await self.here.announced(process, "next-api"))

    async def only(self, *workers: dict[str, str]) -> None:
        """Kill every worker, and start these."""
        await self.here.kill_workers()
        for env in workers:
            await self.here.start_worker(**env)

    async def cheer(self, run_id: str) -> None:
        """Send what only the next release can read."""
        async with self.next_api.post(f"/v1/runs/{run_id}/messages", json={"input": "cheer"}) as answer:
            assert answer.status == 202, await answer.text()

    async def approve(self, api: aiohttp.ClientSession, wait: Any) -> tuple[int, Any]:
        async with api.post(f"/v1/approvals/{wait['approval']}", json={"decision": "approve"}) as answer:
            return answer.status, await answer.json(content_type=None)

    def unreadable(self, run_id: str) -> int:
        """How often a worker held the run and could not read it."""
        lines = (self.here.data_dir / "worker.log").read_text().splitlines()
        return sum("run.unreadable" in line and run_id in line for line in lines)

    async def ends(self, run_id: str) -> None:
        run = await self.here.until(run_id)
        assert (run["status"], self.here.done(run_id)) == ("completed", ["charge 1"]), self.here.tail()


@pytest.fixture(scope="module")
async def releases() -> AsyncIterator[Releases]:
    """Both releases, the next one's database."""
    async with company(SCRIPT) as here:
        newer = next_release(here.data_dir)
        newer["PYTHONPATH"] += f":{here.env['PYTHONPATH']}"
        both = Releases(here, newer)
        await both.start_next_api()
        async with both.next_api:
            yield both


async def test_a_run_begun_by_one_release_is_finished_by_the_other(releases: Releases) -> None:
    here = releases.here
    for first, second in (({}, releases.newer), (releases.newer, {})):
        await releases.only(first)
        run_id = await here.run(agent=CLERK, input="go")
        wait = await here.asked(run_id, "approval")
        await releases.only(second)
        status, _ = await releases.approve(here.http if first else releases.next_api, wait)
        assert status == 202
        await releases.ends(run_id)


async def test_a_run_that_needs_the_next_release_waits_for_it(releases: Releases) -> None:
    here = releases.here
    await releases.only(releases.newer)
    run_id = await here.run(agent=CLERK, input="go")
    wait = await here.asked(run_id, "approval")
    rev = (await here.get(f"/v1/runs/{run_id}"))["rev"]
    await releases.cheer(run_id)
    async with asyncio.timeout(60):
        while (await here.get(f"/v1/runs/{run_id}"))["rev"] == rev:  # noqa: ASYNC110 (the worker hears it)
            await asyncio.sleep(0.02)
    await releases.only({})
    status, problem = await releases.approve(here.http, wait)
    assert (status, problem["code"], problem["retryable"]) == (503, "release.older", True), "this release cannot judge"
    assert (await here.get(f"/v1/runs/{run_id}/events", expect=503))["code"] == "release.older"
    assert (await releases.approve(releases.next_api, wait))[0] == 202
    await releases.ends(await here.run(agent={**CLERK, "policy": {}}, input="go"))
    assert (await here.get(f"/v1/runs/{run_id}"))["status"] == "queued", "nor go on with it"
    assert releases.unreadable(run_id) == 0, "or take it up in vain"
    await here.start_worker(**releases.newer)
    await releases.ends(run_id)


async def test_mail_of_the_next_release_takes_a_run_from_a_worker_of_this_one(releases: Releases) -> None:
    here = releases.here
    await releases.only({})
    run_id = await here.run(agent=SLOW, input="go")
    await here.begun(run_id)
    await releases.cheer(run_id)
    await here.until(run_id, "queued")
    await releases.ends(await here.run(agent={**CLERK, "policy": {}}, input="go"))
    assert (here.done(run_id), releases.unreadable(run_id)) == ([], 1)
    await here.start_worker(**releases.newer)
    await releases.ends(run_id)
    assert await here.log_of(run_id) == "begun\n"
