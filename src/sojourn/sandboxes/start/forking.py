"""The keeper's side of the forker: starts it, and asks its waiting child to become something.

`__main__.py` makes the one Forker; `launch.py` and `running.py` ask. The rule: a request is handed to a child that has
announced itself, one at a time, so none is ever lost in a queue.
"""

import asyncio
import marshal
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

from sojourn.sandboxes.kernel.waiting import is_readable, readable, reaped
from sojourn.sandboxes.start import child

_PACKAGES = Path(__file__).parents[3]
_READY_S = 20.0


class Forker:
    """Made before the keeper's loop runs; it ends with the keeper."""

    def __init__(self, log: Path) -> None:
        """Start the process, whose complaints go to `log`, and wait until its first child is ready. Raises OSError."""
        self._door, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        libraries = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
        with theirs, log.open("ab") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-S", "-P", "-m", f"{__package__}.forker", str(theirs.fileno())],
                executable="/proc/self/exe",
                env={"PYTHONPATH": str(_PACKAGES)} | libraries,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )
        self._door.settimeout(_READY_S)
        self._ready = [self._announced()]
        self._door.setblocking(False)
        self._turn = asyncio.Lock()

    async def bubblewrap(self, argv: Sequence[str], body: child.Body, descriptors: Sequence[int]) -> int:
        """Become bubblewrap, with `descriptors` as 0, 1, 2 and so on; its pid."""
        return await self._ask("bubblewrap", body, tuple(argv), descriptors)

    async def enter(self, program: child.Program, body: child.Body, descriptors: Sequence[int]) -> int:
        """Join a sandbox and fork the program there (see `child.enter`); the pid of the child that joins."""
        return await self._ask("program", body, astuple(program), descriptors)

    async def _ask(self, what: str, body: child.Body, asked: Any, descriptors: Sequence[int]) -> int:
        payload = holding(marshal.dumps((what, astuple(body), asked)))
        try:
            async with self._turn:
                pid = await self._waiting()
                socket.send_fds(self._door, [b"\n"], [payload, *descriptors])
                return pid
        finally:
            os.close(payload)

    async def _waiting(self) -> int:
        """The pid of the child that waits: the last one that said so, those before it having died."""
        if not self._ready:
            await readable(self._door.fileno())
        while is_readable(self._door.fileno()):
            self._ready.append(self._announced())
        *dead, pid = self._ready
        for each in dead:
            reaped(each)
        self._ready.clear()
        return pid

    def _announced(self) -> int:
        """The pid of a child that says that it waits."""
        announced = self._door.recv(4)
        if not announced:
            raise OSError("the process that forks for the keeper has ended")
        return int(struct.unpack("=i", announced)[0])


def holding(data: bytes) -> int:
    """A descriptor from which `data` can be read, however much it is."""
    fd = os.memfd_create("request", os.MFD_CLOEXEC)
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
