"""Sessions and the files in them, on real sandboxes."""

import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from served_api import GOAL, Reply, Served, serve

from sojourn.api.http.gate import Gate
from sojourn.api.sessions import files as listing
from sojourn.errors import Unavailable
from sojourn.sandboxes.bwrap import BwrapProvider
from sojourn.store.db import Database, connect
from sojourn.store.roles import Dsns
from sojourn.store.tenant import blobs, keys, sessions


@pytest.fixture
async def sandboxes(data_dir: Path) -> AsyncIterator[BwrapProvider]:
    provider = BwrapProvider(data_dir / "sandboxes", idle_s=0.5)
    yield provider
    await provider.reap(frozenset())
    await provider.close()


@pytest.fixture
async def api(database: Database, sandboxes: BwrapProvider) -> AsyncIterator[Served]:
    async with serve(database, sandboxes=sandboxes, file_max_bytes=3 << 20) as served:
        yield served


async def new(api: Served) -> str:
    """Make a session; the path of its files."""
    return f"/v1/sessions/{(await api.post('/v1/sessions', {})).json['id']}/files"


async def put(api: Served, path: str, data: bytes) -> int:
    return (await api.call("PUT", path, data=io.BytesIO(data))).status


async def test_files_are_written_listed_read_and_deleted_before_any_run(api: Served) -> None:
    files = await new(api)
    assert (await api.get(files)).json == {"data": [], "has_more": False}
    data = bytes(range(256)) * 9000  # more than one piece
    written = await api.call("PUT", f"{files}/data/a%20b.bin", data=io.BytesIO(data))
    assert (written.status, written.json) == (201, {"path": "data/a b.bin", "bytes": len(data)})
    listed = (await api.get(f"{files}?path=.&depth=2")).json["data"]
    assert [(one["path"], one["kind"]) for one in listed] == [("data", "directory"), ("data/a b.bin", "file")]
    assert listed[1]["bytes"] == len(data)
    read = await api.get(f"{files}/data/a%20b.bin")
    assert read.body == data
    assert read.headers["Content-Type"] == "application/octet-stream"
    assert read.headers["Content-Disposition"] == "attachment; filename*=UTF-8''a%20b.bin"
    assert (await api.call("DELETE", f"{files}/data/a%20b.bin")).status == 204
    assert (await api.get(f"{files}/data/a%20b.bin")).code == "request.not_found"


async def test_a_list_says_that_there_is_more_only_where_there_is(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "FILES_MAX", 2)
    files = await new(api)
    for name, more in (("a", False), ("b", False), ("c", True)):
        assert await put(api, f"{files}/{name}", b"1") == 201
        listed = (await api.get(files)).json
        assert listed["has_more"] == more and len(listed["data"]) <= 2


async def test_an_empty_file_is_a_file(api: Served) -> None:
    files = await new(api)
    assert await put(api, f"{files}/empty", b"") == 201
    read = await api.get(f"{files}/empty")
    assert (read.status, read.body) == (200, b"")


@pytest.mark.parametrize(
    "path", ["..%2fescape", "a/..%2f..%2f..%2fescape", "%2fetc%2fescape", "a%00b", "%2e%2e/%2e%2e/x"]
)
async def test_no_path_leads_out(api: Served, path: str, data_dir: Path) -> None:
    files = await new(api)
    assert await put(api, f"{files}/inside", b"1") == 201
    assert await put(api, f"{files}/{path}", b"out") in (404, 405, 422)
    assert (await api.get(f"{files}/{path}")).status in (404, 405, 422)
    assert not list(data_dir.rglob("escape"))
    assert not Path("/etc/escape").exists()


async def test_a_file_over_the_limit_is_refused_with_and_without_a_length(api: Served) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(4):
            yield bytes(1 << 20)

    files = await new(api)
    reply = await api.call("PUT", f"{files}/big", data=io.BytesIO(bytes((3 << 20) + 1)))
    assert (reply.status, reply.code) == (413, "request.too_large")
    reply = await api.call("PUT", f"{files}/big", data=pieces())
    assert (reply.status, reply.code) == (413, "request.too_large")
    assert (await api.get(files)).json["data"] == []


async def test_a_folder_is_no_file(api: Served) -> None:
    files = await new(api)
    assert await put(api, f"{files}/data/a", b"1") == 201
    reply = await api.get(f"{files}/data")
    assert (reply.status, reply.code) == (422, "request.invalid")


async def test_files_that_were_put_away_come_back(api: Served, sandboxes: BwrapProvider, database: Database) -> None:
    files = await new(api)
    session_id = files.split("/")[3]
    assert await put(api, f"{files}/kept", b"as it was") == 201
    sandbox = await sandboxes.attach(session_id)
    assert sandbox is not None
    archive = await sandbox.suspend()
    principal = await keys.authenticate(database, api.key)
    async with database.scoped(principal.handle) as connection:
        digest = await blobs.put(connection, archive.data, bytes_max=1 << 30)
        await sessions.save_workspace(connection, session_id, digest=digest)
    assert await sandboxes.attach(session_id) is None
    assert (await api.get(f"{files}/kept")).body == b"as it was"
    async with database.scoped(principal.handle) as connection:
        assert (await sessions.get(connection, session_id)).host == api.parts.host


async def test_requests_that_wait_for_a_sandbox_leave_the_rest_of_the_api_alone(
    database: Database, dsns: Dsns, sandboxes: BwrapProvider
) -> None:
    async with serve(database, sandboxes=sandboxes, file_requests_waiting_max=20) as api, await connect(dsns) as other:
        files = await new(api)
        principal = await keys.authenticate(database, api.key)
        async with other.scoped(principal.handle) as holder:
            await sessions.lock(holder, files.split("/")[3])  # as a worker does that puts a large workspace away
            stuck = [asyncio.create_task(api.call("PUT", f"{files}/{n}", data=b"1")) for n in range(40)]
            turned_away = [(await task) for task in await first(stuck, 17)]
            for reply in turned_away:
                assert (reply.status, reply.code, reply.headers["Retry-After"]) == (503, "sandbox.busy", "2")
            async with asyncio.timeout(30):
                assert (await api.get("/v1/runs")).status == 200
                assert (await api.get("/readyz")).status == 200
        written = [(await task).status for task in stuck]
        assert written.count(201) == 23, "those that were in, and those that waited"


async def first(tasks: list[asyncio.Task[Reply]], count: int) -> list[asyncio.Task[Reply]]:
    """The tasks that are done, once there are so many."""
    async with asyncio.timeout(20):
        while len(done := [task for task in tasks if task.done()]) < count:
            await asyncio.wait([task for task in tasks if not task.done()], return_when=asyncio.FIRST_COMPLETED)
    return done


async def test_a_request_does_not_wait_for_ever_for_a_sandbox() -> None:
    gate = Gate("a sandbox to open", at_once=1, waiting_max=1, wait_s=0.05)
    async with gate.entered():
        with pytest.raises(Unavailable, match=r"within 0\.05 s"):
            await gate._enter()
    async with gate.entered():
        pass


async def test_files_on_another_host_are_asked_for_there(api: Served, database: Database) -> None:
    files = await new(api)
    principal = await keys.authenticate(database, api.key)
    async with database.scoped(principal.handle) as connection:
        await sessions.place(connection, files.split("/")[3], host="elsewhere", backend="bwrap", enforced=None)
    reply = await api.get(files)
    assert (reply.status, reply.code) == (503, "sandbox.unavailable")
    assert "elsewhere" in reply.json["detail"]


async def test_a_server_without_sandboxes_says_so(database: Database) -> None:
    async with serve(database) as api:
        files = await new(api)
        assert (await api.get(files)).code == "sandbox.unavailable"
        assert (await api.call("PUT", f"{files}/a", data=b"1")).code == "sandbox.unavailable"


async def test_a_closed_session_takes_no_run_and_no_file_and_can_be_read(api: Served) -> None:
    files = await new(api)
    session = files.removesuffix("/files")
    assert await put(api, f"{files}/a", b"1") == 201
    closed = await api.post(f"{session}/close")
    assert (closed.status, closed.json["closed_at"] is not None) == (200, True)
    reply = await api.post("/v1/runs", {**GOAL, "session": session.rpartition("/")[2]})
    assert (reply.status, reply.code) == (409, "session.closed")
    assert (await api.call("PUT", f"{files}/b", data=b"1")).code == "session.closed"
    assert (await api.get(f"{files}/a")).body == b"1"


async def test_a_session_with_an_unfinished_run_cannot_be_closed(api: Served) -> None:
    session = (await api.post("/v1/runs", GOAL)).json["session_id"]
    reply = await api.post(f"/v1/sessions/{session}/close")
    assert (reply.status, reply.code) == (409, "session.busy")


async def test_sessions_are_listed_newest_first(api: Served) -> None:
    made = [(await api.post("/v1/sessions")).json["id"] for _ in range(3)]
    page = (await api.get("/v1/sessions?limit=2")).json
    assert ([one["id"] for one in page["data"]], page["has_more"]) == (made[:0:-1], True)
    rest = (await api.get(f"/v1/sessions?after={page['next']}")).json
    assert ([one["id"] for one in rest["data"]], rest["has_more"]) == (made[:1], False)
