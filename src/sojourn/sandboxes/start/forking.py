"""The keeper's side of the forker: crews for sandboxes, each in control groups of its own, one always made ahead.

`__main__.py` makes the one Forker, `server.py` takes a Berth per sandbox. The rule: joining a control group is done
before anybody waits for it, since the kernel takes up to 20 ms for it on a quiet machine (a grace period of RCU).
"""

import asyncio
import marshal
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sojourn.sandboxes.kernel.cgroups import Cgroups, Group
from sojourn.sandboxes.kernel.waiting import is_readable, kill, readable, reaped
from sojourn.sandboxes.start import child, crew
from sojourn.sandboxes.start.porter import Porter, request

_PACKAGES = Path(__file__).parents[3]
_READY_S = 20.0
_AHEAD_S = 0.005


class Forker:
    """Made before the keeper's loop runs; it ends with the keeper."""

    def __init__(self, log: Path) -> None:
        """Start the process, whose complaints go to `log`, and wait until it is ready. Raises OSError."""
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
        if self._door.recv(1) != crew.READY:
            raise OSError("the process that forks for the keeper did not start")
        self._door.setblocking(False)

    async def crew(self, joins: Sequence[str]) -> "tuple[Launcher, Porter]":
        """Fork a crew into control groups. Raises OSError."""
        ours, theirs = zip(*(socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)), strict=True)
        try:
            with theirs[0], theirs[1]:
                socket.send_fds(self._door, [marshal.dumps(tuple(joins))], [door.fileno() for door in theirs])
            pidfds = [await _announced(door) for door in ours]
        except BaseException:
            for door in ours:
                door.close()  # whoever waits behind it ends, and is reaped as a stray
            raise
        return Launcher(ours[0], pidfds[0]), Porter(ours[1], pidfds[1])


class Launcher:
    """A process that waits to become bubblewrap."""

    def __init__(self, door: socket.socket, pidfd: int) -> None:
        self.door = door
        self._pidfd = pidfd

    async def become(self, argv: Sequence[str], body: child.Body, descriptors: Sequence[int]) -> None:
        """Become bubblewrap, with `descriptors` as 0, 1, 2 and so on. Raises OSError."""
        await request(self.door, (tuple(argv), tuple(body)), descriptors)

    def close(self) -> int:
        """Begin to end it, or the bubblewrap that it has become; its pidfd is the caller's now."""
        self.door.close()
        kill(self._pidfd)
        return self._pidfd


@dataclass(slots=True)
class Berth:
    """A place for one sandbox: its control groups, and the crew that has joined them."""

    forker: Forker
    group: Group
    launcher: Launcher
    porter: Porter | None
    """None while nothing is to be started; `hire` finds another."""

    @property
    def whole(self) -> bool:
        """Whether the crew still waits; a door that is readable has nobody behind it."""
        doors = [each.door.fileno() for each in (self.launcher, self.porter) if each is not None]
        return not any(map(is_readable, doors))

    async def hire(self) -> Porter:
        """A porter, who is still outside. Raises OSError."""
        launcher, self.porter = await self.forker.crew(self.group.joins)
        await reaped(launcher.close())
        return self.porter

    async def dismiss(self) -> None:
        """End the porter."""
        porter, self.porter = self.porter, None
        if porter is not None:
            await reaped(porter.close())

    async def close(self) -> None:
        """End the crew and remove the groups."""
        bubblewrap = self.launcher.close()
        await self.dismiss()
        await reaped(bubblewrap)
        await self.group.remove()


class Berths:
    """Makes berths; one is kept ready once the first was taken."""

    def __init__(self, forker: Forker, cgroups: Cgroups) -> None:
        self._forker = forker
        self._cgroups = cgroups
        self._ahead: asyncio.Task[Berth] | None = None

    async def take(self) -> Berth:
        """The berth that was made ahead, or a new one. Raises OSError."""
        ahead, self._ahead = self._ahead, None
        return await self._ready(ahead) or await self._make()

    def make_ahead(self) -> None:
        """Make the next berth, a little later, when the sandbox of this one has run its first program."""
        asyncio.get_running_loop().call_later(_AHEAD_S, self._make_ahead)

    async def close(self) -> None:
        """Give the berth back that nobody has taken."""
        ahead, self._ahead = self._ahead, None
        if (berth := await self._ready(ahead)) is not None:
            await berth.close()

    def _make_ahead(self) -> None:
        if self._ahead is None:
            self._ahead = asyncio.get_running_loop().create_task(self._make())

    async def _ready(self, ahead: asyncio.Task[Berth] | None) -> Berth | None:
        """What was made ahead, if it still stands."""
        if ahead is None:
            return None
        try:
            berth = await ahead
        except OSError:
            return None
        if berth.whole:
            return berth
        await berth.close()
        return None

    async def _make(self) -> Berth:
        group = self._cgroups.create(os.urandom(8).hex())
        try:
            return Berth(self._forker, group, *await self._forker.crew(group.joins))
        except BaseException:
            await group.remove()
            raise


async def _announced(door: socket.socket) -> int:
    """A pidfd of the process behind a door, as soon as it waits there."""
    door.setblocking(False)
    await readable(door.fileno())
    if not (said := door.recv(crew.PID.size)):
        raise OSError("a process for a sandbox could not be made; the keeper's log says why")
    return os.pidfd_open(*crew.PID.unpack(said))
