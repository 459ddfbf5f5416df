"""Asks a simulator in both dialects with a plain HTTP client, and reads the bytes that come back."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from sojourn.loop.messages import Usage
from sojourn.models.simulator import RequestLog, Rule, Script, Simulator

DIALECTS = ("openai", "anthropic")
PATHS = {"openai": "/v1/chat/completions", "anthropic": "/v1/messages"}
ENDINGS = {"openai": b"data: [DONE]\n\n", "anthropic": b'event: message_stop\ndata: {"type":"message_stop"}\n\n'}
SCHEMA = {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]}
TOOLS = {
    "openai": [{"type": "function", "function": {"name": "shell", "description": "Run.", "parameters": SCHEMA}}],
    "anthropic": [{"name": "shell", "description": "Run.", "input_schema": SCHEMA}],
}


@dataclass
class Answer:
    """What came back: all bytes that arrived, and the error that ended them, if one did."""

    dialect: str
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    error: BaseException | None = None

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def ended(self) -> bool:
        return self.error is None and self.body.endswith(ENDINGS[self.dialect])

    @property
    def events(self) -> list[Any]:
        """The JSON of each event, `[DONE]` left out."""
        lines = [line[6:] for line in self.body.decode().split("\n") if line.startswith("data: ")]
        return [json.loads(line) for line in lines if line != "[DONE]"]

    @property
    def deltas(self) -> list[dict[str, Any]]:
        """OpenAI's deltas."""
        return [event["choices"][0]["delta"] for event in self.events if event["choices"]]

    @property
    def text(self) -> str:
        if not self.body.startswith((b"data:", b"event:")):
            if self.dialect == "openai":
                return self.json["choices"][0]["message"]["content"] or ""
            return "".join(block.get("text", "") for block in self.json["content"])
        if self.dialect == "openai":
            return "".join(delta.get("content") or "" for delta in self.deltas)
        return "".join(event.get("delta", {}).get("text", "") for event in self.events)

    @property
    def usage(self) -> Usage:
        """The usage that the client was told, in our words."""
        if self.dialect == "openai":
            told = (self.events[-1] if self.body.startswith(b"data:") else self.json)["usage"]
            cached = told["prompt_tokens_details"]["cached_tokens"]
            return Usage(
                input=told["prompt_tokens"] - cached,
                cache_read=cached,
                output=told["completion_tokens"],
                reasoning=told["completion_tokens_details"]["reasoning_tokens"],
            )
        told = (self.events[-2] if self.body.startswith(b"event:") else self.json)["usage"]
        return Usage(
            input=told["input_tokens"],
            cache_read=told["cache_read_input_tokens"],
            cache_write=told["cache_creation_input_tokens"],
            output=told["output_tokens"],
        )


class Client:
    """One session with one simulator."""

    def __init__(self, sim: Simulator, session: aiohttp.ClientSession) -> None:
        self.sim = sim
        self.session = session

    def post(self, dialect: str, body: dict[str, Any] | bytes, *, key: str = "sk-1", **options: Any) -> Any:
        """Send a body; use the result with `async with`."""
        headers = {"Authorization": f"Bearer {key}"} if dialect == "openai" else {"x-api-key": key}
        if dialect == "anthropic":
            headers["anthropic-version"] = "2023-06-01"
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        return self.session.post(self.sim.url + PATHS[dialect], data=body, headers=headers, **options)

    async def ask(self, dialect: str, said: str | list[Any] = "hi", *, key: str = "sk-1", **fields: Any) -> Answer:
        """Ask, read to the end, whatever the end is."""
        return await self.send(dialect, request(dialect, said, **fields), key=key)

    async def send(self, dialect: str, body: dict[str, Any] | bytes, *, key: str = "sk-1") -> Answer:
        answer = Answer(dialect)
        try:
            async with self.post(dialect, body, key=key) as response:
                answer.status, answer.headers = response.status, dict(response.headers)
                async for data in response.content.iter_any():
                    answer.body += data
        except (aiohttp.ClientError, ConnectionError) as error:
            answer.error = error
        return answer


def request(dialect: str, said: str | list[Any] = "hi", **fields: Any) -> dict[str, Any]:
    """Make the body of a request."""
    messages = [{"role": "user", "content": said}] if isinstance(said, str) else said
    body = {"model": "m", "stream": True, "messages": messages}
    body |= {"stream_options": {"include_usage": True}} if dialect == "openai" else {"max_tokens": 4_000}
    return body | fields


def exchange(dialect: str, *results: tuple[str, str]) -> list[Any]:
    """Make the messages of one assistant turn that called tools, and of their results: (tool, text)."""
    named = [(f"id-{index}", tool, text) for index, (tool, text) in enumerate(results)]
    if dialect == "openai":
        calls = [{"id": i, "type": "function", "function": {"name": tool, "arguments": "{}"}} for i, tool, _ in named]
        results_said = [{"role": "tool", "tool_call_id": i, "content": text} for i, _, text in named]
        return [{"role": "assistant", "content": None, "tool_calls": calls}, *results_said]
    uses = [{"type": "tool_use", "id": i, "name": tool, "input": {}} for i, tool, _ in named]
    blocks = [{"type": "tool_result", "tool_use_id": i, "content": text} for i, _, text in named]
    return [{"role": "assistant", "content": uses}, {"role": "user", "content": blocks}]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


@asynccontextmanager
async def simulated(script: Script | None = None, **options: Any) -> AsyncIterator[Client]:
    """Run a simulator and a client for it."""
    log = RequestLog(**{name: options.pop(name) for name in ("path", "size", "keep_bodies") if name in options})
    async with Simulator(script, log=log, **options) as sim, aiohttp.ClientSession() as session:
        yield Client(sim, session)


def saying(text: str = "", **fields: Any) -> Script:
    """Make a script that says one thing; faults, pacing and other fields of the Script go to it."""
    ours = {name: fields.pop(name) for name in Script.__struct_fields__ if name in fields}
    return Script(rules=(Rule(text=text, **fields),), **ours)


async def until(condition: Callable[[], object]) -> None:
    """Wait until a condition holds, and fail when it does not within half a minute."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 (the log tells nobody that it has grown)
            await asyncio.sleep(0.005)
