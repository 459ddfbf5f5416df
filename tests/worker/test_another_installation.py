"""A run that waits here goes on there: two installations with a database, a data folder and a worker each."""

import json
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.installation import Installation, installed

from sojourn.models.simulator.script import Call, Rule, Script, When

# Which agent speaks is seen by its model; the reader's command is asked about, the writer's is not.
SCRIPT = Script(
    rules=(
        Rule(when=When(model="boss", step=0), calls=(Call("manager", {"input": "find it"}),)),
        Rule(when=When(model="boss"), text="all done"),
        Rule(when=When(model="manager", step=0), calls=(Call("clerk", {"input": "look it up"}),)),
        Rule(when=When(model="manager"), text="the clerk found it"),
        Rule(when=When(model="clerk", step=0), calls=(Call("shell", {"command": "echo kept here > note"}),)),
        Rule(when=When(model="clerk", step=1), calls=(Call("shell", {"command": "cat note"}),)),
        Rule(when=When(model="clerk"), text="it says what was kept"),
    )
)
READS = {"tool": "shell", "verdict": "ask", "when": [{"argument": "command", "like": "cat*"}]}
AGENTS: tuple[dict[str, Any], ...] = (
    {"name": "clerk", "model": "openai:clerk", "tools": ["shell"], "policy": {"rules": [READS]}},
    {"name": "manager", "model": "openai:manager", "tools": [{"agent": "clerk"}]},
    {"name": "boss", "model": "openai:boss", "tools": [{"agent": "manager"}]},
)


@pytest.fixture
async def two(data_dir: Path) -> AsyncIterator[tuple[Installation, Installation]]:
    other = Path(tempfile.mkdtemp(prefix="sojourn-test-"))
    try:
        env = {"SOJOURN_SANDBOX_SUSPEND_S": "0"}
        async with installed(data_dir, SCRIPT, env=env) as here, installed(other, SCRIPT) as there:
            yield here, there
    finally:
        shutil.rmtree(other)


async def test_resume_from_export_on_another_host(two: tuple[Installation, Installation]) -> None:
    here, there = two
    for agent in AGENTS:
        await here.post("/v1/agents", agent, expect=201)
    run_id = await here.run(agent="boss", input="go")
    run = await here.until(run_id, "suspended")
    (wait,) = run["waits"]
    assert wait["path"] == "/0.0/0.0", "two levels down"
    data = json.dumps(await here.get(f"/v1/runs/{run_id}/continuation")).encode()
    assert b"kept here" in data and (here.data_dir / "local.key").read_bytes().strip() not in data
    issuer = json.loads(data)["issuer"]
    await there.post("/v1/trust", {"issuer": issuer, "name": "here"}, expect=201)

    headers = {"Content-Type": "application/json"}
    async with there.http.post("/v1/runs/import", data=data, headers=headers) as response:
        made = await response.json()
        assert response.status == 202, made
    moved = await there.get(f"/v1/runs/{made['run_id']}")
    assert (moved["status"], [one["id"] for one in moved["waits"]]) == ("suspended", [wait["id"]])
    await there.post(f"/v1/approvals/{moved['waits'][0]['approval']}", {"decision": "approve"})
    done = await there.until(made["run_id"])
    assert (done["status"], done["output"]) == ("completed", "all done"), done
    events = await there.events(made["run_id"])
    results = [event["text"] for event in events if event["type"] == "agent.tool_result"]
    assert [text.strip() for text in results] == ["kept here"], "the file came along, and the command ran there alone"
    assert any(event["type"] == "sandbox.restored" for event in events)
    assert (await here.get(f"/v1/runs/{run_id}"))["status"] == "suspended", "here nothing happened"
