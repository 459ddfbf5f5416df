"""A receiver of webhooks on a real socket: it checks each message as docs/webhooks.md says, and answers as told."""

import asyncio
import base64
import hashlib
import hmac
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiohttp import web

Answer = Callable[[web.Request], Any]


@dataclass
class Receiver:
    """What came, in order."""

    url: str = ""
    answer: Answer = lambda _: web.Response(status=204)
    ids: list[str] = field(default_factory=list)
    bodies: list[Any] = field(default_factory=list)
    requests: list[Any] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.requests.append((dict(request.headers), body))
        self.ids.append(request.headers["webhook-id"])
        self.bodies.append(msgspec.json.decode(body))
        answer = self.answer(request)
        return await answer if asyncio.iscoroutine(answer) else answer

    def all_signed_with(self, secret: str) -> bool:
        """Whether every message is signed with a secret as it was shown."""
        key = base64.b64decode(secret.removeprefix("whsec_"))
        for headers, body in self.requests:
            signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
            expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
            if headers["webhook-signature"] != f"v1,{expected}":
                return False
        return True


@asynccontextmanager
async def receiving(answer: Answer | None = None) -> AsyncIterator[Receiver]:
    """A receiver that listens on this machine."""
    receiver = Receiver()
    if answer:
        receiver.answer = answer
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", receiver.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
        yield receiver
    finally:
        await runner.cleanup()
