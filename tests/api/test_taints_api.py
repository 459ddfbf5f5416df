"""Taints over HTTP: who may call a tool what, and what callers say of their words."""

from typing import Any

import pytest
from played_worker import Player
from served_api import Served
from test_signals_api import awaits, deliver, secret_of, started

from sojourn.loop.step.taints import read

FROM_INPUT = {"taint": "private", "source": "input", "tool": ""}


def seen(run: Any) -> list[tuple[str, str]]:
    return [(one["taint"], one["source"]) for one in run["taints"]]


async def test_a_version_says_more_of_its_tools_and_never_less(api: Served) -> None:
    await api.post("/v1/agents", {"name": "reader", "model": "sim:one"})
    tools = [
        {"name": "shell", "taints": ["untrusted"]},
        {"name": "post", "schema": {"type": "object"}, "taints": ["private", "untrusted"], "outward": True},
        {"agent": "reader", "taints": ["private"]},
        "read_file",
    ]
    made = await api.post("/v1/agents", {"name": "clerk", "model": "sim:one", "tools": tools})
    assert made.status == 201
    assert [(tool["executor"], tool["taints"], tool["outward"]) for tool in made.json["tools"]] == [
        ("server", ["untrusted"], False),
        ("client", ["private", "untrusted"], True),
        ("agent", ["private"], False),
        ("server", [], False),
    ]
    offered = {tool["name"]: tool for tool in (await api.get("/v1/tools")).json["data"]}
    assert (offered["shell"]["taints"], offered["shell"]["outward"]) == ([], False)


@pytest.mark.parametrize(
    ("tool", "code"),
    [
        ({"name": "nothing", "outward": True}, "tool.unknown"),
        ({"name": "shell", "taints": ["secret"]}, "request.invalid"),
        ({"name": "shell"}, "request.invalid"),
    ],
)
async def test_what_is_no_tool_or_no_taint_is_refused(api: Served, tool: Any, code: str) -> None:
    refused = await api.post("/v1/agents", {"name": "clerk", "model": "sim:one", "tools": [tool]})
    assert (refused.status, refused.code) == (422, code)
    assert refused.pointer.startswith("/tools/0")


async def test_the_policy_says_what_becomes_of_it(api: Served) -> None:
    made = await api.post("/v1/agents", {"name": "clerk", "model": "sim:one", "policy": {"outward": "deny"}})
    assert made.json["policy"]["outward"] == "deny"
    refused = await api.post("/v1/agents", {"name": "other", "model": "sim:one", "policy": {"outward": "never"}})
    assert refused.status == 422


async def test_what_callers_say_of_their_words_is_in_the_run(api: Served, player: Player) -> None:
    run_id = await api.start({"taints": ["private"]})
    assert (await api.get(f"/v1/runs/{run_id}")).json["taints"] == [FROM_INPUT]
    said = await api.post(f"/v1/runs/{run_id}/messages", {"input": "Dear all", "taints": ["untrusted", "private"]})
    assert said.status == 202
    play = await player.take(run_id)
    play.asked()
    await play.commit(release="queued")
    run = (await api.get(f"/v1/runs/{run_id}")).json
    assert seen(run) == [("private", "input"), ("untrusted", "message")]
    assert (await api.get("/v1/runs")).json["data"][0]["taints"] is None, "in a list it is not told"
    assert (await api.start()) and (await api.get("/v1/runs?limit=1")).status == 200


async def test_a_signal_is_what_its_sender_says_and_a_webhook_is_untrusted(api: Served, player: Player) -> None:
    run_id = await started(api, player, awaits("ours"), awaits("theirs", 1))
    await api.post(f"/v1/runs/{run_id}/signals", {"name": "ours", "data": "x", "taints": ["private"]})
    assert (await deliver(api, run_id, await secret_of(api, run_id), name="theirs")).status == 202
    play = await player.take(run_id)
    assert {(one.taint, one.source) for one in read(play.state.root)} == {("private", "/0.0"), ("untrusted", "/0.1")}


async def test_the_next_run_of_a_session_has_read_what_the_last_one_had(api: Served, player: Player) -> None:
    first = await api.start({"taints": ["untrusted"]})
    play = await player.take(first)
    await play.finish()
    session = (await api.get(f"/v1/runs/{first}")).json["session_id"]
    later = await api.start({"session": session, "taints": ["private"]})
    assert seen((await api.get(f"/v1/runs/{later}")).json) == [("private", "input"), ("untrusted", first)]
    play = await player.take(later)
    await play.finish()
    last = await api.start({"session": session})
    assert seen((await api.get(f"/v1/runs/{last}")).json) == [("private", later), ("untrusted", later)]
