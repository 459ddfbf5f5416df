"""The disk of the data folder is full under a running server, whose embedded database is on it."""

import asyncio
import fcntl
import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import until
from tests.installation import Installation
from tests.outage.on_small_disk import IMPOSSIBLE

from sojourn.models.simulator import Simulator

SCRIPT = Path(__file__).with_name("on_small_disk.py")
DISK_BYTES = 160 << 20
GOAL = {"input": "x" * 200_000, "agent": {"model": "openai:sim-tokens-5-rate-100"}}


class SmallDisk(Installation):
    """An installation whose data folder is a small disk of its own, which only its processes see."""

    disk: Path
    """The same folder, as this process can reach it."""

    async def start(self, *arguments: str, name: str) -> asyncio.subprocess.Process:
        command = (
            sys.executable,
            SCRIPT,
            self.data_dir,
            str(DISK_BYTES),
            sys.executable,
            "-m",
            "sojourn.cli",
            *arguments,
        )
        log = self.data_dir.with_suffix(".log")
        with log.open("ab") as out:
            process = await asyncio.create_subprocess_exec(*command, env=self.env, stdout=out, stderr=out)
        self.disk = Path(f"/proc/{process.pid}/root{self.data_dir}")
        await until(lambda: "listens on " in log.read_text() or process.returncode is not None, 60)
        assert process.returncode != IMPOSSIBLE, log.read_text()
        assert process.returncode is None, log.read_text()
        shutil.copy(self.disk / "local.key", self.data_dir)
        shutil.copy(log, self.data_dir / f"{name}.log")
        self.processes.append(process)
        return process

    @property
    def free_bytes(self) -> int:
        return shutil.disk_usage(self.disk).free

    def fill(self, *, left_bytes: int) -> None:
        """Take all room but so much."""
        with (self.disk / "ballast").open("wb") as ballast:
            os.posix_fallocate(ballast.fileno(), 0, self.free_bytes - left_bytes)

    def relieve(self) -> None:
        (self.disk / "ballast").unlink()


@asynccontextmanager
async def on_small_disk(data_dir: Path, *, reserve_bytes: int) -> AsyncIterator[SmallDisk]:
    """API and worker in one process, on a small disk."""
    folder = data_dir / "disk"
    folder.mkdir()
    data_dir.chmod(0o755)
    async with Simulator() as simulator:
        env = {"SOJOURN_DISK_RESERVE_BYTES": str(reserve_bytes)}
        installation = SmallDisk(folder, simulator.url, env)
        await installation.start_api()
        lock = os.open(installation.disk / "postgres" / "server.lock", os.O_RDWR)
        try:
            yield installation
        finally:
            await installation.http.close()
            (process,) = installation.processes
            process.terminate()
            await asyncio.wait_for(process.wait(), 60)
            await until(lambda: unlocked(lock))
            os.close(lock)


def unlocked(lock: int) -> bool:
    """Whether the last process of the database has gone."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


async def accept(installation: SmallDisk) -> tuple[list[str], Any]:
    """Start runs until one is refused: those that were accepted, and the refusal."""
    accepted: list[str] = []
    while True:
        async with installation.http.post("/v1/runs", json=GOAL) as response:
            answer = await response.json(content_type=None)
            if response.status != 202:
                assert response.status == 503, answer
                return accepted, answer
        accepted.append(answer["run_id"])


@pytest.mark.parametrize(
    ("reserve_bytes", "left_bytes"),
    [(1, 3 << 20), (24 << 20, 30 << 20)],
    ids=["to the last byte", "to the reserve"],
)
async def test_a_full_disk_refuses_what_is_new_and_loses_nothing(
    data_dir: Path, reserve_bytes: int, left_bytes: int
) -> None:
    async with on_small_disk(data_dir, reserve_bytes=reserve_bytes) as installation:
        installation.fill(left_bytes=left_bytes)
        accepted, refusal = await accept(installation)
        assert accepted
        assert (refusal["code"], refusal["retryable"]) == ("store.full", True)
        for path in ("/v1/runs", f"/v1/runs/{accepted[0]}", f"/v1/runs/{accepted[0]}/events", "/v1/me", "/healthz"):
            assert await installation.get(path), "what is there can be read"
        await installation.post("/v1/runs", GOAL, expect=503)
        installation.relieve()
        accepted.append(await installation.run(**GOAL))
        ended = [await installation.until(run_id) for run_id in accepted]
        assert {run["status"] for run in ended} == {"completed"}, [run["error"] for run in ended]


async def test_a_database_that_a_full_disk_has_stopped_comes_back_by_itself(data_dir: Path) -> None:
    async with on_small_disk(data_dir, reserve_bytes=1) as installation:
        installation.fill(left_bytes=24 << 20)  # its log is written in files of 16 MiB, and the second finds no room
        accepted, refusal = await accept(installation)
        assert refusal["code"] in ("store.unavailable", "store.full")
        assert (await installation.get("/healthz"))["status"] == "ok"
        installation.relieve()
        await readable(installation)
        accepted.append(await installation.run(**GOAL))
        ended = [await installation.until(run_id) for run_id in accepted]
        assert {run["status"] for run in ended} == {"completed"}, [run["error"] for run in ended]


async def readable(installation: SmallDisk) -> None:
    """Wait until the database answers."""
    async with asyncio.timeout(60):
        while True:
            async with installation.http.get("/readyz") as response:
                if response.status == 200:
                    return
            await asyncio.sleep(0.05)


async def test_a_machine_that_allows_no_small_disk_fails_these_tests_and_says_so() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, SCRIPT, "/nowhere/at/all", "1", "/bin/true", stdout=asyncio.subprocess.PIPE
    )
    said, _ = await process.communicate()
    assert process.returncode == IMPOSSIBLE
    assert b"allows no tmpfs" in said
