"""A tenant tries every route with another one's ids, names, keys and bytes: it learns nothing, and changes nothing."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
from played_worker import Player
from reading import Reading, follow
from served_api import Served, serve, tenant
from two_tenants import CALLS, EXCEPT, MARK, Names, calls, furnish, nowhere, route_name, rows, same, tables

from sojourn.api.app import served
from sojourn.sandboxes.bwrap import BwrapProvider
from sojourn.store.db import Database

EMPTY = {"purge", "stopped_run", "secret", "spend_day", "upload"}
"""What workers alone write, and delete again; what no route writes yet; and what is noted of confined callers alone."""
UNCLONED = {"api_key", "seal_key", "data_key", "audit", "audit_head"}
"""A key opens one tenant; and the log of what was done to a tenant is its own."""


@pytest.fixture
async def api(database: Database, data_dir: Path) -> AsyncIterator[Served]:
    provider = BwrapProvider(data_dir / "sandboxes", idle_s=0.5)
    async with serve(database, sandboxes=provider) as served:
        yield served
    await provider.reap(frozenset())
    await provider.close()


@pytest.fixture
async def names(api: Served, player: Player) -> Names:
    """What the first tenant has."""
    return await furnish(api, player)


def test_no_call_is_of_a_route_that_is_gone() -> None:
    routes = {route_name(route) for route in served()}
    assert CALLS.keys() | EXCEPT.keys() <= routes, "the fuzz calls what is not there"


async def test_what_another_tenant_has_looks_like_what_is_nowhere(
    api: Served, names: Names, database: Database
) -> None:
    """Two tenants with the same history make the same calls, one with the names of the first and one with none's."""
    third, made_up = await tenant(database, "third"), nowhere(names)
    before = await rows(database, "acme")
    assert {table for table, digest in before.items() if not digest} == EMPTY
    tried = set()
    for mine, none in zip(calls(names), calls(made_up), strict=True):
        route, method, path, more = mine
        found = await api.call(method, path, **{"key": api.other, **more})
        other = await api.call(method, none[2], **{"key": third, **none[3]})
        assert same(found, names) == same(other, made_up), (method, path, more)
        assert MARK.encode() not in found.body.replace(names["user"].encode(), b""), (method, path)
        tried.add(route)
    assert tried == {route_name(route) for route in served()} - EXCEPT.keys()
    assert await rows(database, "acme") == before


async def test_lists_show_nothing_of_another_tenant(api: Served, names: Names) -> None:
    for route, method, path, _ in calls(names):
        if method == "GET" and "{" not in route and path.startswith("/v1/"):
            mine, theirs = await api.get(path), await api.get(path, key=api.other)
            assert mine.status == theirs.status == 200, path
            for name, value in names.items():
                if name not in ("version", "path", "name", "gone", "picture", "export", "tenant"):
                    assert value.encode() not in theirs.body, (path, name)
            assert MARK.encode() not in theirs.body, path


async def test_the_same_bytes_are_new_to_another_tenant(api: Served, names: Names) -> None:
    digest, picture = names["digest"], names["picture"].encode("latin-1")
    assert (await api.get(f"/v1/blobs/{digest}", key=api.other)).status == 404
    kept = await api.call("POST", "/v1/blobs", data=picture, headers={"Content-Type": "text/plain"}, key=api.other)
    assert (kept.status, kept.json["digest"], kept.json["media_type"]) == (201, digest, "text/plain")
    assert (await api.get(f"/v1/blobs/{digest}")).headers["Content-Type"] == "image/png"


# ---- the same ids ----------------------------------------------------------------------------------


async def clone(database: Database) -> None:
    """Give the second tenant every row of the first one, with the same ids and the same names."""
    async with database.migrator() as owner:
        every = [table for table, column in await tables(owner) if column == "tenant" and table not in UNCLONED]
        for table in every:
            await owner.execute(f"alter table {table} disable trigger user")
        async with owner.transaction():
            await _copied(owner, every)
        for table in every:
            await owner.execute(f"alter table {table} enable trigger user")


async def _copied(owner: asyncpg.Connection, left: list[str]) -> None:
    """Copy tables; what refers to others comes after them."""
    while left:
        missing = []
        for table in left:
            columns = await owner.fetchval(
                "select string_agg(quote_ident(attname), ', ') from pg_attribute where attrelid = $1::regclass"
                " and attnum > 0 and not attisdropped and attgenerated = '' and attname <> 'tenant'",
                table,
            )
            copy = f"insert into {table} (tenant, {columns}) overriding system value"
            try:
                async with owner.transaction():
                    await owner.execute(f"{copy} select 'rival', {columns} from {table} where tenant = 'acme'")
            except asyncpg.ForeignKeyViolationError:
                missing.append(table)
        assert missing != left, "these refer to each other"
        left = missing


async def test_who_has_the_same_ids_and_names_changes_only_their_own(
    api: Served, names: Names, database: Database
) -> None:
    await clone(database)
    before, theirs = await rows(database, "acme"), await rows(database, "rival")
    done = set()
    for route, method, path, more in calls(names):
        if "/files" not in path and "text/event-stream" not in str(more):  # a sandbox is found by its session's id
            reply = await api.call(method, path, **{"key": api.other, **more})
            assert reply.status < 500, (method, path, reply.body)
            done |= {route} if reply.status < 400 else set()
    after = await rows(database, "acme")
    assert {table for table in before if before[table] != after[table]} == set()
    changed = {table for table, rows_ in (await rows(database, "rival")).items() if rows_ != theirs[table]}
    assert {"run", "inbox", "agent", "schedule", "stop", "session", "audit", "api_key"} <= changed
    writing = {name for name in done if not name.startswith("GET")}
    assert len(writing) >= 25, f"most calls did something: {sorted(writing)}"


async def test_a_stream_of_the_same_run_id_carries_ones_own_alone(
    api: Served, player: Player, names: Names, database: Database
) -> None:
    run_id = names["run_id:queued"]
    await clone(database)
    async with (
        follow(api, run_id) as mine,
        follow(api, run_id, Authorization=f"Bearer {api.other}") as theirs,
        asyncio.timeout(60),
    ):
        played = set()
        while played != {"acme", "rival"}:
            play = await player.take_any()
            if play.claimed.run_id != run_id:
                continue
            played.add(play.claimed.tenant)
            play.asked()
            await play.commit()
            play.delta(f"delta for {play.claimed.tenant}")
            play.replied(f"answer for {play.claimed.tenant}")
            await play.commit(release="completed")
        for reading, own, foreign in ((mine, "acme", "rival"), (theirs, "rival", "acme")):
            await reading.rest()
            assert f"answer for {own}" in said(reading)
            assert foreign not in said(reading)


def said(reading: Reading) -> str:
    return str([frame.data for frame in reading.frames])
