"""One session's sandbox as the keeper holds it: from its launch to its verified end.

`server.py` keeps a table of these. The rule: the sandbox lives exactly as long as its init, and every end, asked for
or not, is seen by `_await_end` alone.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from sojourn.sandboxes.keeper.begun import Begun
from sojourn.sandboxes.keeper.protocol import Exec
from sojourn.sandboxes.keeper.running import Place, Running
from sojourn.sandboxes.keeper.watch import Watch
from sojourn.sandboxes.kernel.processes import Processes
from sojourn.sandboxes.kernel.waiting import is_readable, readable
from sojourn.sandboxes.sandbox import ExecUnknown, SandboxEnded, Spec
from sojourn.sandboxes.start.launch import Ground, Standing, enter
from sojourn.sandboxes.start.porter import Errand, Program

_KEPT_BYTES = 2 << 20


class Session:
    """A living sandbox and its programs."""

    def __init__(self, spec: Spec, ground: Ground, standing: Standing, *, workspace: Path, begun: Begun) -> None:
        self.limits = spec.limits
        self.incarnation = os.urandom(8).hex()
        self.processes_left = 0
        self.processes = Processes(standing.proc)
        self._ground = ground
        self._standing = standing
        self._killed = False
        self._runs: dict[str, Running] = {}
        self._begun = begun
        self._programs: set[asyncio.Task[None]] = set()
        self._place = Place(
            begin=self._start,
            uid=ground.body.uid,
            limits=spec.limits,
            processes=self.processes,
            oom_kills=ground.berth.group.oom_kills,
            env=ground.stage.env() | spec.env,
        )
        tmpfs = () if ground.counted_memory else standing.tmpfs
        self._watch = Watch(self.processes, workspace, spec.limits, tmpfs=tmpfs)
        loop = asyncio.get_running_loop()
        self._watching = loop.create_task(self._watch.run(self._over))
        self._lifetime = loop.call_later(spec.limits.lifetime_s, self._kill_init)
        self._entrance = asyncio.Lock()
        if ground.berth.porter is not None:
            ground.berth.porter.when_lost = self._kill_init
        self._resting = loop.create_task(self._dismiss_when_idle())
        self.ended = loop.create_task(self._await_end())

    @property
    def standing(self) -> bool:
        """False from the moment that the init has been killed or has ended by itself."""
        return not self._killed and not is_readable(self._standing.doors.init)

    def run(self, request: Exec) -> Running:
        """The program of this exec_id, started now when the id is new.

        Raises SandboxEnded, and ExecUnknown where it may have been begun and lost.
        """
        if request.incarnation not in ("", self.incarnation):
            raise SandboxEnded
        if (running := self._runs.get(request.exec_id)) is not None:
            return running
        if not self.standing:
            raise SandboxEnded
        if not self._begun.may_begin(request.exec_id, again=request.resume):
            raise ExecUnknown
        self._forget_old_output()
        self._begun.add(request.exec_id)
        running = self._runs[request.exec_id] = Running(self._place, request)
        program = asyncio.get_running_loop().create_task(running.run())
        self._programs.add(program)
        program.add_done_callback(self._programs.discard)
        self._watch.wake()
        return running

    async def kill(self, exec_id: str) -> None:
        """End one program and wait for its Exit."""
        if (running := self._runs.get(exec_id)) is not None:
            running.stop("killed")
            async for _ in running.transcript.follow():
                pass

    async def stop(self) -> int:
        """End every process; how many there were. Returns when the kernel has reaped them."""
        count = len(self.processes.pids())
        self._kill_init()
        await asyncio.shield(self.ended)
        return count

    def _kill_init(self) -> None:
        for running in self._runs.values():
            running.blame("killed")
        if self.standing:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._standing.doors.init, signal.SIGKILL)
        self._killed = True

    async def _start(self, program: Program, streams: Sequence[int]) -> Errand:
        """Have the porter start a program, and another porter where the last one was dismissed."""
        async with self._entrance:
            porter = self._ground.berth.porter
            if porter is None:
                porter = await enter(self._standing, self._ground)
                porter.when_lost = self._kill_init
        return await porter.begin(program, streams)

    async def _dismiss_when_idle(self) -> None:
        """Let the porter go after a time without programs, in which it would only take memory."""
        while True:
            started = len(self._runs)
            await asyncio.sleep(self._ground.rest_s)
            async with self._entrance:
                if not self._programs and len(self._runs) == started:
                    await self._ground.berth.dismiss()

    async def _await_end(self) -> None:
        """Wait for the init, which ends after all of its namespace, then give everything back."""
        await readable(self._standing.doors.init)
        if self._programs:
            await asyncio.wait(self._programs)
        self._watching.cancel()
        self._lifetime.cancel()
        async with self._entrance:  # not in the middle of a dismissal
            self._resting.cancel()
        for running in self._runs.values():
            running.close()
        self.processes_left = len(self.processes.pids())
        self._killed = True
        self._standing.close()
        await self._ground.berth.close()

    def _over(self, what: Literal["memory", "disk"]) -> None:
        for running in self._runs.values():
            running.blame(what)
        self.processes.kill_all()

    def _forget_old_output(self) -> None:
        """Keep the output of ended programs within a bound, dropping the oldest first; their ids stay known."""
        ended = [running.transcript for running in self._runs.values() if running.transcript.exit is not None]
        kept = sum(transcript.kept_bytes for transcript in ended)
        for transcript in ended:
            if kept <= _KEPT_BYTES:
                break
            kept -= transcript.kept_bytes
            transcript.forget()
