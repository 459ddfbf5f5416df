"""Starts bubblewrap for one session and opens what is needed to enter, watch and end it.

`server.py` calls `launch`. The rule: a sandbox that is returned stands, and its porter has gone in; else it says what
bubblewrap said, and the berth is the caller's to close.
"""

import asyncio
import contextlib
import json
import os
from dataclasses import dataclass

from sojourn.errors import SandboxUnavailable
from sojourn.sandboxes.kernel import calls
from sojourn.sandboxes.kernel.waiting import any_readable, is_readable
from sojourn.sandboxes.sandbox import Limits
from sojourn.sandboxes.start import child
from sojourn.sandboxes.start.forking import Berth
from sojourn.sandboxes.start.porter import Porter, holding
from sojourn.sandboxes.start.stage import Stage

_LAUNCH_S = 15.0
_WORDS_BYTES = 2048
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Ground:
    """What a sandbox is built on: its stage, berth, limits, identity on the host and filter."""

    stage: Stage
    berth: Berth
    limits: Limits
    body: child.Body
    load: bytes
    counted_memory: bool
    rest_s: float
    """How long the porter stays when nothing runs."""


@dataclass(frozen=True, slots=True)
class Doors:
    """What a porter needs to enter a sandbox: its init and the two user namespaces, the outer owning all others."""

    init: int
    outer: int
    inner: int


@dataclass(frozen=True, slots=True)
class Standing:
    """A sandbox that stands: its init's pid, and open descriptors of what is inside."""

    pid: int
    tell: int
    """The init's stdin; it ends when this closes, as it does with the keeper."""
    doors: Doors
    proc: int
    tmpfs: tuple[int, int]

    def close(self) -> None:
        for fd in (self.tell, self.doors.init, self.doors.outer, self.doors.inner, self.proc, *self.tmpfs):
            os.close(fd)


async def launch(session_id: str, ground: Ground) -> Standing:
    """Start the sandbox of `session_id` and wait until it can be entered. Raises SandboxUnavailable, OSError."""
    porter = ground.berth.porter or await ground.berth.hire()
    await porter.become(ground.body, ground.load)
    told, tell = os.pipe()
    try:
        pid = await _start(session_id, ground, told, tell)
        standing = _open(pid, tell)
    except BaseException:
        os.close(tell)
        raise
    try:
        await _enter(standing, porter)
    except BaseException:
        standing.close()
        raise
    return standing


async def _start(session_id: str, ground: Ground, told: int, tell: int) -> int:
    """Have bubblewrap build the sandbox, and wait until its init answers; the init's pid."""
    info, info_w = os.pipe()
    heard, say = os.pipe()
    complaints, complain = os.pipe()
    load = holding(ground.load)
    given = (told, say, complain, info_w, load)
    try:
        try:
            command = ground.stage.command(session_id, ground.limits, info_fd=3, filter_fd=4)
            await ground.berth.launcher.become(command, ground.body, given)
            ground.berth.group.limit(ground.limits)
        finally:
            for fd in given:
                os.close(fd)
        with contextlib.suppress(BrokenPipeError):  # it has ended already, and has said why
            os.write(tell, b"\n")
        async with asyncio.timeout(_LAUNCH_S):
            await any_readable(heard, complaints)
        if not is_readable(heard) or os.read(heard, 1) != b"\n":
            words = os.read(complaints, _WORDS_BYTES).decode(errors="replace").strip()
            raise SandboxUnavailable(f"bubblewrap did not start: {words}")
        return int(json.loads(os.read(info, 4096))["child-pid"])
    except TimeoutError as error:
        raise SandboxUnavailable(f"bubblewrap did not start within {_LAUNCH_S:.0f} s") from error
    finally:
        for fd in (info, heard, complaints):
            os.close(fd)


async def enter(standing: Standing, ground: Ground) -> Porter:
    """Hire another porter and send it in. Raises SandboxUnavailable, OSError."""
    try:
        porter = await ground.berth.hire()
        await porter.become(ground.body, ground.load)
        await _enter(standing, porter)
    except BaseException:
        await ground.berth.dismiss()
        raise
    return porter


async def _enter(standing: Standing, porter: Porter) -> None:
    doors = standing.doors
    try:
        async with asyncio.timeout(_LAUNCH_S):
            await porter.go_in((doors.init, doors.outer, doors.inner))
    except TimeoutError as error:
        raise SandboxUnavailable(f"the sandbox could not be entered within {_LAUNCH_S:.0f} s") from error


def _open(pid: int, tell: int) -> Standing:
    """Open what is inside; the number of the init stays its own until bubblewrap, its parent, has been waited for."""
    at = f"/proc/{pid}"
    mounts = os.open(f"{at}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    outer = calls.owning_user_namespace(mounts)
    os.close(mounts)
    inner = os.open(f"{at}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    tmp, shm, proc = (os.open(f"{at}/root/{name}", _FOLDER) for name in ("tmp", "dev/shm", "proc"))
    return Standing(pid, tell, Doors(os.pidfd_open(pid), outer, inner), proc, (tmp, shm))
