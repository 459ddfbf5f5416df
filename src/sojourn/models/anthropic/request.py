"""Our transcript as a Messages API request.

The rule: signed thoughts and unknown blocks go back byte for byte to the model that wrote them, and to no other. Cache
marks stand only where the next request has the same prefix, so that each step pays the cached price for the last.

Source: https://docs.anthropic.com/en/api/messages and .../build-with-claude/prompt-caching (2026-11).
"""

import re
from collections.abc import Iterator, Mapping
from itertools import groupby
from operator import attrgetter
from typing import Any

import msgspec

from sojourn.loop.agent import Params
from sojourn.loop.messages import File, Image, Message, Native, Reasoning, Text, ToolCall
from sojourn.models.attachments import PDF, as_words, readable, unknown, visible
from sojourn.models.dialect import listed, whole
from sojourn.models.kept import Piece, Transcripts
from sojourn.models.model import Endpoint, Request, ToolDefinition
from sojourn.models.projection import Exchange, Turn, arguments_object

VERSION = "2023-06-01"
OUTPUT_TOKENS = 8192
"""The dialect wants a size; every model that is still served can write as much as this."""
THINKING_TOKENS_MIN = 1024

_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_MARK = {"type": "ephemeral"}
_EFFORTS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high"}


def headers(key: str | None) -> dict[str, str]:
    """Carry the key and the version."""
    return {"anthropic-version": VERSION} | ({"x-api-key": key} if key else {})


def body(request: Request, endpoint: Endpoint, transcripts: Transcripts) -> list[bytes]:
    """Write the request in pieces."""

    def write(turn: Turn) -> Iterator[Piece]:
        return blocks(turn, request.blobs)

    pieces = transcripts.pieces(request, endpoint.name, id_pattern=_ID, write=write)
    messages = [list(group) for _, group in groupby(pieces, key=attrgetter("role"))]
    before: dict[str, Any] = {"model": request.model, "stream": True}
    if request.tools:
        before["tools"] = _tools(request.tools)
    if request.system.strip():
        before["system"] = [{"type": "text", "text": request.system, "cache_control": _MARK}]
    _mark(messages)
    return whole(before, _written(messages), _sampling(request.params, thinking=_may_think(messages)))


def _written(messages: list[list[Piece]]) -> Iterator[bytes]:
    for place, message in enumerate(messages):
        yield b'%b{"role":"%b","content":[' % (b"," if place else b"", message[0].role.encode())
        yield from listed(block.data for block in message)
        yield b"]}"


def _tools(tools: tuple[ToolDefinition, ...]) -> list[dict[str, Any]]:
    written: list[dict[str, Any]] = [
        {"name": tool.name, "description": tool.description, "input_schema": msgspec.Raw(tool.schema.encode())}
        for tool in tools
    ]
    written[-1]["cache_control"] = _MARK
    return written


def _mark(messages: list[list[Piece]]) -> None:
    """Mark the last two user messages: the older one was the end of the last request, and is read from the cache."""
    for message in [message for message in messages if message[0].role == "user"][-2:]:
        message[-1] = message[-1]._replace(data=message[-1].data[:-1] + b',"cache_control":{"type":"ephemeral"}}')


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


def _may_think(messages: list[list[Piece]]) -> bool:
    """Tell whether thinking may be on: a turn of calls that another model began has no thoughts to go on from."""
    if len(messages) < 2 or messages[-1][0].kind != "tool_result":
        return True
    return messages[-2][0].kind in ("thinking", "redacted_thinking", "native")


def blocks(turn: Turn, blobs: Mapping[str, bytes]) -> Iterator[Piece]:
    """Project a turn to blocks; roles alternate, so what one side says in a row will be one message."""
    if turn.message.role == "user":
        yield from (_piece("user", block) for block in _heard(turn.message, blobs))
        return
    for block in _said(turn):
        raw = isinstance(block, msgspec.Raw)
        yield Piece(bytes(block), "assistant", "native") if raw else _piece("assistant", block)
    yield from (_piece("user", _result(one)) for one in turn.exchanges)


def _piece(role: str, block: dict[str, Any]) -> Piece:
    return Piece(msgspec.json.encode(block), role, block["type"])


def _heard(message: Message, blobs: Mapping[str, bytes]) -> Iterator[dict[str, Any]]:
    for part in message.parts:
        match part:
            case Text() if part.text.strip():
                yield {"type": "text", "text": part.text}
            case Image() | File():
                data = blobs.get(part.blob)
                yield {"type": "text", "text": unknown(part)} if data is None else _attached(part, data)
            case _:
                pass


def _attached(part: Image | File, data: bytes) -> dict[str, Any]:
    match part:
        case Image():
            return {"type": "image", "source": _base64(visible(part), data)}
        case File() if part.media_type == PDF:
            return {"type": "document", "source": _base64(PDF, data), "title": part.name or "document"}
        case File() if readable(part) and (text := data.decode("utf-8", "replace")).strip():
            source = {"type": "text", "media_type": "text/plain", "data": text}
            return {"type": "document", "source": source, "title": part.name or "document"}
        case _:
            return {"type": "text", "text": as_words(part, data)}


def _base64(media_type: str, data: bytes) -> dict[str, Any]:
    return {"type": "base64", "media_type": media_type, "data": data}  # JSON knows bytes as base64


def _said(turn: Turn) -> Iterator[dict[str, Any] | msgspec.Raw]:
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


def _result(one: Exchange) -> dict[str, Any]:
    block: dict[str, Any] = {"type": "tool_result", "tool_use_id": one.id}
    if one.result.text.strip():
        block["content"] = one.result.text
    if one.result.error:
        block["is_error"] = True
    return block
