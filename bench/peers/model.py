"""The model endpoint that every product asks: the simulator's, playing one script, with a note of when it was asked.

`measures` reads the notes. The rule: which run a request belongs to is read off its prompt (`bench RUN`), so that a
product needs to know nothing of it.
"""

import asyncio
import re
import time
from collections import defaultdict
from collections.abc import Iterable
from types import TracebackType
from typing import Self

import msgspec
from aiohttp import web
from tests.conftest import until

from sojourn.models.simulator.endpoint import Endpoint
from sojourn.models.simulator.ledger import RequestLog
from sojourn.models.simulator.script import Call, Pacing, Range, Rule, Script, When

RUN = re.compile(rb"bench ([a-z0-9-]+)")
TEXT = "four" * 40
"""Forty pieces."""
STEPS = 10
HELD_STEPS = 3
TICKS = 40
TICK_S = 0.05
CALL = (Call("noop"),)
SCRIPT = Script(
    rules=(
        Rule(when=When(model="ten", turn=Range(max=STEPS - 2)), text=TEXT, calls=CALL),
        Rule(when=When(model="ask", turn=0), text=TEXT, calls=CALL),
        Rule(when=When(model="held", turn=Range(max=HELD_STEPS - 2)), text=TEXT, calls=CALL),
        Rule(when=When(model="slow"), text="four" * 4, pacing=Pacing(tokens_per_s=2)),
        Rule(text=TEXT),
    )
)
HEAD = b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"ticks","choices":['
PIECE = HEAD + b'{"index":0,"delta":{"role":"assistant","content":"t=%.6f "},"finish_reason":null}]}\n\n'
END = (
    HEAD
    + b'{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    + HEAD
    + b'],"usage":{"prompt_tokens":10,"completion_tokens":40,"total_tokens":50}}\n\ndata: [DONE]\n\n'
)


class Asked(msgspec.Struct):
    """One request of a run."""

    at: float
    turn: int
    """Replies of the model that were in the transcript."""
    answered: float | None = None
    """When the reply was out; None where the client went before."""


class _Body(msgspec.Struct):
    class Message(msgspec.Struct):
        role: str

    model: str
    messages: list[Message]


_body = msgspec.json.Decoder(_Body)


class Model:
    """`async with Model() as model`: asked at `model.url`."""

    def __init__(self) -> None:
        self.asked: defaultdict[str, list[Asked]] = defaultdict(list)
        self.url = ""
        self.let_go = asyncio.Event()
        """Until it is set, the second reply of a `held` run stands still in its middle."""
        self._endpoint = Endpoint(SCRIPT, RequestLog(size=100))
        application = web.Application(client_max_size=64 << 20)
        application.router.add_post("/v1/chat/completions", self._answer)
        self._runner = web.AppRunner(application, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, backlog=4096).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()

    async def times(self, run: str, count: int, within_s: float = 60.0) -> list[Asked]:
        """Wait until a run has asked so often."""
        await until(lambda: len(self.asked[run]) >= count, within_s)
        return self.asked[run]

    async def answered(self, runs: Iterable[str], count: int, within_s: float) -> None:
        """Wait until every run has had so many replies."""
        pending = set(runs)
        async with asyncio.timeout(within_s):
            while pending:
                pending = {run for run in pending if sum(bool(one.answered) for one in self.asked[run]) < count}
                await asyncio.sleep(0.02)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        at = time.perf_counter()
        data = await request.read()
        body, run = _body.decode(data), RUN.search(data)
        asked = Asked(at=at, turn=sum(message.role == "assistant" for message in body.messages))
        self.asked[run[1].decode() if run else ""].append(asked)
        if body.model == "ticks":
            response = await _tick(request)
        elif body.model == "held" and asked.turn and not self.let_go.is_set():
            response = await self._hold(request)
        else:
            response = await self._endpoint.answer(request, "openai")
        asked.answered = time.perf_counter()
        return response

    async def _hold(self, request: web.Request) -> web.StreamResponse:
        """Begin a reply and wait."""
        response = await _begun(request)
        await response.write(PIECE % time.perf_counter())
        await self.let_go.wait()
        return await _ended(response)


async def _tick(request: web.Request) -> web.StreamResponse:
    """Send pieces that say when they were sent."""
    response = await _begun(request)
    for _ in range(TICKS):
        await response.write(PIECE % time.perf_counter())
        await asyncio.sleep(TICK_S)
    return await _ended(response)


async def _begun(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    return response


async def _ended(response: web.StreamResponse) -> web.StreamResponse:
    await response.write(END)
    await response.write_eof()
    return response
