"""A network between our processes and the database that a test can cut: TCP on loopback to the server's unix socket.

Nothing passes a wire that is cut, and no connection is lost: neither end hears of it, new connections are taken and say
nothing. Once it is mended, what was underway arrives late, as TCP does it.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import parse_qs, urlsplit

from sojourn.store.roles import Dsns


class Wire:
    """One network path to a server of the tests."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._whole = asyncio.Event()
        self._whole.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server
        self.port = 0

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
        return parts._replace(netloc=f"{login}@127.0.0.1:{self.port}", query="").geturl()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._joined, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

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
            far_reader, far_writer = await asyncio.open_unix_connection(self._path)
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
    (folder,) = parse_qs(urlsplit(dsns.migrate).query)["host"]
    wire = Wire(f"{folder}/.s.PGSQL.5432")
    await wire.start()
    try:
        yield wire
    finally:
        await wire.stop()
