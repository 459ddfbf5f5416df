"""Bytes in and out that are no JSON: uploads and downloads. Called by the handlers of files and blobs.

The rule: an upload is held once and never past its limit, a download piece by piece, and one that breaks off is cut, so
that nobody takes a part for the whole.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import quote

from aiohttp import web

from sojourn.api.http.codes import TooSlow
from sojourn.api.route import Ask
from sojourn.errors import SojournError, TooLarge

PIECE_BYTES = 1 << 20
UPLOAD_S, UPLOAD_IDLE_S = 600.0, 30.0
HELD_S = 120.0
"""How long what is held in memory whole may take on its way, in or out."""

Piece = Callable[[int], Awaitable[bytes]]
"""Reads up to PIECE_BYTES from an offset on; nothing where it ends."""


async def received(ask: Ask[Any, Any], *, limit_bytes: int, within_s: float = UPLOAD_S) -> bytearray:
    """The request's body, whatever it is. Raises TooLarge and TooSlow."""
    try:
        async with asyncio.timeout(within_s):
            return await _received(ask, limit_bytes)
    except TimeoutError:
        raise TooSlow(f"The body did not arrive within {within_s:g} s.") from None


async def _received(ask: Ask[Any, Any], limit_bytes: int) -> bytearray:
    data = bytearray()
    if (ask.http.content_length or 0) > limit_bytes:
        raise _too_large(limit_bytes)
    while True:
        try:
            async with asyncio.timeout(UPLOAD_IDLE_S):
                piece = await ask.http.content.readany()
        except TimeoutError:
            raise TooSlow(f"Nothing of the body arrived for {UPLOAD_IDLE_S:g} s.") from None
        if not piece:
            return data
        data += piece
        if len(data) > limit_bytes:
            raise _too_large(limit_bytes)


async def sent(ask: Ask[Any, Any], piece: Piece, *, size_bytes: int, headers: Mapping[str, str]) -> web.StreamResponse:
    """Answer with so many bytes; what fails before the first one is an answer too, and later the connection ends."""
    data = await piece(0)
    response = web.StreamResponse(headers={**headers, "Content-Length": str(size_bytes)})
    await response.prepare(ask.http)
    count = 0
    while data and count < size_bytes:
        data = data[: size_bytes - count]  # a file may grow meanwhile, and the length is announced
        await response.write(data)
        count += len(data)
        try:
            data = await piece(count) if count < size_bytes else b""
        except SojournError:
            break
    if count < size_bytes and ask.http.transport is not None:
        ask.http.transport.abort()
    return response


async def held(ask: Ask[Any, Any], data: bytes, *, headers: Mapping[str, str]) -> web.StreamResponse:
    """Answer with bytes that are held in memory; a reader who takes too long is cut off."""

    async def piece(offset: int) -> bytes:
        return data[offset : offset + PIECE_BYTES]

    try:
        async with asyncio.timeout(HELD_S):
            return await sent(ask, piece, size_bytes=len(data), headers=headers)
    except TimeoutError:
        if ask.http.transport is not None:
            ask.http.transport.abort()
        raise ConnectionResetError from None


def attachment(name: str) -> str:
    """A Content-Disposition that keeps a browser from showing what it gets."""
    return f"attachment; filename*=UTF-8''{quote(name, safe='')}"


def _too_large(limit_bytes: int) -> TooLarge:
    return TooLarge(f"The body is larger than {limit_bytes} bytes.")
