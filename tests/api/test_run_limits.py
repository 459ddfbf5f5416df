"""Wall time, depth and children over HTTP: who may say them, how wide, and what is shown of them."""

from datetime import datetime, timedelta

import pytest
from played_worker import Player
from served_api import GOAL, Served, serve
from test_delayed_runs import come

from sojourn.loop.machine import wake_at
from sojourn.store.db import Database

TREE = {"wall_s": 60.5, "depth": 2, "children": 7}


async def test_a_version_has_them_and_a_run_takes_tighter_ones(api: Served) -> None:
    made = await api.post("/v1/agents", {"name": "lead", "model": "sim:one", "limits": TREE})
    assert made.status == 201 and made.json["limits"].items() >= TREE.items()
    plain = await api.post("/v1/agents", {"name": "plain", "model": "sim:one"})
    assert plain.json["limits"].items() >= {"wall_s": None, "depth": 8, "children": 100}.items()
    tighter = {"wall_s": 30.0, "depth": 0, "children": 0}
    run_id = await api.start({"agent": "lead", "model": None, "tools": [], "limits": tighter})
    run = (await api.get(f"/v1/runs/{run_id}")).json
    assert run["limits"].items() >= tighter.items() and run["children"] == 0
    assert (await api.get("/v1/runs")).json["data"][0]["children"] is None, "in a list it is not told"


@pytest.mark.parametrize("wider", [{"wall_s": 61}, {"depth": 3}, {"children": 8}])
async def test_to_widen_one_takes_a_scope_of_its_own(api: Served, wider: dict[str, int]) -> None:
    await api.post("/v1/agents", {"name": "lead", "model": "sim:one", "limits": TREE})
    body, narrow = {"input": "go", "agent": "lead", "limits": wider}, await api.key_with("runs:*")
    refused = await api.post("/v1/runs", body, key=narrow)
    assert (refused.status, "budgets:raise" in refused.json["detail"]) == (403, True)
    assert (await api.post("/v1/runs", body)).status == 202


@pytest.mark.parametrize("wrong", [{"wall_s": 0}, {"wall_s": 1e9}, {"depth": -1}, {"depth": 17}, {"children": -1}])
async def test_what_is_no_limit_is_refused(api: Served, wrong: dict[str, float]) -> None:
    refused = await api.post("/v1/runs", {**GOAL, "limits": wrong})
    assert (refused.status, refused.pointer) == (422, f"/limits/{next(iter(wrong))}")


async def test_the_operator_says_how_deep_anybody_may_go(database: Database) -> None:
    async with serve(database, depth_max=3) as api:
        plain = await api.post("/v1/agents", {"name": "plain", "model": "sim:one"})
        assert plain.json["limits"]["depth"] == 3
        for path, body in (("/v1/agents", {"name": "deep", "model": "sim:one"}), ("/v1/runs", GOAL)):
            refused = await api.post(path, {**body, "limits": {"depth": 4}})
            assert (refused.status, refused.pointer) == (422, "/limits/depth")
            assert "at most 3 deep (its setting depth_max)" in refused.json["detail"]
            assert (await api.post(path, {**body, "limits": {"depth": 3}})).status in (201, 202)


async def test_the_wall_time_of_a_delayed_run_begins_with_it(api: Served, player: Player) -> None:
    run_id = await api.start({"delay_s": 3600, "limits": {"wall_s": 60}})
    start_at = datetime.fromisoformat((await api.get(f"/v1/runs/{run_id}")).json["start_at"])
    await come(api.parts.database, run_id)
    assert wake_at((await player.take(run_id)).state) == start_at + timedelta(seconds=60)
