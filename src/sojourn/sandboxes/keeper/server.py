"""Answers the requests of workers and API processes, and holds the table of sandboxes.

`__main__.py` makes one Keeper and serves it. The rule: one lock per session orders what begins and ends it, so that a
request that is sent twice, or by two processes, makes one sandbox and starts one program.
"""

import asyncio
import logging
import os
import resource
import socket
import struct
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import msgspec

from sojourn.errors import SandboxUnavailable
from sojourn.sandboxes.keeper import protocol
from sojourn.sandboxes.keeper.begun import Begun
from sojourn.sandboxes.keeper.session import Session
from sojourn.sandboxes.kernel import tree
from sojourn.sandboxes.kernel.cgroups import Cgroups
from sojourn.sandboxes.kernel.filter import assemble
from sojourn.sandboxes.sandbox import Capability, Destroyed, ExecUnknown, Isolation, Limits, SandboxEnded, Spec
from sojourn.sandboxes.start import child
from sojourn.sandboxes.start.forking import Berths, Forker
from sojourn.sandboxes.start.launch import Ground, launch
from sojourn.sandboxes.start.stage import Stage
from sojourn.sandboxes.start.uids import Uids

log = logging.getLogger("sojourn.sandboxes")

_PROBE_S = 20.0
_FILES_MAX = 4096


@dataclass(frozen=True, slots=True)
class Machine:
    """What the keeper found when it started; all paths are relative to its working folder, the data folder."""

    stage: Stage
    forker: Forker
    cgroups: Cgroups
    architecture: str
    bwrap_version: str
    rest_s: float


class Keeper:
    """The sandboxes of one data folder."""

    def __init__(self, machine: Machine, *, idle_s: float) -> None:
        self._machine = machine
        self._idle_s = idle_s
        self._sessions: dict[str, Session] = {}
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._uids = Uids(Path(protocol.WORKSPACES)) if os.geteuid() == 0 else None
        self._counted = machine.cgroups.mechanism("memory") is not None
        self._load = assemble(machine.architecture, counted_memory=self._counted)
        self._berths = Berths(machine.forker, machine.cgroups)
        self._clients = 0
        self._verdict: Capability | None = None
        self._turn = 0
        self._stray = 0
        self._used = asyncio.get_running_loop().time()

    async def until_idle(self) -> None:
        """Return when there has been no sandbox and no client for `idle_s`, or when the data folder is gone."""
        loop = asyncio.get_running_loop()
        while Path(protocol.LOCK).exists():
            if self._clients or self._sessions:
                self._used = loop.time()
            self._reap_stray()
            left_s = self._used + self._idle_s - loop.time()
            if left_s <= 0:
                return
            await asyncio.sleep(min(left_s, 1.0))

    async def close(self) -> None:
        """Give back what was made for sandboxes to come."""
        await self._berths.close()

    def _reap_stray(self) -> None:
        """Reap a child that has been dead for two looks: its pid was lost with the process that should have told it.

        A sandbox's init cannot end before all of its processes are reaped.
        """
        dead = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        pid = dead.si_pid if dead is not None else 0
        if pid and pid == self._stray:
            os.waitpid(pid, os.WNOHANG)
        self._stray = pid

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: one request and its replies."""
        self._clients += 1
        try:
            if _peer_uid(writer) in (0, os.geteuid()):
                await self._reply(await protocol.receive_request(reader), writer)
        except (ConnectionError, asyncio.IncompleteReadError, msgspec.DecodeError) as error:
            log.info("keeper.client_gone", extra={"error": type(error).__name__})
        finally:
            self._clients -= 1
            self._used = asyncio.get_running_loop().time()
            writer.close()

    async def _reply(self, request: protocol.Request, writer: asyncio.StreamWriter) -> None:
        try:
            if request.version != protocol.VERSION:
                raise SandboxUnavailable(
                    f"a keeper of another version ({protocol.VERSION}) still holds sandboxes in this data folder; "
                    "it ends when they have ended"
                )
            if isinstance(request, protocol.Exec):
                await self._exec(request, writer)
            else:
                await protocol.send(writer, await self._answer(request))
        except ExecUnknown:
            await protocol.send(writer, protocol.Failed("exec_unknown", ""))
        except SandboxUnavailable as error:
            await protocol.send(writer, protocol.Failed("unavailable", str(error)))
        except OSError as error:
            if isinstance(error, ConnectionError):
                raise
            log.exception("keeper.failed", extra={"request": type(request).__name__})
            await protocol.send(writer, protocol.Failed("unavailable", f"the host refused: {error}"))

    async def _answer(self, request: protocol.Request) -> protocol.Reply:
        match request:
            case protocol.Probe():
                return protocol.Probed(await self._probe())
            case protocol.Create(session_id=session_id, spec=spec, first=first):
                async with self._locks[session_id]:
                    created = await self._create(session_id, spec, first=first)
                    return _ready(self._sessions[session_id], created=created)
            case protocol.Attach(session_id=session_id):
                session = self._sessions.get(session_id)
                if session is None or not session.standing:
                    return protocol.Failed("unknown", "")
                return _ready(session, created=False)
            case protocol.Kill(session_id=session_id, exec_id=exec_id):
                if (session := self._sessions.get(session_id)) is not None:
                    await session.kill(exec_id)
                return protocol.Done()
            case protocol.Stop(session_id=session_id):
                return protocol.Gone(await self._end(session_id, files=False))
            case protocol.Destroy(session_id=session_id):
                return protocol.Gone(await self._end(session_id, files=True))
            case protocol.Reap(alive=alive):
                return protocol.Reaped(await self._reap(alive))
        raise AssertionError(request)

    async def _exec(self, request: protocol.Exec, writer: asyncio.StreamWriter) -> None:
        session = self._sessions.get(request.session_id)
        try:
            if session is None:
                raise SandboxEnded
            running = session.run(request)
        except SandboxEnded as error:
            kind = "exec_unknown" if request.resume else "unavailable"
            return await protocol.send(writer, protocol.Failed(kind, str(error), ended=True))
        async for item in running.transcript.follow():
            await protocol.send(writer, item)

    async def _create(self, session_id: str, spec: Spec, *, first: bool = False) -> bool:
        """Start the sandbox on the workspace that is there, or on a new one; False when it runs already."""
        if (session := self._sessions.get(session_id)) is not None:
            if session.standing:
                return False
            await asyncio.shield(session.ended)
        processors = self._processors(spec)
        workspace = Path(protocol.WORKSPACES, session_id)
        record = Path(protocol.BEGUN, session_id)
        if not workspace.exists():
            record.unlink(missing_ok=True)
            if first:
                Begun.begin(record)
        workspace.mkdir(mode=0o700, exist_ok=True)
        uid = self._uids.claim(workspace) if self._uids is not None else None
        body = child.Body(uid=uid, processors=processors, rlimits=_rlimits(spec.limits))
        berth = await self._berths.take()
        ground = Ground(self._machine.stage, berth, spec.limits, body, self._load, self._counted, self._machine.rest_s)
        try:
            standing = await launch(session_id, ground)
        except BaseException:
            await berth.close()
            raise
        session = self._sessions[session_id] = Session(spec, ground, standing, workspace=workspace, begun=Begun(record))
        session.ended.add_done_callback(lambda _: self._forget(session_id))
        self._berths.make_ahead()
        log.info("sandbox.created", extra={"session": session_id, "init": standing.pid})
        return True

    def _forget(self, session_id: str) -> None:
        self._sessions.pop(session_id, None)
        log.info("sandbox.ended", extra={"session": session_id})

    async def _end(self, session_id: str, *, files: bool) -> Destroyed:
        """End the session's processes, and remove its workspace when `files` says so."""
        async with self._locks[session_id]:
            killed = left = files_left = 0
            if (session := self._sessions.get(session_id)) is not None:
                killed = await session.stop()
                left = session.processes_left
            if files:
                files_left = await self._remove(session_id)
        return Destroyed(processes_killed=killed, processes_left=left, files_left=files_left)

    async def _reap(self, alive: frozenset[str]) -> list[str]:
        there = {entry.name for entry in Path(protocol.WORKSPACES).iterdir()} | set(self._sessions)
        dead = sorted(there - alive - {protocol.PROBE})
        for session_id in dead:
            await self._end(session_id, files=True)
        return dead

    async def _probe(self) -> Capability:
        """Run `true` in a sandbox once; the verdict is remembered."""
        async with self._locks[protocol.PROBE]:
            if self._verdict is None:
                reason = await self._try()
                self._verdict = Capability(
                    provider="bwrap",
                    ready=not reason,
                    reason=reason or f"bubblewrap {self._machine.bwrap_version} ran a program",
                    isolation=Isolation.NAMESPACE,
                    enforced=self._enforced(),
                )
        return self._verdict

    async def _try(self) -> str:
        """Why a sandbox cannot be used here; empty when it can."""
        try:
            async with asyncio.timeout(_PROBE_S):
                await self._create(protocol.PROBE, Spec())
                request = protocol.Exec(
                    session_id=protocol.PROBE,
                    exec_id=protocol.PROBE,
                    argv=["true"],
                    cwd="/",
                    env={},
                    stdin=b"",
                    timeout_s=None,
                    resume=False,
                )
                items = [item async for item in self._sessions[protocol.PROBE].run(request).transcript.follow()]
        except (SandboxUnavailable, OSError, TimeoutError) as error:
            return str(error) or f"no sandbox within {_PROBE_S:.0f} s"
        finally:
            if (session := self._sessions.get(protocol.PROBE)) is not None:
                await session.stop()
            await self._remove(protocol.PROBE)
        if items[-1].code != 0:
            return "a sandbox was made, but no program runs in it: " + b"".join(i.data for i in items[:-1]).decode(
                errors="replace"
            )
        return ""

    async def _remove(self, session_id: str) -> int:
        """Remove a workspace; it is out of the way at once, and its files a little later. How many are left."""
        workspace, trash = Path(protocol.WORKSPACES, session_id), Path(protocol.TRASH, f"{session_id}.{time.time_ns()}")
        Path(protocol.BEGUN, session_id).unlink(missing_ok=True)
        try:
            workspace.rename(trash)
            for _ in tree.remove(trash):
                await asyncio.sleep(0)
        except FileNotFoundError:
            return 0
        except OSError:
            log.exception("workspace.not_removed", extra={"session": session_id})
            return sum(len(files) + len(folders) for _, folders, files in os.walk(trash))
        return 0

    def _processors(self, spec: Spec) -> frozenset[int] | None:
        """The processors that a sandbox is bound to where no cgroup shares them out. Raises SandboxUnavailable."""
        if spec.isolation > Isolation.NAMESPACE:
            raise SandboxUnavailable(f"bubblewrap cannot isolate as strongly as {spec.isolation.name.lower()}")
        here = sorted(os.sched_getaffinity(0))
        wanted = spec.limits.cpus
        if self._machine.cgroups.mechanism("cpu") is not None or wanted >= len(here):
            return None
        if wanted != int(wanted):
            raise SandboxUnavailable(
                f"{wanted} cpus cannot be enforced: there is no cgroup to share processors, so ask for a whole number"
            )
        self._turn += 1
        return frozenset(here[(self._turn + index) % len(here)] for index in range(int(wanted)))

    def _enforced(self) -> dict[str, str]:
        cgroups = self._machine.cgroups
        return {
            "cpus": cgroups.mechanism("cpu") or "affinity to whole processors",
            "memory_bytes": cgroups.mechanism("memory") or "poller that kills",
            "pids": "rlimit nproc of the sandbox's user namespace",
            "disk_bytes": "rlimit fsize for one file, poller that kills for all",
            "inodes": "poller that kills",
            "exec_timeout_s": "timer",
            "output_bytes": "bounded buffer",
            "lifetime_s": "timer",
        }


def _ready(session: Session, *, created: bool) -> protocol.Ready:
    return protocol.Ready(created, session.limits, session.incarnation)


def _rlimits(limits: Limits) -> tuple[tuple[int, int], ...]:
    return (
        (resource.RLIMIT_NPROC, limits.pids),
        (resource.RLIMIT_FSIZE, limits.disk_bytes),
        (resource.RLIMIT_NOFILE, _FILES_MAX),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MSGQUEUE, 1 << 20),
        (resource.RLIMIT_MEMLOCK, 1 << 20),
        (resource.RLIMIT_RTPRIO, 0),
    )


def _peer_uid(writer: asyncio.StreamWriter) -> int:
    """Who is at the other end, told by the kernel."""
    connection = writer.get_extra_info("socket")
    return struct.unpack("=iii", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
