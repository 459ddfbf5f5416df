"""Our transcript as a Messages API request.

The rule: signed thoughts and unknown blocks go back byte for byte to the model that wrote them, and to no other. Cache
marks stand only where the next request has the same prefix, so that each step pays the cached price for the last.

Source: https://docs.anthropic.com/en/api/messages and .../build-with-claude/prompt-caching (2026-11).
"""

import base64
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from sojourn.loop.agent import Params
from sojourn.loop.messages import File, Image, Message, Native, Reasoning, Text, ToolCall
from sojourn.models.model import Endpoint, Request, ToolDefinition
from sojourn.models.projection import Exchange, Turn, arguments_object, as_words, attached, readable, turns

VERSION = "2023-06-01"
OUTPUT_TOKENS = 8192
"""The dialect wants a size; every model that is still served can write as much as this."""
THINKING_TOKENS_MIN = 1024

_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_MARK = {"type": "ephemeral"}
_EFFORTS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high"}

Block = dict[str, Any] | msgspec.Raw
"""One content block; a Raw one is native and goes back as it came."""


def headers(key: str | None) -> dict[str, str]:
    """Carry the key and the version."""
    return {"anthropic-version": VERSION} | ({"x-api-key": key} if key else {})


def body(request: Request, endpoint: Endpoint) -> bytes:
    """Write the request."""
    messages = project(request, endpoint.name)
    wanted: dict[str, Any] = {"model": request.model, "stream": True}
    if request.tools:
        wanted["tools"] = _tools(request.tools)
    if request.system.strip():
        wanted["system"] = [{"type": "text", "text": request.system, "cache_control": _MARK}]
    wanted["messages"] = messages
    _mark(messages)
    return msgspec.json.encode(wanted | _sampling(request.params, thinking=_may_think(messages)))


def _tools(tools: tuple[ToolDefinition, ...]) -> list[dict[str, Any]]:
    written: list[dict[str, Any]] = [
        {"name": tool.name, "description": tool.description, "input_schema": msgspec.Raw(tool.schema.encode())}
        for tool in tools
    ]
    written[-1]["cache_control"] = _MARK
    return written


def _mark(messages: list[dict[str, Any]]) -> None:
    """Mark the last two user messages: the older one was the end of the last request, and is read from the cache."""
    for message in [message for message in messages if message["role"] == "user"][-2:]:
        message["content"][-1]["cache_control"] = _MARK


def _sampling(params: Params, *, thinking: bool) -> dict[str, Any]:
    """Set sizes and sampling. An effort is for the models that choose how long they think, a budget for older ones."""
    size = params.max_output_tokens or OUTPUT_TOKENS
    wanted: dict[str, Any] = {"max_tokens": size}
    budget = params.reasoning_tokens_max
    if params.reasoning_effort:
        wanted["output_config"] = {"effort": _EFFORTS[params.reasoning_effort]}
        if thinking:
            wanted["thinking"] = {"type": "adaptive"}
    elif budget and thinking:
        budget = max(budget, THINKING_TOKENS_MIN)
        wanted["thinking"] = {"type": "enabled", "budget_tokens": budget}
        wanted["max_tokens"] = size if size > budget else size + budget
    if params.temperature is not None and "thinking" not in wanted:
        wanted["temperature"] = params.temperature
    if params.top_p is not None and "thinking" not in wanted:
        wanted["top_p"] = params.top_p
    return wanted


def _may_think(messages: list[dict[str, Any]]) -> bool:
    """Tell whether thinking may be on: a turn of calls that another model began has no thoughts to go on from."""
    if len(messages) < 2 or messages[-1]["role"] != "user":
        return True
    first = messages[-2]["content"][0]
    answers_calls = isinstance(messages[-1]["content"][0], dict) and messages[-1]["content"][0]["type"] == "tool_result"
    return not answers_calls or isinstance(first, msgspec.Raw) or first["type"] in ("thinking", "redacted_thinking")


def project(request: Request, provider: str) -> list[dict[str, Any]]:
    """Project the transcript; roles alternate, so what one side said in a row is one message."""
    messages: list[dict[str, Any]] = []
    for role, block in blocks(request, provider):
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"].append(block)
        else:
            messages.append({"role": role, "content": [block]})
    return messages


def blocks(request: Request, provider: str) -> Iterator[tuple[str, Block]]:
    """Project each part of the transcript, with the side that it is on."""
    for turn in turns(request.messages, provider, model=request.model, id_pattern=_ID):
        if turn.message.role == "user":
            yield from (("user", block) for block in _heard(turn.message, request.blobs))
        else:
            yield from (("assistant", block) for block in _said(turn))
            yield from (("user", _result(one)) for one in turn.exchanges)


def _heard(message: Message, blobs: dict[str, bytes]) -> Iterator[Block]:
    for part in message.parts:
        match part:
            case Text() if part.text.strip():
                yield {"type": "text", "text": part.text}
            case Image():
                yield {"type": "image", "source": _base64(part, attached(part, blobs))}
            case File(media_type="application/pdf"):
                yield {
                    "type": "document",
                    "source": _base64(part, attached(part, blobs)),
                    "title": part.name or "document",
                }
            case File() if readable(part):
                text = attached(part, blobs).decode("utf-8", "replace")
                source = {"type": "text", "media_type": "text/plain", "data": text}
                yield {"type": "document", "source": source, "title": part.name or "document"}
            case File():
                yield {"type": "text", "text": as_words(part, attached(part, blobs))}
            case _:
                pass


def _base64(part: Image | File, data: bytes) -> dict[str, str]:
    return {"type": "base64", "media_type": part.media_type, "data": base64.b64encode(data).decode()}


def _said(turn: Turn) -> Iterator[Block]:
    exchanges = iter(turn.exchanges)
    for part in turn.message.parts:
        match part:
            case Text() if part.text.strip():
                yield {"type": "text", "text": part.text}
            case ToolCall():
                one = next(exchanges)
                input = arguments_object(part.arguments)
                yield {"type": "tool_use", "id": one.id, "name": part.name, "input": input}
            case Reasoning(redacted=str(data)) if turn.own:
                yield {"type": "redacted_thinking", "data": data}
            case Reasoning(signature=str(signature)) if turn.own:
                yield {"type": "thinking", "thinking": part.text, "signature": signature}
            case Native(dialect="anthropic") if turn.own:
                yield msgspec.Raw(part.data.encode())
            case _:
                pass


def _result(one: Exchange) -> Block:
    block: dict[str, Any] = {"type": "tool_result", "tool_use_id": one.id}
    if one.result.text.strip():
        block["content"] = one.result.text
    if one.result.error:
        block["is_error"] = True
    return block
