"""Exports, imports and forks over HTTP: what moves, what is refused and how, and that a refusal changes nothing."""

import json
from typing import Any

import msgspec
import pytest
import served_api
from jsonschema import Draft202012Validator
from msgspec.structs import replace
from played_worker import Player
from served_api import Reply, Served, serve
from tests.loop import exported_runs
from tests.loop.exported_runs import BLOBS, ISSUER, SECRET, WORKSPACE, blob_name, export, sealed

from sojourn.errors import UnknownFormat
from sojourn.identity import seal
from sojourn.loop.continuation import frames, pending
from sojourn.loop.moving import document, reading
from sojourn.store import queue, runs
from sojourn.store.db import Database
from sojourn.store.tenant import blobs, sessions
from sojourn.store.tenant.keys import authenticate

JSON = {"Content-Type": "application/json"}
ASKS = {"agent": {"model": "sim:one", "tools": ["shell"], "policy": {"otherwise": "ask"}}}
SCHEMA = Draft202012Validator(json.loads(json.dumps(document.schema())))


async def import_(api: Served, data: bytes, **more: Any) -> Reply:
    return await api.call("POST", "/v1/runs/import", data=data, headers={**JSON, **more.pop("headers", {})}, **more)


async def trusting(api: Served, issuer: str = ISSUER, **more: Any) -> None:
    assert (await api.post("/v1/trust", {"issuer": issuer, "name": "elsewhere"}, **more)).status == 201


async def waiting(api: Served, player: Player, **more: Any) -> str:
    """A run that waits for two approvals."""
    run_id = await api.start({**ASKS, "model": None, "tools": [], **more})
    play = await player.take(run_id)
    play.asked()
    await play.commit()
    play.replied("", play.call(), play.call())
    await play.commit(release="suspended")
    return run_id


async def exported(api: Served, run_id: str, **more: Any) -> bytes:
    reply = await api.get(f"/v1/runs/{run_id}/continuation", **more)
    assert reply.status == 200, reply.body
    SCHEMA.validate(reply.json)
    return reply.body


async def everything(api: Served, key: str | None = None) -> tuple[int, ...]:
    """How much there is, to see that nothing was written."""
    caller = await authenticate(api.parts.database, key or api.key)
    async with api.parts.database.scoped(caller.handle) as conn:
        tables = ("run", "session", "journal", "message", "agent_spec", "blob", "imported_run", "inbox")
        return tuple([await conn.fetchval(f"select count(*) from {table}") for table in tables])


FOREIGN = exported_runs.Tree(exported_runs.Agent(name="one", models=("sim:one",)))


def foreign(**changes: Any) -> document.Export:
    """An export of a run that began elsewhere, and that this server could go on with."""
    return replace(export(FOREIGN.state, FOREIGN.agents), **changes)


async def test_a_waiting_run_goes_on_with_another_tenant_that_trusts_the_first(api: Served, player: Player) -> None:
    run_id = await waiting(api, player)
    data = await exported(api, run_id)
    assert api.key.encode() not in data and b"key_" not in data, "no key and no name of one"
    before = await everything(api, api.other)
    refused = await import_(api, data, key=api.other)
    assert (refused.status, refused.code) == (422, "continuation.unknown_issuer")
    assert await everything(api, api.other) == before
    await trusting(api, json.loads(data)["issuer"], key=api.other)
    landed = await import_(api, data, key=api.other)
    assert (landed.status, landed.json["status"]) == (202, "suspended"), landed.body
    made = landed.json["run_id"]
    assert landed.headers["Location"] == f"/v1/runs/{made}"
    run = (await api.get(f"/v1/runs/{made}", key=api.other)).json
    assert [wait["id"] for wait in run["waits"]] == ["/0.0?0", "/0.1?0"]
    assert (run["steps"], run["usage"]["output_tokens"], run["input"]) == (1, 10, "Which year was the warmest?")
    events = (await api.get(f"/v1/runs/{made}/events", key=api.other)).json["data"]
    assert [event["type"] for event in events] == ["run.queued", "approval.requested", "approval.requested"]
    assert events[0]["made_from"] == run_id
    spans = (await api.get(f"/v1/runs/{made}/trace", key=api.other)).json["spans"]
    assert spans[0]["kind"] == "run"
    inbox = (await api.get("/v1/approvals", key=api.other)).json["data"]
    assert [one["run_id"] for one in inbox] == [made, made]
    answer = await api.post(f"/v1/approvals/{inbox[0]['id']}", {"decision": "approve"}, key=api.other)
    assert answer.status == 202
    play = await player.take(made)
    assert [call.state for call in play.state.root.calls] == ["authorized", "waiting"]
    assert (await api.get(f"/v1/runs/{made}")).code == "request.not_found"


async def test_an_import_exported_again_is_what_it_was(api: Served, player: Player) -> None:
    first = reading.whole(reading.opened(await exported(api, await waiting(api, player))).plain).export
    await trusting(api, first.issuer, key=api.other)
    landed = await import_(api, msgspec.json.encode(first), key=api.other)
    again = await exported(api, landed.json["run_id"], key=api.other)
    second = reading.whole(reading.opened(again).plain).export
    new = {"exported_at", "issuer", "sig", "continuation"}
    assert {name: getattr(first, name) for name in first.__struct_fields__ if name not in new} == {
        name: getattr(second, name) for name in second.__struct_fields__ if name not in new
    }
    own = {"run_id", "tenant", "session_id", "principal", "rev", "head", "created_at", "updated_at", "lineage"}
    for name in set(first.continuation.__struct_fields__) - own:
        assert getattr(first.continuation, name) == getattr(second.continuation, name), name


async def test_an_export_is_taken_once_and_never_after_a_newer_one(api: Served) -> None:
    await trusting(api)
    newer, older = foreign(), foreign(continuation=replace(FOREIGN.state, rev=0))
    headers = {"Idempotency-Key": "once"}
    first = await import_(api, sealed(newer), headers=headers)
    assert first.status == 202
    again = await import_(api, sealed(newer), headers=headers)
    assert again.json == first.json and again.headers["Idempotency-Replayed"] == "true"
    other = await import_(api, sealed(older), headers=headers)
    assert other.code == "request.idempotency_reused"
    before = await everything(api)
    assert (await import_(api, sealed(newer))).code == "import.replayed"
    assert (await import_(api, sealed(older))).code == "import.stale"
    assert await everything(api) == before


async def test_a_run_that_is_here_is_forked_and_not_imported(api: Served, player: Player) -> None:
    refused = await import_(api, await exported(api, await waiting(api, player)))
    assert (refused.status, refused.code) == (409, "import.original_here") and "fork" in refused.json["detail"]


def changed(change: Any, *, sign: bool = True, of: document.Export | None = None) -> bytes:
    plain = json.loads(sealed(of or foreign()))
    change(plain)
    if sign:
        plain["sig"] = seal.sign(SECRET, document.canonical(plain))
    return json.dumps(plain).encode()


def edit(plain: Any) -> None:
    plain["continuation"]["tenant"] = "x"


BAD: dict[str, bytes] = {
    "continuation.bad_seal": changed(edit, sign=False),
    "continuation.unreadable": sealed(foreign())[:-40],
    "continuation.unknown_format": changed(lambda plain: plain.update(version=2)),
    "continuation.unknown_issuer": changed(lambda plain: plain.update(issuer=seal.issuer(bytes(32)))),
    "continuation.too_deep": b"[" * 100_000,
    "continuation.duplicate_name": b'{"a":1,"a":1}',
    "continuation.missing_pin": changed(lambda plain: plain["agents"].clear()),
    "continuation.bad_blob": changed(lambda plain: plain["blobs"].clear()),
    "request.too_large": b" " * 300_000,
}


@pytest.mark.parametrize("code", BAD)
async def test_bad_input_is_refused_by_its_own_code_and_changes_nothing(database: Database, code: str) -> None:
    async with serve(database, export_max_bytes=200_000) as api:
        await trusting(api)
        before = await everything(api)
        refused = await import_(api, BAD[code])
        assert refused.code == code, refused.body
        assert refused.status == (413 if code == "request.too_large" else 422)
        assert await everything(api) == before
        assert (await import_(api, sealed(foreign()))).status == 202, "the good one is still taken"


async def test_an_import_is_json_and_needs_its_scope(api: Served) -> None:
    await trusting(api)
    reply = await api.call("POST", "/v1/runs/import", data=sealed(foreign()), headers={"Content-Type": "text/plain"})
    assert reply.code == "request.media_type"
    reads = await api.key_with("runs:read")
    assert (await import_(api, sealed(foreign()), key=reads)).code == "auth.forbidden"
    assert (await import_(api, sealed(foreign()), key=await api.key_with("runs:write"))).status == 202


async def test_an_export_needs_the_scopes_of_all_that_it_holds(api: Served, player: Player) -> None:
    path = f"/v1/runs/{await waiting(api, player)}/continuation"
    for held in (("runs:read",), ("runs:read", "sessions:read"), ("sessions:read", "agents:read")):
        assert (await api.get(path, key=await api.key_with(*held))).code == "auth.forbidden"
    assert (await api.get(path, key=await api.key_with("runs:read", "sessions:read", "agents:read"))).status == 200
    assert (await api.get(path, key=api.other)).code == "request.not_found"


async def test_cross_tenant_blob_swap_refused(api: Served) -> None:
    await trusting(api)
    secret = b"what another tenant keeps"
    kept = await api.call("POST", "/v1/blobs", data=secret, headers={"Content-Type": "text/plain"}, key=api.other)
    own = await api.call("POST", "/v1/blobs", data=b"mine", headers={"Content-Type": "text/plain"})
    for digest in (kept.json["digest"], own.json["digest"]):

        def swap(plain: Any, digest: str = digest) -> None:
            plain["workspace"] = digest

        assert (await import_(api, changed(swap))).code == "continuation.bad_blob", "named, and not brought along"

    def claim(plain: Any) -> None:
        plain["blobs"] = {**plain["blobs"], kept.json["digest"]: BLOBS[blob_name(WORKSPACE)]}
        plain["workspace"] = kept.json["digest"]
        del plain["blobs"][blob_name(WORKSPACE)]

    assert (await import_(api, changed(claim))).code == "continuation.bad_blob", "its bytes are others"
    assert (await api.get(f"/v1/blobs/{kept.json['digest']}")).code == "request.not_found"


async def test_blobs_come_along_with_their_media_type(api: Served) -> None:
    await trusting(api)
    landed = await import_(api, sealed(foreign()))
    picture = blob_name(exported_runs.PICTURE)
    found = await api.get(f"/v1/blobs/{picture}")
    assert (found.body, found.headers["Content-Type"]) == (exported_runs.PICTURE, "image/png")
    caller = await authenticate(api.parts.database, api.key)
    async with api.parts.database.scoped(caller.handle) as conn:
        session = await sessions.get(conn, landed.json["session_id"])
        assert (session.workspace, session.host) == (blob_name(WORKSPACE), None)
        assert await blobs.get(conn, blob_name(WORKSPACE)) == WORKSPACE


@pytest.mark.parametrize(
    ("tools", "models", "code"),
    [
        (("nowhere",), ("sim:one",), "tool.unknown"),
        (("read_file",), ("sim:one",), "tool.changed"),
        ((), ("openai:gone", "other:x"), "model.no_key"),
    ],
)
async def test_what_this_server_cannot_go_on_with_is_refused(
    api: Served, tools: tuple[str, ...], models: tuple[str, ...], code: str
) -> None:
    await trusting(api)
    made = tuple(exported_runs.Tool(name=name, effect="idempotent") for name in tools)
    run = exported_runs.Tree(exported_runs.Agent(name="one", models=models, tools=made))
    before = await everything(api)
    assert (await import_(api, sealed(export(run.state, run.agents)))).code == code
    assert await everything(api) == before


async def test_signing_key_rotated_and_retired(api: Served) -> None:
    run_id = await api.start()
    data = [await exported(api, run_id, headers={})]
    assert (await api.post("/v1/seals/rotate")).status == 201
    data.append(await exported(api, run_id))
    first, second = (json.loads(one)["issuer"] for one in data)
    states = {row["issuer"]: row["state"] for row in (await api.get("/v1/seals")).json["data"]}
    assert states == {first: "retired", second: "active"}
    for one in data:
        assert (await import_(api, one)).code == "import.original_here", "its signature is still good"
    assert (await api.call("DELETE", f"/v1/seals/{first}")).status == 204
    assert (await import_(api, data[0])).code == "continuation.revoked_issuer"
    assert (await import_(api, data[1])).code == "import.original_here"
    await trusting(api, first)
    assert (await import_(api, data[0])).code == "continuation.revoked_issuer", "trust does not mend it"
    await trusting(api)
    assert (await import_(api, sealed(foreign()))).status == 202
    assert (await api.call("DELETE", f"/v1/trust/{ISSUER}")).status == 204
    assert (await import_(api, sealed(foreign()))).code == "continuation.unknown_issuer"
    for path in (f"/v1/trust/{ISSUER}", f"/v1/seals/{ISSUER}", "/v1/seals/x"):
        assert (await api.call("DELETE", path)).code == "request.not_found"
    assert (await api.post("/v1/trust", {"issuer": "me", "name": "x"})).code == "request.invalid"
    for path in ("/v1/seals", "/v1/trust"):
        assert (await api.get(path, key=await api.key_with("runs:*"))).code == "auth.forbidden"


async def test_a_running_run_is_held_first(api: Served, player: Player) -> None:
    run_id = await api.start()
    play = await player.take(run_id)
    for reply in (
        await api.get(f"/v1/runs/{run_id}/continuation"),
        await api.post(f"/v1/runs/{run_id}/fork", {"step": 0}),
    ):
        assert (reply.status, reply.code) == (409, "run.running") and "hold" in reply.json["detail"]
    await play.finish()
    assert (await api.get(f"/v1/runs/{run_id}/continuation")).status == 200


async def test_an_export_that_is_too_large_says_so(database: Database) -> None:
    async with serve(database, export_max_bytes=1_000) as api:
        run_id = await api.start()
        refused = await api.get(f"/v1/runs/{run_id}/continuation")
        assert (refused.status, refused.code) == (413, "continuation.too_large")


async def test_a_step_is_tried_again_in_a_fork(api: Served, player: Player) -> None:
    run_id = await api.start({"labels": {"team": "a"}, "priority": 3})
    play = await player.take(run_id)
    await play.work()
    await play.commit()
    await play.finish("An answer.")
    old = (await api.get(f"/v1/runs/{run_id}")).json
    reply = await api.post(f"/v1/runs/{run_id}/fork", {"step": 1, "input": "Be brief."})
    assert (reply.status, reply.json["status"]) == (202, "queued")
    made = reply.json["run_id"]
    said = (await api.get(f"/v1/runs/{made}/messages")).json["data"]
    assert [message["role"] for message in said] == ["user", "assistant", "tool", "user"]
    run = (await api.get(f"/v1/runs/{made}")).json
    assert (run["labels"], run["steps"], run["session_id"] != old["session_id"]) == ({"team": "a"}, 0, True)
    play = await player.take(made)
    await play.finish("Another answer.")
    assert (await api.get(f"/v1/runs/{made}")).json["output"] == "Another answer."
    assert (await api.get(f"/v1/runs/{run_id}")).json == old, "the old run is as it was"


async def test_a_fork_in_the_same_session_is_its_next_run(api: Served, player: Player) -> None:
    run_id = await api.start()
    busy = await api.post(f"/v1/runs/{run_id}/fork", {"step": 0, "session": "same"})
    assert busy.code == "session.busy"
    play = await player.take(run_id)
    await play.finish("An answer.")
    assert (await api.post(f"/v1/runs/{run_id}/fork")).code == "fork.ended"
    assert (await api.post(f"/v1/runs/{run_id}/fork", {"step": 9})).pointer == "/step"
    forked = await api.post(f"/v1/runs/{run_id}/fork", {"input": "And then?", "session": "same"})
    session = (await api.get(f"/v1/runs/{run_id}")).json["session_id"]
    assert forked.json["session_id"] == session
    play = await player.take(forked.json["run_id"])
    await play.finish("More.")
    third = await api.start({"input": "once more", "session": session})
    said = (await api.get(f"/v1/runs/{third}/messages")).json["data"]
    assert [message["role"][0] for message in said] == ["u", "a", "u", "a", "u"]


async def test_a_fork_is_made_once_for_one_key(api: Served, player: Player) -> None:
    run_id = await waiting(api, player)
    headers = {"Idempotency-Key": "k"}
    made = [(await api.post(f"/v1/runs/{run_id}/fork", headers=headers)).json for _ in range(2)]
    assert made[0] == made[1] and made[0]["status"] == "suspended"


async def test_an_operator_lets_a_run_out_of_quarantine(api: Served, player: Player) -> None:
    run_id = await api.start()
    assert (await api.post(f"/v1/runs/{run_id}/retry")).code == "run.not_quarantined"
    (claimed,) = await queue.claim(api.parts.database, player.id, 1)
    lease = (claimed.run_id, claimed.fence)
    assert await runs.quarantine(api.parts.database, player.id, lease, UnknownFormat("A newer release wrote it."))
    run = (await api.get(f"/v1/runs/{run_id}")).json
    assert (run["status"], run["error"]["code"]) == ("quarantined", "continuation.unknown_format")
    assert (await api.get("/v1/runs?status=quarantined")).json["data"][0]["id"] == run_id
    (letter,) = (await api.get("/v1/dead_letters")).json["data"]
    assert (letter["run"]["id"], letter["claims"], letter["run"]["error"]) == (run_id, 0, run["error"])
    assert (await api.get("/v1/dead_letters?agent=another")).json["data"] == []
    (*_, told) = (await api.get(letter["events"])).json["data"]
    assert (told["type"], told["error"]) == ("run.quarantined", run["error"])
    narrow = await api.key_with("runs:*")
    assert (await api.get("/v1/dead_letters", key=narrow)).code == "auth.forbidden"
    assert (await api.post(f"/v1/runs/{run_id}/retry", key=narrow)).code == "auth.forbidden"
    let = await api.post(f"/v1/runs/{run_id}/retry")
    assert (let.status, let.json["status"], let.json["error"]) == (202, "queued", None)
    play = await player.take(run_id)
    await play.finish()
    assert (await api.get(f"/v1/runs/{run_id}")).json["error"] is None


async def test_files_that_nobody_puts_away_are_left_out_or_waited_for(
    api: Served, player: Player, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sojourn.api.continuations.gathering.REST_S", 0.2)
    run_id = await waiting(api, player)
    caller = await authenticate(api.parts.database, api.key)
    async with api.parts.database.scoped(caller.handle) as conn:
        session = (await runs.get(conn, run_id)).session_id
        await sessions.place(conn, session, host="far", backend="b", enforced=None)
    refused = await api.get(f"/v1/runs/{run_id}/continuation")
    assert (refused.status, refused.code) == (503, "sandbox.busy") and "far" in refused.json["detail"]
    assert "workspace" not in json.loads(await exported(api, f"{run_id}", params={"files": "false"}))
    assert (await api.post(f"/v1/runs/{run_id}/fork", {"files": False})).status == 202
    async with api.parts.database.scoped(caller.handle) as conn:
        digest = await blobs.put(conn, b"files", bytes_max=100)
        await sessions.save_workspace(conn, session, digest=digest)
    assert json.loads(await exported(api, run_id))["workspace"] == digest
    forked = (await api.post(f"/v1/runs/{run_id}/fork")).json
    async with api.parts.database.scoped(caller.handle) as conn:
        assert (await sessions.get(conn, forked["session_id"])).workspace == digest


@pytest.mark.parametrize("name", exported_runs.RUNS)
async def test_a_run_with_nested_frames_and_every_question_moves_whole(
    api: Served, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await trusting(api)
    run = exported_runs.RUNS[name]()
    for tool in (tool for agent in run.agents.values() for tool in agent.tools):
        monkeypatch.setitem(served_api.TOOLS, tool.name, tool)
    landed = await import_(api, sealed(export(run.state, run.agents)))
    assert landed.status == 202, landed.body
    made = landed.json["run_id"]
    assert {wait["id"] for wait in (await api.get(f"/v1/runs/{made}")).json["waits"]} == {
        wait.id for wait in pending(run.state)
    }
    back = reading.whole(reading.opened(await exported(api, made)).plain).export.continuation
    assert [frame.id for frame in frames(back.root)] == [frame.id for frame in frames(run.root)]
    assert [*document.messages(back)] == [*document.messages(run.state)]
