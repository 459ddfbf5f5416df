"""Waiting for descriptors without blocking the keeper's loop.

The rest of this folder calls it. The rule: a waiter that is cancelled leaves no reader behind.
"""

import asyncio
import os
import select


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


async def read_all(fd: int, *, limit_bytes: int = 4096) -> bytes:
    """What comes until the other end closes."""
    data = b""
    while len(data) < limit_bytes:
        await readable(fd)
        piece = os.read(fd, limit_bytes - len(data))
        if not piece:
            break
        data += piece
    return data


def reaped(pid: int) -> int:
    """The wait status of a child that has ended, or is about to."""
    return os.waitpid(pid, 0)[1]
