"""A confined user tries every route with the ids, names and bytes of another user of the tenant: it learns nothing."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from acting import made, waiting
from played_worker import Player
from reading import follow
from served_api import GOAL, Served, serve
from tests.identity_provider import TABLE, Signer, published
from two_tenants import EXCEPT, MARK, calls, furnish, nowhere, route_name, same, tables

from sojourn.api.app import served
from sojourn.identity.issuers import Issuer
from sojourn.identity.scopes import CONFINED
from sojourn.sandboxes.bwrap import BwrapProvider
from sojourn.store.db import Database

OF_ALL = ("name", "gone", "taken", "tenant", "issuer", "export")
"""What is the tenant's own, and an export: who has it has all that it says."""
CHANGING = {"audit_head", "api_key"}
"""Whose rows say that others did something: the end of the log, and when a key was last used."""
DEDUPLICATED = "POST /v1/blobs"
"""The same bytes are kept once in a tenant, by the name and the media type that they came with first."""


@pytest.fixture
async def api(database: Database, data_dir: Path) -> AsyncIterator[Served]:
    provider = BwrapProvider(data_dir / "sandboxes", idle_s=0.5)
    async with serve(database, sandboxes=provider) as served:
        yield served
    await provider.reap(frozenset())
    await provider.close()


async def key_of(api: Served, user: str, *scopes: str) -> str:
    """A confined key for a user; without scopes it names all that there are."""
    return (await made(api, "/v1/keys", {"name": user, "user": user, "scopes": scopes or ["*"], "confined": True}))[
        "key"
    ]


async def rows(database: Database) -> dict[str, set[str]]:
    """All rows of the tenant, by table."""
    async with database.migrator() as owner:
        return {
            table: {row[0] for row in await owner.fetch(f"select t::text from {table} t where {column} = 'acme'")}
            for table, column in await tables(owner)
            if table not in CHANGING
        }


async def test_what_another_user_has_looks_like_what_is_nowhere(
    api: Served, player: Player, database: Database
) -> None:
    """Two confined users with one history make the same calls, one with another user's names and one with none's."""
    names = {**await furnish(api, player), "caller": "robert"}
    made_up = {**nowhere(names), **{name: names[name] for name in OF_ALL}, "caller": "evelyn"}
    bob, eve = await key_of(api, "robert"), await key_of(api, "evelyn")
    before, tried = await rows(database), set()
    for mine, none in zip(calls(names), calls(made_up), strict=True):
        route, method, path, more = mine
        tried.add(route)
        if route == DEDUPLICATED:
            continue
        found = await api.call(method, path, **{"key": bob, **more})
        other = await api.call(method, none[2], **{"key": eve, **none[3]})
        assert same(found, names) == same(other, made_up), (method, path, more)
        if not path.startswith("/v1/agents"):
            assert MARK.encode() not in found.body.replace(names["user"].encode(), b""), (method, path)
    assert tried == {route_name(route) for route in served()} - EXCEPT.keys()
    after = await rows(database)
    gone = {table: kept - after[table] for table, kept in before.items()}
    assert not any(gone.values()), {table: len(left) for table, left in gone.items() if left}


async def test_lists_show_nothing_of_another_user(api: Served, player: Player) -> None:
    names, bob = await furnish(api, player), await key_of(api, "bob")
    hidden = {value for name, value in names.items() if "_id" in name or name in ("user", "digest", "once")}
    for route, method, path, more in calls(names):
        if method == "GET" and "{" not in route and path.startswith("/v1/") and not more:
            theirs = await api.get(path, key=bob)
            assert theirs.status == (200 if allowed(route) else 403), path
            for value in hidden:
                assert value.encode() not in theirs.body, (path, value)
            if path != "/v1/agents":
                assert MARK.encode() not in theirs.body, path
    for path in ("/v1/schedules/x-theirs", f"/v1/blobs/{names['digest']}"):
        assert (await api.get(path, key=bob)).status == 404, path


def allowed(route: str) -> bool:
    """Whether a confined caller gets as far as the handler."""
    scope = next(one.scope for one in served() if route_name(one) == route)
    return scope is None or scope in CONFINED


async def test_the_tenants_own_is_read_and_not_changed(api: Served) -> None:
    await made(api, "/v1/agents", {"name": "clerk", "model": "sim:one"})
    bob = await key_of(api, "bob")
    assert (await api.get("/v1/agents/clerk", key=bob)).json["name"] == "clerk"
    assert (await api.post("/v1/agents/clerk/run", {"input": "go", "wait": 0}, key=bob)).status == 202
    for route in served():
        if route.scope is not None and route.scope not in CONFINED and "{" not in route.path:
            reply = await api.call(route.method, route.path, key=bob, **({"json": {}} if route.body else {}))
            assert (reply.status, reply.code) == (403, "auth.forbidden"), route.path
            assert "confined" in reply.json["detail"], route.path


async def test_no_confined_caller_makes_a_key(api: Served) -> None:
    bob = await key_of(api, "bob")
    me = (await api.get("/v1/me", key=bob)).json
    assert (me["user_id"], me["confined"], set(me["scopes"])) == ("bob", True, CONFINED)
    for wanted in ({"name": "x"}, {"name": "x", "confined": True}, {"name": "x", "user": "ann"}):
        assert (await api.post("/v1/keys", wanted, key=bob)).status == 403
    listed = (await api.get("/v1/keys")).json["data"]
    assert [key["confined"] for key in listed] == [True, False]


# ---- what is one's own -----------------------------------------------------------------------------


async def test_two_users_do_everything_with_the_same_names_and_bytes(api: Served, player: Player) -> None:
    bob, eve = await key_of(api, "bob"), await key_of(api, "eve")
    once, picture = {"Idempotency-Key": "once"}, b"\x89PNG\r\n\x1a\n of both"
    runs = {}
    for user, key in (("bob", bob), ("eve", eve)):
        blob = (await api.call("POST", "/v1/blobs", data=picture, headers={"Content-Type": "image/png"}, key=key)).json
        assert (await api.get(f"/v1/blobs/{blob['digest']}", key=key)).body == picture
        said = [{"type": "text", "text": f"for {user}"}, {"type": "image", "blob": blob["digest"]}]
        first = await api.post("/v1/runs", {**GOAL, "input": said}, key=key, headers=once)
        again = await api.post("/v1/runs", {**GOAL, "input": said}, key=key, headers=once)
        assert (first.status, again.json) == (202, first.json)
        runs[user] = first.json
        await (await player.take(first.json["run_id"])).finish(f"answer for {user}")
    assert runs["bob"]["run_id"] != runs["eve"]["run_id"]
    for user, other, key in (("bob", "eve", bob), ("eve", "bob", eve)):
        own, theirs = runs[user], runs[other]
        assert [run["id"] for run in (await api.get("/v1/runs", key=key)).json["data"]] == [own["run_id"]]
        assert (await api.get(f"/v1/runs?user={other}", key=key)).json["data"] == []
        assert [one["id"] for one in (await api.get("/v1/sessions", key=key)).json["data"]] == [own["session_id"]]
        for path in ("", "/messages", "/trace", "/events", "/continuation?files=false"):
            mine = await api.get(f"/v1/runs/{own['run_id']}{path}", key=key)
            assert mine.status == 200, path
            assert f"for {other}".encode() not in mine.body
            assert (await api.get(f"/v1/runs/{theirs['run_id']}{path}", key=key)).status == 404, path
        forked = await api.post(f"/v1/runs/{own['run_id']}/fork", {"step": 0}, key=key)
        assert forked.status == 202, forked.body
        assert (await api.call("DELETE", f"/v1/runs/{theirs['run_id']}", key=key)).status == 404
        assert (await api.call("DELETE", f"/v1/runs/{own['run_id']}", key=key)).status == 204
    assert len((await api.get("/v1/runs")).json["data"]) == 2, "whoever is not confined sees the branches of both"


async def test_an_export_of_one_s_own_is_imported_by_whoever_has_it(api: Served, player: Player) -> None:
    bob, eve = await key_of(api, "bob"), await key_of(api, "eve")
    run_id = await api.start(key=bob)
    await (await player.take(run_id)).finish("an answer")
    export = (await api.get(f"/v1/runs/{run_id}/continuation?files=false", key=bob)).body
    headers = {"Content-Type": "application/json"}
    there = await api.call("POST", "/v1/runs/import", data=export, headers=headers, key=eve)
    assert there.status == 202, there.body
    assert (await api.get(f"/v1/runs/{there.json['run_id']}", key=eve)).json["user_id"] == "eve"
    assert (await api.get(f"/v1/runs/{there.json['run_id']}", key=bob)).status == 404
    twice = await api.call("POST", "/v1/runs/import", data=export, headers=headers, key=eve)
    assert twice.code == "import.replayed"


async def test_an_approver_sees_and_answers_ones_own(api: Served, player: Player) -> None:
    bob, eve = await key_of(api, "bob"), await key_of(api, "eve")
    await made(
        api, "/v1/agents", {"name": "analyst", "model": "sim:one", "tools": ["shell"], "policy": {"otherwise": "ask"}}
    )
    question = await asked(api, player, bob)
    assert [one["id"] for one in (await api.get("/v1/approvals", key=bob)).json["data"]] == [question]
    assert (await api.get("/v1/approvals", key=eve)).json["data"] == []
    for key, status in ((eve, 404), (bob, 202)):
        assert (await api.post(f"/v1/approvals/{question}", {"decision": "approve"}, key=key)).status == status


async def asked(api: Served, player: Player, key: str) -> str:
    """A question of a run of this caller."""
    whole, api.key = api.key, key
    try:
        return await waiting(api, player, agent="analyst", model=None, tools=[])
    finally:
        api.key = whole


async def test_streams_of_two_users_carry_ones_own_each(api: Served, player: Player) -> None:
    """One process follows for both, and for somebody who sees them all: no reader lends another one its eyes."""
    keys = {user: await key_of(api, user) for user in ("bob", "eve")}
    runs = {user: await api.start({"input": f"for {user}"}, key=key) for user, key in keys.items()}
    for user, other in (("bob", "eve"), ("eve", "bob")):
        asks = {"key": keys[user], "headers": {"Accept": "text/event-stream"}}
        assert (await api.get(f"/v1/runs/{runs[other]}/events", **asks)).status == 404
    async with (
        follow(api, runs["eve"]) as admins,
        follow(api, runs["bob"], Authorization=f"Bearer {keys['bob']}") as bobs,
        follow(api, runs["eve"], Authorization=f"Bearer {keys['eve']}") as eves,
        asyncio.timeout(60),
    ):
        plays = {user: await player.take(run_id) for user, run_id in runs.items()}
        for play in plays.values():
            play.asked()
            await play.commit()
        for word in ("first", "second"):  # by the second one everybody hears what is new, and reads no past
            for user, play in plays.items():
                play.delta(f"{word} for {user}")
            for reading in (bobs, eves, admins):
                await reading.until("delta.message")
        for user, play in plays.items():
            play.replied(f"answer for {user}")
            await play.commit(release="completed")
        for reading, own, other in ((bobs, "bob", "eve"), (eves, "eve", "bob"), (admins, "eve", "bob")):
            await reading.rest()
            text = str([frame.data for frame in reading.frames])
            assert f"answer for {own}" in text
            assert other not in text


# ---- what was paid ---------------------------------------------------------------------------------

PAY = """
insert into ledger (tenant, run_id, seq, at, user_id, agent_name, provider, model, attempt, input, cache_read,
    cache_write, output, reasoning, usd_micros)
values ('acme', $1, 1, now(), $2, 'clerk', 'sim', 'one', 1, 1, 0, 0, 1, 0, $3)
"""


SPENT = """
insert into day_account (tenant, day, user_id, tokens) values ('acme', (now() at time zone 'UTC')::date, $1, 7)
"""


async def test_what_one_paid_oneself_takes_no_scope_of_its_own(api: Served, database: Database) -> None:
    async with database.engine() as engine:
        for run_id, user, paid in (("run_a", "bob", 1_000_000), ("run_b", "eve", 5_000_000)):
            await engine.execute(PAY, run_id, user, paid)
    narrow = await api.key_with("runs:read", user="bob")
    bob = await key_of(api, "bob")
    for key, path in ((narrow, "/v1/me/usage"), (bob, "/v1/me/usage"), (bob, "/v1/usage")):
        page = (await api.get(f"{path}?by=user,model", key=key)).json
        assert page["total"]["known_usd"] == "1.000000"
        assert [(row["user"], row["model"]) for row in page["data"]] == [("bob", "sim:one")]
    assert (await api.get("/v1/usage", key=narrow)).status == 403
    assert (await api.get("/v1/usage")).json["total"]["known_usd"] == "6.000000"
    sheet = await api.get("/v1/me/usage?by=day,agent&format=csv&limit=1", key=narrow)
    assert sheet.headers["Content-Type"].startswith("text/csv")
    assert b"5.0" not in sheet.body


async def test_a_budget_is_ones_own(api: Served, database: Database) -> None:
    await made(api, "/v1/budgets/users", {"tokens": 10**6}, "PUT")
    await made(api, "/v1/budgets/users/eve", {"tokens": 5}, "PUT")
    async with database.engine() as engine:
        for user in ("bob", "eve", ""):
            await engine.execute(SPENT, user)
    page = (await api.get("/v1/budgets", key=await key_of(api, "bob"))).json
    assert [(pool["pool"], pool["user"]) for pool in page["data"]] == [("user", "bob")]
    assert "eve" not in str(page)


# ---- tokens ----------------------------------------------------------------------------------------


async def test_people_with_tokens_are_confined_unless_their_issuer_says_otherwise(database: Database) -> None:
    signer = Signer()
    async with published(signer) as provider:
        tables = {
            "people": {key: value for key, value in TABLE.items() if key != "confined"},
            "staff": {**TABLE, "issuer": "https://staff.example.com"},
        }
        issuers = {name: msgspec.convert({**one, "jwks_url": provider.url}, Issuer) for name, one in tables.items()}
        async with serve(database, issuers=issuers) as api:
            scope = "runs:* sessions:* agents:*"
            ann, bob = (signer.token(sub=name, scope=scope) for name in ("ann", "bob"))
            staff = signer.token(sub="carl", scope=scope, iss="https://staff.example.com")
            run_id = await api.start(key=ann)
            statuses = [(await api.get(f"/v1/runs/{run_id}", key=key)).status for key in (ann, bob, staff)]
            assert statuses == [200, 404, 200]
            mes: list[Any] = [(await api.get("/v1/me", key=key)).json for key in (ann, staff)]
            assert [me["confined"] for me in mes] == [True, False]
            assert "agents:*" not in mes[0]["scopes"]
            refused = await api.post("/v1/agents", {"name": "mine", "model": "sim:one"}, key=ann)
            assert "confined" in refused.json["detail"]
