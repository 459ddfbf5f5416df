"""Our transcript as a chat completions request.

The rule: what the model may read is in the transcript. Reasoning and native items go back only to the model that
wrote them; no other model is told what it is supposed to have thought.

Source: https://platform.openai.com/docs/api-reference/chat/create (2026-11).
"""

import base64
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec

from sojourn.loop.agent import Params
from sojourn.loop.messages import File, Image, Message, Native, Reasoning, Text
from sojourn.models.attachments import PDF, as_words, unknown, visible
from sojourn.models.dialect import listed, whole
from sojourn.models.kept import Piece, Transcripts
from sojourn.models.model import Endpoint, Request, ToolDefinition
from sojourn.models.projection import Turn, arguments_object

REASONING_MEMBERS = ("reasoning_content", "reasoning")
"""Where servers put what the model thinks; the first is the older name."""

_ID = re.compile(r"[\x21-\x7e]{1,4096}")  # whatever a server made up it takes back; some hide signatures in their ids


def headers(key: str | None) -> dict[str, str]:
    """Carry the key."""
    return {"Authorization": f"Bearer {key}"} if key else {}


def body(
    request: Request, endpoint: Endpoint, transcripts: Transcripts, *, forced: dict[str, Any] | None = None
) -> list[bytes]:
    """Write the request in pieces; `forced` is a response_format."""

    def write(turn: Turn) -> Iterator[Piece]:
        messages = _user(turn.message, request.blobs) if turn.message.role == "user" else _assistant(turn)
        return (Piece(msgspec.json.encode(message)) for message in messages)

    system = [msgspec.json.encode({"role": "system", "content": request.system})] if request.system else []
    pieces = transcripts.pieces(request, endpoint.name, id_pattern=_ID, write=write)
    rest: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
    if request.tools:
        rest["tools"] = [_tool(tool) for tool in request.tools]
    if forced:
        rest["response_format"] = forced
    if endpoint.cache_key and request.cache_key:
        rest["prompt_cache_key"] = request.cache_key
    messages = [*system, *(piece.data for piece in pieces)]
    return whole({"model": request.model}, listed(messages), rest | _sampling(request.params, endpoint))


def _sampling(params: Params, endpoint: Endpoint) -> dict[str, Any]:
    """Name the size as this server knows it: OpenAI's newer models refuse the name that everybody else knows."""
    host = urlsplit(endpoint.base_url).hostname or ""
    newer = host == "api.openai.com" or host.endswith(".openai.azure.com")
    sampling = {
        "max_completion_tokens" if newer else "max_tokens": params.max_output_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "reasoning_effort": params.reasoning_effort,
    }
    return {name: value for name, value in sampling.items() if value is not None}


def _tool(tool: ToolDefinition) -> dict[str, Any]:
    schema = msgspec.Raw(tool.schema.encode())
    return {
        "type": "function",
        "function": {"name": tool.name, "description": tool.description, "parameters": schema},
    }


def _user(message: Message, blobs: Mapping[str, bytes]) -> list[dict[str, Any]]:
    parts = [_user_part(part, blobs) for part in message.parts if isinstance(part, Text | Image | File)]
    shown = [part for part in parts if part.get("text") != ""]
    if not shown:
        return []
    only_words = len(shown) == 1 and shown[0]["type"] == "text"
    return [{"role": "user", "content": shown[0]["text"] if only_words else shown}]


def _user_part(part: Text | Image | File, blobs: Mapping[str, bytes]) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    data = blobs.get(part.blob)
    if data is None:
        return {"type": "text", "text": unknown(part)}
    if isinstance(part, Image):
        return {"type": "image_url", "image_url": {"url": _data_url(visible(part), data)}}
    if part.media_type == PDF:
        return {"type": "file", "file": {"filename": part.name or "document.pdf", "file_data": _data_url(PDF, data)}}
    return {"type": "text", "text": as_words(part, data)}


def _data_url(media_type: str, data: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def _assistant(turn: Turn) -> list[dict[str, Any]]:
    """Project one reply of a model and the results of its calls."""
    said: dict[str, Any] = {"role": "assistant", "content": turn.message.text or None}
    if turn.own:
        said |= _given_back(turn.message)
    if turn.exchanges:
        said["tool_calls"] = [
            {
                "id": one.id,
                "type": "function",
                "function": {"name": one.call.name, "arguments": bytes(arguments_object(one.call.arguments)).decode()},
            }
            | ({"extra_content": msgspec.Raw(one.call.signature.encode())} if turn.own and one.call.signature else {})
            for one in turn.exchanges
        ]
    if said["content"] is None and not turn.exchanges:
        return []
    results = [{"role": "tool", "tool_call_id": one.id, "content": one.result.text} for one in turn.exchanges]
    return [said, *results]


def _given_back(message: Message) -> dict[str, Any]:
    """Collect what only the model that wrote it may read: its reasoning, and members that we do not know."""
    own: dict[str, Any] = {}
    for part in message.parts:
        if isinstance(part, Reasoning) and part.signature in REASONING_MEMBERS:
            own[part.signature] = own.get(part.signature, "") + part.text
        elif isinstance(part, Native) and part.dialect == "openai":
            own |= msgspec.json.decode(part.data, type=dict[str, msgspec.Raw])
    return own
