"""B6 across processes: from the model server's send to the reader, through a real worker, the database and real APIs.

    python -m bench.across [--small] [--json] [--clients 1000] [--runs 50] [--seconds 10]

The model server, the worker, each API and the readers are processes of their own. Each run is told 20 pieces a second,
and each piece is the time at which it was sent. Readers are spread over the runs, and over the APIs.
"""

import asyncio
import os
import sys
import time
from contextlib import suppress

import uvloop
from aiohttp import web
from msgspec.structs import replace
from tests.conftest import until
from tests.installation import Installation

from bench.figure import Figure, chosen, report, spread
from bench.place import data_folder
from bench.readers import Readers
from bench.stream import MARK, RATE, SMALL, Measured, Process, Sizes, notified
from bench.thinker import HEAD, TAIL


async def think() -> None:
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
    process = await installation.start("serve", "--no-worker", "--port", "0", name="api-2")
    return int((await installation.announced(process, "api-2")).rpartition(":")[2])


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
    await until(lambda: all(readers.count() for readers in crowds), 60)
    for readers in crowds:
        readers.close()
    late_ms = [late for readers in crowds for late in readers.late_ms()]
    return Measured(late_ms, 0, len(late_ms) / seconds)


def wanted(key: str, runs: list[str], clients: int) -> list[bytes]:
    """One request for a stream from each client."""
    head = "GET /v1/runs/{}/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nAccept: text/event-stream\r\n\r\n"
    return [head.format(runs[n % len(runs)], key).encode() for n in range(clients)]


async def main(sizes: Sizes) -> None:
    async with data_folder() as folder, Process.started("think", folder, "bench.across") as thinker:
        url = f"http://127.0.0.1:{await thinker.line()}"
        env = {"SOJOURN_LOG_LEVEL": "warning", "SOJOURN_DRAIN_S": "1", "SOJOURN_STREAM_CLIENTS_TENANT_MAX": "2000"}
        installation, figures = Installation(folder, url, env), list[Figure]()
        try:
            await installation.start_api("--no-worker")
            ports = [int(installation.url.rpartition(":")[2]), await second_api(installation)]
            await installation.start_worker()
            key = (folder / "local.key").read_text().strip()
            agent = {"model": "openai:talker"}
            runs = [await installation.run(input="Talk.", agent=agent) for _ in range(sizes.runs)]
            requests = wanted(key, runs, sizes.clients)
            for count in (1, 2):
                got = await measure(thinker, ports[:count], requests, sizes.seconds)
                offered = f"{got.per_s:,.0f} of {sizes.clients * RATE:,}/s, load {os.getloadavg()[0]:.1f}"
                apis = "two APIs" if count == 2 else "one API"
                what = f"from the model's send to the reader, {sizes.clients} clients on {sizes.runs} runs, {apis}"
                late = spread("B6", f"{what} ({offered})", "ms", got.late_ms, most=(10.0, 50.0))
                figures.append(replace(late, floor=f"NOTIFY {Measured(await notified(folder), 0, 0).quantiles()}"))
        finally:
            await installation.stop()
    report(figures)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["think", _]:
            uvloop.run(think())
        case _:
            uvloop.run(main(chosen(__doc__, Sizes(), SMALL)))
