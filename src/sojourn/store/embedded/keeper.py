"""Runs one PostgreSQL server for as long as anybody uses it. Started as a script of its own by `cluster`.

The rule: the server never outlives the keeper, and the keeper never outlives the last holder of the users lock. A lock
dies with its holder, so kill -9 of every user stops the server too. It imports nothing of ours, to be small and quick.
"""

import _thread
import ctypes
import fcntl
import os
import signal
import sys
import time

PR_SET_PDEATHSIG = 1
STOP_S = 60.0


def main(users_lock: str, uid: int, gid: int, command: list[str]) -> None:
    """Become a process without a parent, start the server, and wait for its end."""
    if os.fork():
        os._exit(0)
    users = os.open(users_lock, os.O_RDWR | os.O_CLOEXEC)
    server = start(uid, gid, command)
    for ignored in (signal.SIGINT, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    _thread.start_new_thread(stop_after_the_last, (users, server))
    os.waitpid(server, 0)


def start(uid: int, gid: int, command: list[str]) -> int:
    """Start the server as its own user; should the keeper be killed, the kernel sends it the signal for a fast stop."""
    keeper, libc = os.getpid(), ctypes.CDLL(None)
    server = os.fork()
    if server:
        return server
    if os.geteuid() != uid:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGINT)
    if os.getppid() == keeper:
        os.execv(command[0], command)  # noqa: S606 (no shell is what is wanted)
    os._exit(1)


def stop_after_the_last(users: int, server: int) -> None:
    """Wait until nobody holds the users lock; keep it while the server stops, so that newcomers wait for the end."""
    fcntl.flock(users, fcntl.LOCK_EX)
    os.kill(server, signal.SIGINT)
    time.sleep(STOP_S)
    os.kill(server, signal.SIGQUIT)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
