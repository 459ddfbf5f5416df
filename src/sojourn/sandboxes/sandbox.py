"""The sandbox port: where model-written code runs, one sandbox per session.

Callers are the worker (through the tools), the API (a session's files) and the janitor. Adapters stand beside this
file and pass one conformance suite (tests/sandboxes/conformance.py).

The rule: creation fails, and never degrades, when the wanted isolation or a limit cannot be enforced. Every byte that
comes from inside is untrusted, and no path is opened on the host before it is proven to lie in the workspace.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from enum import IntEnum
from typing import Literal, Protocol

import msgspec

from sojourn.errors import SandboxUnavailable

WORKSPACE = "/workspace"


class Isolation(IntEnum):
    """How strong the wall is; a stronger one may stand in for a weaker one."""

    NAMESPACE = 1
    USERKERNEL = 2
    MICROVM = 3


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one sandbox may use."""

    cpus: float = 1.0
    memory_bytes: int = 1 << 30
    pids: int = 128
    disk_bytes: int = 1 << 30
    inodes: int = 100_000
    exec_timeout_s: float = 120.0
    output_bytes: int = 256 << 10
    lifetime_s: float = 24 * 3600.0


class Spec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a caller asks a provider for."""

    limits: Limits = Limits()
    isolation: Isolation = Isolation.NAMESPACE
    env: dict[str, str] = {}


class Capability(msgspec.Struct, frozen=True, kw_only=True):
    """What a provider's probe found on this machine: ready to use or not, and why; how each limit is enforced."""

    provider: str
    ready: bool
    reason: str
    isolation: Isolation
    enforced: dict[str, str]
    """Limit name -> the mechanism that enforces it here, such as "cgroup v2" or "rlimit + poller"."""


class Output(msgspec.Struct, frozen=True, tag="output"):
    """A piece of what the process wrote. `seq` counts from 1 within the exec."""

    seq: int
    stream: Literal["stdout", "stderr"]
    data: bytes


class Exit(msgspec.Struct, frozen=True, tag="exit"):
    """The last item of an exec."""

    seq: int
    code: int | None
    """The exit code; None when a signal ended the process."""
    signal: int | None = None
    reason: Literal["exited", "timeout", "memory", "disk", "killed"] = "exited"
    duration_s: float = 0.0
    truncated_bytes: int = 0
    """How many bytes of output were dropped between the head and the tail that were kept."""


class ExecUnknown(Exception):
    """An exec named a program that was begun, or may have been, in a sandbox that is gone."""


class SandboxEnded(SandboxUnavailable):
    """This sandbox has ended: before a program was begun in it, or while it ran."""

    def __init__(self) -> None:
        super().__init__("The sandbox has ended; open it again.")


class FileStat(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of a workspace; `path` is relative to it."""

    path: str
    kind: Literal["file", "directory", "symlink", "other"]
    size_bytes: int
    modified_at: float
    """Seconds since the epoch, as the workload set it."""


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A workspace as a tar without device nodes, setuid bits or names of users; `digest` is sha256:<hex> of `data`."""

    digest: str
    data: bytes
    begun: str | None = None
    """The provider's record of every program that the session began; None where it has none that is whole."""


class Destroyed(msgspec.Struct, frozen=True, kw_only=True):
    """What destroy saw with its own eyes: all of the sandbox's processes reaped, all of its files gone."""

    processes_killed: int
    processes_left: int
    files_left: int


class Sandbox(Protocol):
    """One session's filesystem and shell."""

    session_id: str
    created: bool
    """True when this handle made the sandbox anew; False when it attached to one that was there."""

    def exec(
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
        """Run a program, or attach to the exec of the same id, and stream it from its beginning to its Exit.

        The same `exec_id` never starts a second process. With `resume=True` an earlier attempt may have begun it:
        it is started only where the session's record shows that it never was. Raises ExecUnknown where it was, or may
        have been, lost with an older sandbox, and SandboxEnded where this one has ended, whatever stands in its place.
        Leaving the iterator early does not end the process.
        """
        ...

    async def alive(self) -> bool:
        """Whether this very sandbox still stands, and not a later one of its session."""
        ...

    async def kill(self, exec_id: str) -> None:
        """End an exec's processes (TERM, two seconds, KILL); its stream then ends with reason "killed"."""
        ...

    async def read(self, path: str, *, offset: int = 0, limit_bytes: int = 1 << 20) -> bytes:
        """Up to `limit_bytes` of a regular file. Raises NotFound, or Invalid for what is not a plain file inside."""
        ...

    async def write(self, path: str, data: bytes) -> None:
        """Replace a file whole, atomically, making its folders."""
        ...

    async def list(self, path: str = ".", *, depth: int = 1, limit: int = 1000) -> list[FileStat]: ...

    async def stat(self, path: str) -> FileStat: ...

    async def remove(self, path: str) -> None: ...

    async def mkdir(self, path: str) -> None: ...

    async def snapshot(self) -> Snapshot:
        """The workspace now; processes go on running."""
        ...

    async def suspend(self) -> Snapshot:
        """End every process and return the workspace with its record; its files stay here until `destroy`."""
        ...

    async def destroy(self) -> Destroyed:
        """End every process and remove every file; returns when both are verified."""
        ...


class Provider(Protocol):
    """A way of making sandboxes on this host."""

    name: str

    async def probe(self) -> Capability:
        """Run a guest once, within a bound, and tell what works. The verdict is remembered by the process."""
        ...

    async def create(self, session_id: str, spec: Spec, *, first: bool = False) -> Sandbox:
        """The session's sandbox: made now, or the one that is there already. Raises SandboxUnavailable.

        `first` says that it never had one, on any host, so that nothing can have been begun in it.
        """
        ...

    async def attach(self, session_id: str) -> Sandbox | None:
        """The session's living sandbox on this host, made by any process of ours; None when there is none."""
        ...

    async def restore(self, session_id: str, snapshot: Snapshot, spec: Spec) -> Sandbox:
        """A new sandbox with the snapshot's files and record; its digest, size and file count are checked first."""
        ...

    def alone(self, session_id: str) -> AbstractAsyncContextManager[None]:
        """Keep all other tasks and processes of this host from moving the session's files; a dead one keeps nobody.

        Raises SandboxUnavailable where another one keeps them for too long.
        """
        ...

    async def sessions(self) -> list[str]:
        """Name the sessions that have files on this host."""
        ...

    async def copy(self, session_id: str, limits: Limits) -> Snapshot | None:
        """What a workspace holds now, whatever runs in it; None where there is none here. Raises OverLimit."""
        ...

    async def discard(self, session_id: str) -> None:
        """End what is left of a session on this host, and remove its files."""
        ...

    async def reap(self, alive: frozenset[str]) -> list[str]:
        """Remove what is left of sandboxes whose session is not in `alive`, dead servers' included; their names."""
        ...

    async def close(self) -> None:
        """Give back this process's own handles; sandboxes live on."""
        ...
