"""The API on a real socket over a real database, with a worker that tests play themselves.

api       the running application: `api.get(...)`, `api.post(...)`, one key each for two tenants
player    the worker
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from aiohttp import web
from played_worker import at, ids

from sojourn.api.app import build
from sojourn.api.parts import (
    DELTA_BELL,
    INBOX_BELL,
    RUN_BELL,
    SCHEDULE_BELL,
    STOP_BELL,
    WANTED_BELL,
    WORK_BELL,
    Api,
)
from sojourn.guardrails.in_force import BELL, InForce
from sojourn.identity.secrets.roots import RootKeys
from sojourn.identity.secrets.vault import Vault, unlocked
from sojourn.loop.agent import Tool
from sojourn.models.model import Endpoint
from sojourn.sandboxes.sandbox import Provider
from sojourn.settings import Settings
from sojourn.store.db import Database
from sojourn.store.doorbell import Doorbell
from sojourn.store.sharing.rates import Limits, Rate, Rates
from sojourn.store.tenant import keys

ENDPOINTS = {
    "sim": Endpoint(name="sim", dialect="openai", base_url="http://127.0.0.1:9/v1", key_required=False),
    "openai": Endpoint(name="openai", dialect="openai", base_url="http://127.0.0.1:9/v1", key_env="OPENAI_API_KEY"),
}
TOOLS = {
    "shell": Tool(name="shell", description="Run a command.", effect="at_least_once"),
    "read_file": Tool(name="read_file", effect="read"),
    "wait_for_event": Tool(name="wait_for_event", effect="read", executor="event"),
}
ROOT = "c29qb3VybiBzb2pvdXJuIHNvam91cm4gc29qb3Vybi4="
ROOTS = RootKeys(ROOT, Path("/nowhere"))
CHANNELS = (RUN_BELL, DELTA_BELL, WORK_BELL, INBOX_BELL, WANTED_BELL, SCHEDULE_BELL, STOP_BELL, BELL)
UNREACHED = Rates(runs=Limits(user=Rate(10**6, 1)))
"""Limits that are in force, and that no test reaches unknowingly."""
GOAL = {"input": "Which year was the warmest?", "model": "sim:one", "tools": ["shell"]}


class Endpoints:
    """The models of a server that never asks one."""

    def endpoints(self) -> dict[str, Endpoint]:
        return ENDPOINTS


@dataclass
class Served:
    """A running application and its callers."""

    url: str
    parts: Api
    app: web.Application
    http: aiohttp.ClientSession
    key: str
    other: str
    """The key of another tenant."""

    async def call(self, method: str, path: str, *, key: str | None = None, **more: Any) -> "Reply":
        headers = {"Authorization": f"Bearer {self.key if key is None else key}", **more.pop("headers", {})}
        headers = {name: value for name, value in headers.items() if value}
        async with self.http.request(method, self.url + path, headers=headers, **more) as response:
            return Reply(response.status, response.headers, await response.read())

    async def get(self, path: str, **more: Any) -> "Reply":
        return await self.call("GET", path, **more)

    async def post(self, path: str, body: Any = None, **more: Any) -> "Reply":
        return await self.call("POST", path, json=body, **more)

    async def start(self, body: Any = None, **more: Any) -> str:
        """Start a run and give its id."""
        reply = await self.post("/v1/runs", {**GOAL, **(body or {})}, **more)
        assert reply.status == 202, reply.body
        return reply.json["run_id"]

    async def key_with(self, *scopes: str, user: str = "local") -> str:
        """A key with no more than these scopes."""
        reply = await self.post("/v1/keys", {"name": "narrow", "user": user, "scopes": list(scopes)})
        assert reply.status == 201, reply.body
        return reply.json["key"]


@dataclass
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def code(self) -> str:
        assert self.headers["Content-Type"] == "application/problem+json", self.body
        assert self.json["status"] == self.status
        return self.json["code"]

    @property
    def pointer(self) -> str:
        return self.json["errors"][0]["pointer"]


@asynccontextmanager
async def serve(
    database: Database,
    *,
    tenants: tuple[str, ...] = ("acme", "rival"),
    sandboxes: Provider | None = None,
    **settings: Any,
) -> AsyncIterator[Served]:
    """Run the application on a socket of its own, with a key for each of two new tenants."""
    async with AsyncExitStack() as stack:
        doorbell = await stack.enter_async_context(Doorbell(database, CHANNELS))
        guardrails = InForce(database, doorbell, poll_s=3600)  # a test may count the process's statements
        if tenants:
            await stack.enter_async_context(guardrails)
        parts = Api(
            database=database,
            doorbell=doorbell,
            settings=Settings(**{"rates": UNREACHED, **settings}),
            tools=TOOLS,
            vault=await unlocked(database, ROOTS, may_make=False) if tenants else Vault(ROOTS),
            models=Endpoints(),  # type: ignore[arg-type]
            price=lambda model, usage: None if "unpriced" in model else 1,
            guardrails=guardrails,
            sandboxes=sandboxes,
            now=at,
            new_id=ids(),
        )
        app = build(parts)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=5, lingering_time=0.5)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        http = await stack.enter_async_context(aiohttp.ClientSession())
        tokens = [await tenant(database, name) for name in tenants]
        yield Served(f"http://127.0.0.1:{port}", parts, app, http, *(tokens or ("", "")))


async def tenant(database: Database, name: str) -> str:
    """Make a tenant and give its first key."""
    token = await keys.bootstrap(database, tenant=name)
    assert token is not None
    return token
