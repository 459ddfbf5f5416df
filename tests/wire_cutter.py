"""A network between our processes and the database that a test can cut: TCP on loopback to the server's unix socket.

Nothing passes a wire that is cut, and no connection is lost: neither end hears of it, new connections are taken and say
nothing. Once it is mended, what was underway arrives late, as TCP does it.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from types import MappingProxyType
from urllib.parse import parse_qs, urlsplit

from sojourn.store.roles import Dsns

Dial = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


class Wire:
    """One network path to a server of the tests, which `dial` reaches."""

    prefix: tuple[str, ...] = ()
    """What a command begins with that runs at this end of it, and what its environment has."""
    env: Mapping[str, str] = MappingProxyType({})

    def __init__(self, dial: Dial) -> None:
        self._dial = dial
        self._whole = asyncio.Event()
        self._whole.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server
        self.host, self.port = "127.0.0.1", 0

    def cut(self) -> None:
        """Let nothing pass any more."""
        self._whole.clear()

    def mend(self) -> None:
        """Let pass what waits, and what comes."""
        self._whole.set()

    def dsns(self, dsns: Dsns) -> dict[str, str]:
        """The settings of a process whose database is at the other end."""
        names = ("SOJOURN_DATABASE_URL", "SOJOURN_DATABASE_URL_API", "SOJOURN_DATABASE_URL_ENGINE")
        return dict(zip(names, map(self._through, (dsns.migrate, dsns.api, dsns.engine)), strict=True))

    def _through(self, dsn: str) -> str:
        parts = urlsplit(dsn)
        login = parts.netloc.rpartition("@")[0]
        return parts._replace(netloc=f"{login}@{self.host}:{self.port}", query="").geturl()

    async def start(self, listening: socket.socket | None = None) -> None:
        listening = listening or socket.create_server((self.host, 0))
        self._server = await asyncio.start_server(self._joined, sock=listening)
        self.host, self.port = listening.getsockname()

    async def stop(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _joined(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        ends = [writer]
        try:
            await self._whole.wait()
            far_reader, far_writer = await self._dial()
            ends.append(far_writer)
            await asyncio.gather(self._pass(reader, far_writer), self._pass(far_reader, writer))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            for end in ends:
                end.transport.abort()
            self._tasks.discard(task)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                await self._whole.wait()
                writer.write(data)
                await writer.drain()
        await self._whole.wait()
        writer.close()


@asynccontextmanager
async def wired(dsns: Dsns) -> AsyncIterator[Wire]:
    """A wire to the server of these logins."""
    wire = Wire(to_database(dsns))
    await wire.start()
    try:
        yield wire
    finally:
        await wire.stop()


def to_database(dsns: Dsns) -> Dial:
    """What reaches the server of these logins."""
    (folder,) = parse_qs(urlsplit(dsns.migrate).query)["host"]
    return partial(asyncio.open_unix_connection, f"{folder}/.s.PGSQL.5432")
