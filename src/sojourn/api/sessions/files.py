"""/v1/sessions/{session_id}/files: what is in the session's workspace.

The rule: bytes go through in pieces, nothing larger than the limit is held, and what comes from inside is never shown
to a browser as anything but a download.
"""

from datetime import UTC, datetime
from typing import Annotated

import msgspec
from aiohttp import web
from msgspec import Meta

from sojourn.api.http import transfer
from sojourn.api.route import Answer, Ask, Route
from sojourn.api.sessions.workspace import existing, need, writable
from sojourn.errors import Invalid, NotFound
from sojourn.sandboxes.sandbox import FileStat

FILES_MAX = 1000


class ListQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    path: Annotated[str, Meta(max_length=1024, description="A folder of the workspace.")] = "."
    depth: Annotated[int, Meta(ge=1, le=8, description="How many levels to go down.")] = 1


class FileSeen(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of a workspace."""

    path: str
    kind: str
    """file, directory, symlink or other."""
    bytes: int
    modified_at: datetime | None
    """As what runs inside has set it."""


class FilesPage(msgspec.Struct, frozen=True, kw_only=True):
    """Entries; has_more says that there are more than a list shows, so list deeper folders one by one."""

    data: tuple[FileSeen, ...]
    has_more: bool


class FileWritten(msgspec.Struct, frozen=True, kw_only=True):
    """The file is there, whole."""

    path: str
    bytes: int


async def listing(ask: Ask[None, ListQuery]) -> Answer:
    """List a folder."""
    sandbox = await existing(ask)
    if sandbox is None:
        return Answer(body=FilesPage(data=(), has_more=False))
    try:
        found = await sandbox.list(ask.query.path, depth=ask.query.depth, limit=FILES_MAX + 1)
    except NotFound:
        if ask.query.path != ".":
            raise
        found = []
    return Answer(body=FilesPage(data=tuple(map(_seen, found[:FILES_MAX])), has_more=len(found) > FILES_MAX))


async def read(ask: Ask[None, None]) -> web.StreamResponse:
    """Send a file, piece by piece."""
    sandbox, path = need(await existing(ask)), ask.names["path"]
    stat = await sandbox.stat(path)
    if stat.kind != "file":
        raise Invalid(f"This is no file but a {stat.kind}.")
    headers = {
        "Content-Type": "application/octet-stream",
        "Content-Disposition": transfer.attachment(path.rpartition("/")[2]),
    }

    async def piece(offset: int) -> bytes:
        return await sandbox.read(path, offset=offset, limit_bytes=transfer.PIECE_BYTES)

    return await transfer.sent(ask, piece, size_bytes=stat.size_bytes, headers=headers)


async def write(ask: Ask[None, None]) -> Answer:
    """Replace a file."""
    data = bytes(await transfer.received(ask, limit_bytes=ask.parts.settings.file_max_bytes))
    await (await writable(ask)).write(ask.names["path"], data)
    return Answer(status=201, body=FileWritten(path=ask.names["path"], bytes=len(data)))


async def remove(ask: Ask[None, None]) -> Answer:
    """Delete a file or a folder."""
    await need(await existing(ask)).remove(ask.names["path"])
    return Answer(status=204)


def _seen(stat: FileStat) -> FileSeen:
    try:
        modified_at = datetime.fromtimestamp(stat.modified_at, UTC)
    except (ValueError, OverflowError, OSError):
        modified_at = None
    return FileSeen(path=stat.path, kind=stat.kind, bytes=stat.size_bytes, modified_at=modified_at)


FILES = "/v1/sessions/{session_id}/files"
GONE = ("request.not_found", "sandbox.unavailable", "sandbox.busy")
ROUTES = (
    Route(
        method="GET",
        path=FILES,
        handler=listing,
        summary="List a session's files",
        tag="sessions",
        scope="sessions:read",
        query=ListQuery,
        answers={200: (FilesPage, "The entries of a folder")},
        refusals=GONE,
    ),
    Route(
        method="GET",
        path=FILES + "/{path}",
        handler=read,
        summary="Read a file",
        tag="sessions",
        scope="sessions:read",
        answers={200: (None, "Its bytes")},
        media=("application/octet-stream",),
        refusals=GONE,
    ),
    Route(
        method="PUT",
        path=FILES + "/{path}",
        handler=write,
        summary="Write a file",
        detail="The body is the file's bytes, whatever its type. Folders are made; a file that is there is replaced.",
        tag="sessions",
        scope="sessions:write",
        fills=True,
        upload=True,
        answers={201: (FileWritten, "The file is there, whole")},
        refusals=("session.closed", *GONE),
    ),
    Route(
        method="DELETE",
        path=FILES + "/{path}",
        handler=remove,
        summary="Delete a file or a folder",
        tag="sessions",
        scope="sessions:write",
        answers={204: (None, "It is gone")},
        refusals=GONE,
    ),
)
