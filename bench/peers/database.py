"""One PostgreSQL for a run of the target, and a database of its own on it for every product."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
from tests.own_postgres import OwnPostgres, own_postgres

SETTINGS = {
    "listen_addresses": "",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "shared_buffers": "128MB",
    "max_connections": "300",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_parallel_workers_per_gather": "0",
    "io_method": "sync",
}


class Server:
    """The server, once it runs."""

    def __init__(self, postgres: OwnPostgres) -> None:
        self._postgres = postgres

    @property
    def pid(self) -> int:
        assert self._postgres.process is not None
        return self._postgres.process.pid

    async def version(self) -> str:
        admin = await asyncpg.connect(self._postgres.superuser_url)
        try:
            return str(await admin.fetchval("show server_version"))
        finally:
            await admin.close()

    async def database(self, name: str) -> str:
        """Make an empty database and the login that owns it; its URL."""
        login = f"bench_{name}"
        admin = await asyncpg.connect(self._postgres.superuser_url)
        try:
            await admin.execute(f'create role "{login}" login createrole createdb')
            await admin.execute(f'create database "{login}" owner "{login}"')
        finally:
            await admin.close()
        return f"postgresql://{login}@/{login}?host={self._postgres.home.run}"


@asynccontextmanager
async def started() -> AsyncIterator[Server]:
    """Start a server that keeps its promises (fsync), on a unix socket."""
    flags = [part for name, value in SETTINGS.items() for part in ("-c", f"{name}={value}")]
    async with own_postgres(flags=tuple(flags)) as postgres:
        yield Server(postgres)
