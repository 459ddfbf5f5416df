"""A model endpoint that notes when it was asked, had read all and had answered. `bench/run.py` thinks with it.

It speaks OpenAI's chat completions as fast as a socket allows. The model's name says what it does: `STEPS-CHUNKS` asks
for the tool `noop` in so many steps, each after so many chunks of text, and then ends; `hold` begins and waits.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from aiohttp import web

HEAD = b'data: {"id":"c","object":"chat.completion.chunk","model":"m","choices":[{"index":0,"delta":'
TAIL = b',"finish_reason":null}]}\n\n'
WORD = HEAD + b'{"content":"four"}' + TAIL
CALL = (
    HEAD
    + b'{"tool_calls":[{"index":0,"id":"call_1","type":"function","function":{"name":"noop","arguments":"{}"}}]}'
    + TAIL
)
USAGE = b'"usage":{"prompt_tokens":10,"completion_tokens":10,"total_tokens":20}'
RUN = re.compile(rb"bench ([a-z0-9-]+)")


class Thinker:
    """`async with Thinker() as thinker`: asked at `thinker.url`; times are perf_counter seconds."""

    def __init__(self) -> None:
        self.asked: dict[str, list[float]] = {}
        self.read: dict[str, list[float]] = {}
        self.answered: dict[str, list[float]] = {}
        self.body = b""
        """The last one."""
        self.look: Callable[[int], Awaitable[None]] | None = None
        """Told before each answer how often the run has asked."""
        self.holding = 0
        self.let_go = asyncio.Event()
        application = web.Application(client_max_size=64 << 20)
        application.router.add_post("/v1/chat/completions", self._answer)
        self._runner = web.AppRunner(application, access_log=None)
        self.url = ""

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, backlog=4096).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.let_go.set()
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        now = time.perf_counter()
        self.body = body = await request.read()
        whole = time.perf_counter()
        name = RUN.search(body)
        run = name[1].decode() if name else ""
        self.asked.setdefault(run, []).append(now)
        self.read.setdefault(run, []).append(whole)
        if self.look:
            await self.look(len(self.asked[run]))
        model = body.partition(b'"model":"')[2].partition(b'"')[0].decode()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        if model == "hold":
            await self._hold(response)
        else:
            steps, _, chunks = model.partition("-")
            for _ in range(int(chunks)):
                await response.write(WORD)
            more = body.count(b'"role":"tool"') < int(steps)
            await response.write((CALL if more else b"") + _end("tool_calls" if more else "stop"))
        self.answered.setdefault(run, []).append(time.perf_counter())
        return response

    async def _hold(self, response: web.StreamResponse) -> None:
        await response.write(WORD)
        self.holding += 1
        await self.let_go.wait()
        self.holding -= 1
        with suppress(ConnectionError):
            await response.write(_end("stop"))


def _end(reason: str) -> bytes:
    finish = HEAD + b'{},"finish_reason":"' + reason.encode() + b'"}]}\n\n'
    return finish + b'data: {"id":"c","choices":[],' + USAGE + b"}\n\ndata: [DONE]\n\n"
