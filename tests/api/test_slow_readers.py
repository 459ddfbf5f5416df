"""Readers that take little or nothing: they cost little, hold nobody up, and are let go in time."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from played_worker import Play, Player
from served_api import Served, serve
from tests.installation import Installation, installed

from sojourn.api.events import stream
from sojourn.store import embedded
from sojourn.store.db import Database, connect

SLOW, STEPS, TEXT = 100, 40, "x" * 60_000
BYTES_MAX = 700 << 10
"""What one of them may cost the server."""
WORK = {"tools": ["shell"], "policy": {"loop_guard": False}}


@contextmanager
def asked(url: str, key: str, run_id: str) -> Iterator[socket.socket]:
    """Ask for a stream, and take nothing of it."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((urlsplit(url).hostname, urlsplit(url).port))
        head = f"Host: x\r\nAuthorization: Bearer {key}\r\nAccept: text/event-stream"
        connection.sendall(f"GET /v1/runs/{run_id}/events HTTP/1.1\r\n{head}\r\n\r\n".encode())
        yield connection


async def steps(play: Play, number: int) -> None:
    """Let a run think and work at length."""
    for _ in range(number):
        await play.work(TEXT)
        await play.commit()


async def worked(api: Served, player: Player, number: int) -> Play:
    """A run that has so many steps behind it and goes on."""
    reply = await api.post("/v1/runs", {"input": "go", "agent": {"model": "sim:one", **WORK}})
    play = await player.take(reply.json["run_id"])
    await steps(play, number)
    return play


def memory_bytes(pid: int) -> int:
    """The most memory that a process ever had."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


async def open_streams(installation: Installation) -> int:
    async with installation.http.get("/metrics") as response:
        text = await response.text()
    return int(text.partition("\nsojourn_streams_open ")[2].partition("\n")[0])


async def test_readers_that_take_nothing_cost_little_and_delay_nobody(data_dir: Path) -> None:
    async with installed(data_dir, workers=0) as installation:
        api, key = installation.processes[0], (data_dir / "local.key").read_text().strip()
        run_id = await installation.run(input="go", agent={"model": "openai:sim", **WORK})
        async with await embedded.start(data_dir) as cluster, await connect(cluster) as database:
            player = await Player.start(database, lambda channel, ids: None)
            play = await player.take(run_id)
            await steps(play, STEPS)
            await play.finish()
            await player.close()
        before = memory_bytes(api.pid)
        with ExitStack() as slow:
            for _ in range(SLOW):
                slow.enter_context(asked(installation.url, key, run_id))
            async with asyncio.timeout(60):
                while await open_streams(installation) < SLOW:
                    pass
                events = await whole(installation, run_id)
        assert events.count(b"event: agent.tool_result") == STEPS
        assert memory_bytes(api.pid) - before < SLOW * BYTES_MAX


async def whole(installation: Installation, run_id: str) -> bytes:
    """A run's stream from beginning to end."""
    wanted = {"Accept": "text/event-stream"}
    async with installation.http.get(f"/v1/runs/{run_id}/events", headers=wanted) as response:
        return await response.read()


async def test_a_reader_that_takes_nothing_is_let_go(
    api: Served, player: Player, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "STUCK_S", 0.5)
    play = await worked(api, player, 20)
    with asked(api.url, api.key, play.claimed.run_id):
        await opened(api, 1)
        await opened(api, 0)


async def opened(api: Served, number: int) -> None:
    async with asyncio.timeout(30):
        while f"sojourn_streams_open {number}\n" not in (await api.get("/metrics")).body.decode():
            pass


async def test_a_stream_that_is_taken_too_slowly_ends_with_its_life(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "STUCK_S", 1.0)
    async with serve(database, stream_life_s=1.0) as api:
        player = await Player.start(database, api.parts.doorbell.ring)
        play = await worked(api, player, 20)
        with asked(api.url, api.key, play.claimed.run_id) as connection:
            await opened(api, 1)
            sip = asyncio.create_task(sipping(connection))
            await opened(api, 0)
            sip.cancel()
        await player.close()


async def sipping(connection: socket.socket) -> None:
    """Take a little now and then: enough not to seem gone."""
    connection.setblocking(False)
    while True:
        await asyncio.get_running_loop().sock_recv(connection, 4096)
        await asyncio.sleep(0.1)
