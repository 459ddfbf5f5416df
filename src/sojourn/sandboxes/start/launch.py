"""Starts bubblewrap for one session and opens what is needed to enter, watch and end it.

`server.py` calls `launch`. The rule: a launch either returns a sandbox that stands, or leaves no process behind and
says what bubblewrap said.
"""

import asyncio
import contextlib
import json
import os
import signal
from dataclasses import dataclass

from sojourn.errors import SandboxUnavailable
from sojourn.sandboxes.kernel import calls
from sojourn.sandboxes.kernel.cgroups import Group
from sojourn.sandboxes.kernel.waiting import any_readable, is_readable, reaped
from sojourn.sandboxes.sandbox import Limits
from sojourn.sandboxes.start import child
from sojourn.sandboxes.start.forking import Forker, holding
from sojourn.sandboxes.start.stage import Stage

_LAUNCH_S = 15.0
_WORDS_BYTES = 2048
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Ground:
    """What a sandbox is built on: its stage, limits, identity on the host, groups and filter."""

    stage: Stage
    forker: Forker
    limits: Limits
    body: child.Body
    group: Group
    load: bytes
    counted_memory: bool


@dataclass(frozen=True, slots=True)
class Doors:
    """What a child needs to enter a sandbox: its init and the two user namespaces, the outer owning all others."""

    init: int
    outer: int
    inner: int


@dataclass(frozen=True, slots=True)
class Standing:
    """A sandbox that stands: the pid of bubblewrap, that of its init, and open descriptors of what is inside."""

    bwrap: int
    init: int
    tell: int
    """The init's stdin; it ends when this closes, as it does with the keeper."""
    doors: Doors
    proc: int
    tmpfs: tuple[int, int]

    def close(self) -> None:
        for fd in (self.tell, self.doors.init, self.doors.outer, self.doors.inner, self.proc, *self.tmpfs):
            os.close(fd)


async def launch(session_id: str, ground: Ground) -> Standing:
    """Start the sandbox of `session_id` and wait until it stands. Raises SandboxUnavailable."""
    info, info_w = os.pipe()
    told, tell = os.pipe()
    heard, say = os.pipe()
    complaints, complain = os.pipe()
    load = holding(ground.load)
    given = (told, say, complain, info_w, load)
    try:
        command = ground.stage.command(session_id, ground.limits, info_fd=3, filter_fd=4)
        bwrap = await ground.forker.bubblewrap(command, ground.body, given)
    finally:
        for fd in given:
            os.close(fd)
    try:
        with contextlib.suppress(BrokenPipeError):  # it has ended already, and has said why
            os.write(tell, b"\n")
        async with asyncio.timeout(_LAUNCH_S):
            await any_readable(heard, complaints)
            if not is_readable(heard) or os.read(heard, 1) != b"\n":
                words = os.read(complaints, _WORDS_BYTES).decode(errors="replace").strip()
                raise SandboxUnavailable(f"bubblewrap did not start: {words}")
        return _open(bwrap, json.loads(os.read(info, 4096))["child-pid"], tell)
    except BaseException as error:
        os.close(tell)
        with contextlib.suppress(ProcessLookupError):
            os.kill(bwrap, signal.SIGKILL)
        reaped(bwrap)
        if isinstance(error, TimeoutError):
            raise SandboxUnavailable(f"bubblewrap did not start within {_LAUNCH_S:.0f} s") from error
        raise
    finally:
        for fd in (info, heard, complaints):
            os.close(fd)


def _open(bwrap: int, init: int, tell: int) -> Standing:
    """Open the doors; the number of the init stays its own until bubblewrap, its parent, has been waited for."""
    at = f"/proc/{init}"
    mounts = os.open(f"{at}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    outer = calls.owning_user_namespace(mounts)
    os.close(mounts)
    inner = os.open(f"{at}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    tmp, shm, proc = (os.open(f"{at}/root/{name}", _FOLDER) for name in ("tmp", "dev/shm", "proc"))
    return Standing(bwrap, init, tell, Doors(os.pidfd_open(init), outer, inner), proc, (tmp, shm))
