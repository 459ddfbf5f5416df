"""What a client and the keeper say to each other over the unix socket.

Both sides call it: `bwrap.py` in a worker or an API process, `server.py` in the keeper. A connection carries one
request and its replies, each a length (4 bytes, big endian) and a msgpack body. The rule: what a sandbox wrote travels
as bytes inside a typed reply and is never read as part of the protocol.
"""

import asyncio

import msgspec

from sojourn.sandboxes.sandbox import Capability, Destroyed, Exit, Limits, Output, Spec

VERSION = 1
SOCKET, LOCK, LOG = "keeper.sock", "keeper.lock", "keeper.log"
WORKSPACES, TRASH, BEGUN = "workspaces", "trash", "begun"
PROBE = "probe"
"""The session that a probe runs in."""
FRAME_BYTES_MAX = 64 << 20


class _Request(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    version: int = VERSION


class Probe(_Request, frozen=True):
    """Make a sandbox, run `true` in it, destroy it. Answer: Capability."""


class Create(_Request, frozen=True):
    """Start the session's sandbox, or attach to it. Answer: Ready."""

    session_id: str
    spec: Spec
    first: bool = False


class Attach(_Request, frozen=True):
    """Answer: Ready, or Failed("unknown")."""

    session_id: str


class Exec(_Request, frozen=True):
    """Run a program or attach to it. Answer: Output..., then Exit."""

    session_id: str
    exec_id: str
    argv: list[str]
    cwd: str
    env: dict[str, str]
    stdin: bytes
    timeout_s: float | None
    resume: bool
    incarnation: str = ""


class Kill(_Request, frozen=True):
    """End one exec. Answer: Done, when it has ended."""

    session_id: str
    exec_id: str


class Stop(_Request, frozen=True):
    """End every process of the session and leave its files. Answer: Destroyed."""

    session_id: str


class Destroy(_Request, frozen=True):
    """End every process of the session and remove its files. Answer: Destroyed."""

    session_id: str


class Reap(_Request, frozen=True):
    """Destroy every session, running or only on disk, that is not in `alive`. Answer: Reaped."""

    alive: frozenset[str]


class Ready(msgspec.Struct, frozen=True, tag=True):
    """`incarnation` is another one for each sandbox that a session has in the course of time."""

    created: bool
    limits: Limits
    incarnation: str = ""


class Reaped(msgspec.Struct, frozen=True, tag=True):
    sessions: list[str]


class Done(msgspec.Struct, frozen=True, tag=True):
    pass


class Failed(msgspec.Struct, frozen=True, tag=True):
    """`kind` says which exception the client raises; `ended`, unknown to older releases, that it is SandboxEnded."""

    kind: str
    message: str
    ended: bool = False


class Probed(msgspec.Struct, frozen=True, tag=True):
    capability: Capability


class Gone(msgspec.Struct, frozen=True, tag=True):
    report: Destroyed


Request = Probe | Create | Attach | Exec | Kill | Stop | Destroy | Reap
Reply = Ready | Reaped | Done | Failed | Probed | Gone | Output | Exit


async def send(writer: asyncio.StreamWriter, message: Request | Reply) -> None:
    body = msgspec.msgpack.encode(message)
    writer.write(len(body).to_bytes(4, "big") + body)
    await writer.drain()


async def receive_request(reader: asyncio.StreamReader) -> Request:
    return msgspec.msgpack.decode(await _frame(reader), type=Request)


async def receive_reply(reader: asyncio.StreamReader) -> Reply:
    return msgspec.msgpack.decode(await _frame(reader), type=Reply)


async def _frame(reader: asyncio.StreamReader) -> bytes:
    """One body. Raises asyncio.IncompleteReadError when the other side has gone."""
    size = int.from_bytes(await reader.readexactly(4), "big")
    if size > FRAME_BYTES_MAX:
        raise ConnectionError(f"a frame of {size} bytes is larger than {FRAME_BYTES_MAX}")
    return await reader.readexactly(size)
