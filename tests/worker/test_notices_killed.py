"""Workers killed with -9 while they send and look: no event is lost, a message keeps its id, an alert opens once."""

import asyncio
from pathlib import Path

from tests.installation import installed
from tests.worker.receiver import receiving

from sojourn.models.simulator.script import Rule, Script

RUNS = 16
ENV = {
    "SOJOURN_WEBHOOKS_HTTP_ALLOWED": "true",
    "SOJOURN_WEBHOOK_HOSTS_ALLOWED": "127.0.0.1",
    "SOJOURN_ALERTS_EVERY_S": "0.05",
    "SOJOURN_ALERT_SPEND_FLOOR_USD_MICROS": "1",
    "SOJOURN_LEASE_S": "2",
}


async def test_nothing_is_lost_and_nothing_opens_twice_when_workers_are_killed(data_dir: Path) -> None:
    (data_dir / "sojourn.toml").write_text('[prices."openai:sim"]\ninput = 1000\noutput = 1000\n')
    script = Script(rules=(Rule(text="done"),))
    async with receiving() as receiver, installed(data_dir, script, workers=2, env=ENV) as here:
        hook = await here.post("/v1/webhooks", {"url": receiver.url, "events": ["*"]}, expect=201)
        victims = list(here.workers)
        runs = []
        for n in range(RUNS):
            runs.append(await here.run(model="openai:sim", input="go"))
            if n in (4, 10):
                async with asyncio.timeout(60):
                    while len(receiver.ids) < n // 4:  # noqa: ASYNC110 (another process sends)
                        await asyncio.sleep(0.01)
                victims[0].kill()
                await victims.pop(0).wait()
                await here.start_worker()
        for run_id in runs:
            await here.until(run_id, "completed")
        wanted = set(runs)
        async with asyncio.timeout(180):
            while wanted - {body["data"].get("run_id") for body in receiver.bodies}:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            while len((await here.get("/v1/alerts"))["data"]) < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            while (await here.get(f"/v1/webhooks/{hook['id']}/deliveries?state=waiting"))["data"]:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert receiver.all_signed_with(hook["secret"])
        told = dict(zip(receiver.ids, receiver.bodies, strict=True))
        assert sorted(one["data"]["run_id"] for one in told.values() if one["type"] == "run.completed") == sorted(runs)
        opened = [
            (one["data"]["what"], one["data"]["subject"]) for one in told.values() if one["type"] == "alert.spend"
        ]
        assert sorted(opened) == [("agent", "inline"), ("tenant", ""), ("user", "local")]
        assert len((await here.get("/v1/alerts?all=true"))["data"]) == 3
        assert hook["secret"] not in here.tail(100_000)
