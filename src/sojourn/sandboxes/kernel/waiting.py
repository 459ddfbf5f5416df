"""Waiting for descriptors without blocking the keeper's loop, and for a child that ends.

The rest of this folder calls it. The rule: a waiter that is cancelled leaves no reader behind.
"""

import asyncio
import contextlib
import os
import select
import signal


def is_readable(fd: int) -> bool:
    """Whether `readable` would return at once."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


async def readable(fd: int) -> None:
    """Return when `fd` can be read, or when the process behind a pidfd has ended."""
    await any_readable(fd)


async def any_readable(*fds: int) -> None:
    """Return when one of them can be read."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    for fd in fds:
        loop.add_reader(fd, lambda: ready.done() or ready.set_result(None))
    try:
        await ready
    finally:
        for fd in fds:
            loop.remove_reader(fd)


async def writable(fd: int) -> None:
    """Return when something can be sent to `fd`; one waiter at a time."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_writer(fd, lambda: ready.done() or ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_writer(fd)


def kill(pidfd: int) -> None:
    """Kill a process, which may have ended already."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)


async def reaped(pidfd: int) -> None:
    """Wait for a child that is ending, reap it unless somebody has, and close its pidfd."""
    await readable(pidfd)
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED)  # noqa: ASYNC222  it has ended
    os.close(pidfd)
