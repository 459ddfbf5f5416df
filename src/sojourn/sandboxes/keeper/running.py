"""One program in a sandbox: started once, pumped into its transcript, ended in time.

`session.py` makes one per exec_id and runs `run`; readers follow `transcript`. The rule: the program belongs to the
sandbox and not to whoever asked for it, so a reader that leaves changes nothing.
"""

import asyncio
import fcntl
import os
import signal
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sojourn.sandboxes.keeper.protocol import Exec
from sojourn.sandboxes.keeper.pump import Pump
from sojourn.sandboxes.keeper.transcript import Transcript
from sojourn.sandboxes.kernel.processes import Processes
from sojourn.sandboxes.kernel.waiting import read_all, readable, reaped
from sojourn.sandboxes.sandbox import Exit, Limits
from sojourn.sandboxes.start import child
from sojourn.sandboxes.start.forking import Forker
from sojourn.sandboxes.start.launch import Doors

_GRACE_S = 2.0
_REAPED_S = 10.0
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL

Reason = Literal["exited", "timeout", "memory", "disk", "killed"]


@dataclass(frozen=True, slots=True)
class Place:
    """The sandbox as a program needs it."""

    forker: Forker
    doors: Doors
    body: child.Body
    limits: Limits
    processes: Processes
    oom_kills: Callable[[], int]
    load: bytes
    env: dict[str, str]


class Running:
    """A program from its fork to its Exit."""

    def __init__(self, place: Place, request: Exec) -> None:
        self.place = place
        self.request = request
        self.transcript = Transcript(place.limits.output_bytes)
        self._reason: Reason = "exited"
        self._session = 0  # the program's pid inside, which is the number of its session too
        self._begun = asyncio.Event()
        self._ending: asyncio.Task[None] | None = None
        uid = place.body.uid
        self._pumps = (Pump(self.transcript, "stdout", uid), Pump(self.transcript, "stderr", uid))

    async def run(self) -> None:
        """Run the program to its end and close the transcript; every failure becomes an Exit."""
        began, kills = time.monotonic(), self.place.oom_kills()
        try:
            pid, refusal = await self._fork()
        except OSError as error:
            pid, refusal = 0, bytes([126]) + f"cannot start: {error.strerror}".encode()
        self._begun.set()
        status = await self._wait(pid) if pid else 0
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

    async def _fork(self) -> tuple[int, bytes]:
        """The program's pid on the host, and why it could not be executed (empty when it could)."""
        request, place = self.request, self.place
        status, status_w = os.pipe2(os.O_CLOEXEC)
        stdin = _stdin(request.stdin)
        stdout, stderr = self._pumps
        program = child.Program(tuple(request.argv), request.cwd, place.env | request.env, place.load)
        doors = place.doors
        given = (doors.init, doors.outer, doors.inner, stdin, stdout.write_fd, stderr.write_fd, status_w)
        try:
            joiner = await place.forker.enter(program, place.body, given)
        finally:
            os.close(status_w)
            os.close(stdin)
            for pump in self._pumps:
                pump.opened()
        try:
            answer = await read_all(status)
        finally:
            os.close(status)
        reaped(joiner)
        said = child.records(answer)
        pid = struct.unpack("=i", said[child.PROGRAM])[0] if child.PROGRAM in said else 0
        refusal = said.get(child.REFUSED, b"" if pid else bytes([126]) + b"the sandbox has no room for a process")
        if pid:
            self._session = _pid_inside(pid)
        return pid, refusal

    async def _wait(self, pid: int) -> int:
        """The wait status of the program, which is ended when its time is over."""
        limit_s = self.place.limits.exec_timeout_s
        timeout_s = limit_s if self.request.timeout_s is None else min(self.request.timeout_s, limit_s)
        pidfd = os.pidfd_open(pid)
        try:
            try:
                async with asyncio.timeout(timeout_s):
                    await readable(pidfd)
            except TimeoutError:
                self.stop("timeout")
                await readable(pidfd)
        finally:
            os.close(pidfd)
        return reaped(pid)

    async def _end(self) -> None:
        await self._begun.wait()
        if not self._session:
            return
        processes = self.place.processes
        sessions = processes.sessions(self._session)
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


def _pid_inside(pid: int) -> int:
    """The number by which the sandbox knows a process of the host."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("NSpid:"):
            return int(line.split()[-1])
    raise OSError(f"process {pid} has no NSpid")
