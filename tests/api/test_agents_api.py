"""Agents over HTTP: versions that never change, and the pointer that moves."""

from typing import Any

import pytest
from played_worker import Player
from served_api import Served

AGENT: dict[str, Any] = {
    "name": "analyst",
    "model": "sim:one",
    "system": "You answer from the data.",
    "tools": ["shell", {"name": "ask_me", "description": "Ask.", "schema": {"type": "object"}}],
    "limits": {"steps": 7},
}
SPEC = {name: value for name, value in AGENT.items() if name != "name"}


async def test_an_agent_is_made_read_and_runs(api: Served, player: Player) -> None:
    made = await api.post("/v1/agents", AGENT)
    assert (made.status, made.json["version"], made.headers["Location"]) == (201, 1, "/v1/agents/analyst")
    assert [(tool["name"], tool["executor"]) for tool in made.json["tools"]] == [
        ("shell", "server"),
        ("ask_me", "client"),
    ]
    assert made.json["tools"][1]["schema"] == {"type": "object"}
    assert (made.json["limits"]["steps"], made.json["limits"]["active_s"]) == (7, 3600.0)
    shown = (await api.get("/v1/agents/analyst")).json
    assert shown["live"] == made.json
    run_id = (await api.post("/v1/runs", {"input": "go", "agent": "analyst"})).json["run_id"]
    run = (await api.get(f"/v1/runs/{run_id}")).json
    assert run["agent"] == {"name": "analyst", "version": 1, "digest": made.json["digest"]}
    assert run["limits"]["steps"] == 7
    assert (await player.take(run_id)).agents[made.json["digest"]].system == AGENT["system"]


async def test_a_version_is_live_when_somebody_says_so_and_back_again(api: Served) -> None:
    await api.post("/v1/agents", AGENT)
    second = await api.post("/v1/agents/analyst/versions", {**SPEC, "system": "You are brief."})
    assert (second.status, second.json["version"]) == (201, 2)
    assert second.headers["Location"] == "/v1/agents/analyst/versions/2"
    assert (await runs_version(api)) == 1
    assert (await api.call("PUT", "/v1/agents/analyst/live", json={"version": 2})).json["live_version"] == 2
    assert (await runs_version(api)) == 2
    assert (await runs_version(api, version=1)) == 1
    assert (await api.call("PUT", "/v1/agents/analyst/live", json={"version": 1, "expected": 2})).status == 200
    assert (await runs_version(api)) == 1
    listed = (await api.get("/v1/agents/analyst/versions")).json["data"]
    assert [one["version"] for one in listed] == [2, 1]
    first = (await api.get("/v1/agents/analyst/versions?limit=1")).json
    assert (first["data"], first["has_more"]) == (listed[:1], True)
    assert (await api.get(f"/v1/agents/analyst/versions?after={first['next']}")).json == {
        "data": listed[1:], "has_more": False, "next": None,
    }  # fmt: skip
    assert (await api.get("/v1/agents/analyst/versions/2")).json == second.json


async def runs_version(api: Served, **more: Any) -> int:
    run_id = (await api.post("/v1/runs", {"input": "go", "agent": "analyst", **more})).json["run_id"]
    return (await api.get(f"/v1/runs/{run_id}")).json["agent"]["version"]


async def test_the_live_pointer_does_not_move_under_somebody_else(api: Served) -> None:
    await api.post("/v1/agents", AGENT)
    await api.post("/v1/agents/analyst/versions", {**SPEC, "system": "You are brief."})
    stale = await api.call("PUT", "/v1/agents/analyst/live", json={"version": 2, "expected": 2})
    assert (stale.status, stale.code) == (409, "request.stale_version")
    missing = await api.call("PUT", "/v1/agents/analyst/live", json={"version": 9})
    assert (missing.status, missing.code) == (404, "request.not_found")
    for name in ("version", "expected"):
        huge = await api.call("PUT", "/v1/agents/analyst/live", json={"version": 1, name: 2**31})
        assert (huge.status, huge.pointer) == (422, f"/{name}")


async def test_the_same_again_is_no_new_version(api: Served) -> None:
    made = (await api.post("/v1/agents", AGENT)).json
    again = await api.post("/v1/agents/analyst/versions", SPEC)
    assert (again.status, again.json) == (200, made)


async def test_a_name_is_taken_once_and_must_be_a_name(api: Served) -> None:
    await api.post("/v1/agents", AGENT)
    taken = await api.post("/v1/agents", AGENT)
    assert (taken.status, taken.code) == (409, "agent.exists")
    for name in ("", "a b", "-a", "a/b", "x" * 65, "é", "analyst\n"):
        reply = await api.post("/v1/agents", {**AGENT, "name": name})
        assert (reply.status, reply.pointer) == (422, "/name"), name


async def test_an_archived_agent_runs_no_more(api: Served) -> None:
    await api.post("/v1/agents", AGENT)
    assert (await api.post("/v1/agents/analyst/archive")).json["archived_at"] is not None
    reply = await api.post("/v1/runs", {"input": "go", "agent": "analyst"})
    assert (reply.status, reply.code) == (409, "agent.archived")


async def test_a_sub_agent_is_pinned_when_the_version_is_made(api: Served, player: Player) -> None:
    inner = (await api.post("/v1/agents", {"name": "reader", "model": "sim:one", "tools": ["read_file"]})).json
    outer = {"name": "boss", "model": "sim:one", "tools": [{"agent": "reader", "description": "Reads."}]}
    made = (await api.post("/v1/agents", outer)).json
    (tool,) = made["tools"]
    assert (tool["name"], tool["executor"], tool["agent"]) == ("reader", "agent", inner["digest"])
    await api.post("/v1/agents/reader/versions", {"model": "sim:two"})
    await api.call("PUT", "/v1/agents/reader/live", json={"version": 2})
    run_id = (await api.post("/v1/runs", {"input": "go", "agent": "boss"})).json["run_id"]
    assert set((await player.take(run_id)).agents) == {made["digest"], inner["digest"]}


async def test_an_agent_runs_in_one_call(api: Served, player: Player) -> None:
    await api.post("/v1/agents", AGENT)
    started = await api.post("/v1/agents/analyst/run", {"input": "go", "wait": 0})
    assert started.status == 202
    await (await player.take(started.json["run_id"])).finish("1998.")
    headers = {"Idempotency-Key": "one"}
    first = await api.post("/v1/agents/analyst/run", {"input": "go", "wait": 0}, headers=headers)
    await (await player.take(first.json["run_id"])).finish("1998.")
    done = await api.post("/v1/agents/analyst/run", {"input": "go", "wait": 0}, headers=headers)
    assert (done.status, done.headers["Idempotency-Replayed"]) == (200, "true")
    assert done.json == {
        "agent": "analyst", "user_id": "local", "run_id": first.json["run_id"],
        "session_id": first.json["session_id"], "status": "completed", "output": "1998.", "steps": 1,
        "cost": {"input_tokens": 120, "output_tokens": 10, "total_cost": "0.001500"},
    }  # fmt: skip


async def test_agents_are_listed_by_name(api: Served) -> None:
    for name in ("c", "a", "b"):
        await api.post("/v1/agents", {**AGENT, "name": name})
    page = (await api.get("/v1/agents?limit=2")).json
    assert ([one["name"] for one in page["data"]], page["has_more"], page["next"]) == (["a", "b"], True, "b")
    rest = (await api.get("/v1/agents?limit=2&after=b")).json
    assert ([one["name"] for one in rest["data"]], rest["has_more"], rest["next"]) == (["c"], False, None)


async def test_the_server_says_what_it_offers(api: Served) -> None:
    tools = (await api.get("/v1/tools")).json["data"]
    assert [(tool["name"], tool["effect"]) for tool in tools] == [
        ("read_file", "read"),
        ("shell", "at_least_once"),
        ("wait_for_event", "read"),
    ]
    models = (await api.get("/v1/models")).json["data"]
    assert [(one["name"], one["ready"], one["key_env"]) for one in models] == [
        ("openai", False, "OPENAI_API_KEY"),
        ("sim", True, ""),
    ]


@pytest.mark.parametrize(
    ("policy", "pointer"),
    [
        ({"rules": [{"tool": "*", "verdict": "ask", "when": [{"argument": "a"}]}]}, "/policy/rules/0/when/0"),
        ({"ask": {"on_expire": "resume", "expires_s": 9}}, "/policy/ask/on_expire"),
        ({"ask": {"on_expire": "escalate", "expires_s": 9}}, "/policy/ask/escalate_to"),
        ({"ask": {"escalate_to": ["boss"]}}, "/policy/ask/escalate_to"),
        (
            {"rules": [{"tool": "a", "verdict": "ask", "ask": {"on_expire": "escalate", "escalate_to": ["b"]}}]},
            "/policy/rules/0/ask/expires_s",
        ),
        ({"ask": {"need": 0}}, "/policy/ask/need"),
        ({"rules": [{"tool": "a", "verdict": "ask", "when": [{"argument": "", "like": "a"}]}]}, None),
        ({"rules": [{"tool": "a", "verdict": "maybe"}]}, None),
    ],
)
async def test_a_policy_that_could_not_be_kept_is_refused(api: Served, policy: dict[str, Any], pointer: str) -> None:
    reply = await api.post("/v1/agents", {"name": "careful", "model": "sim:one", "policy": policy})
    assert reply.status == 422
    assert pointer is None or reply.pointer == pointer


async def test_when_it_stops_is_part_of_a_version_and_may_be_said_of_a_run(api: Served, player: Player) -> None:
    rules = {"every_turns": 3, "after_active_s": 60}
    made = await api.post("/v1/agents", {"name": "steady", "model": "sim:one", "tools": ["shell"], "suspend": rules})
    assert made.status == 201, made.body
    assert (await api.get("/v1/agents/steady")).json["live"]["suspend"] == rules
    run_id = await api.start({"agent": "steady", "model": None, "tools": [], "suspend": {"every_turns": 1}})
    play = await player.take(run_id)
    await play.work()
    assert play.state.root.wait is not None and play.state.root.wait.kind == "turns"
    assert (
        await api.post("/v1/agents", {"name": "x", "model": "sim:one", "suspend": {"every_turns": 0}})
    ).status == 422


async def test_a_sub_agents_own_limit_of_money_needs_prices(api: Served) -> None:
    poor = {"name": "poor", "model": "sim:unpriced", "limits": {"usd": "1.00"}}
    assert (await api.post("/v1/agents", poor)).status == 201
    reply = await api.post("/v1/runs", {"input": "go", "model": "sim:one", "tools": [{"agent": "poor"}]})
    assert (reply.status, reply.code) == (422, "budget.no_price")
