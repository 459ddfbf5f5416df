"""The small process that forks for the keeper: `python -m sojourn.sandboxes.start.forker FD`.

`forking.py` starts it and asks it for crews. The time of a fork grows with the memory of what forks, so this one
imports next to nothing. The rule: every child is made the keeper's own (CLONE_PARENT), so the keeper alone waits for
all of them, and all die with it.
"""

import gc
import marshal
import os
import signal
import socket
import sys
from typing import NoReturn

from sojourn.sandboxes.kernel import calls
from sojourn.sandboxes.start import child, crew

_REQUEST_BYTES = 64 << 10
_CAUGHT = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP)


def main() -> None:
    """Make crews for as long as the keeper lives."""
    calls.prctl(calls.PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in _CAUGHT:
        signal.signal(number, signal.SIG_DFL)  # as a workload has them
    door = socket.socket(fileno=int(sys.argv[1]))
    gc.disable()
    gc.freeze()
    door.send(b"\n")
    while True:
        request, doors = calls.receive(door, _REQUEST_BYTES, descriptors_max=2)
        if not request:
            return
        try:
            if calls.clone_sibling() == 0:
                door.close()
                _become_crew(marshal.loads(request), doors)  # noqa: S302  the keeper wrote it
        except OSError as error:
            print("crew.not_forked", error, file=sys.stderr, flush=True)
        for fd in doors:
            os.close(fd)


def _become_crew(joins: tuple[str, ...], doors: list[int]) -> NoReturn:
    """Join the control groups, which may take the kernel many milliseconds, then become two who wait at their doors."""
    try:
        for path in joins:
            child.write(path, b"0")
        serve = crew.launcher if calls.clone_sibling() else crew.porter
        calls.prctl(calls.PR_SET_PDEATHSIG, signal.SIGKILL)
        mine, other = doors if serve is crew.launcher else reversed(doors)
        os.close(other)
        serve(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, mine))
    except OSError as error:
        print("crew.failed", error, file=sys.stderr, flush=True)
    finally:
        os._exit(1)


if __name__ == "__main__":
    main()
