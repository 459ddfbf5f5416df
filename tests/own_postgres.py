"""A PostgreSQL of an operator's own: not the embedded one, reached by a URL, stopped and started as a test likes.

    own_postgres    one server
    replicated      a primary and a replica that follows it

It is made with the programs of the embedded server's package. The login of `url` is an operator's: it owns its database
and may make roles. That of `superuser_url` may do everything.
"""

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import asyncpg

from sojourn.store.embedded import programs
from sojourn.store.embedded.home import Home, Owner, give, home_in, prepare

START_S = 60.0
FLAGS = (
    *("-c", "listen_addresses="),
    *("-c", "fsync=off"),
    *("-c", "shared_buffers=16MB"),
    *("-c", "io_method=sync"),
)


class OwnPostgres:
    """One server in a folder of its own, on a unix socket."""

    def __init__(self, home: Home, owner: Owner, flags: tuple[str, ...] = FLAGS) -> None:
        self.home, self.owner, self.flags = home, owner, flags
        self.process: subprocess.Popen[bytes] | None = None
        self.url = f"postgresql://operator@/sojourn?host={home.run}"
        self.superuser_url = f"postgresql://postgres@/sojourn?host={home.run}"

    def make(self) -> None:
        """Make the data folder."""
        maker = programs.named(self.owner)
        self.home.data.mkdir(mode=0o700)
        give(self.home.data, maker)
        flags = ("--username=postgres", "--auth=trust", "--no-sync", "--locale=C", "--encoding=UTF8")
        made = programs.run(maker, self._program("initdb"), "--pgdata", self.home.data, *flags)
        assert made.returncode == 0, made.stdout
        give(self.home.data, self.owner)

    def copy(self, primary: "OwnPostgres") -> None:
        """Make the data folder of a replica."""
        program = programs.find(home_in(Path("/nowhere")), Owner(os.geteuid(), os.getegid())) / "pg_basebackup"
        source = f"host={primary.home.run} user=postgres application_name=replica"
        flags = ("--no-sync", "--checkpoint=fast", "--write-recovery-conf", "--dbname", source)
        made = programs.run(Owner(os.geteuid(), os.getegid()), program, "--pgdata", self.home.data, *flags)
        assert made.returncode == 0, made.stdout
        give(self.home.data, self.owner)

    async def start(self) -> None:
        """Start the server and wait until it answers."""
        self.process = await asyncio.to_thread(self._launch)
        async with asyncio.timeout(START_S):
            while True:
                assert self.process.poll() is None, self.home.log.read_text()
                try:
                    await (await asyncpg.connect(f"postgresql://postgres@/postgres?host={self.home.run}")).close()
                    return
                except (OSError, asyncpg.CannotConnectNowError):
                    await asyncio.sleep(0.02)

    async def say(self, *statements: str) -> list[asyncpg.Record]:
        """Run statements as the superuser, each in a transaction of its own; the rows of the last."""
        admin = await asyncpg.connect(self.superuser_url)
        try:
            for statement in statements:
                rows = await admin.fetch(statement)
            return rows
        finally:
            await admin.close()

    async def until(self, condition: str) -> None:
        """Wait until the superuser finds a condition true."""
        async with asyncio.timeout(START_S):
            while not (await self.say(f"select {condition}"))[0][0]:  # noqa: ASYNC110 (the server does it)
                await asyncio.sleep(0.02)

    def _launch(self) -> subprocess.Popen[bytes]:
        other = self.owner.is_other
        with self.home.log.open("ab") as log:
            return subprocess.Popen(
                [self._program("postgres"), "-D", self.home.data, "-k", self.home.run, *self.flags],
                env={"LC_ALL": "C"},
                cwd="/",
                umask=0o077,
                user=self.owner.uid if other else None,
                group=self.owner.gid if other else None,
                extra_groups=[] if other else None,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    async def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """End the server: SIGINT ends its sessions, SIGQUIT is a crash."""
        if self.process is not None:
            self.process.send_signal(number)
            await asyncio.to_thread(self.process.wait, START_S)
            self.process = None

    def _program(self, name: str) -> Path:
        return programs.find(self.home, self.owner) / name


@contextmanager
def _housed(owner: Owner | None = None, flags: tuple[str, ...] = FLAGS) -> Iterator[OwnPostgres]:
    """A server that is still to be made; one of the same owner can reach the other's socket."""
    folder = Path(tempfile.mkdtemp(prefix="sojourn-test-"))
    home = home_in(folder)
    if owner is not None:
        home.data.mkdir(mode=0o700, parents=True)
        give(home.data, owner)
    try:
        yield OwnPostgres(home, prepare(home), flags)
    finally:
        shutil.rmtree(folder)


@asynccontextmanager
async def own_postgres(flags: tuple[str, ...] = FLAGS) -> AsyncIterator[OwnPostgres]:
    """A server with an empty database `sojourn`, whose owner is not a superuser."""
    with _housed(flags=flags) as postgres:
        await asyncio.to_thread(postgres.make)
        await postgres.start()
        try:
            admin = await asyncpg.connect(f"postgresql://postgres@/postgres?host={postgres.home.run}")
            await admin.execute("create role operator login createrole")
            await admin.execute("create database sojourn owner operator")
            await admin.close()
            yield postgres
        finally:
            await postgres.stop()


@asynccontextmanager
async def replicated() -> AsyncIterator[tuple[OwnPostgres, OwnPostgres]]:
    """A primary whose commits wait for its replica, and the replica."""
    async with own_postgres() as primary:
        with _housed(primary.owner) as replica:
            await asyncio.to_thread(replica.copy, primary)
            await replica.start()
            try:
                await primary.say("alter system set synchronous_standby_names = '*'", "select pg_reload_conf()")
                await primary.until("exists (select from pg_stat_replication where sync_state = 'sync')")
                yield primary, replica
            finally:
                await replica.stop(signal.SIGQUIT)


def either(*servers: OwnPostgres) -> str:
    """The URL of the one of several that can be written to."""
    return f"postgresql://operator@/sojourn?host={','.join(str(server.home.run) for server in servers)}"
