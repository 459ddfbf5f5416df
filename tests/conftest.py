"""A real database for every test that asks: the embedded server, started once for the session.

    database    fresh, migrated, empty; a copy of a template (function scope)
    dsns        the three logins of that database, for other processes
    blank       the same without any migration
    data_dir    an empty data folder for a test that starts programs of its own
    server      the three logins of the session's server
whole_day   time enough before midnight (UTC)

Set SOJOURN_TEST_DATABASE_URL to use a server of yours instead: its login may make databases and roles.
"""

import asyncio
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from sojourn.store import embedded
from sojourn.store.db import Database, connect
from sojourn.store.migrate import migrate
from sojourn.store.roles import API, ENGINE, OWNER, Dsns, closing_sql

MEMORY = Path("/dev/shm")
MEMORY_BYTES_MIN = 4 << 30


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """Give a folder that root's database server can reach too (pytest's `tmp_path` is closed to it)."""
    folder = Path(tempfile.mkdtemp(prefix="sojourn-test-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
async def server() -> AsyncIterator[Dsns]:
    """Give the server that all databases of the session are made on."""
    if url := os.environ.get("SOJOURN_TEST_DATABASE_URL"):
        async with await connect(url):
            yield await _with_logins(url)
        return
    folder = server_folder()
    async with await embedded.start(folder, fsync=False) as cluster:
        yield cluster.dsns
    await until(lambda: not embedded.running(folder))
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
async def template(server: Dsns) -> AsyncIterator[str]:
    """Give the name of a migrated database that nobody is connected to."""
    async with _database(server, copy_of="template1") as dsns:
        async with await connect(dsns) as database:
            await migrate(database)
        yield _name(dsns)


@pytest.fixture
async def dsns(server: Dsns, template: str) -> AsyncIterator[Dsns]:
    """Give the logins of a fresh, migrated database."""
    async with _database(server, copy_of=template) as dsns:
        yield dsns


@pytest.fixture
async def database(dsns: Dsns) -> AsyncIterator[Database]:
    """Give this process's connections to it."""
    async with await connect(dsns) as database:
        yield database


@pytest.fixture
async def blank(server: Dsns) -> AsyncIterator[Dsns]:
    """Give the logins of a database without any table of ours."""
    async with _database(server, copy_of="template1") as dsns:
        yield dsns


@pytest.fixture
async def whole_day() -> None:
    """Wait where the day (UTC) is about to end, for tests that count within one."""
    left_s = 86400 - time.time() % 86400
    if left_s < 120:
        await asyncio.sleep(left_s + 1)


def server_folder() -> Path:
    """Make a folder for a server that forgets: in memory where there is room, as each database is 300 new files."""
    roomy = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > MEMORY_BYTES_MIN
    mine = roomy and os.access(MEMORY, os.W_OK) and not os.statvfs(MEMORY).f_flag & os.ST_NOEXEC
    return Path(tempfile.mkdtemp(prefix="sojourn-test-", dir=MEMORY if mine else None))


async def until(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    """Wait until a condition holds, and fail when it does not in time."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 (what we wait for happens in other processes)
            await asyncio.sleep(0.005)


async def _with_logins(url: str) -> Dsns:
    """Let our roles log in to a server of yours, so that they are as far apart as on the embedded one."""
    admin, parts, password = await asyncpg.connect(url), urlsplit(url), secrets.token_hex(16)
    for role in (API, ENGINE):
        await admin.execute(f"alter role {role} login password '{password}'")
    await admin.close()
    place = parts.netloc.rpartition("@")[2]
    return Dsns(url, *(parts._replace(netloc=f"{role}:{password}@{place}").geturl() for role in (API, ENGINE)))


@asynccontextmanager
async def _database(server: Dsns, *, copy_of: str) -> AsyncIterator[Dsns]:
    """Make a database with a name of its own, and drop it."""
    name = f"sojourn_test_{secrets.token_hex(6)}"
    admin = await asyncpg.connect(server.migrate)
    try:
        await admin.execute(f'create database "{name}" template "{copy_of}" owner {OWNER} strategy file_copy')
        for statement in closing_sql(name):
            await admin.execute(statement)
        yield Dsns(
            *(urlsplit(dsn)._replace(path=f"/{name}").geturl() for dsn in (server.migrate, server.api, server.engine))
        )
        await _drop(admin, name)
    finally:
        await admin.close()


async def _drop(admin: asyncpg.Connection, name: str) -> None:
    """Drop a database; a backend of another role that is still ending may not be told to end, and is waited for."""
    async with asyncio.timeout(30):
        while True:
            try:
                await admin.execute(f'drop database "{name}" with (force)')
                return
            except (asyncpg.InsufficientPrivilegeError, asyncpg.ObjectInUseError):
                await asyncio.sleep(0.05)


def _name(dsns: Dsns) -> str:
    """Read a database's name off its URL."""
    return urlsplit(dsns.migrate).path.removeprefix("/")
