"""Keys are renewed and backups taken beside an installation that works, and a backup goes on elsewhere."""

import asyncio
import base64
import hashlib
import hmac
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from console_script import operators
from tests.worker.restarted import Company, Follower, asks, company, plays

from sojourn.identity.secrets.roots import root_id
from sojourn.models.simulator.script import Call, Script

SCRIPT = Script(
    rules=(
        *plays("clerk", (Call("shell", {"command": "echo begun > log"}),), (Call("charge", {"n": 1}),)),
        *plays("stuck", (Call("hang", {}),)),
    )
)
CLERK = {"model": "openai:clerk", "tools": ["shell", "charge"], "policy": asks("charge")}
STUCK = {"model": "openai:stuck", "tools": ["hang"]}
QUICK = {"SOJOURN_LEASE_S": "2", "SOJOURN_SANDBOX_SUSPEND_S": "600"}


@pytest.fixture
async def here() -> AsyncIterator[Company]:
    async with company(SCRIPT, **QUICK) as here:
        yield here


def told(events: list[Any]) -> list[tuple[int, str]]:
    return [(event["seq"], event["type"]) for event in events]


async def hooked(here: Company, run_id: str, secret: str, message: str) -> int:
    """Send a run a signed webhook; the status of the answer."""
    body, stamp = msgspec.json.encode({"type": "paid", "data": {}}), str(int(time.time()))
    key = base64.b64decode(secret.removeprefix("whsec_"))
    made = hmac.new(key, f"{message}.{stamp}.".encode() + body, hashlib.sha256).digest()
    headers = {
        "webhook-id": message,
        "webhook-timestamp": stamp,
        "webhook-signature": f"v1,{base64.b64encode(made).decode()}",
        "Content-Type": "application/json",
    }
    async with aiohttp.request("POST", f"{here.url}/v1/hooks/{run_id}", data=body, headers=headers) as answer:
        return answer.status


async def test_every_key_is_renewed_under_a_run_that_waits_a_stream_and_a_webhook(
    here: Company, tmp_path: Path
) -> None:
    sojourn = operators(here.data_dir)
    run_id = await here.run(agent=CLERK, input="go")
    wait = await here.asked(run_id, "approval")
    old = (await here.get(f"/v1/runs/{run_id}/hook"))["secret"]
    export = await here.get(f"/v1/runs/{run_id}/continuation?files=false")
    follower = Follower(here, run_id)
    reading = asyncio.ensure_future(follower.read("run.completed"))

    async with sojourn.with_pipes("keys", "rotate") as rotating:
        await rotating.shows("scopes are signed")
        rotating.process.send_signal(signal.SIGKILL)
    done = await sojourn("keys", "rotate", "--json")
    assert {step["what"] for step in done.json["steps"]} >= {"scope", "hooks", "data", "signing"}, done.err
    second = here.data_dir / "second.key"
    moved = await sojourn("keys", "rotate", "--root", str(second))
    assert moved.code == 0 and " data keys under the root key" in moved.out
    held = (second.read_text() + (here.data_dir / "root.key").read_text()).split()
    assert not any(key in done.out + moved.out + moved.err for key in held), "no key is shown"
    assert (await sojourn("doctor")).out.count("✓ root key") == 1

    fresh = (await here.get(f"/v1/runs/{run_id}/hook"))["secret"]
    assert fresh != old
    secrets = (old, fresh, "whsec_" + "A" * 43 + "=")
    assert [await hooked(here, run_id, one, f"msg_{n}") for n, one in enumerate(secrets)] == [202, 202, 401]
    await here.asked(run_id, "approval")  # a worker has read the webhooks
    again = await here.get(f"/v1/runs/{run_id}/continuation?files=false")
    assert again["issuer"] != export["issuer"]
    for good in (export, again):
        assert (await here.post("/v1/runs/import", good, expect=409))["code"] == "import.original_here", "its seal fits"
    await here.decide(wait, "approve")
    assert (await here.until(run_id))["status"] == "completed"
    await reading
    assert told(follower.durable) == told(await here.events(run_id)), "the stream went on"
    assert not any(key in path.read_text() for key in held for path in here.data_dir.glob("*.log"))


async def test_a_backup_that_is_taken_while_runs_work_becomes_an_installation_elsewhere(here: Company) -> None:
    sojourn, path = operators(here.data_dir), here.data_dir / "monday.sojourn"
    waits, stuck = await here.run(agent=CLERK, input="go"), await here.run(agent=STUCK, input="go")
    wait = await here.asked(waits, "approval")
    while here.done(stuck) != ["hang"]:  # noqa: ASYNC110 (a worker does it)
        await asyncio.sleep(0.02)
    before = await here.events(waits)
    root, key = (here.data_dir / "root.key").read_text(), (here.data_dir / "local.key").read_text()
    made = await sojourn("backup", str(path), "--verify", "--json")
    assert made.code == 0, made.err
    assert (made.json["sessions"], made.json["elsewhere"], made.json["root_key"]) == (1, {}, None), made.out
    assert path.stat().st_mode & 0o777 == 0o600
    assert (await sojourn("backup", str(path))).code == 1, "it is not written over"
    assert root.strip().encode() not in path.read_bytes()
    await here.kill_workers()
    await here.stop()
    for name in ("postgres", "sandboxes", "root.key", "local.key"):
        place = here.data_dir / name
        shutil.rmtree(place) if place.is_dir() else place.unlink()

    folder = Path(tempfile.mkdtemp(prefix="sojourn-test-"))
    try:
        there = Company(folder, here.simulator, **QUICK, EFFECTS=str(here.effects))
        there.effects = here.effects
        anew = operators(folder)
        assert "is not at hand" in (await anew("restore", str(path))).err
        path.with_name(path.name + ".root-key").write_text(root)
        restored = await anew("restore", str(path))
        assert restored.code == 0 and "Restored" in restored.out, restored.err
        assert (folder / "root.key").read_text() == root, "it came from beside the backup"
        (folder / "local.key").write_text(key)
        other = base64.b64encode(bytes(32)).decode()
        wanted = root_id(base64.b64decode(root))
        refused = await anew("serve", "--port", "0", SOJOURN_ROOT_KEY=other)
        assert (refused.code, wanted in refused.err, other in refused.err) == (2, True, False)
        try:
            await there.start_api("--no-worker")
            await there.start_worker()
            assert await there.events(waits) == before
            assert (await there.get(f"/v1/runs/{stuck}"))["status"] in ("running", "queued", "suspended")
            follower = Follower(there, waits)
            await there.decide(wait, "approve")
            await follower.read("run.completed")
            assert told(follower.durable) == told(await there.events(waits)), "from the first event on"
            assert told(follower.durable)[: len(before)] == told(before)
            assert await there.log_of(waits) == "begun\n"
            assert (there.done(waits), there.done(stuck)) == (["charge 1"], ["hang"])
            await there.asked(stuck, "outcome_unknown")
            assert there.done(stuck) == ["hang"], "nobody knows, so a person is asked"
            assert (await there.get(f"/v1/runs/{waits}/continuation?files=false"))["issuer"]
        finally:
            await there.kill_workers()
            await there.stop()
    finally:
        shutil.rmtree(folder)
