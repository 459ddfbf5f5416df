"""Floors of `bench/run.py`: the same bytes by nobody's client, a bare commit, a bare answer that streams.

What posts and holds runs in a process of its own (`apart`); perf_counter is one clock for all processes of a machine.
"""

import asyncio
import multiprocessing
import os
import socket
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import asyncpg
import uvloop

from sojourn.store import embedded

END = b"0\r\n\r\n"
COMMIT_BYTES = 2_000
"""About what a step writes."""
T = TypeVar("T")


async def apart(measure: Callable[..., T], *given: Any) -> T:
    """Measure in another process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return await asyncio.get_running_loop().run_in_executor(pool, measure, *given)


def post(port: int, body: bytes, times: int) -> list[float]:
    """Post to a thinker, one request after the other, and tell when each began."""
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: bare\r\nContent-Length: %d\r\n\r\n" % len(body)
    began: list[float] = []
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(times):
            began.append(time.perf_counter())
            connection.sendall(head)
            connection.sendall(body)
            answer = b""
            while not answer.endswith(END):
                answer = answer[-len(END) :] + (connection.recv(1 << 16) or END)
    return began


async def commit_ms(data_dir: Path) -> float:
    """How long one commit of COMMIT_BYTES takes on a database that is at work."""
    times = []
    async with await embedded.start(data_dir) as cluster:
        connection = await asyncpg.connect(cluster.dsns.migrate)
        await connection.execute("create table bench_floor (data bytea)")
        for _ in range(200):
            began = time.perf_counter()
            await connection.execute("insert into bench_floor values ($1)", os.urandom(COMMIT_BYTES))
            times.append((time.perf_counter() - began) * 1000)
        await connection.execute("drop table bench_floor")
        await connection.close()
    return statistics.median(times)


def hold_kb(url: str, number: int) -> float:
    """How much memory one streamed answer takes in a client that does nothing else."""
    return uvloop.run(_hold_kb(url, number))


async def _hold_kb(url: str, number: int) -> float:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        before, answers = memory_kb(os.getpid()), []
        for _ in range(number):
            answers.append(await http.post(f"{url}/chat/completions", data=b'{"model":"hold"}'))
            await answers[-1].content.readany()
        each = (memory_kb(os.getpid()) - before) / number
        for answer in answers:
            answer.close()
    return each


def memory_kb(pid: int) -> int:
    """A process's own share of memory."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
