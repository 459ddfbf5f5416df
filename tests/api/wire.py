"""The wire to the database, which a test can cut and mend."""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Protocol, TypeVar
from urllib.parse import parse_qs, urlencode, urlsplit

from sojourn.store.roles import Dsns

Far = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


class Wire:
    """A socket that passes everything on to the real one."""

    def __init__(self, far: Far) -> None:
        self.far = far
        self.whole = True
        self.ends: set[asyncio.StreamWriter] = set()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self.whole:
            writer.close()
            return
        far_reader, far_writer = await self.far()
        self.ends |= {writer, far_writer}
        await asyncio.gather(self.carry(reader, far_writer), self.carry(far_reader, writer))
        self.ends -= {writer, far_writer}

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    def cut(self) -> None:
        self.whole = False
        for end in self.ends:
            end.transport.abort()

    def mend(self) -> None:
        self.whole = True


class Between(Protocol):
    """What passes connections on, in its way."""

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None: ...


W = TypeVar("W", bound=Between)


@asynccontextmanager
async def between(dsns: Dsns, made: Callable[[Far], W]) -> AsyncIterator[tuple[W, Dsns]]:
    """Put a wire between us and the server; the logins that go through it."""
    parts = urlsplit(dsns.api)
    query = parse_qs(parts.query)
    port = int(query.get("port", [parts.port or 5432])[0])
    if "host" in query:
        far: Far = partial(asyncio.open_unix_connection, f"{query['host'][0]}/.s.PGSQL.{port}")
    else:
        far = partial(asyncio.open_connection, parts.hostname, port)
    with tempfile.TemporaryDirectory(prefix="sojourn-test-") as folder:
        wire = made(far)
        async with await asyncio.start_unix_server(wire.connected, f"{folder}/.s.PGSQL.{port}"):
            yield wire, Dsns(*(through(dsn, folder) for dsn in (dsns.migrate, dsns.api, dsns.engine)))


@asynccontextmanager
async def wired(dsns: Dsns) -> AsyncIterator[tuple[Wire, Dsns]]:
    """A wire that can be cut; it ends cut."""
    async with between(dsns, Wire) as (wire, logins):
        yield wire, logins
        wire.cut()


def through(dsn: str, folder: str) -> str:
    parts = urlsplit(dsn)
    query = {key: values[0] for key, values in parse_qs(parts.query).items()}
    login = parts.netloc.rpartition("@")[0]
    there = {"port": str(parts.port or 5432), **query, "host": folder}
    return parts._replace(netloc=f"{login}@" if login else "", query=urlencode(there)).geturl()
