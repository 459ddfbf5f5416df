"""The wire to a PostgreSQL, message by message, and one that is cut at a chosen message.

CutWire     passes everything on, but for one statement, round which it is cut where a test says: see POINTS
"""

import asyncio
import struct
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple

from sojourn.store.roles import Dsns
from tests.api.wire import Far, between

POINTS = ("before", "running", "after", "middle", "completed")
"""Before the server hears the statement; while it is at work; when it is done and we have heard nothing, half of the
answer, or all but the last message, which says that the transaction is over."""


class Message(NamedTuple):
    kind: bytes
    body: bytes

    @property
    def raw(self) -> bytes:
        return self.kind + struct.pack("!i", len(self.body) + 4) + self.body


async def read(reader: asyncio.StreamReader, *, first: bool = False) -> Message:
    """Read a message; the first one of a client has no kind."""
    kind = b"" if first else await reader.readexactly(1)
    (size,) = struct.unpack("!i", await reader.readexactly(4))
    return Message(kind, await reader.readexactly(size - 4))


def texts(body: bytes, count: int) -> list[str]:
    """The strings at the beginning of a body."""
    return [part.decode() for part in body.split(b"\0")[:count]]


class CutWire:
    """Sockets that pass everything on to the real one."""

    def __init__(self, far: Far) -> None:
        self.far = far
        self.point = self.marker = self.since = ""
        self.cuts = 0

    def cut(self, point: str, marker: str, *, since: str = "") -> None:
        """Cut once, round the next statement with these words (in a transaction in which others were said before)."""
        self.point, self.marker, self.since, self.cuts = point, marker, since, 0

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await self.far()
        ends = (writer, far_writer)
        line = Line(self, reader, writer, far_reader, far_writer)
        try:
            far_writer.write((await read(reader, first=True)).raw)
            await asyncio.gather(line.hear_client(), line.hear_server())
        except (OSError, asyncio.IncompleteReadError, Cut):
            pass
        finally:
            for end in ends:
                end.transport.abort()


class Cut(Exception):
    """The wire is cut here."""


class Line:
    """One connection of a wire."""

    def __init__(self, wire: CutWire, *ends: object) -> None:
        self.wire = wire
        self.client, self.to_client, self.server, self.to_server = ends
        self.named: dict[str, str] = {}
        self.said: list[str] = []
        self.held: list[Message] | None = None

    async def hear_client(self) -> None:
        while True:
            message = await read(self.client)
            if self._is_it(message):
                self.wire.marker, self.wire.cuts = "", 1
                if self.wire.point == "before":
                    raise Cut
                self.held = []
            self.to_server.write(message.raw)
            if self.held is not None and message.kind in b"SQ" and self.wire.point == "running":
                await self.to_server.drain()
                self.to_client.transport.abort()
                self.to_server.close()  # what was sent arrives, and the server works on
                raise Cut

    async def hear_server(self) -> None:
        while True:
            message = await read(self.server)
            if self.held is None:
                self.to_client.write(message.raw)
                continue
            self.held.append(message)
            if message.kind == b"Z":
                told = b"".join(one.raw for one in self.held)
                size = {"after": 0, "middle": len(told) // 2, "completed": len(told) - len(message.raw)}
                self.to_client.write(told[: size[self.wire.point]])
                await self.to_client.drain()
                self.to_client.close()
                raise Cut

    def _is_it(self, message: Message) -> bool:
        """Remember what is said, and whether this is what is waited for."""
        match message.kind:
            case b"P":
                name, sql = texts(message.body, 2)
                self.named[name] = sql
                return False
            case b"B":
                sql = self.named[texts(message.body, 2)[1]]
            case b"Q":
                (sql,) = texts(message.body, 1)
            case _:
                return False
        self.said = [sql] if sql.startswith("BEGIN") else [*self.said, sql]
        wanted, since = self.wire.marker, self.wire.since
        return bool(wanted) and wanted in sql and any(since in earlier for earlier in self.said)


def cut_wire(dsns: Dsns) -> AbstractAsyncContextManager[tuple[CutWire, Dsns]]:
    """Put a wire between us and the server; the logins that go through it."""
    return between(dsns, CutWire)
