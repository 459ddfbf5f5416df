"""The poller: ends what has used more than its share where the kernel keeps no account of it.

`session.py` runs one per sandbox. Memory is watched only where there is no memory cgroup; disk always, since a folder
has no quota of its own. The rule: it costs nothing while nothing runs. It looks once after each start, however short
the program; while one runs every 50 ms, less often the longer a look takes, and every two seconds at the least.
"""

import asyncio
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from sojourn.sandboxes.kernel.processes import Processes
from sojourn.sandboxes.kernel.tree import Usage, measure
from sojourn.sandboxes.sandbox import Limits

_FIRST_S, _LEAST_S, _MOST_S = 0.005, 0.05, 2.0
_COST = 20
_DYING_S = 5.0
"""How long what is killed may take to finish the call that it is in."""
_TMPFS_INODE_BYTES = 1024


class Watch:
    """Looks at one sandbox while it has processes.

    `tmpfs` are its memory filesystems where the poller is to count memory; it is empty where the kernel does.
    """

    def __init__(self, processes: Processes, workspace: Path, limits: Limits, *, tmpfs: tuple[int, ...]) -> None:
        self._processes = processes
        self._workspace = workspace
        self._limits = limits
        self._tmpfs = tmpfs
        self._woken = asyncio.Event()
        # A workspace beyond its limit may shrink, so that its files can be removed, but not grow.
        self._ceiling = Usage(limits.disk_bytes, limits.inodes)

    def wake(self) -> None:
        """Say that something was started."""
        self._woken.set()

    async def run(self, over: Callable[[Literal["memory", "disk"]], None]) -> None:
        """Look until cancelled, and call `over` with what was exceeded."""
        due_s = {"memory": 0.0, "disk": 0.0}
        while True:
            if not self._processes.pids():
                await self._woken.wait()
                self._woken.clear()
                await asyncio.sleep(_FIRST_S)
            now = time.monotonic()
            if self._tmpfs and now >= due_s["memory"]:
                if self._memory_bytes() > self._limits.memory_bytes:
                    over("memory")
                due_s["memory"] = _next(now)
            if now >= due_s["disk"]:
                usage = await self._usage()
                if usage.exceeds(self._ceiling):
                    usage = await self._left(over)
                self._ceiling = usage.at_least(self._limits.disk_bytes, self._limits.inodes)
                due_s["disk"] = _next(now)
            await asyncio.sleep(_LEAST_S)

    async def _left(self, over: Callable[[Literal["disk"]], None]) -> Usage:
        """End what wrote too much; what the workspace takes once nothing of it can write any more."""
        writers = set(self._processes.pids())
        over("disk")
        ends_at = time.monotonic() + _DYING_S
        while writers.intersection(self._processes.pids()) and time.monotonic() < ends_at:  # noqa: ASYNC110 (nothing tells)
            await asyncio.sleep(_FIRST_S)
        return await self._usage()

    async def _usage(self) -> Usage:
        """What the workspace takes, files counted that are open though they have no name any more."""
        usage = Usage()
        for _ in measure(self._workspace, usage):
            await asyncio.sleep(0)
        device = self._workspace.stat().st_dev
        for pid in self._processes.pids():
            self._add_deleted(pid, device, usage)
            await asyncio.sleep(0)
        return usage

    def _add_deleted(self, pid: int, device: int, usage: Usage) -> None:
        """Count the files that a process holds open though they have no name any more."""
        for number in self._processes.descriptors(pid):
            info = self._processes.describe(pid, number)
            if info is not None and info.st_nlink == 0 and info.st_dev == device and stat.S_ISREG(info.st_mode):
                usage.add(info)

    def _memory_bytes(self) -> int:
        """What all processes and the memory filesystems hold together; shared pages counted once when it matters."""
        held = sum(_tmpfs_bytes(fd) for fd in self._tmpfs)
        pids = self._processes.pids()
        quick = held + sum(_sum_kb(self._processes.read(pid, "status"), ("RssAnon:", "RssShmem:")) for pid in pids)
        if quick <= self._limits.memory_bytes:
            return quick
        return held + sum(
            _sum_kb(self._processes.read(pid, "smaps_rollup"), ("Pss_Anon:", "Pss_Shmem:")) for pid in pids
        )


def _next(began: float) -> float:
    now = time.monotonic()
    return now + min(_MOST_S, max(_LEAST_S, (now - began) * _COST))


def _sum_kb(text: str, names: tuple[str, ...]) -> int:
    return sum(int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith(names))


def _tmpfs_bytes(fd: int) -> int:
    space = os.fstatvfs(fd)
    return (space.f_blocks - space.f_bfree) * space.f_frsize + (space.f_files - space.f_ffree) * _TMPFS_INODE_BYTES
