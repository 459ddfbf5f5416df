"""Calls of a worker use their connections again: seen from a provider in another process, which counts who knocks."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvloop

from sojourn.models.model import TimeOuts
from sojourn.models.wire.transport import Outgoing, Transport

LANES, ROUNDS = 12, 40
TIME_OUTS = TimeOuts(connect_s=5, first_token_s=20, idle_s=20, total_s=30)
PROVIDER = r"""
import asyncio, sys
REPLY = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 14\r\n\r\ndata: [DONE]\n\n"

async def main():
    knocks = 0
    async def answer(reader, writer):
        nonlocal knocks
        knocks += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                await reader.readexactly(int(head.partition(b"content-length:")[2].partition(b"\r\n")[0]))
                writer.write(REPLY)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    print(knocks, flush=True)

asyncio.run(main())
"""


@asynccontextmanager
async def provider() -> AsyncIterator[tuple[str, asyncio.subprocess.Process]]:
    """A process that answers every request at once, and says at its end how many connections it was asked for."""
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", PROVIDER, stdin=pipe, stdout=pipe)
    assert child.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(await child.stdout.readline())}/", child
    finally:
        if child.returncode is None:
            child.kill()
            await child.communicate()


async def call(url: str, body: tuple[bytes, ...]) -> None:
    """Ask from so many lanes at once, each one call after the other."""
    transport = Transport()

    async def lane() -> None:
        for _ in range(ROUNDS):
            answer = await transport.post("sim", url, headers={}, body=Outgoing(body), time_outs=TIME_OUTS)
            while await answer.read():
                pass
            answer.close()

    try:
        async with asyncio.timeout(30):
            await asyncio.gather(*(lane() for _ in range(LANES)))
    finally:
        await transport.close()


async def test_a_call_leaves_its_connection_to_the_next_one() -> None:
    async with asyncio.timeout(60), provider() as (url, child):
        await asyncio.to_thread(uvloop.run, call(url, (b'{"model":"m",', b'"messages":[]}')))
        told, _ = await child.communicate(b"")
    assert int(told) <= LANES, f"{LANES} lanes needed {int(told)} connections for {LANES * ROUNDS} calls"
