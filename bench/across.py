"""B6 across processes: from the model server's send to the reader, through a real worker, the database and real APIs.

    python -m bench.across [--clients 1000] [--runs 50] [--seconds 10] [--json]

The model server, the worker, each API and the readers are processes of their own. Each run is told 20 pieces a second,
and each piece is the time at which it was sent. Readers are spread over the runs, and over the APIs.
"""

import argparse
import asyncio
import os
import shutil
import socket
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import aiohttp
import uvloop
from aiohttp import web
from msgspec.structs import replace
from tests.conftest import until
from tests.installation import Installation

from bench.figure import Figure, report, spread
from bench.readers import Readers
from bench.stream import MARK, RATE, Measured, Process, notified
from bench.thinker import HEAD, TAIL


async def think(folder: Path) -> None:
    """Be a model server that talks from one `go` on stdin to the next `hush`, and until it closes."""
    talking = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        await request.read()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        with suppress(ConnectionError):
            while await talking.wait():
                await response.write(HEAD + b'{"content":"%d"}' % time.monotonic_ns() + TAIL)
                await asyncio.sleep(1 / RATE)
        return response

    application = web.Application()
    application.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=2000).start()
    print(runner.addresses[0][1], flush=True)
    while word := await asyncio.to_thread(sys.stdin.readline):
        (talking.set if word.strip() == "go" else talking.clear)()
        print("done", flush=True)


async def second_api(installation: Installation) -> int:
    """Start another API and give its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    await installation.start("serve", "--no-worker", "--port", str(port), name="api-2")
    async with asyncio.timeout(60):
        while True:
            with suppress(aiohttp.ClientError):
                async with installation.http.get(f"http://127.0.0.1:{port}/readyz") as reply:
                    if reply.status == 200:
                        return port
            await asyncio.sleep(0.05)


async def measure(thinker: Process, ports: list[int], requests: list[bytes], seconds: float) -> Measured:
    """Let readers follow for some time; how late each piece was that they were told."""
    crowds = [await asyncio.to_thread(Readers, port, requests[n :: len(ports)]) for n, port in enumerate(ports)]
    await until(lambda: all(readers.have(MARK) for readers in crowds), 60)
    for readers in crowds:
        readers.forget()
    await thinker.say("go")
    await asyncio.sleep(seconds)
    await thinker.say("hush")
    await asyncio.sleep(1.0)
    for readers in crowds:
        readers.close()
    late_ms = [late for readers in crowds for late in readers.late_ms()]
    return Measured(late_ms, 0, len(late_ms) / seconds)


def wanted(key: str, runs: list[str], clients: int) -> list[bytes]:
    """One request for a stream from each client."""
    head = "GET /v1/runs/{}/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nAccept: text/event-stream\r\n\r\n"
    return [head.format(runs[n % len(runs)], key).encode() for n in range(clients)]


async def main(given: argparse.Namespace) -> None:
    folder = Path(tempfile.mkdtemp(prefix="sojourn-bench-"))
    thinker = await Process.start("think", folder, "bench.across")
    url = f"http://127.0.0.1:{await thinker.line()}"
    env = {"SOJOURN_LOG_LEVEL": "warning", "SOJOURN_DRAIN_S": "1", "SOJOURN_STREAM_CLIENTS_TENANT_MAX": "2000"}
    installation, figures = Installation(folder, url, env), list[Figure]()
    try:
        await installation.start_api("--no-worker")
        ports = [int(installation.url.rpartition(":")[2]), await second_api(installation)]
        await installation.start_worker()
        key = (folder / "local.key").read_text().strip()
        agent = {"model": "openai:talker"}
        runs = [await installation.run(input="Talk.", agent=agent) for _ in range(given.runs)]
        requests = wanted(key, runs, given.clients)
        for count in (1, 2):
            got = await measure(thinker, ports[:count], requests, given.seconds)
            offered = f"{got.per_s:,.0f} of {given.clients * RATE:,}/s, load {os.getloadavg()[0]:.1f}"
            apis = "two APIs" if count == 2 else "one API"
            what = f"from the model's send to the reader, {given.clients} clients on {given.runs} runs, {apis}"
            late = spread("B6", f"{what} ({offered})", "ms", got.late_ms, most=(10.0, 50.0))
            figures.append(replace(late, floor=f"NOTIFY {Measured(await notified(folder), 0, 0).quantiles()}"))
    finally:
        await installation.stop()
        await thinker.stop()
        shutil.rmtree(folder)
    report(figures)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--role", choices=("think",))
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    uvloop.run(think(asked.folder) if asked.role else main(asked))
