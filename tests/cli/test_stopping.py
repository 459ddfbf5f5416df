"""Dead letters from the command line, and the operator's stops beside a running installation."""

from pathlib import Path
from typing import Any

from console_script import Console, operators
from scripted_api import AT, ScriptedApi, page
from tests.installation import installed

from sojourn.models.simulator.script import Rule, Script


def letter(run_id: str) -> dict[str, Any]:
    error = {"code": "run.not_driven", "detail": "8 workers took it up."}
    run = {"id": run_id, "status": "quarantined", "agent": {"name": "reviewer"}, "error": error}
    return {"run": run, "quarantined_at": AT, "claims": 8, "workers": ["a:1", "a:2"]}


async def test_dead_letters_are_listed_retried_and_cancelled_one_by_one_or_by_filter(
    sojourn: Console, api: ScriptedApi
):
    api.answers["GET /v1/dead_letters"] = page(letter("run_1"), letter("run_2"))
    for verb in ("retry", "cancel"):
        api.answers[f"POST /v1/runs/run_1/{verb}"] = {"id": "run_1", "status": "queued"}
    listed = await sojourn("dead-letters", "--agent", "reviewer", "--limit", "5")
    assert "run_1" in listed.out and "8 workers took it up. (run.not_driven)" in listed.out
    assert api.seen[-1].query == {"agent": "reviewer", "limit": "5"}
    assert (await sojourn("retry", "run_1")).out == "run_1 goes on where it stood\n"
    every = await sojourn("retry", "--dead-letters", "--agent", "reviewer")
    assert (every.code, every.out) == (5, "run_1 goes on where it stood\n"), "the other one is not there"
    assert "run_2" in every.err
    assert (await sojourn("cancel", "--dead-letters", "--reason", "old")).out == "run_1 is being cancelled\n"
    for wrong in (("retry",), ("retry", "run_1", "--dead-letters"), ("cancel", "--agent", "x")):
        assert (await sojourn(*wrong)).code == 2, wrong


async def test_the_operator_stops_any_tenant_without_a_key_and_sees_it_settle(data_dir: Path):
    async with installed(data_dir, Script(rules=(Rule(text="all done"),))) as installation:
        sojourn = operators(data_dir)
        made = await sojourn("stop", "--tenant", "default", "--reason", "the key leaked", "--wait", "--json")
        assert (made.code, made.json["progress"]["settled"], made.json["operator"]) == (0, True, True)
        stop_id = made.json["id"]
        body = {"model": "openai:sim", "input": "go"}
        refused = await installation.post("/v1/runs", body, expect=409)
        assert stop_id in refused["detail"]
        async with installation.http.delete(f"/v1/admin/stops/{stop_id}") as response:
            assert response.status == 403, "no key lifts what the operator made"
        assert stop_id in (await sojourn("stops")).out
        assert "left: nothing" in (await sojourn("stops", stop_id)).out
        second = (await sojourn("stop", "--user", "ann", "--json")).json["id"]
        newest = await sojourn("stops", "--limit", "1")
        assert second in newest.out and stop_id not in newest.out and "There are older ones" in newest.err
        assert (await sojourn("lift", second)).code == 0
        assert (await sojourn("lift", stop_id)).out == f"{stop_id} is lifted\n"
        assert "No stop is in force" in (await sojourn("stops")).err
        await installation.until(await installation.run(**body), "completed")
        for worker in installation.workers:
            worker.terminate()
            await worker.wait()
        run_id = await installation.run(**body)
        late = await sojourn("stop", "--run", run_id, "--wait", "--timeout", "0")
        assert late.code == 1 and f"run {run_id}: no worker has come to end it" in late.out
        await installation.start_worker()
        assert (await installation.until(run_id))["status"] == "cancelled"
    assert (await sojourn("stop", "--all", "--tenant", "x")).code == 2
