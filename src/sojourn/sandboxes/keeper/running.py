"""One program in a sandbox: started once, pumped into its transcript, ended in time.

`session.py` makes one per exec_id and runs `run`; readers follow `transcript`. The rule: the program belongs to the
sandbox and not to whoever asked for it, so a reader that leaves changes nothing.
"""

import asyncio
import fcntl
import os
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from sojourn.errors import SandboxUnavailable
from sojourn.sandboxes.keeper.protocol import Exec
from sojourn.sandboxes.keeper.pump import Pump
from sojourn.sandboxes.keeper.transcript import Transcript
from sojourn.sandboxes.kernel.processes import Processes
from sojourn.sandboxes.sandbox import Exit, Limits
from sojourn.sandboxes.start.porter import Errand, Program

_GRACE_S = 2.0
_BEGIN_S = 5.0
_REAPED_S = 10.0
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL

Reason = Literal["exited", "timeout", "memory", "disk", "killed"]


@dataclass(frozen=True, slots=True)
class Place:
    """The sandbox as a program needs it."""

    begin: Callable[[Program, Sequence[int]], Awaitable[Errand]]
    uid: int | None
    limits: Limits
    processes: Processes
    oom_kills: Callable[[], int]
    env: dict[str, str]


class Running:
    """A program from its fork to its Exit."""

    def __init__(self, place: Place, request: Exec) -> None:
        self.place = place
        self.request = request
        self.transcript = Transcript(place.limits.output_bytes)
        self._reason: Reason = "exited"
        self._errand: Errand | None = None
        self._begun = asyncio.Event()
        self._ending: asyncio.Task[None] | None = None
        self._pumps = (Pump(self.transcript, "stdout", place.uid), Pump(self.transcript, "stderr", place.uid))

    async def run(self) -> None:
        """Run the program to its end and close the transcript; every failure becomes an Exit."""
        began, kills = time.monotonic(), self.place.oom_kills()
        limit_s = self.place.limits.exec_timeout_s
        timeout_s = limit_s if self.request.timeout_s is None else min(self.request.timeout_s, limit_s)
        timer = asyncio.get_running_loop().call_later(timeout_s, self.stop, "timeout")
        try:
            self._errand = await self._begin()
            refusal = await self._errand.begun
            self._begun.set()
            status = await self._errand.ended
        except (OSError, SandboxUnavailable) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            status, refusal = 0, bytes([126]) + f"cannot start: {reason}".encode()
            self._begun.set()
        timer.cancel()
        if self._ending is not None:
            await self._ending
        for pump in self._pumps:
            pump.finish()
        if refusal:
            self.transcript.add("stderr", refusal[1:] + b"\n")
            status = refusal[0] << 8
        if status and self._reason == "exited" and self.place.oom_kills() > kills:
            self._reason = "memory"
        self.transcript.end(
            Exit(
                seq=0,
                code=os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
                signal=os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
                reason=self._reason,
                duration_s=time.monotonic() - began,
            )
        )

    def stop(self, reason: Reason) -> None:
        """Begin to end the program: TERM, two seconds, KILL."""
        if self._ending is None and self.transcript.exit is None:
            self._reason = reason
            self._ending = asyncio.create_task(self._end())

    def blame(self, reason: Reason) -> None:
        """Say why somebody else has killed the program."""
        if self.transcript.exit is None and self._reason == "exited":
            self._reason = reason

    def close(self) -> None:
        """Let go of pipes that daemons held open."""
        for pump in self._pumps:
            pump.close()

    async def _begin(self) -> Errand:
        """Have the porter start the program. Raises OSError."""
        request, place = self.request, self.place
        stdout, stderr = self._pumps
        program = Program(tuple(request.argv), request.cwd, place.env | request.env)
        stdin = _stdin(request.stdin)
        try:
            return await place.begin(program, (stdin, stdout.write_fd, stderr.write_fd))
        finally:
            os.close(stdin)
            for pump in self._pumps:
                pump.opened()

    async def _end(self) -> None:
        processes = self.place.processes
        try:
            async with asyncio.timeout(_BEGIN_S):
                await self._begun.wait()
        except TimeoutError:
            processes.kill_all()  # a process inside has stopped the program between its fork and its exec
            await self._begun.wait()
        session = self._errand.pid_inside() if self._errand is not None else 0
        if not session:
            return
        sessions = processes.sessions(session)
        for pid in processes.members(sessions):
            processes.signal(pid, signal.SIGTERM)
        await processes.gone(sessions, within_s=_GRACE_S)
        processes.kill_program(sessions)
        await processes.gone(sessions, within_s=_REAPED_S)


def _stdin(data: bytes) -> int:
    """A read-only descriptor with `data` in it."""
    if not data:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    memory = os.memfd_create("stdin", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.write(memory, data)
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
        return os.open(f"/proc/self/fd/{memory}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(memory)
