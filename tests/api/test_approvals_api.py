"""Questions and their answers over HTTP: who may answer what, once, about exactly what was shown."""

import asyncio
import io
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from played_worker import Play, Player
from served_api import Reply, Served

from sojourn.loop.messages import ToolCall

CLIENT = {
    "name": "ship",
    "schema": {
        "type": "object",
        "properties": {"to": {"type": "string", "pattern": "^(a+)+$"}, "n": {"type": "integer", "maximum": 9}},
        "required": ["to"],
        "additionalProperties": False,
    },
}
ASKS = {"policy": {"otherwise": "ask"}, "tools": ["shell", CLIENT]}
SHIP = ToolCall("c0", "ship", '{"to":"ann","n":1}')


async def suspended(api: Served, player: Player, *calls: ToolCall, **spec: Any) -> str:
    """A run that asks about each of these calls."""
    run_id = await api.start({**ASKS, **spec})
    play = await player.take(run_id)
    play.asked()
    await play.commit()
    play.replied("", *(calls or (SHIP,)))
    await play.commit(release="suspended")
    return run_id


async def questions(api: Served, run_id: str, **query: str) -> list[dict[str, Any]]:
    reply = await api.get("/v1/approvals", params={"run": run_id, **query})
    assert reply.status == 200, reply.body
    return reply.json["data"]


async def answer(api: Served, question: dict[str, Any], **body: Any) -> Reply:
    key = body.pop("key", None)
    return await api.post(f"/v1/approvals/{question['id']}", body, key=key)


async def taken(player: Player, run_id: str) -> Play:
    """The run with its mail read."""
    return await player.take(run_id)


async def test_a_question_shows_what_would_run(api: Served, player: Player) -> None:
    hidden = ToolCall("c0", "ship", '{"to":"ann\u202egnp.exe","n":1}')
    run_id = await suspended(api, player, hidden)
    (question,) = await questions(api, run_id)
    assert "\u202e" not in question["display"] and "\\u202e" in question["display"]
    assert (question["need"], question["approvers"], question["votes"]) == (1, [], [])
    detail = (await api.get(f"/v1/approvals/{question['id']}")).json
    assert detail["arguments"] == hidden.arguments and detail["proposed"] is None
    assert (detail["tool"], detail["schema"]["required"]) == ("ship", ["to"])
    assert {name: detail[name] for name in question} == question


async def test_same_decision_is_idempotent_opposite_conflicts(api: Served, player: Player) -> None:
    run_id = await suspended(api, player)
    (question,) = await questions(api, run_id)
    for replayed in (False, True):  # the second one crosses the first on its way
        reply = await answer(api, question, decision="reject", reason="no")
        assert (reply.status, reply.json["replayed"]) == (202, replayed)
    opposite = await answer(api, question, decision="approve")
    assert (opposite.status, opposite.code) == (409, "approval.already_decided")
    play = await taken(player, run_id)
    await play.commit()
    assert (await answer(api, question, decision="reject", reason="no")).json["replayed"]
    assert (await answer(api, question, decision="approve")).code == "approval.already_decided"
    await play.finish()
    assert (await answer(api, question, decision="reject")).code == "run.ended"


async def test_of_two_opposite_decisions_at_once_one_counts(api: Served, player: Player) -> None:
    run_id = await suspended(api, player)
    (question,) = await questions(api, run_id)
    replies = await asyncio.gather(*(answer(api, question, decision=what) for what in ("approve", "reject") * 4))
    taken_by = [reply.status for reply in replies]
    assert sorted(taken_by) == [202] * 4 + [409] * 4
    assert len(set(taken_by[::2])) == 1 and len(set(taken_by[1::2])) == 1


async def test_edited_args_are_validated_against_the_schema_and_told_apart(api: Served, player: Player) -> None:
    run_id = await suspended(api, player)
    (question,) = await questions(api, run_id)
    for arguments, pointer in (
        (None, "/arguments"),
        ({"n": 1}, "/arguments"),
        ({"to": "bob", "n": 99}, "/arguments/n"),
        ({"to": "bob", "also": 1}, "/arguments"),
    ):
        reply = await answer(api, question, decision="edit", arguments=arguments)
        assert (reply.status, reply.pointer) == (422, pointer), reply.body
    slow = {"to": "a" * 64 + "b"}  # the caller's own pattern would take years over it
    assert (await answer(api, question, decision="edit", arguments=slow)).status == 202
    play = await taken(player, run_id)
    (call,) = play.state.root.calls
    assert msgspec.json.decode(call.args_effective or "") == slow and call.args == SHIP.arguments


async def test_approval_for_old_args_digest_is_refused(api: Served, player: Player) -> None:
    policy = {"otherwise": "ask", "ask": {"need": 2}}
    run_id = await suspended(api, player, policy=policy)
    (question,) = await questions(api, run_id)
    editor = await api.key_with("approvals:*", user="eve")
    assert (await answer(api, question, decision="edit", arguments={"to": "eve"}, key=editor)).status == 202
    late = await answer(api, question, decision="approve")
    assert (late.status, late.code) == (409, "approval.already_decided"), "the edit asks another question"
    play = await taken(player, run_id)
    await play.commit(release="suspended")
    (now,) = await questions(api, run_id)
    assert now["arguments_digest"] != question["arguments_digest"] and '"eve"' in now["display"]
    assert [vote["by"] for vote in now["votes"]] == ["eve"]
    old = await answer(api, now, decision="approve", arguments_digest=question["arguments_digest"])
    assert (old.status, old.code, old.pointer) == (409, "approval.other_arguments", "/arguments_digest")
    assert (await answer(api, now, decision="approve", arguments_digest=now["arguments_digest"])).status == 202


async def test_quorum_of_two_excludes_the_initiator(api: Served, player: Player) -> None:
    ask = {"need": 2, "exclude_initiator": True, "approvers": ["local", "boss*"]}
    run_id = await suspended(api, player, policy={"otherwise": "ask", "ask": ask})
    (question,) = await questions(api, run_id)
    keys = {user: await api.key_with("approvals:*", user=user) for user in ("boss", "boss2", "eve")}
    assert (await answer(api, question, decision="approve")).code == "approval.initiator"
    assert (await answer(api, question, decision="approve", key=keys["eve"])).code == "approval.not_yours"
    assert (await answer(api, question, decision="approve", key=keys["boss"])).status == 202
    again = await answer(api, question, decision="approve", key=keys["boss"])
    assert again.json["replayed"]
    second = await api.key_with("approvals:*", user="boss")
    assert (await answer(api, question, decision="approve", key=second)).json["replayed"], "one person, two keys"
    play = await taken(player, run_id)
    assert play.state.root.calls[0].wait is not None and play.state.root.calls[0].wait.kind == "approval"
    await play.commit(release="suspended")
    listed = {user: await api.get("/v1/approvals?mine=true", key=key) for user, key in keys.items()}
    assert {user: len(reply.json["data"]) for user, reply in listed.items()} == {"boss": 0, "boss2": 1, "eve": 0}
    assert (await answer(api, question, decision="approve", key=keys["boss2"])).status == 202
    play = await taken(player, run_id)
    assert play.state.root.calls[0].wait is not None and play.state.root.calls[0].wait.kind == "client_tool"


async def test_edit_that_widens_scope_is_denied(api: Served, player: Player) -> None:
    rules = [
        {"tool": "ship", "verdict": "deny", "when": [{"argument": "to", "like": "evil*"}], "reason": "never there"},
        {"tool": "ship", "verdict": "ask", "when": [{"argument": "n", "at_least": 5}], "ask": {"need": 3}},
        {"tool": "ship", "verdict": "ask"},
    ]
    run_id = await suspended(api, player, policy={"rules": rules, "otherwise": "deny"})
    (question,) = await questions(api, run_id)
    denied = await answer(api, question, decision="edit", arguments={"to": "evil corp"})
    assert (denied.status, denied.code) == (403, "approval.edit_denied") and "never there" in denied.json["detail"]
    wider = await answer(api, question, decision="edit", arguments={"to": "bob", "n": 7})
    assert (wider.status, wider.code) == (403, "approval.edit_widens")
    assert (await answer(api, question, decision="edit", arguments={"to": "bob", "n": 2})).status == 202


async def test_a_decision_about_an_older_state_of_the_run_is_refused(api: Served, player: Player) -> None:
    run_id = await suspended(api, player)
    (question,) = await questions(api, run_id)
    rev = (await api.get(f"/v1/runs/{run_id}")).json["rev"]
    assert (await answer(api, question, decision="approve", rev=rev - 1)).code == "request.stale_version"
    assert (await answer(api, question, decision="approve", rev=rev)).status == 202


async def test_a_reason_of_a_megabyte_is_refused_and_nothing_has_changed(api: Served, player: Player) -> None:
    run_id = await suspended(api, player)
    (question,) = await questions(api, run_id)
    assert (await answer(api, question, decision="reject", reason="x" * 1_000_000)).status == 422
    huge = io.BytesIO(msgspec.json.encode({"decision": "reject", "reason": "x" * 2_000_000}))
    as_json = {"Content-Type": "application/json"}
    assert (await api.call("POST", f"/v1/approvals/{question['id']}", data=huge, headers=as_json)).status == 413
    assert await questions(api, run_id) == [question]


async def test_approval_after_expiry_is_refused_and_can_be_extended_where_it_is_kept(
    api: Served, player: Player
) -> None:
    ask = {"expires_s": 0.001, "on_expire": "keep"}
    run_id = await suspended(api, player, policy={"otherwise": "ask", "ask": ask})
    (question,) = await questions(api, run_id)
    assert question["allowed"][-1] == "extend" and question["expires_at"]
    assert await questions(api, run_id, expires_within_s="60") == [question]
    late = await answer(api, question, decision="approve")
    assert (late.status, late.code) == (409, "approval.expired")
    past = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    assert (await answer(api, question, decision="extend", expires_at=past)).code == "approval.no_end"
    ahead = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    assert (await answer(api, question, decision="extend", expires_at=ahead)).status == 202
    assert (await answer(api, question, decision="approve")).status == 202


@pytest.mark.parametrize("body", [{"output": "sent"}, {"error": "out of stock"}])
async def test_a_callers_tool_returns_once(api: Served, player: Player, body: dict[str, str]) -> None:
    run_id = await suspended(api, player, policy={})
    assert await questions(api, run_id) == [], "the inbox is for people"
    (question,) = await questions(api, run_id, kind="client_tool")
    path = f"/v1/runs/{run_id}/tool_results"
    result = {"call": question["call"], **body}
    narrow = await api.key_with("approvals:*")
    assert (await api.post(path, result, key=narrow)).status == 403
    assert (await api.post(path, {"call": "/7.7", **body})).code == "run.not_waiting"
    assert (await api.post(path, {"call": question["call"]})).status == 422
    for replayed in (False, True):
        assert (await api.post(path, result)).json == {"accepted": True, "replayed": replayed}
    assert (await api.post(path, {"call": question["call"], "output": "other"})).code == "approval.already_decided"
    play = await taken(player, run_id)
    (part,) = play.state.root.messages[-1].parts
    assert (part.text, part.error) == (next(iter(body.values())), "error" in body)  # type: ignore[union-attr]
    await play.commit()
    assert (await api.post(path, result)).json["replayed"]


async def test_a_grant_lets_the_same_call_pass_so_often(api: Served, player: Player) -> None:
    run_id = await suspended(api, player)
    (question,) = await questions(api, run_id)
    assert (await answer(api, question, decision="reject", grant={"count": 1})).pointer == "/grant"
    assert (await answer(api, question, decision="approve", grant={"count": 1})).status == 202
    play = await taken(player, run_id)
    (grant,) = play.state.root.grants
    assert (grant.left, grant.by) == (1, "local")
