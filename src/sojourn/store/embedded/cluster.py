"""Starts the embedded server, or joins it when another process started it. Called by `wiring`.

The rule: who uses the server holds the users lock, shared; who starts it takes the server's lock and hands it on to the
keeper, and with it to every process of the server. So the two locks say all there is to know, and no pid is trusted.
"""

import asyncio
import fcntl
import os
import socket
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

import msgspec

from sojourn.errors import StoreUnavailable
from sojourn.store.embedded import initdb, programs
from sojourn.store.embedded.home import Home, Owner, home_in, prepare
from sojourn.store.roles import API, ENGINE, MIGRATE, Dsns

START_S = 120.0
POLL_S = 0.005
LOG_BYTES_MAX = 1 << 20
SOCKET = ".s.PGSQL.5432"
SOCKET_PATH_BYTES_MAX = 107
KEEPER = Path(__file__).with_name("keeper.py")


class Cluster:
    """One process's hold on the embedded server: it runs as long as anybody holds it."""

    def __init__(self, home: Home, owner: Owner, *, users: int, fsync: bool) -> None:
        self._home, self._owner, self._users, self._fsync = home, owner, users, fsync
        self._host = _Host(home.run)
        self.dsns = _dsns(home, self._host)

    async def ensure(self) -> None:
        """Return when the server answers; start it again when it has died."""
        await asyncio.to_thread(_ensure, self._home, self._owner, fsync=self._fsync)

    async def close(self) -> None:
        """Let go; the server stops when nobody holds it any more. May be called twice."""
        self._host.close()
        if self._users >= 0:
            os.close(self._users)
            self._users = -1

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class _Host:
    """The socket's folder under a name that is short enough for a socket's address."""

    def __init__(self, run: Path) -> None:
        self.path, self._fd = str(run), -1
        if len(os.fsencode(run / SOCKET)) > SOCKET_PATH_BYTES_MAX:
            self._fd = os.open(run, os.O_PATH | os.O_DIRECTORY)
            self.path = f"/proc/self/fd/{self._fd}"

    def close(self) -> None:
        """Forget the name."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _dsns(home: Home, host: _Host) -> Dsns:
    """Write the three logins, for this process only; all is said, so that PGPORT and the like say nothing."""
    passwords = msgspec.json.decode(home.passwords.read_bytes(), type=dict[str, str])
    where = f"host={quote(host.path, safe='')}&port=5432&sslmode=disable&target_session_attrs=any"
    return Dsns(*(f"postgresql://{name}:{passwords[name]}@/sojourn?{where}" for name in (MIGRATE, API, ENGINE)))


async def start(data_dir: Path, *, fsync: bool = True) -> Cluster:
    """Start or join the server of a data folder and hold it.

    Raises StoreUnavailable with what to do when it cannot start. Without `fsync` a power cut loses data: for tests.
    """
    return await asyncio.to_thread(_start, home_in(data_dir), fsync=fsync)


def running(data_dir: Path) -> bool:
    """Say whether a process of the server is alive, the keeper included."""
    home = home_in(data_dir)
    if not home.server_lock.exists():
        return False
    lock = _try_lock(home.server_lock, fcntl.LOCK_SH)
    if lock is None:
        return True
    os.close(lock)
    return False


def _start(home: Home, *, fsync: bool) -> Cluster:
    """Take the users lock, then see that the server runs."""
    try:
        owner = prepare(home)
        users = _share(home.users_lock)
        try:
            _ensure(home, owner, fsync=fsync)
            return Cluster(home, owner, users=users, fsync=fsync)
        except BaseException:
            os.close(users)
            raise
    except OSError as error:
        raise StoreUnavailable(initdb.explain(f"{error.filename or home.root}: {error.strerror}")) from error


def _share(path: Path) -> int:
    """Take the users lock; it is denied only while a server without users is stopping."""
    deadline = time.monotonic() + START_S
    while (lock := _try_lock(path, fcntl.LOCK_SH)) is None:
        if time.monotonic() > deadline:
            raise StoreUnavailable(f"The database server of {path.parent} is stopping and does not come to an end.")
        time.sleep(POLL_S)
    return lock


def _try_lock(path: Path, kind: int) -> int | None:
    """Take a file lock that dies with its holder; return its descriptor, or None when somebody else has it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def _ensure(home: Home, owner: Owner, *, fsync: bool) -> None:
    """Wait until the server answers, and launch it when nobody does."""
    deadline, log_start = time.monotonic() + START_S, -1
    while True:
        lock = _try_lock(home.server_lock, fcntl.LOCK_EX)
        if lock is None:
            if _answers(home):
                return
        elif log_start >= 0:
            os.close(lock)
            raise StoreUnavailable(initdb.explain(home.log.read_bytes()[log_start:].decode(errors="replace")))
        else:
            try:
                log_start = _launch(home, owner, lock, fsync=fsync)
                deadline = time.monotonic() + START_S
            finally:
                os.close(lock)
        if time.monotonic() > deadline:
            raise StoreUnavailable(f"The database server did not answer within {START_S:.0f} s; see {home.log}.")
        time.sleep(POLL_S)


def _launch(home: Home, owner: Owner, lock: int, *, fsync: bool) -> int:
    """Start keeper and server, who inherit the lock; return where in the log their words begin."""
    if not home.data.exists():
        initdb.create(home, owner, lock=lock, fsync=fsync)
    _check_version(home)
    initdb.configure(home, owner, fsync=fsync)
    (home.data / "postmaster.pid").unlink(missing_ok=True)  # stale: we hold the lock that a living server holds
    postgres = programs.find(home, owner) / "postgres"
    files = ("-c", f"config_file={home.config}", "-c", f"hba_file={home.hba}")
    command = (KEEPER, home.users_lock, str(owner.uid), str(owner.gid), postgres, "-D", home.data, *files)
    if home.log.exists() and home.log.stat().st_size > LOG_BYTES_MAX:
        home.log.rename(home.log.with_suffix(".log.old"))
    home.log.touch(mode=0o600)
    with home.log.open("ab") as log:
        subprocess.run(
            [sys.executable, "-I", "-S", *command],
            check=False,  # what goes wrong shows when nobody holds the lock
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(lock,),
            start_new_session=True,  # a Ctrl-C meant for us does not reach it
            cwd="/",
            env={"LC_ALL": "C"},
            umask=0o077,
        )
        return log.tell()


def _check_version(home: Home) -> None:
    """Raise StoreUnavailable when the data folder is another major version's."""
    found = (home.data / "PG_VERSION").read_text().strip()
    if found != str(programs.MAJOR):
        raise StoreUnavailable(
            f"{home.data} was written by PostgreSQL {found}, and this release brings {programs.MAJOR}. Dump it with "
            "the release that wrote it and load it into an empty SOJOURN_DATA_DIR, or set SOJOURN_DATABASE_URL.",
            code="store.version",
        )


def _answers(home: Home) -> bool:
    """Say whether the server takes connections: its pid file says so, and its socket is not a dead one's."""
    host = _Host(home.run)
    with closing(host), closing(socket.socket(socket.AF_UNIX)) as probe, suppress(FileNotFoundError, ConnectionError):
        ready = (home.data / "postmaster.pid").read_text().splitlines()[7:8]
        probe.connect(f"{host.path}/{SOCKET}")
        return ready == ["ready   "]
    return False
