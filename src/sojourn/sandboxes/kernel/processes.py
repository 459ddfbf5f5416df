"""The processes inside one sandbox, seen and signalled through the sandbox's own /proc.

`running.py` ends programs with it and `watch.py` counts with it. The rule: a process is named by an open descriptor of
its folder under /proc, which the kernel takes as a pidfd, so a signal never reaches a pid that was used again.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sojourn.sandboxes.kernel.calls import names_in

_ROUNDS = 50
_LOOK_S = 0.02


@dataclass(frozen=True, slots=True)
class Process:
    pid: int
    parent: int
    session: int


class Processes:
    """The sandbox's process table; `proc_fd` is its /proc and pid 1 its init, which is never listed."""

    def __init__(self, proc_fd: int) -> None:
        self.proc_fd = proc_fd

    def pids(self) -> list[int]:
        """Every process but the init; empty when the sandbox has ended."""
        with contextlib.suppress(OSError):
            return [int(name) for name in names_in(self.proc_fd) if name.isdigit() and name != "1"]
        return []

    def read(self, pid: int, name: str) -> str:
        """A small file of one process; empty when it has gone."""
        try:
            fd = os.open(f"{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.proc_fd)
        except OSError:
            return ""
        try:
            return os.read(fd, 64 << 10).decode(errors="replace")
        except OSError:
            return ""
        finally:
            os.close(fd)

    def descriptors(self, pid: int) -> list[str]:
        """The numbers of a process's open files."""
        try:
            fd = os.open(f"{pid}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.proc_fd)
        except OSError:
            return []
        try:
            return names_in(fd)
        except OSError:
            return []
        finally:
            os.close(fd)

    def describe(self, pid: int, descriptor: str) -> os.stat_result | None:
        """What an open file is; asking opens nothing."""
        with contextlib.suppress(OSError):
            return os.stat(f"{pid}/fd/{descriptor}", dir_fd=self.proc_fd)
        return None

    def table(self) -> Iterator[Process]:
        """Living processes; zombies are left out."""
        for pid in self.pids():
            fields = self.read(pid, "stat").rpartition(")")[2].split()
            if fields and fields[0] not in "ZX":
                yield Process(pid, int(fields[1]), int(fields[3]))

    def sessions(self, first: int) -> set[int]:
        """The sessions of a program that leads session `first`, and of all that descends from it now."""
        table = list(self.table())
        found = {process.pid for process in table if process.session == first}
        while more := {process.pid for process in table if process.parent in found} - found:
            found |= more
        return {first} | {process.session for process in table if process.pid in found}

    def members(self, sessions: set[int]) -> list[int]:
        return [process.pid for process in self.table() if process.session in sessions]

    async def gone(self, sessions: set[int], *, within_s: float) -> None:
        """Wait until these sessions have no process, or the time is over."""
        deadline = time.monotonic() + within_s
        while self.members(sessions) and time.monotonic() < deadline:  # noqa: ASYNC110  the kernel tells nobody
            await asyncio.sleep(_LOOK_S)

    def signal(self, pid: int, number: int) -> None:
        with contextlib.suppress(OSError):
            fd = os.open(str(pid), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.proc_fd)
            try:
                signal.pidfd_send_signal(fd, number)
            finally:
                os.close(fd)

    def kill_program(self, sessions: set[int]) -> None:
        """Kill the processes of these sessions."""
        self._kill(lambda: self.members(sessions))

    def kill_all(self) -> int:
        """Kill every process but the init; how many there were."""
        return self._kill(lambda: [process.pid for process in self.table()])

    def _kill(self, find: Callable[[], list[int]]) -> int:
        """Stop all that `find` sees until it sees nothing new, so that none forks away between two looks; then kill."""
        stopped: set[int] = set()
        for _ in range(_ROUNDS):
            fresh = set(find()) - stopped
            if not fresh:
                break
            for pid in fresh:
                self.signal(pid, signal.SIGSTOP)
            stopped |= fresh
        for pid in stopped:
            self.signal(pid, signal.SIGKILL)
        return len(stopped)
