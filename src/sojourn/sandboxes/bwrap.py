"""The bubblewrap adapter of the sandbox port, as workers and API processes use it.

`wiring` makes a BwrapProvider for a data folder. Processes and limits are the keeper's (`keeper/`, reached over a unix
socket); files are touched here, directly. The rule: this process holds nothing that a sandbox needs, so it can be
killed at any time and the next one goes on.
"""

import asyncio
import contextlib
import fcntl
import os
import re
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

from msgspec.structs import replace

from sojourn.errors import Invalid, SandboxUnavailable
from sojourn.sandboxes import archive
from sojourn.sandboxes.keeper import protocol
from sojourn.sandboxes.keeper.begun import Begun
from sojourn.sandboxes.kernel import tree
from sojourn.sandboxes.sandbox import (
    WORKSPACE,
    Capability,
    Destroyed,
    ExecUnknown,
    Exit,
    FileStat,
    Isolation,
    Limits,
    Output,
    SandboxEnded,
    Snapshot,
    Spec,
)
from sojourn.sandboxes.workspace import Workspace

_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")
_ASK_TRIES = 3
_CONNECT_TRIES = 5
_START_S = 30.0
_ARGV_BYTES_MAX = 128 << 10
_ALONE = "alone"
_ALONE_S, _ALONE_TRY_S = 60.0, 0.02


class BwrapProvider:
    """Sandboxes made with bubblewrap in one data folder of this host."""

    name = "bwrap"

    def __init__(
        self,
        folder: Path,
        *,
        bwrap: Path | None = None,
        idle_s: float = 60.0,
        rest_s: float = 60.0,
        cgroups: bool = True,
    ) -> None:
        """`bwrap` names a binary other than the one found; the keeper ends after `idle_s` without work.

        A sandbox gives memory back after `rest_s` without a program, and its next program then starts some 20 ms later.
        Without `cgroups` limits are enforced as where there are none.
        """
        self._folder = folder
        options = ["--idle-s", str(idle_s), "--rest-s", str(rest_s), *(["--bwrap", str(bwrap)] if bwrap else [])]
        self._keeper = _Keeper(folder, [*options, *([] if cgroups else ["--no-cgroups"])])
        self._capability: Capability | None = None

    async def probe(self) -> Capability:
        """Run a program in a sandbox once, and tell what works."""
        if self._capability is None:
            try:
                reply = await self._keeper.ask(protocol.Probe())
                assert isinstance(reply, protocol.Probed)
                self._capability = reply.capability
            except SandboxUnavailable as error:
                return Capability(
                    provider=self.name, ready=False, reason=str(error), isolation=Isolation.NAMESPACE, enforced={}
                )
        return self._capability

    async def create(self, session_id: str, spec: Spec, *, first: bool = False) -> "BwrapSandbox":
        reply = await self._keeper.ask(protocol.Create(session_id=_checked(session_id), spec=spec, first=first))
        assert isinstance(reply, protocol.Ready)
        return self._sandbox(session_id, reply)

    async def attach(self, session_id: str) -> "BwrapSandbox | None":
        try:
            reply = await self._keeper.ask(protocol.Attach(session_id=_checked(session_id)), start=False)
        except SandboxUnavailable:
            return None
        return self._sandbox(session_id, reply) if isinstance(reply, protocol.Ready) else None

    async def restore(self, session_id: str, snapshot: Snapshot, spec: Spec) -> "BwrapSandbox":
        """A sandbox whose workspace and record are the snapshot's; older ones of the session are removed."""
        await self._keeper.ask(protocol.Destroy(session_id=_checked(session_id)))
        incoming = self._folder / protocol.TRASH / f"incoming.{os.urandom(8).hex()}"
        incoming.mkdir(mode=0o700)
        with tree.held(incoming):
            try:
                await asyncio.to_thread(archive.unpack, snapshot, incoming, spec.limits)
                if snapshot.begun is not None:
                    Begun.begin(self._folder / protocol.BEGUN / session_id, snapshot.begun)
                incoming.rename(self._folder / protocol.WORKSPACES / session_id)
            except BaseException:
                for _ in tree.remove(incoming):
                    pass
                raise
        return await self.create(session_id, spec)

    @contextlib.asynccontextmanager
    async def alone(self, session_id: str) -> AsyncIterator[None]:
        """Hold the lock of a file that is there as long as somebody holds it."""
        path = self._folder / _ALONE / _checked(session_id)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            async with asyncio.timeout(_ALONE_S):
                while (held := _try_lock(path)) is None:  # noqa: ASYNC110 (other processes hold it)
                    await asyncio.sleep(_ALONE_TRY_S)
        except TimeoutError:
            raise SandboxUnavailable("The session's files are being moved by another process; try again.") from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            os.close(held)

    async def sessions(self) -> list[str]:
        """The workspaces of this host."""
        with contextlib.suppress(FileNotFoundError):
            found = [entry.name for entry in (self._folder / protocol.WORKSPACES).iterdir()]
            return [name for name in found if name != protocol.PROBE]
        return []

    async def discard(self, session_id: str) -> None:
        await self._keeper.ask(protocol.Destroy(session_id=_checked(session_id)))

    async def reap(self, alive: frozenset[str]) -> list[str]:
        reply = await self._keeper.ask(protocol.Reap(alive=alive))
        assert isinstance(reply, protocol.Reaped)
        return reply.sessions

    async def copy(self, session_id: str, limits: Limits) -> Snapshot | None:
        """What a workspace holds now, whatever runs in it; None where there is none here. Raises OverLimit."""
        folder = self._folder / protocol.WORKSPACES / _checked(session_id)
        return await asyncio.to_thread(archive.pack, folder, limits) if folder.is_dir() else None

    def files(self, session_id: str) -> Workspace | None:
        """The files of a session whose sandbox need not be alive; None when there are none on this host."""
        folder = self._folder / protocol.WORKSPACES / _checked(session_id)
        return Workspace(folder) if folder.is_dir() else None

    async def close(self) -> None:
        self._keeper.close()

    def _sandbox(self, session_id: str, ready: protocol.Ready) -> "BwrapSandbox":
        return BwrapSandbox(session_id, self._keeper, ready, self._folder)


class BwrapSandbox:
    """A handle on one session's sandbox."""

    def __init__(self, session_id: str, keeper: "_Keeper", ready: protocol.Ready, folder: Path) -> None:
        self.session_id = session_id
        self.created = ready.created
        self._keeper = keeper
        self._limits = ready.limits
        self._incarnation = ready.incarnation
        self._folder = folder / protocol.WORKSPACES / session_id
        self._record = folder / protocol.BEGUN / session_id
        self._files = Workspace(self._folder)

    async def exec(
        self,
        argv: Sequence[str],
        *,
        exec_id: str,
        cwd: str = WORKSPACE,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        timeout_s: float | None = None,
        resume: bool = False,
    ) -> AsyncIterator[Output | Exit]:
        request = protocol.Exec(
            session_id=self.session_id,
            exec_id=exec_id,
            argv=list(argv),
            cwd=cwd,
            env=dict(env or {}),
            stdin=stdin,
            timeout_s=timeout_s,
            resume=resume,
            incarnation=self._incarnation,
        )
        _check_program(request)
        async with await self._keeper.conversation(request, start=False) as conversation:
            while not isinstance(reply := await conversation.reply(), Exit):
                assert isinstance(reply, Output)
                yield reply
            yield reply

    async def alive(self) -> bool:
        try:
            reply = await self._keeper.ask(protocol.Attach(session_id=self.session_id), start=False)
        except SandboxUnavailable:
            return False
        return isinstance(reply, protocol.Ready) and reply.incarnation == self._incarnation

    async def kill(self, exec_id: str) -> None:
        await self._keeper.ask(protocol.Kill(session_id=self.session_id, exec_id=exec_id), start=False)

    async def read(self, path: str, *, offset: int = 0, limit_bytes: int = 1 << 20) -> bytes:
        return await asyncio.to_thread(self._files.read, path, offset=offset, limit_bytes=limit_bytes)

    async def write(self, path: str, data: bytes) -> None:
        await asyncio.to_thread(self._files.write, path, data)

    async def list(self, path: str = ".", *, depth: int = 1, limit: int = 1000) -> list[FileStat]:
        return await asyncio.to_thread(self._files.list, path, depth=depth, limit=limit)

    async def stat(self, path: str) -> FileStat:
        return await asyncio.to_thread(self._files.stat, path)

    async def remove(self, path: str) -> None:
        await asyncio.to_thread(self._files.remove, path)

    async def mkdir(self, path: str) -> None:
        await asyncio.to_thread(self._files.mkdir, path)

    async def snapshot(self) -> Snapshot:
        return await asyncio.to_thread(archive.pack, self._folder, self._limits)

    async def suspend(self) -> Snapshot:
        await self._keeper.ask(protocol.Stop(session_id=self.session_id))
        return replace(await self.snapshot(), begun=Begun(self._record).carried())

    async def destroy(self) -> Destroyed:
        reply = await self._keeper.ask(protocol.Destroy(session_id=self.session_id))
        assert isinstance(reply, protocol.Gone)
        return reply.report


class _Keeper:
    """The way to the keeper, which is started when it is not there."""

    def __init__(self, folder: Path, options: list[str]) -> None:
        self._folder = folder
        self._options = options
        self._starting = asyncio.Lock()
        self._folder_fd = -1

    async def ask(self, request: protocol.Request, *, start: bool = True) -> protocol.Reply:
        """The one reply to a request, which is sent again to the next keeper when this one ends under it."""
        for _ in range(_ASK_TRIES - 1):
            with contextlib.suppress(SandboxEnded):
                async with await self.conversation(request, start=start) as conversation:
                    return await conversation.reply()
        async with await self.conversation(request, start=start) as conversation:
            return await conversation.reply()

    async def conversation(self, request: protocol.Request, *, start: bool) -> "_Conversation":
        """Send a request; the replies are read from what is returned."""
        reader, writer = await self._connect(start=start)
        with contextlib.suppress(ConnectionError):  # the first reply says that it is gone
            await protocol.send(writer, request)
        return _Conversation(reader, writer)

    def close(self) -> None:
        if self._folder_fd >= 0:
            os.close(self._folder_fd)
            self._folder_fd = -1

    async def _connect(self, *, start: bool) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        for _ in range(_CONNECT_TRIES):
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                return await asyncio.open_unix_connection(self._socket())
            if not start:
                raise SandboxEnded
            await self._start()
        raise SandboxUnavailable("the keeper of this host's sandboxes does not answer")

    def _socket(self) -> str:
        """The socket's path, short however deep the data folder lies (a socket's name has 107 bytes at most)."""
        if self._folder_fd < 0:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._folder_fd = os.open(self._folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return f"/proc/self/fd/{self._folder_fd}/{protocol.SOCKET}"

    async def _start(self) -> None:
        """Start a keeper and wait until one listens; it leaves this process's session and outlives it."""
        command = [sys.executable, "-P", "-m", "sojourn.sandboxes.keeper", str(self._folder.absolute()), *self._options]
        env = {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
        async with self._starting:
            process = await asyncio.create_subprocess_exec(
                *command,
                env=env,
                cwd="/",
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )
            try:
                async with asyncio.timeout(_START_S):
                    _, said = await process.communicate()
            except TimeoutError as error:
                process.kill()
                raise SandboxUnavailable(f"the keeper did not start within {_START_S:.0f} s") from error
        if process.returncode != 0:
            raise SandboxUnavailable(said.decode(errors="replace").strip()[-2000:])


class _Conversation:
    """One request's replies; leaving it tells the keeper that nobody reads any more."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def __aenter__(self) -> "_Conversation":
        return self

    async def __aexit__(self, *failure: object) -> None:
        self._writer.close()

    async def reply(self) -> protocol.Reply:
        """The next reply; a failure becomes the exception that it names."""
        try:
            reply = await protocol.receive_reply(self._reader)
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            raise SandboxEnded from error  # the keeper ended, and the sandboxes with it
        match reply:
            case protocol.Failed(ended=True):
                raise SandboxEnded
            case protocol.Failed(kind="exec_unknown"):
                raise ExecUnknown
            case protocol.Failed(kind="unavailable", message=message):
                raise SandboxUnavailable(message)
        return reply


def _try_lock(path: Path) -> int | None:
    """Lock a file and give its descriptor; None while it is locked, or was removed by its holder meanwhile."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(file).st_nlink:
            return file
    os.close(file)
    return None


def _checked(session_id: str) -> str:
    """A session id that is safe as the name of a folder."""
    if not _NAME.fullmatch(session_id):
        raise Invalid("a session id has up to 100 letters, digits, - and _")
    return session_id


def _check_program(request: protocol.Exec) -> None:
    words = [*request.argv, request.cwd, *request.env, *request.env.values()]
    if not request.argv or not request.argv[0]:
        raise Invalid("a program needs a name")
    if any("\0" in word for word in words) or any("=" in name or not name for name in request.env):
        raise Invalid("the words of a command hold no NUL, and the names of variables no =")
    if sum(len(word) for word in words) > _ARGV_BYTES_MAX:
        raise Invalid(f"a command has at most {_ARGV_BYTES_MAX} characters; write a file and run that")
