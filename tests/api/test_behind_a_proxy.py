"""Streams through a reverse proxy with common defaults: HTTP/1.0, and buffering unless it is told not to."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from urllib.parse import urlsplit

import pytest
from played_worker import Player
from reading import Reading, follow
from served_api import Served

from sojourn.api.events import stream

PREFIX = "/agents"


class Proxy:
    """It takes a prefix off the path, asks in HTTP/1.0 on a connection of its own, and passes on what it has whole."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
        method, path, _ = first.split(b" ")
        there, back = await asyncio.open_connection("127.0.0.1", self.port)
        kept = [line for line in lines if not line.lower().startswith(b"connection:")]
        asked = b"%b %b HTTP/1.0" % (method, path.removeprefix(PREFIX.encode()))
        back.write(b"\r\n".join([asked, b"Connection: keep-alive", *kept]))
        head = await there.readuntil(b"\r\n\r\n")
        writer.write(head)
        if b"x-accel-buffering: no" in head.lower():
            while data := await there.read(1 << 16):
                writer.write(data)
        else:
            writer.write(await there.read())
        back.close()
        writer.close()


@pytest.fixture
async def behind(api: Served) -> AsyncIterator[Served]:
    """The API, as callers reach it through the proxy."""
    proxy = Proxy(urlsplit(api.url).port or 0)
    async with await asyncio.start_server(proxy.connected, "127.0.0.1", 0) as server:
        yield replace(api, url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}{PREFIX}")


async def test_a_stream_comes_at_once_and_ends_through_a_proxy(api: Served, behind: Served, player: Player) -> None:
    run_id = await api.start()
    play = await player.take(run_id)
    async with told_to_the_end(behind, run_id) as reading:
        play.asked()
        await play.commit()
        await reading.until("run.started")
        for n in range(5):
            play.delta(str(n))
            assert (await reading.until("delta.message")).data["text"] == str(n)
        place = next(frame.id for frame in reading.frames if frame.event == "user.message")
        play.replied("1998.")
        await play.commit(release="completed")
    assert reading.names[-1] == "run.completed"
    async with told_to_the_end(behind, run_id, Last_Event_ID=str(place)) as again:
        await again.until("run.completed")
    durable = [frame for frame in reading.frames if not frame.event.startswith("delta.")]
    assert again.frames == durable[[frame.id for frame in durable].index(place) + 1 :]


@asynccontextmanager
async def told_to_the_end(api: Served, run_id: str, **headers: str) -> AsyncIterator[Reading]:
    """A stream that is read to its end, which must come at once."""
    async with asyncio.timeout(20), follow(api, run_id, **headers) as reading:
        yield reading
        await reading.rest()


async def test_an_idle_stream_breathes_through_a_proxy(
    api: Served, behind: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "COMMENT_S", 0.05)
    async with asyncio.timeout(20), follow(behind, await api.start()) as reading:
        await reading.until("user.message")
        for _ in range(3):
            assert (await reading.response.content.readline()).startswith(b":")
            assert await reading.response.content.readline() == b"\n"
