"""What a forked child does with itself: become bubblewrap, or join a sandbox and become a program there.

`forker.py` calls `become_bubblewrap` and `enter` in a child that it has just forked. The rule: between the fork and
the exec nothing of the workload can reach the child. It is not dumpable (no ptrace, no /proc/<pid>/mem, fd or exe), it
enters the process namespace last, by a second fork, and from there on it only takes from itself.
This file imports nothing outside of the standard library, so that what forks stays small.
"""

import os
import resource
import signal
import struct
from dataclasses import dataclass
from typing import NoReturn

from sojourn.sandboxes.kernel import calls

PROGRAM, REFUSED = 1, 2
_HEAD = struct.Struct("=BH")
_NICENESS = 5
_OOM_SCORE = 700  # when the host runs out of memory, a workload goes before the platform
_CAUGHT = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Body:
    """Who a child is on the host: its session's uid (None: the keeper's own), its groups, processors and rlimits."""

    uid: int | None
    joins: tuple[str, ...]
    processors: frozenset[int] | None
    rlimits: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Program:
    """What runs in the sandbox in the end, behind the filter `load`."""

    argv: tuple[str, ...]
    cwd: str
    env: dict[str, str]
    load: bytes


def become_bubblewrap(argv: tuple[str, ...], body: Body, descriptors: list[int]) -> NoReturn:
    """Exec bubblewrap with an empty environment and `descriptors` as 0, 1, 2 and so on; it dies with the keeper.

    SIGCHLD stays ignored down to the sandbox's init, for which the kernel then reaps. Bubblewrap itself cannot see its
    child's end any more and must be ended with it.
    """
    try:
        _become(body)
        calls.prctl(calls.PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        _arrange(descriptors)
        os.execve(argv[0], argv, {})  # noqa: S606
    except BaseException as error:
        os.write(2, f"cannot start {argv[0]}: {error}".encode())
    os._exit(127)


def enter(program: Program, body: Body, descriptors: list[int]) -> NoReturn:
    """Join a sandbox and fork the program there, as a child of the keeper.

    `descriptors`: the init's pidfd, the outer user namespace (which owns the others), the inner one, then the program's
    0, 1 and 2, then one that receives records and closes when the exec has succeeded. The two processes write to it in
    any order; see `records`.
    """
    init, outer, inner, *streams, status = descriptors
    try:
        _become(body)
        calls.prctl(calls.PR_SET_DUMPABLE, 0)
        calls.setns(outer, calls.CLONE_NEWUSER)
        calls.setns(init, calls.EVERY_NAMESPACE_BUT_USER)
        calls.setns(inner, calls.CLONE_NEWUSER)
        calls.prctl(calls.PR_SET_DUMPABLE, 0)
        pid = calls.clone_sibling()
        if pid == 0:
            _run(program, body, streams, status)
        os.write(status, _record(PROGRAM, struct.pack("=i", pid)))
    except BaseException as error:
        os.write(status, _refusal(126, f"cannot enter the sandbox: {error}"))
    os._exit(0)


def _become(body: Body) -> None:
    """Take the signals, groups, processors and uid of a workload."""
    for number in _CAUGHT:
        signal.signal(number, signal.SIG_DFL)
    for path in body.joins:
        _write(path, b"0")
    _write("/proc/self/oom_score_adj", b"%d" % _OOM_SCORE)
    if body.processors is not None:
        os.sched_setaffinity(0, body.processors)
    if body.uid is not None:
        os.setgroups([])
        os.setresgid(body.uid, body.uid, body.uid)
        os.setresuid(body.uid, body.uid, body.uid)


def _run(program: Program, body: Body, streams: list[int], status: int) -> NoReturn:
    """Give up everything, then become the program; `status` closes by itself when the exec succeeds."""
    code = 126
    try:
        os.setsid()
        os.nice(_NICENESS)
        for target, source in enumerate(streams):
            os.dup2(source, target)
        calls.close_on_exec_from(3)
        os.chdir(program.cwd)
        for kind, value in body.rlimits:
            _, ceiling = resource.getrlimit(kind)
            value = value if ceiling == resource.RLIM_INFINITY else min(value, ceiling)
            resource.setrlimit(kind, (value, value))
        calls.drop_capabilities()
        calls.prctl(calls.PR_SET_NO_NEW_PRIVS, 1)
        calls.load_filter(program.load)
        code = 127
        os.execvpe(program.argv[0], program.argv, program.env)  # noqa: S606
    except BaseException as error:
        reason = error.strerror if isinstance(error, OSError) else error
        os.write(status, _refusal(code, f"{program.argv[0] if code == 127 else program.cwd}: {reason}"))
    os._exit(code)


def _arrange(descriptors: list[int]) -> None:
    """Make `descriptors` 0, 1, 2 and so on, and leave no other to the next program."""
    high = [os.dup2(fd, 100 + number) for number, fd in enumerate(descriptors)]
    calls.close_on_exec_from(3)
    for target, source in enumerate(high):
        os.dup2(source, target)


def records(answer: bytes) -> dict[int, bytes]:
    """What came through `status`: PROGRAM -> the program's pid on the host, REFUSED -> an exit code and a message."""
    found = {}
    while len(answer) >= _HEAD.size:
        kind, size = _HEAD.unpack_from(answer)
        found[kind] = answer[_HEAD.size : _HEAD.size + size]
        answer = answer[_HEAD.size + size :]
    return found


def _refusal(code: int, message: str) -> bytes:
    return _record(REFUSED, bytes([code]) + message.encode(errors="replace")[:1000])


def _record(kind: int, payload: bytes) -> bytes:
    """One record, small enough for a pipe to take it whole."""
    return _HEAD.pack(kind, len(payload)) + payload


def _write(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)
