"""/v1/blobs: images and files that a message refers to, by digest.

The rule: a blob is what its digest says and belongs to its tenant; the media type is what the caller called it.
"""

import re
from functools import partial

import msgspec
from aiohttp import web

from sojourn.api.http import transfer
from sojourn.api.http.codes import WrongMedia
from sojourn.api.route import Answer, Ask, Route
from sojourn.api.runs.shapes import MEDIA_TYPE
from sojourn.errors import Invalid, NotFound
from sojourn.store.tenant import blobs


class BlobSeen(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes that are kept."""

    digest: str
    """Its name: `sha256:` and 64 hexadecimal digits. The same bytes have the same one."""
    bytes: int
    media_type: str
    """As it was called when these bytes first came."""


async def write(ask: Ask[None, None]) -> Answer:
    """Keep what the body holds."""
    media_type = ask.http.content_type
    if not re.fullmatch(MEDIA_TYPE, media_type):
        raise WrongMedia("The header Content-Type is no media type; send one such as image/png.")
    settings = ask.parts.settings
    data = await transfer.received(ask, limit_bytes=settings.blob_max_bytes)
    if not data:
        raise Invalid("The body is empty; send the bytes of the image or file.")
    async with ask.transaction() as connection:
        digest = await blobs.put(
            connection,
            data,
            bytes_max=settings.blob_max_bytes,
            tenant_bytes_max=settings.blobs_max_bytes,
            media_type=media_type,
        )
        await blobs.hold(connection, digest, keep_s=settings.uploads_kept_hours * 3600)
        kept = (await blobs.about(connection, (digest,)))[digest]
    return Answer(status=201, body=_seen(kept), headers={"Location": f"/v1/blobs/{digest}"})


async def read(ask: Ask[None, None]) -> web.StreamResponse:
    """Send a blob, piece by piece; no connection of the database is held for a slow reader."""
    digest = ask.names["digest"]
    async with ask.transaction() as connection:
        kept = (await blobs.about(connection, (digest,))).get(digest)
    if kept is None:
        raise NotFound
    headers = {
        "Content-Type": kept.media_type,
        "Content-Disposition": transfer.attachment(digest.removeprefix("sha256:")),
        "ETag": f'"{digest}"',
    }
    return await transfer.sent(ask, partial(_piece, ask, digest), size_bytes=kept.size_bytes, headers=headers)


async def _piece(ask: Ask[None, None], digest: str, offset: int) -> bytes:
    async with ask.transaction() as connection:
        return await blobs.piece(connection, digest, offset=offset, limit_bytes=transfer.PIECE_BYTES)


def _seen(blob: blobs.Blob) -> BlobSeen:
    return BlobSeen(digest=blob.digest, bytes=blob.size_bytes, media_type=blob.media_type)


ROUTES = (
    Route(
        method="POST",
        path="/v1/blobs",
        handler=write,
        summary="Keep an image or a file for messages to refer to",
        detail="The body is its bytes, and Content-Type its media type. The answer names it by digest; `input` takes "
        "that in a part `image` or `file`. The same bytes sent again are kept once. What a program in the sandbox is "
        "to read belongs into the session's files instead.",
        tag="blobs",
        scope="runs:write",
        fills=True,
        upload=True,
        answers={201: (BlobSeen, "The blob, by digest")},
        refusals=("request.media_type", "limit.blobs"),
    ),
    Route(
        method="GET",
        path="/v1/blobs/{digest}",
        handler=read,
        summary="Read a blob",
        tag="blobs",
        scope="runs:read",
        answers={200: (None, "Its bytes")},
        media=("*/*",),
    ),
)
