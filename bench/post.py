"""What a request costs: CPU time of the API's process for each, and how long the caller waits for it.

    python -m bench.post [--small] [--json] [--requests 3000]

An authenticated POST that inserts one row (a session) is what the floors of other frameworks were measured on. The API
runs in a process of its own; eight callers here keep their connections.
"""

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import uvloop
from aiohttp import web
from tests.api.played_worker import at, ids

from bench.figure import Figure, chosen, report, spread
from bench.place import data_folder
from bench.stream import Process
from sojourn.api.app import build
from sojourn.api.parts import Api
from sojourn.guardrails.in_force import InForce
from sojourn.identity.secrets.roots import RootKeys
from sojourn.identity.secrets.vault import Vault
from sojourn.models.model import Endpoint
from sojourn.settings import Settings
from sojourn.store import embedded
from sojourn.store.db import connect
from sojourn.store.doorbell import Doorbell
from sojourn.store.migrate import migrate
from sojourn.store.sharing.rates import Limits, Rate, Rates
from sojourn.store.tenant import keys
from sojourn.wiring import CHANNELS

CALLERS = 8
FLOOR = "raw ASGI 251, FastAPI 437"
RUN = {"input": "go", "model": "sim:a"}
ASKED: dict[str, tuple[str, str, Any]] = {
    "GET /healthz": ("GET", "/healthz", None),
    "GET /v1/me (a key, no database)": ("GET", "/v1/me", None),
    "POST /v1/sessions (one insert)": ("POST", "/v1/sessions", {}),
    "POST /v1/runs (session, run, journal, message, agent)": ("POST", "/v1/runs", RUN),
}


class Sizes(msgspec.Struct, frozen=True):
    """How much is measured."""

    requests: int = 3000
    before: int = 200
    """Requests of each kind that are not counted."""


SMALL = Sizes(requests=40, before=CALLERS)


class Models:
    """One provider, which nobody asks."""

    def endpoints(self) -> dict[str, Endpoint]:
        return {"sim": Endpoint(name="sim", dialect="openai", base_url="http://127.0.0.1:9", key_required=False)}


async def serve(folder: Path) -> None:
    """Serve until stdin closes."""
    async with (
        await embedded.start(folder, fsync=False) as cluster,
        await connect(cluster) as database,
        Doorbell(database, CHANNELS) as bell,
    ):
        await migrate(database)
        token = await keys.bootstrap(database)
        settings = Settings(queued_runs_max=1_000_000, rates=Rates(runs=Limits(user=Rate(10**6, 1))))
        parts = Api(
            database=database, doorbell=bell, settings=settings, tools={},
            models=Models(), vault=Vault(RootKeys("", folder / "root.key")), sandboxes=None, now=at, new_id=ids(),  # type: ignore[arg-type]
            guardrails=InForce(database, bell),
            price=lambda model, usage: None if "unpriced" in model else 1,
        )  # fmt: skip
        runner = web.AppRunner(build(parts), access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        print(runner.addresses[0][1], token, flush=True)
        await asyncio.to_thread(sys.stdin.read)
        await runner.cleanup()


async def ask(url: str, token: str, asked: tuple[str, str, Any], n: int) -> list[float]:
    """Make `n` requests from all callers together; how long each took, in ms."""
    method, path, body = asked
    took: list[float] = []

    async def caller(http: aiohttp.ClientSession) -> None:
        for _ in range(n // CALLERS):
            began = time.perf_counter()
            async with http.request(method, url + path, json=body) as reply:
                assert reply.status < 300, await reply.text()
                await reply.read()
            took.append((time.perf_counter() - began) * 1000)

    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as http:
        await asyncio.gather(*(caller(http) for _ in range(CALLERS)))
    return took


async def main(sizes: Sizes) -> None:
    figures: list[Figure] = []
    async with data_folder() as folder, Process.started("serve", folder, "bench.post") as server:
        port, token = (await server.line()).split()
        for what, asked in ASKED.items():
            url = f"http://127.0.0.1:{port}"
            await ask(url, token, asked, sizes.before)
            before = server.cpu_s()
            took = await ask(url, token, asked, sizes.requests)
            each_us = (server.cpu_s() - before) / len(took) * 1e6
            floor = FLOOR if "one insert" in what else ""
            figures.append(Figure(id="POST", what=f"CPU, {what}", unit="us", median=each_us, floor=floor))
            figures.append(spread("POST", f"answered, {what}, {CALLERS} callers", "ms", took))
    report(figures)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", folder]:
            uvloop.run(serve(Path(folder)))
        case _:
            uvloop.run(main(chosen(__doc__, Sizes(), SMALL)))
