"""Both dialects as the conformance suite needs them: the same reply in each, and how to ask for it."""

import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from sojourn.loop.messages import Message, said
from sojourn.models.endpoints import Endpoints
from sojourn.models.model import Delta, Endpoint, Request, TimeOuts, ToolDefinition

SHELL = ToolDefinition(
    name="shell",
    description="Run a command.\nMore of it.",
    schema='{"type":"object","properties":{"command":{"type":"string"},"timeout_s":{"type":"number"}},'
    '"required":["command"]}',
)
REQUEST = Request(model="m-1", system="Be brief.", messages=(said("m1", "What is in the folder?"),), tools=(SHELL,))
SECRET = "sk-secret-1"
IMPOSSIBLE = (2**63, 2**70, 100_000_001, 1.5, "many", True, [1])
"""What no reply can have used."""


def event(data: Any, name: str = "") -> bytes:
    """Write one event; text goes as it is, anything else as JSON."""
    text = data if isinstance(data, str) else json.dumps(data)
    return (f"event: {name}\n" if name else "").encode() + f"data: {text}\n\n".encode()


@dataclass(frozen=True)
class Spoken:
    """The reply "Looking." with one call of shell, in one dialect."""

    dialect: str
    events: tuple[bytes, ...]
    failing: bytes
    """An error event that says `overloaded`."""
    no_key_header: str
    path: str

    @property
    def stream(self) -> bytes:
        return b"".join(self.events)


def chunk_of(delta: dict[str, Any] | None = None, finish: str | None = None, **more: Any) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    return event({"id": "c-1", "object": "chat.completion.chunk", "choices": choices, "unknown": [1]} | more)


def piece(index: int | None = 0, **more: Any) -> dict[str, Any]:
    """A piece of a tool call; `name` and `arguments` go into its function."""
    function = {name: more.pop(name) for name in ("name", "arguments") if name in more}
    call = ({} if index is None else {"index": index}) | more | ({"function": function} if function else {})
    return {"tool_calls": [call]}


OPENAI_USAGE = {
    "prompt_tokens": 100,
    "completion_tokens": 20,
    "total_tokens": 120,
    "prompt_tokens_details": {"cached_tokens": 60},
    "completion_tokens_details": {"reasoning_tokens": 5},
}

OPENAI = Spoken(
    "openai",
    (
        chunk_of({"role": "assistant", "content": "", "reasoning_content": "Hm."}),
        chunk_of({"content": "Look"}),
        chunk_of({"content": "ing."}),
        chunk_of(piece(id="call_1", type="function", name="shell", arguments="")),
        chunk_of(piece(arguments='{"comm')),
        chunk_of(piece(arguments='and":"ls"}')),
        chunk_of({}, "tool_calls"),
        chunk_of(usage=OPENAI_USAGE),
        event("[DONE]"),
    ),
    event({"error": {"type": "overloaded_error", "message": "What is in the folder?"}}),
    "authorization",
    "/v1/chat/completions",
)


def typed(type: str, **more: Any) -> bytes:
    return event({"type": type} | more, name=type)


def block(index: int, start: dict[str, Any], *deltas: dict[str, Any]) -> bytes:
    """The events of one content block."""
    middle = b"".join(typed("content_block_delta", index=index, delta=delta) for delta in deltas)
    begin = typed("content_block_start", index=index, content_block=start)
    return begin + middle + typed("content_block_stop", index=index)


def begun(**usage: Any) -> bytes:
    return typed("message_start", message={"id": "msg_1", "model": "m-1", "usage": usage, "content": []})


def ended(reason: str = "end_turn", **usage: Any) -> bytes:
    delta = typed("message_delta", delta={"stop_reason": reason, "stop_sequence": None}, usage=usage)
    return delta + typed("message_stop")


ANTHROPIC = Spoken(
    "anthropic",
    (
        begun(input_tokens=40, cache_read_input_tokens=60, cache_creation_input_tokens=7, output_tokens=1),
        typed("ping"),
        block(
            0,
            {"type": "thinking", "thinking": "", "signature": ""},
            {"type": "thinking_delta", "thinking": "Hm."},
            {"type": "signature_delta", "signature": "c2ln/+=="},
        ),
        block(1, {"type": "text", "text": ""}, *({"type": "text_delta", "text": text} for text in ("Look", "ing."))),
        block(
            2,
            {"type": "tool_use", "id": "call_1", "name": "shell", "input": {}},
            *({"type": "input_json_delta", "partial_json": text} for text in ("", '{"comm', 'and":"ls"}')),
        ),
        ended("tool_use", output_tokens=20),
    ),
    typed("error", error={"type": "overloaded_error", "message": "What is in the folder?"}),
    "x-api-key",
    "/v1/messages",
)

DIALECTS = (OPENAI, ANTHROPIC)


@asynccontextmanager
async def speaking(spoken: Spoken, url: str, **more: Any) -> AsyncIterator[Endpoints]:
    """All of `Models` with one endpoint, "p", at this URL."""
    settings: dict[str, Any] = {"keys": (SECRET,), "key_env": "P_API_KEY", "time_outs": TimeOuts()} | more
    parts = {name: settings.pop(name) for name in ("now", "transport") if name in settings}
    models = Endpoints([Endpoint(name="p", dialect=spoken.dialect, base_url=url, **settings)], **parts)
    try:
        yield models
    finally:
        await models.close()


async def ask(models: Endpoints, request: Request = REQUEST, **how: Any) -> tuple[list[Delta], Message]:
    """Make one attempt and collect what it says."""
    items: list[Any] = []
    async with aclosing(models.resolve("p:m-1")[0].stream(request, message_id="r1", **how)) as stream:
        async for item in stream:
            items.append(item)
    assert isinstance(items[-1], Message)
    assert not any(isinstance(item, Message) for item in items[:-1])
    return items[:-1], items[-1]
