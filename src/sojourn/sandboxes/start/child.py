"""What a process of ours does with itself for a sandbox: become bubblewrap, or go in and give up everything.

`crew.py` calls it in the two processes that it is. The rule: nothing of the workload can reach such a process before
its exec. It is not dumpable (no ptrace, no /proc/<pid>/mem, fd or exe), it stays out of the process namespace, and
once it has joined the others it only takes from itself.
This file imports little, also from the standard library: what forks stays small, and every page that a porter touches
is one that its sandbox takes.
"""

import os
import resource
import signal
from typing import NamedTuple, NoReturn

from sojourn.sandboxes.kernel import calls

OOM_SCORE = 700  # when memory runs out, a workload goes before the platform
_NICENESS = 5


class Body(NamedTuple):
    """Who a sandbox is on the host: its session's uid (None: the keeper's own), its processors and rlimits."""

    uid: int | None
    processors: frozenset[int] | None
    rlimits: tuple[tuple[int, int], ...]


def become_bubblewrap(argv: tuple[str, ...], body: Body, descriptors: list[int]) -> NoReturn:
    """Exec bubblewrap with an empty environment and `descriptors` as 0, 1, 2 and so on; it dies with the keeper.

    SIGCHLD stays ignored down to the sandbox's init, for which the kernel then reaps. Bubblewrap itself cannot see its
    child's end any more and must be ended with it.
    """
    try:
        write("/proc/self/oom_score_adj", b"%d" % OOM_SCORE)
        become(body)
        calls.prctl(calls.PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        _arrange(descriptors)
        os.execve(argv[0], argv, {})  # noqa: S606
    except BaseException as error:
        os.write(2, f"cannot start {argv[0]}: {error}".encode())
    os._exit(127)


def become(body: Body) -> None:
    """Take the processors, groups and uid of a workload; not dumpable from here on."""
    if body.processors is not None:
        os.sched_setaffinity(0, body.processors)
    if body.uid is not None:
        os.setgroups([])
        os.setresgid(body.uid, body.uid, body.uid)
        os.setresuid(body.uid, body.uid, body.uid)
    calls.prctl(calls.PR_SET_DUMPABLE, 0)


def narrow(rlimits: tuple[tuple[int, int], ...]) -> None:
    """Take the niceness and the rlimits of a workload."""
    os.nice(_NICENESS)
    for kind, value in rlimits:
        _, ceiling = resource.getrlimit(kind)
        value = value if ceiling == resource.RLIM_INFINITY else min(value, ceiling)
        resource.setrlimit(kind, (value, value))


def go_in(load: bytes, doors: list[int]) -> None:
    """Join every namespace of a sandbox, then lose capabilities, privileges and system calls for good.

    `doors`: the init's pidfd, the outer user namespace (which owns the others) and the inner one. The process namespace
    is joined by what is forked from here on, never by this process.
    """
    init, outer, inner = doors
    calls.setns(outer, calls.CLONE_NEWUSER)
    calls.setns(init, calls.EVERY_NAMESPACE_BUT_USER)
    calls.setns(inner, calls.CLONE_NEWUSER)
    calls.prctl(calls.PR_SET_DUMPABLE, 0)
    calls.prctl(calls.PR_SET_PDEATHSIG, signal.SIGKILL)  # what changes credentials forgets it
    calls.drop_capabilities()
    calls.prctl(calls.PR_SET_NO_NEW_PRIVS, 1)
    calls.load_filter(load)


def write(path: str, data: bytes) -> None:
    """Write a file that is there. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def _arrange(descriptors: list[int]) -> None:
    """Make `descriptors` 0, 1, 2 and so on, and leave no other to the next program."""
    high = [os.dup2(fd, 100 + number) for number, fd in enumerate(descriptors)]
    calls.close_on_exec_from(3)
    for target, source in enumerate(high):
        os.dup2(source, target)
