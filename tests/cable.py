"""A network of the kernel's that a test can unplug: a process in a network namespace, at one end of a virtual cable.

Nobody tells it that the cable is out: what it sends is lost, and it hears nothing, not even that a connection is gone.
The other end stands in a second namespace, where the database and the model listen, so no packet can reach any other
machine. It takes root and `ip`; where either is missing, a Wire stands in.
"""

import asyncio
import ctypes
import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from urllib.parse import urlsplit

from sojourn.store.roles import Dsns
from tests.wire_cutter import Wire, to_database, wired

NEAR, FAR = "10.231.0.2", "10.231.0.1"
"""Seen in the two namespaces alone, so that all cables may have the same."""


class Cable(Wire):
    """The path to the database through the cable; that to the model is its other one."""

    def __init__(self, far_ns: int, near_ns: int, dsns: Dsns, model_url: str) -> None:
        super().__init__(to_database(dsns))
        self._far_ns = far_ns
        at = urlsplit(model_url)
        self._model = Wire(partial(asyncio.open_connection, at.hostname, at.port))
        self._model_url = at
        self.prefix = ("nsenter", f"--net=/proc/{near_ns}/ns/net", "--")

    @property
    def env(self) -> dict[str, str]:
        """Where the model is, for a process at the near end."""
        url = self._model_url._replace(netloc=f"{FAR}:{self._model.port}").geturl()
        return {"OPENAI_BASE_URL": url}

    def cut(self) -> None:
        _ip(self._far_ns, "link", "set", "dev", "far", "down")

    def mend(self) -> None:
        _ip(self._far_ns, "link", "set", "dev", "far", "up")

    async def plug(self) -> None:
        """Listen at the far end."""
        await self._model.start(_listening(self._far_ns))
        await self.start(_listening(self._far_ns))

    async def unplug(self) -> None:
        await self._model.stop()
        await self.stop()


def available() -> bool:
    """Whether this machine lets us make network namespaces and cables."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("ip", "unshare", "nsenter"))):
        return False
    tried = subprocess.run(
        ("unshare", "--net", "ip", "link", "add", "name", "tried", "type", "veth"), capture_output=True
    )
    return tried.returncode == 0


@asynccontextmanager
async def plugged(dsns: Dsns, model_url: str) -> AsyncIterator[Wire]:
    """A cable to the server of these logins and to a model; or a wire to the server, where there can be none."""
    async with AsyncExitStack() as stack:
        if not available():
            yield await stack.enter_async_context(wired(dsns))
            return
        far, near = [await stack.enter_async_context(_namespace()) for _ in range(2)]
        _ip(far, "link", "add", "name", "far", "type", "veth", "peer", "name", "near", "netns", str(near))
        for namespace, name, address in ((far, "far", FAR), (near, "near", NEAR)):
            _ip(namespace, "address", "add", f"{address}/30", "dev", name)
            _ip(namespace, "link", "set", "dev", name, "up")
        made = Cable(far, near, dsns, model_url)
        await made.plug()
        stack.push_async_callback(made.unplug)
        yield made


@asynccontextmanager
async def _namespace() -> AsyncIterator[int]:
    """A network namespace with a loopback, by the id of a process that holds it."""
    script = "ip link set lo up && echo && exec cat"
    holder = await asyncio.create_subprocess_exec("unshare", "--net", "sh", "-c", script, stdin=-1, stdout=-1)
    assert holder.stdout is not None
    try:
        assert await holder.stdout.readline() == b"\n"
        yield holder.pid
    finally:
        holder.kill()
        await holder.wait()


def _ip(namespace: int, *arguments: str) -> None:
    subprocess.run(("nsenter", f"--net=/proc/{namespace}/ns/net", "--", "ip", *arguments), check=True)


def _listening(namespace: int) -> socket.socket:
    """A socket of ours that listens in a namespace: a socket stays where it was made."""

    def made() -> socket.socket:
        with open(f"/proc/{namespace}/ns/net") as there:
            if ctypes.CDLL(None, use_errno=True).setns(there.fileno(), 0) != 0:
                raise OSError(ctypes.get_errno(), "setns")
        return socket.create_server((FAR, 0))

    with ThreadPoolExecutor(1) as apart:  # a thread of its own is in the namespace, and ends with it
        return apart.submit(made).result()
