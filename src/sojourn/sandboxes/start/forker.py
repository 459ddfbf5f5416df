"""The small process that forks for the keeper: `python -m sojourn.sandboxes.start.forker FD`.

`forking.py` starts it. The time of a fork grows with the memory of what forks, so this one imports next to nothing, and
it always has one child forked ahead that waits for the next request. The rule: every child is made the keeper's own
(CLONE_PARENT), so the keeper alone waits for all of them, and all die with it.
"""

import gc
import marshal
import os
import signal
import socket
import struct
import sys
import time
from typing import NoReturn

from sojourn.sandboxes.kernel import calls
from sojourn.sandboxes.start import child

_DESCRIPTORS_MAX = 16
_RETRY_S = 0.05


def main() -> None:
    """Keep one child waiting for work, for as long as the keeper lives."""
    keeper = os.getppid()
    calls.prctl(calls.PR_SET_PDEATHSIG, signal.SIGKILL)
    door = socket.socket(fileno=int(sys.argv[1]))
    gc.freeze()
    while os.getppid() == keeper:
        taken, take = os.pipe()
        try:
            if calls.clone_sibling() == 0:
                os.close(taken)
                _work(door, take)
        except OSError:
            time.sleep(_RETRY_S)  # the host has no room for a process now
        os.close(take)
        os.read(taken, 1)  # ends when the child has taken a request, or has died
        os.close(taken)


def _work(door: socket.socket, take: int) -> NoReturn:
    """Say who is ready, take one request and become what it asks for."""
    try:
        calls.prctl(calls.PR_SET_PDEATHSIG, signal.SIGKILL)
        door.send(struct.pack("=i", os.getpid()))
        word, descriptors, _, _ = socket.recv_fds(door, 1, _DESCRIPTORS_MAX)
        os.close(take)
        if word:
            payload, *rest = descriptors
            with os.fdopen(payload, "rb") as file:
                what, body, asked = marshal.load(file)  # noqa: S302  the keeper wrote it
            if what == "bubblewrap":
                child.become_bubblewrap(asked, child.Body(*body), rest)
            child.enter(child.Program(*asked), child.Body(*body), rest)
    finally:
        os._exit(1)


if __name__ == "__main__":
    main()
