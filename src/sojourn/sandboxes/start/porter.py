"""The keeper's side of a sandbox's porter: sends it in, has it start programs, and hears how they end.

`launch.py` makes a Porter go in; `running.py` begins programs with it. The rule: a program that was asked for always
gets an answer, from the porter or, when that has died, from here.
"""

import asyncio
import contextlib
import marshal
import os
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from itertools import count
from pathlib import Path
from typing import Any

from sojourn.errors import SandboxUnavailable
from sojourn.sandboxes.kernel import calls
from sojourn.sandboxes.kernel.waiting import kill, readable, writable
from sojourn.sandboxes.start import child, crew

_ANSWER_BYTES = 4096
_NO_ROOM = b"\x7ethe sandbox has ended"
_KILLED = int(signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class Program:
    """What runs in the sandbox in the end."""

    argv: tuple[str, ...]
    cwd: str
    env: dict[str, str]


class Errand:
    """A program that the porter was asked for."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.begun: asyncio.Future[bytes] = loop.create_future()
        """Empty when the program runs, else an exit code (one byte) and the reason why it does not."""
        self.ended: asyncio.Future[int] = loop.create_future()
        """Its wait status."""
        self.pidfd = -1

    def pid_inside(self) -> int:
        """The number by which the sandbox knows the program; 0 when it does not run."""
        with contextlib.suppress(FileNotFoundError):
            for line in Path(f"/proc/self/fdinfo/{self.pidfd}").read_text().splitlines():
                if line.startswith("NSpid:"):
                    return max(0, int(line.split()[-1]))
        return 0

    def end(self, status: int) -> None:
        """Say that it has ended, or that it will never begin."""
        if not self.begun.done():
            self.begun.set_result(_NO_ROOM)
        if not self.ended.done():
            self.ended.set_result(status)
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


class Porter:
    """One sandbox's porter, outside until `go_in`."""

    def __init__(self, door: socket.socket, pidfd: int) -> None:
        self.door = door
        self.when_lost: Callable[[], None] = lambda: None
        """Called when the porter has died of itself: what it had begun can be ended only with the sandbox."""
        self._pidfd = pidfd
        self._turn = asyncio.Lock()
        self._numbers = count(1)
        self._errands: dict[int, Errand] = {}

    async def become(self, body: child.Body, load: bytes) -> None:
        """Have it become what its sandbox is, while that is being made. Raises OSError."""
        await request(self.door, (tuple(body), load), ())

    async def go_in(self, doors: Sequence[int]) -> None:
        """Send it into the sandbox behind `doors` (see `child.go_in`). Raises SandboxUnavailable, OSError."""
        await request(self.door, None, doors)
        await readable(self.door.fileno())
        said = self.door.recv(_ANSWER_BYTES)
        if said != crew.READY:
            raise SandboxUnavailable(said.decode(errors="replace") or "the sandbox's porter has died")
        asyncio.get_running_loop().add_reader(self.door, self._hear)

    async def begin(self, program: Program, streams: Sequence[int]) -> Errand:
        """Ask for a program whose 0, 1 and 2 are `streams`. Raises OSError."""
        errand = Errand()
        number = next(self._numbers)
        self._errands[number] = errand
        try:
            async with self._turn:
                await request(self.door, (number, *astuple(program)), streams)
        except BaseException:
            del self._errands[number]
            raise
        return errand

    def close(self) -> int:
        """Begin to end the porter, whose pidfd is the caller's now; what it had begun has ended, or never will."""
        asyncio.get_running_loop().remove_reader(self.door)
        self.door.close()
        kill(self._pidfd)
        for number in list(self._errands):
            self._errands.pop(number).end(_KILLED)
        return self._pidfd

    def _hear(self) -> None:
        """Take one answer."""
        try:
            words, pidfds = calls.receive(self.door, _ANSWER_BYTES, descriptors_max=1)
        except OSError:
            words, pidfds = b"", []
        if not words:
            return self._lose()
        kind, number, value = crew.ANSWER.unpack_from(words)
        errand = self._errands[number]
        match kind:
            case crew.BEGUN:
                [errand.pidfd] = pidfds
                errand.begun.set_result(b"")
            case crew.REFUSED:
                errand.begun.set_result(bytes([value]) + words[crew.ANSWER.size :])
                self._errands.pop(number).end(0)
            case crew.ENDED:
                self._errands.pop(number).end(value)

    def _lose(self) -> None:
        """The porter has died. What it had begun is the keeper's child now, and dies with the sandbox."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self.door)
        for errand in self._errands.values():
            if errand.pidfd < 0:
                errand.end(_KILLED)
            else:
                loop.add_reader(errand.pidfd, self._inherited, errand)
        self.when_lost()

    def _inherited(self, errand: Errand) -> None:
        """Reap what the porter would have reaped."""
        asyncio.get_running_loop().remove_reader(errand.pidfd)
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, errand.pidfd, os.WEXITED)
        errand.end(_KILLED)


async def request(door: socket.socket, words: Any, descriptors: Sequence[int]) -> None:
    """Send one request through a door, whatever its size. Raises OSError."""
    payload = holding(marshal.dumps(words))
    try:
        while True:
            try:
                socket.send_fds(door, [b"\n"], [payload, *descriptors])
                return
            except BlockingIOError:
                await writable(door.fileno())
    finally:
        os.close(payload)


def holding(data: bytes) -> int:
    """A descriptor from which `data` can be read, however much it is."""
    fd = os.memfd_create("request", os.MFD_CLOEXEC)
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
