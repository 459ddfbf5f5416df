"""The two processes that stand ready for a sandbox: a launcher, which becomes its bubblewrap, and its porter.

`forker.py` forks them into the sandbox's control groups; `forking.py` and `porter.py` speak to them. The porter joins
every namespace but that of the processes, gives up what a workload may not have, and then starts the programs: by
vfork, so that nothing is copied, with nothing left to do between fork and exec. It reaps them and tells how they ended.
The rule: the porter is never inside the process namespace, so the workload can neither see nor signal it, and it can do
nothing that the workload could not.
"""

import marshal
import os
import select
import socket
import struct
import sys
from typing import Any, NoReturn

from sojourn.sandboxes.kernel import calls
from sojourn.sandboxes.start import child

BEGUN, REFUSED, ENDED = 1, 2, 3
ANSWER = struct.Struct("=BQi")
READY, PID = b"\n", struct.Struct("=i")
_DESCRIPTORS_MAX = 8
_WORDS_BYTES = 1000


def launcher(door: socket.socket) -> NoReturn:
    """Wait for the one request, and become bubblewrap."""
    door.send(PID.pack(os.getpid()))
    if (request := _received(door)) is not None:
        (argv, body), descriptors = request
        child.become_bubblewrap(argv, child.Body(*body), descriptors)
    os._exit(0)


def porter(door: socket.socket) -> NoReturn:
    """Become what the sandbox is, wait until it stands, go in, and start programs for as long as the door is held."""
    door.send(PID.pack(os.getpid()))
    try:
        score = _gone_in(door)
    except BaseException as error:
        door.send(f"cannot enter the sandbox: {error}".encode()[:_WORDS_BYTES])
    else:
        if score is not None:
            door.send(READY)
            _Service(door, score).serve()
    os._exit(0)


def _gone_in(door: socket.socket) -> int | None:
    """Do what the first two requests say; a descriptor of our own OOM score, None when the keeper has let go."""
    if (request := _received(door)) is None:
        return None
    (body, load), _ = request
    score = os.open("/proc/self/oom_score_adj", os.O_RDWR | os.O_CLOEXEC)
    child.become(child.Body(*body))
    child.narrow(child.Body(*body).rlimits)
    if (request := _received(door)) is None:
        return None
    _, doors = request
    child.go_in(load, doors)
    for fd in doors:
        os.close(fd)
    return score


class _Service:
    """What a porter knows: its door, and which programs run."""

    def __init__(self, door: socket.socket, score: int) -> None:
        self._door = door
        self._score = score
        self._own_score = os.pread(score, 16, 0)
        self._running: dict[int, tuple[int, int]] = {}
        self._poll = select.poll()
        self._poll.register(door, select.POLLIN)

    def serve(self) -> None:
        """Start what the keeper asks for and reap what ends, until the keeper lets go."""
        while True:
            for fd, _ in self._poll.poll():
                if fd in self._running:
                    self._reap(fd)
                elif (request := _received(self._door)) is None:
                    return
                else:
                    self._start(*request)

    def _start(self, request: tuple[int, tuple[str, ...], str, dict[str, str]], streams: list[int]) -> None:
        number, argv, cwd, env = request
        code, what = 126, cwd
        try:
            os.chdir("/")
            os.chdir(cwd)
            code, what = 127, argv[0]
            pid = self._spawn(argv, env, streams)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            words = f"{what}: {reason}".encode(errors="replace")[:_WORDS_BYTES]
            self._door.send(ANSWER.pack(REFUSED, number, code) + words)
        else:
            pidfd = os.pidfd_open(pid)
            self._running[pidfd] = number, pid
            self._poll.register(pidfd, select.POLLIN)
            socket.send_fds(self._door, [ANSWER.pack(BEGUN, number, 0)], [pidfd])
        finally:
            for fd in streams:
                os.close(fd)

    def _spawn(self, argv: tuple[str, ...], env: dict[str, str], streams: list[int]) -> int:
        """Start the program, which the host ends before us when memory runs out; its pid. Raises OSError."""
        calls.close_on_exec_from(3)
        actions = [(os.POSIX_SPAWN_DUP2, fd, target) for target, fd in enumerate(streams)]
        self._weigh(b"%d" % child.OOM_SCORE)
        try:
            return os.posix_spawn(_found(argv[0], env), argv, env, file_actions=actions, setsid=True)
        finally:
            self._weigh(self._own_score)

    def _weigh(self, score: bytes) -> None:
        try:
            os.pwrite(self._score, score, 0)
        except OSError as error:
            print("oom_score.not_set", error, file=sys.stderr, flush=True)

    def _reap(self, pidfd: int) -> None:
        number, pid = self._running.pop(pidfd)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        self._door.send(ANSWER.pack(ENDED, number, os.waitpid(pid, 0)[1]))


def _received(door: socket.socket) -> tuple[Any, list[int]] | None:
    """A request and the descriptors that came with it; None when the keeper has let go."""
    word, descriptors = calls.receive(door, 1, descriptors_max=_DESCRIPTORS_MAX)
    if not word:
        return None
    payload, *rest = descriptors
    words = os.read(payload, os.fstat(payload).st_size)
    os.close(payload)
    return marshal.loads(words), rest  # noqa: S302  the keeper wrote it


def _found(name: str, env: dict[str, str]) -> str:
    """The program's file, as a shell would find it."""
    if "/" in name:
        return name
    for folder in env.get("PATH", os.defpath).split(":"):
        if os.access(candidate := f"{folder or '.'}/{name}", os.X_OK):
            return candidate
    raise FileNotFoundError(2, os.strerror(2))
