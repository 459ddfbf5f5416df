"""Images and files of a message: kept by digest, referred to by parts of the input, and never another tenant's."""

import hashlib
import io
from collections.abc import AsyncIterator
from typing import Any

import pytest
from played_worker import Player
from served_api import GOAL, Served, serve

from sojourn.loop.messages import File, Image, Text
from sojourn.store.db import Database

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
LIMIT_BYTES = 3 << 20


@pytest.fixture
async def api(database: Database) -> AsyncIterator[Served]:
    async with serve(database, blob_max_bytes=LIMIT_BYTES, blobs_max_bytes=4 << 20) as served:
        yield served


async def keep(api: Served, data: bytes, kind: str = "image/png", **more: Any) -> Any:
    """Upload bytes and give the answer's body."""
    reply = await api.call("POST", "/v1/blobs", data=io.BytesIO(data), headers={"Content-Type": kind}, **more)
    assert reply.status == 201, reply.body
    assert reply.headers["Location"] == f"/v1/blobs/{reply.json['digest']}"
    return reply.json


def image(blob: Any, **more: str) -> dict[str, str]:
    return {"type": "image", "blob": blob["digest"], **more}


async def test_a_blob_is_named_by_its_bytes_and_comes_back_as_it_was(api: Served) -> None:
    data = bytes(range(256)) * 9000  # NUL and more than one piece
    kept = await keep(api, data, "application/pdf; version=1.7")
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert kept == {"digest": digest, "bytes": len(data), "media_type": "application/pdf"}
    read = await api.get(f"/v1/blobs/{digest}")
    assert (read.status, read.body) == (200, data)
    assert (read.headers["Content-Type"], read.headers["Content-Length"]) == ("application/pdf", str(len(data)))
    assert read.headers["Content-Disposition"].startswith("attachment;")


async def test_the_same_bytes_again_are_the_same_blob(api: Served, database: Database) -> None:
    first = await keep(api, PNG)
    assert await keep(api, PNG, "text/plain") == first, "with the type that they first came with"


async def test_a_blob_of_another_tenant_is_not_found_and_cannot_be_referred_to(api: Served) -> None:
    kept = await keep(api, PNG)
    reply = await api.get(f"/v1/blobs/{kept['digest']}", key=api.other)
    assert (reply.status, reply.code) == (404, "request.not_found")
    reply = await api.post("/v1/runs", {**GOAL, "input": [image(kept)]}, key=api.other)
    assert (reply.status, reply.code, reply.pointer) == (422, "blob.unknown", "/input/0/blob")
    assert await keep(api, PNG, key=api.other) == kept
    assert (await api.post("/v1/runs", {**GOAL, "input": [image(kept)]}, key=api.other)).status == 202


async def test_nothing_is_no_blob(api: Served) -> None:
    reply = await api.call("POST", "/v1/blobs", data=b"", headers={"Content-Type": "image/png"})
    assert (reply.status, reply.code) == (422, "request.invalid")


async def test_a_blob_over_the_limit_is_refused_with_and_without_a_length(api: Served) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(4):
            yield bytes(1 << 20)

    for data in (io.BytesIO(bytes(LIMIT_BYTES + 1)), pieces()):
        reply = await api.call("POST", "/v1/blobs", data=data)
        assert (reply.status, reply.code) == (413, "request.too_large")
    assert (await keep(api, bytes(LIMIT_BYTES)))["bytes"] == LIMIT_BYTES


async def test_a_tenant_keeps_no_more_than_its_limit_and_nobody_else_pays_for_it(api: Served) -> None:
    kept = await keep(api, bytes(LIMIT_BYTES))
    reply = await api.call("POST", "/v1/blobs", data=io.BytesIO(bytes(2 << 20)))
    assert (reply.status, reply.code, reply.json["retryable"]) == (429, "limit.blobs", False)
    assert "blobs_max_bytes" in reply.json["detail"]
    assert await keep(api, bytes(LIMIT_BYTES)) == kept, "what is there already costs nothing"
    await keep(api, bytes(2 << 20), key=api.other)


@pytest.mark.parametrize("kind", ["nonsense", "image/", "image/p ng", "a" * 70 + "/b"])
async def test_a_content_type_that_is_none_is_never_kept(api: Served, kind: str) -> None:
    reply = await api.call("POST", "/v1/blobs", data=PNG, headers={"Content-Type": kind})
    if reply.status == 201:
        assert reply.json["media_type"] == "application/octet-stream"
    else:
        assert (reply.status, reply.code) == (415, "request.media_type")


@pytest.mark.parametrize("digest", ["x", "sha256:" + "0" * 64, "sha256:" + "0" * 63 + "G", "%00", "..%2fruns"])
async def test_a_digest_that_is_not_there_is_not_found(api: Served, digest: str) -> None:
    assert (await api.get(f"/v1/blobs/{digest}")).code == "request.not_found"


async def test_a_message_is_its_parts_in_order(api: Served, player: Player) -> None:
    picture, notes = await keep(api, PNG), await keep(api, b"a,b\n1,2\n", "text/csv")
    parts = [
        {"type": "text", "text": "Compare this"},
        image(picture),
        {"type": "text", "text": "  "},
        {"type": "file", "blob": notes["digest"], "name": "notes.csv"},
        {"type": "text", "text": "with that."},
    ]
    run_id = await api.start({"input": parts})
    assert (await api.post(f"/v1/runs/{run_id}/messages", {"input": [image(picture)]})).status == 202
    messages = (await player.take(run_id)).state.root.messages
    assert messages[0].parts == (
        Text("Compare this"),
        Image(picture["digest"], "image/png"),
        File(notes["digest"], "text/csv", "notes.csv"),
        Text("with that."),
    )
    assert messages[1].parts == (Image(picture["digest"], "image/png"),)


async def test_a_picture_alone_is_a_message(api: Served) -> None:
    run_id = await api.start({"input": [image(await keep(api, PNG))]})
    assert (await api.get(f"/v1/runs/{run_id}")).json["input"] == "[attachments alone]"


async def test_a_part_is_refused_where_a_model_would_stumble(api: Served) -> None:
    picture, unnamed = await keep(api, PNG), await keep(api, PNG + b"2", "application/octet-stream")
    file = {"type": "file", "blob": picture["digest"]}
    refused = [
        ({"type": "image", "blob": "sha256:" + "0" * 64}, "blob.unknown", "/blob"),
        ({"type": "file", "blob": "sha256:" + "0" * 64}, "blob.unknown", "/blob"),
        (image(unnamed), "request.invalid", "/media_type"),
        (image(picture, media_type="image/jpeg"), "request.invalid", "/media_type"),
        (image(picture, media_type="image/svg+xml"), "request.invalid", "/media_type"),
        (image(picture, media_type="image/png\n"), "request.invalid", "/media_type"),
        ({**file, "name": "a\0b"}, "request.invalid", "/name"),
        ({**file, "name": "../../etc/passwd"}, "request.invalid", "/name"),
        ({**file, "name": "notes\n"}, "request.invalid", "/name"),
        ({**file, "url": "http://127.0.0.1/"}, "request.invalid", "/url"),
    ]
    run_id = await api.start()
    for part, code, pointer in refused:
        for path, more in (("/v1/runs", GOAL), (f"/v1/runs/{run_id}/messages", {})):
            reply = await api.post(path, {**more, "input": [{"type": "text", "text": "Look:"}, part]})
            assert (reply.status, reply.code, reply.pointer) == (422, code, f"/input/1{pointer}"), part
    assert [run["id"] for run in (await api.get("/v1/runs")).json["data"]] == [run_id]
    assert (await api.post("/v1/runs", {**GOAL, "input": [image(unnamed, media_type="image/png")]})).status == 202


async def test_the_blobs_of_one_message_are_bounded_together(api: Served) -> None:
    two = [await keep(api, PNG + bytes([n]) * (LIMIT_BYTES // 2)) for n in range(2)]
    reply = await api.post("/v1/runs", {**GOAL, "input": [image(one) for one in two]})
    assert (reply.status, reply.code, reply.pointer) == (413, "request.too_large", "/input")
    assert (await api.post("/v1/runs", {**GOAL, "input": [image(two[0])] * 2})).status == 413, "each is sent"
    assert (await api.post("/v1/runs", {**GOAL, "input": [image(two[0])]})).status == 202
