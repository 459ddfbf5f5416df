"""A small transaction pooler, as hostile as one may be: no two transactions of a client have the same connection.

It refuses what is set at connect, as pgbouncer does. With `keeps` it prepares a client's named statements on whatever
connection its transaction has, as pgbouncer does from 1.21 on; without, what was prepared is elsewhere at once.
"""

import asyncio
import struct
import tempfile
from collections import defaultdict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

from tests.conftest import until
from tests.postgres_wire import Message, read

SSL_REQUEST, CANCEL_REQUEST = 80877103, 80877102
KNOWN = {"user", "database", "client_encoding", "application_name", "DateStyle", "TimeZone"}
SERVERS = 4
"""Connections to the server of each login."""


class Server:
    """One connection to the real server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.hello: list[Message] = []
        self.prepared: set[bytes] = set()
        self.parses: deque[bool] = deque()
        """Of each Parse that was sent and not answered: whether the client waits for the answer."""


class Pooler:
    """The pooler of one server's socket."""

    def __init__(self, path: str, *, keeps: bool) -> None:
        self.path, self.keeps = path, keeps
        self.free: dict[bytes, deque[Server]] = defaultdict(deque)
        self.made: dict[bytes, int] = defaultdict(int)
        self.returned = asyncio.Condition()
        self.numbers = count()
        self.transactions = 0
        self.clients: set[asyncio.StreamWriter] = set()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.clients.add(writer)
        try:
            startup = await self._startup(reader, writer)
            if startup is not None:
                await Client(self, startup, reader, writer).serve()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self.clients.discard(writer)
            writer.close()

    async def _startup(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes | None:
        """What a client says first, if it may come in."""
        while True:
            message = await read(reader, first=True)
            (code,) = struct.unpack("!i", message.body[:4])
            if code == CANCEL_REQUEST:
                return None
            if code != SSL_REQUEST:
                break
            writer.write(b"N")
        names = [name.decode() for name in message.body[4:].split(b"\0")[0:-2:2]]
        if unknown := [name for name in names if name and name not in KNOWN]:
            told = f"SFATAL\0C08P01\0Munsupported startup parameter: {unknown[0]}\0\0"
            writer.write(Message(b"E", told.encode()).raw)
            await writer.drain()
            return None
        return message.body

    async def lease(self, startup: bytes) -> Server:
        """The connection that has rested longest."""
        if self.made[startup] < SERVERS:
            self.made[startup] += 1
            return await self._open(startup)
        async with self.returned:
            await self.returned.wait_for(lambda: self.free[startup])
            return self.free[startup].popleft()

    async def give_back(self, startup: bytes, server: Server) -> None:
        async with self.returned:
            self.transactions += 1
            self.free[startup].append(server)
            self.returned.notify()

    async def _open(self, startup: bytes) -> Server:
        reader, writer = await asyncio.open_unix_connection(self.path)
        server = Server(reader, writer)
        writer.write(Message(b"", startup).raw)
        while not server.hello or server.hello[-1].kind != b"Z":
            server.hello.append(await read(reader))
        return server

    def cut(self) -> None:
        """End every connection, as a restart of the pooler does."""
        for client in list(self.clients):
            client.transport.abort()


class Client:
    """One client, which has a server's connection for the length of a transaction."""

    def __init__(
        self, pooler: Pooler, startup: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.pooler, self.startup, self.reader, self.writer = pooler, startup, reader, writer
        self.number = next(pooler.numbers)
        self.named: dict[bytes, Message] = {}

    async def serve(self) -> None:
        server = await self.pooler.lease(self.startup)
        self.writer.write(b"".join(message.raw for message in server.hello))
        await self.pooler.give_back(self.startup, server)
        while (message := await read(self.reader)).kind != b"X":
            server = await self.pooler.lease(self.startup)
            try:
                await self._transaction(server, message)
            except BaseException:
                server.writer.close()  # nobody knows how it stands
                self.pooler.made[self.startup] -= 1
                raise
            await self.pooler.give_back(self.startup, server)

    async def _transaction(self, server: Server, message: Message) -> None:
        """Carry what is said until the server is out of a transaction, and has answered all."""
        while True:
            answering = asyncio.create_task(self._answers(server))
            try:
                self._pass_on(server, message)
                while message.kind not in (b"S", b"Q"):
                    message = await read(self.reader)
                    self._pass_on(server, message)
                if await answering == b"I":
                    return
            finally:
                answering.cancel()
            message = await read(self.reader)

    async def _answers(self, server: Server) -> bytes:
        """Carry answers until the server has given all, and say how its transaction stands."""
        while (answer := await read(server.reader)).kind != b"Z":
            if answer.kind != b"1" or server.parses.popleft():
                self.writer.write(answer.raw)
        server.parses.clear()
        self.writer.write(answer.raw)
        await self.writer.drain()
        return answer.body

    def _pass_on(self, server: Server, message: Message) -> None:
        """Send a message on, with names that are this client's alone."""
        match message.kind:
            case b"P":
                name, rest = message.body.split(b"\0", 1)
                message = self._renamed(b"P", b"", name, rest)
                if name:
                    self.named[name] = message
                    server.prepared.add(self._own(name))
                server.parses.append(True)
            case b"B":
                portal, name, rest = message.body.split(b"\0", 2)
                self._see_prepared(server, name)
                message = self._renamed(b"B", portal + b"\0", name, rest)
            case b"D" | b"C" if message.body[:1] == b"S":
                name = message.body[1:-1]
                if message.kind == b"D":
                    self._see_prepared(server, name)
                message = self._renamed(message.kind, b"S", name, b"")
                server.prepared.discard(self._own(name) if message.kind == b"C" else b"")
        server.writer.write(message.raw)

    def _see_prepared(self, server: Server, name: bytes) -> None:
        """Prepare what another connection has prepared for this client."""
        if self.pooler.keeps and name and self._own(name) not in server.prepared:
            server.writer.write(self.named[name].raw)
            server.parses.append(False)
            server.prepared.add(self._own(name))

    def _renamed(self, kind: bytes, head: bytes, name: bytes, tail: bytes) -> Message:
        return Message(kind, head + (self._own(name) if name else b"") + b"\0" + tail)

    def _own(self, name: bytes) -> bytes:
        return b"%d:%b" % (self.number, name) if self.pooler.keeps else name


@asynccontextmanager
async def pooled(folder: Path, *, keeps: bool = False) -> AsyncIterator[tuple[Pooler, str]]:
    """A pooler before the server whose socket is in a folder; the host that its clients name."""
    with tempfile.TemporaryDirectory(prefix="sojourn-test-") as own:
        pooler = Pooler(f"{folder}/.s.PGSQL.5432", keeps=keeps)
        async with await asyncio.start_unix_server(pooler.connected, f"{own}/.s.PGSQL.5432"):
            try:
                yield pooler, own
            finally:
                pooler.cut()
                await until(lambda: not pooler.clients)
                for server in (server for servers in pooler.free.values() for server in servers):
                    server.writer.close()
