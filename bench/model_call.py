"""What one streamed model call costs in CPU, with many in flight in one process.

    python -m bench.model_call [--small] [--json] [--calls 2000 ...]

The server is a process of its own that answers every request with the same 47 events, one packet an event, spread over
some seconds, so that all calls are open at once. The CPU time is that of this process alone.
"""

import asyncio
import json
import multiprocessing
import time
from contextlib import aclosing
from multiprocessing.connection import Connection

import msgspec
import uvloop

from bench.figure import Figure, chosen, report
from sojourn.loop.messages import Message, said
from sojourn.models.endpoints import Endpoints
from sojourn.models.model import Endpoint, Request, ToolDefinition

EVENTS = 47
TARGET_MS = 1.7
TOOL = ToolDefinition(name="shell", description="Run a command.", schema='{"type":"object","properties":{}}')


class Sizes(msgspec.Struct, frozen=True):
    """How much is measured."""

    calls: int = 2000
    in_flight: int = 1000
    spread_s: float = 2.0
    """How long an answer takes."""


SMALL = Sizes(calls=40, in_flight=20, spread_s=0.2)


class Measured(msgspec.Struct):
    """One run of the bench."""

    dialect: str
    calls: int
    in_flight: int
    wall_s: float
    cpu_ms_per_call: float


async def measure(dialect: str, sizes: Sizes) -> Measured:
    """Make streamed calls, many at a time, and return what one of them costs this process."""
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(
        target=serve, args=(theirs, dialect, sizes.spread_s), daemon=True
    )
    server.start()
    port = await asyncio.to_thread(ours.recv)
    endpoint = Endpoint(name="p", dialect=dialect, base_url=f"http://127.0.0.1:{port}", key_required=False)  # type: ignore[arg-type]
    models = Endpoints([endpoint])
    try:
        await _run(models, calls=20, in_flight=20)
        began, cpu = time.perf_counter(), time.process_time()
        await _run(models, calls=sizes.calls, in_flight=sizes.in_flight)
        cpu_s, wall_s = time.process_time() - cpu, time.perf_counter() - began
    finally:
        await models.close()
        server.terminate()
        server.join()
    return Measured(dialect, sizes.calls, sizes.in_flight, wall_s, cpu_s / sizes.calls * 1e3)


async def _run(models: Endpoints, *, calls: int, in_flight: int) -> None:
    left = iter(range(calls))

    async def one_after_the_other() -> None:
        for number in left:
            await _call(models, number)

    async with asyncio.TaskGroup() as group:
        for _ in range(in_flight):
            group.create_task(one_after_the_other())


async def _call(models: Endpoints, number: int) -> None:
    model, name = models.resolve("p:bench")
    request = Request(model=name, system="You are brief.", messages=(said("m1", "Hello"),), tools=(TOOL,))
    deltas = 0
    async with aclosing(model.stream(request, message_id=f"r{number}")) as stream:  # type: ignore[type-var]
        async for item in stream:
            if isinstance(item, Message):
                assert item.stop == "end", item
            else:
                deltas += 1
    assert deltas >= EVENTS - 7, deltas


def serve(told: Connection, dialect: str, spread_s: float) -> None:
    """Run the scripted server: it spends nothing on reading requests."""
    uvloop.run(_serve(told, packets(dialect), spread_s))


async def _serve(told: Connection, events: list[bytes], spread_s: float) -> None:
    loop = asyncio.get_running_loop()

    class Scripted(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport
            self.request = b""

        def data_received(self, data: bytes) -> None:
            self.request += data
            head, found, body = self.request.partition(b"\r\n\r\n")
            size = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            if found and len(body) >= int(size):
                self.request = b""
                self.play(0)

        def play(self, place: int) -> None:
            self.transport.write(events[place])  # type: ignore[attr-defined]
            if place + 1 < len(events):
                loop.call_later(spread_s / len(events), self.play, place + 1)

    server = await loop.create_server(Scripted, "127.0.0.1", 0, backlog=4096)
    told.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()


def packets(dialect: str) -> list[bytes]:
    """Write the answer, as many packets as events; the head goes with the first and the end with the last."""
    events = openai_events() if dialect == "openai" else anthropic_events()
    assert len(events) == EVENTS
    chunks = [b"%x\r\n%s\r\n" % (len(event), event) for event in events]
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    return [head + chunks[0], *chunks[1:-1], chunks[-1] + b"0\r\n\r\n"]


def openai_events() -> list[bytes]:
    def chunk(delta: dict[str, str], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        base = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "bench"}
        return b"data: %s\n\n" % json.dumps(base | {"choices": [choice]}).encode()

    usage = {"prompt_tokens": 9, "completion_tokens": 43, "total_tokens": 52}
    return [
        chunk({"role": "assistant", "content": ""}),
        *(chunk({"content": f" word{number}"}) for number in range(EVENTS - 4)),
        chunk({}, "stop"),
        b"data: %s\n\n" % json.dumps({"id": "chatcmpl-1", "choices": [], "usage": usage}).encode(),
        b"data: [DONE]\n\n",
    ]


def anthropic_events() -> list[bytes]:
    def event(type: str, **more: object) -> bytes:
        return b"event: %s\ndata: %s\n\n" % (type.encode(), json.dumps({"type": type} | more).encode())

    return [
        event("message_start", message={"id": "msg_1", "usage": {"input_tokens": 9, "output_tokens": 1}}),
        event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
        event("ping"),
        *(
            event("content_block_delta", index=0, delta={"type": "text_delta", "text": f" word{number}"})
            for number in range(EVENTS - 6)
        ),
        event("content_block_stop", index=0),
        event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 43}),
        event("message_stop"),
    ]


def main(sizes: Sizes) -> None:
    """Measure and print."""
    report([figure(uvloop.run(measure(dialect, sizes))) for dialect in ("openai", "anthropic")])


def figure(found: Measured) -> Figure:
    """Put what was measured beside its target."""
    what = f"CPU of one streamed {found.dialect} call, {found.in_flight:,} in flight"
    met = found.cpu_ms_per_call <= TARGET_MS
    return Figure(id="", what=what, unit="ms", median=found.cpu_ms_per_call, target=f"<= {TARGET_MS}", met=met)


if __name__ == "__main__":
    main(chosen(__doc__, Sizes(), SMALL))
