"""B7: what a sandbox costs, measured through the provider as a worker calls it.

`make bench` runs it. The rule: real sandboxes on this machine, one at a time, and every figure beside its target and
beside its floor: the same work by the machine's own tools in the same round, so that a noisy machine shows in both.

    python -m bench.sandbox [--small] [--json] [--rounds 100 ...]
"""

import asyncio
import contextlib
import hashlib
import math
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from bench.figure import Figure, chosen, report, spread
from sojourn.sandboxes.bwrap import BwrapProvider
from sojourn.sandboxes.keeper.protocol import TRASH, WORKSPACES
from sojourn.sandboxes.sandbox import Sandbox, Spec
from sojourn.sandboxes.start.bubblewrap import find

_FILES, _FILE_BYTES = 1000, 50 << 10
_FILL = f"import os\nfor n in range({_FILES}): open(f'f{{n}}', 'wb').write(os.urandom({_FILE_BYTES}))"
_REST_S = 0.05
_ECHO = ["/usr/bin/echo", "hello"]
# The same namespaces; fewer mounts, no filter, no limits, no uid of its own.
_PLAIN = (
    *("--unshare-user", "--unshare-all", "--disable-userns", "--uid", "1000", "--gid", "1000", "--cap-drop", "ALL"),
    *(
        "--new-session",
        "--ro-bind",
        "/",
        "/",
        "--proc",
        "/proc",
        "--dev",
        "/dev",
        "--tmpfs",
        "/tmp",
        "--die-with-parent",
    ),
)

T = TypeVar("T")


class Sizes(msgspec.Struct, frozen=True):
    """How much is measured."""

    rounds: int = 100
    idle: int = 20
    """Sandboxes side by side, that nobody uses."""
    idle_after_s: float = 2.0


SMALL = Sizes(rounds=2, idle=2, idle_after_s=0.2)


class Row(NamedTuple):
    """The most that an operation may take, median and 99th percentile, and what its floor is."""

    most: tuple[float, float | None]
    floor: str = ""


ROWS = {
    "create to first output": Row((10, 30), "plain bwrap echo"),
    "create to first output, rested": Row((10, 30), "plain bwrap echo"),
    "warm exec": Row((3, 10), "spawn echo"),
    "warm exec, rested": Row((3, 10), "spawn echo"),
    "4 KiB write": Row((0.3, None), "write, rename"),
    "4 KiB read": Row((0.3, None), "open, read"),
    "destroy": Row((50, None)),
    "suspend 1,000 files, 50 MiB": Row((300, None), "tar c, sha256"),
    "restore of the same": Row((300, None), "sha256, tar x"),
    "sandbox that was just used MB": Row((math.inf, None)),
    "idle sandbox MB": Row((1, None)),
}
"""Rested: 50 ms after the one before, when the kernel has calmed down, as it is between the steps of an agent."""


class Times:
    """Milliseconds of each operation, and of its floor, by name."""

    def __init__(self) -> None:
        self.taken: dict[str, list[float]] = {name: [] for name in ROWS}
        self.floors: dict[str, list[float]] = {name: [] for name in ROWS}

    async def time(self, name: str, work: Awaitable[T]) -> T:
        began = time.perf_counter()
        result = await work
        self.taken[name].append((time.perf_counter() - began) * 1e3)
        return result

    def floor(self, name: str, work: Callable[[], object]) -> None:
        began = time.perf_counter()
        work()
        self.floors[name].append((time.perf_counter() - began) * 1e3)

    def figure(self, name: str) -> Figure:
        """Put one figure beside its target and its floor."""
        row = ROWS[name]
        figure = spread("B7", name, "MB" if name.endswith("MB") else "ms", self.taken[name], most=row.most)
        if not row.floor:
            return figure
        floor = statistics.median(self.floors[name])
        return msgspec.structs.replace(figure, floor=f"{row.floor} {floor:.2g}: x{figure.median / floor:.1f}")


async def measure(sizes: Sizes) -> Times:
    """Run `rounds` lives of a sandbox without rests, as many with, and a tenth as many moves of files."""
    times = Times()
    with tempfile.TemporaryDirectory(prefix="sojourn-bench-") as folder:
        provider = BwrapProvider(Path(folder), idle_s=0.2, rest_s=sizes.idle_after_s)
        await provider.probe()
        for rest_s in (0.0, _REST_S):
            for turn in range(sizes.rounds):
                await _one_life(provider, times, Path(folder, WORKSPACES, f"life-{turn}"), rest_s=rest_s)
        for turn in range(max(1, sizes.rounds // 10)):
            await _one_move(provider, times, Path(folder, WORKSPACES, f"move-{turn}"))
        await _memory(provider, times, Path(folder), sizes)
        await provider.reap(frozenset())
        await provider.close()
        while (Path(folder) / "keeper.sock").exists():  # noqa: ASYNC110  another process removes it
            await asyncio.sleep(0.05)
    return times


async def _one_life(provider: BwrapProvider, times: Times, workspace: Path, *, rest_s: float) -> None:
    rested = ", rested" if rest_s else ""
    times.floor(f"create to first output{rested}", lambda: _run([_bwrap(), *_PLAIN, *_ECHO]))
    await asyncio.sleep(rest_s)
    sandbox = await times.time(f"create to first output{rested}", _first_output(provider, workspace.name))
    times.floor(f"warm exec{rested}", lambda: _run(_ECHO))
    await asyncio.sleep(rest_s)
    await times.time(f"warm exec{rested}", _echo(sandbox, "warm"))
    await times.time("4 KiB write", sandbox.write("file", bytes(4096)))
    times.floor("4 KiB write", lambda: _replace(workspace / "plain", bytes(4096)))
    await times.time("4 KiB read", sandbox.read("file"))
    times.floor("4 KiB read", (workspace / "plain").read_bytes)
    await times.time("destroy", sandbox.destroy())


async def _one_move(provider: BwrapProvider, times: Times, workspace: Path) -> None:
    tar, copy = workspace.parents[1] / "floor.tar", workspace.parents[1] / TRASH / f"floor-{workspace.name}"
    sandbox = await provider.create(workspace.name, Spec())
    async for _ in sandbox.exec(["python3", "-c", _FILL], exec_id="fill"):
        pass
    copy.mkdir()
    times.floor("suspend 1,000 files, 50 MiB", lambda: _tar_out(workspace, tar))
    times.floor("restore of the same", lambda: _tar_in(tar, copy))
    shutil.rmtree(copy)
    snapshot = await times.time("suspend 1,000 files, 50 MiB", sandbox.suspend())
    restored = await times.time("restore of the same", provider.restore(workspace.name, snapshot, Spec()))
    await restored.destroy()


async def _first_output(provider: BwrapProvider, session_id: str) -> Sandbox:
    sandbox = await provider.create(session_id, Spec())
    await _echo(sandbox, "first")
    return sandbox


async def _echo(sandbox: Sandbox, exec_id: str) -> None:
    async for _ in sandbox.exec(_ECHO, exec_id=exec_id):
        pass


@cache
def _bwrap() -> str:
    return str(find(None)[0])


def _run(argv: Sequence[str]) -> None:
    subprocess.run(argv, stdout=subprocess.PIPE, env={}, check=True)


def _replace(path: Path, data: bytes) -> None:
    path.with_suffix(".partial").write_bytes(data)
    path.with_suffix(".partial").rename(path)


def _tar_out(folder: Path, tar: Path) -> None:
    subprocess.run(["tar", "cf", tar, "-C", folder, "."], check=True)
    hashlib.sha256(tar.read_bytes()).digest()


def _tar_in(tar: Path, folder: Path) -> None:
    hashlib.sha256(tar.read_bytes()).digest()
    subprocess.run(["tar", "xf", tar, "-C", folder], check=True)


async def _memory(provider: BwrapProvider, times: Times, folder: Path, sizes: Sizes) -> None:
    """What each of some sandboxes adds, used and idle: its processes' own pages, and its share of the keeper."""
    before = _pages_mb(folder)
    sandboxes = [await provider.create(f"idle-{turn}", Spec()) for turn in range(sizes.idle)]
    for sandbox in sandboxes:
        await _echo(sandbox, "used")
    times.taken["sandbox that was just used MB"].append((_pages_mb(folder) - before) / sizes.idle)
    await asyncio.sleep(3 * sizes.idle_after_s)
    times.taken["idle sandbox MB"].append((_pages_mb(folder) - before) / sizes.idle)
    for sandbox in sandboxes:
        await sandbox.destroy()


def _pages_mb(folder: Path) -> float:
    """The proportional share of memory of a data folder's keeper and of all that descends from it."""
    parents, found = {}, set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if f"sojourn.sandboxes.keeper\0{folder}\0" in (process / "cmdline").read_text():
                found.add(int(process.name))
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return sum(map(_share_kb, found)) / 1024


def _share_kb(pid: int) -> int:
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return 0


if __name__ == "__main__":
    measured = asyncio.run(measure(chosen(__doc__, Sizes(), SMALL)))
    report([measured.figure(name) for name in ROWS])
