"""The Anthropic dialect, `POST /v1/messages`: reads requests and renders replies, byte for byte.

The server calls it. The rule: what api.anthropic.com refuses is refused here in the same words; above all a thinking
block that comes back changed. Source: Anthropic's API reference, messages, streaming and errors, 2025.
"""

from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from typing import Any, Literal

import msgspec

from sojourn.loop.messages import Usage
from sojourn.models.simulator.asked import Asked, Cue, Dice, Offered, Prompt, Reader, Rejection, pieces, tokens_in
from sojourn.models.simulator.attached import described
from sojourn.models.simulator.replies import Said
from sojourn.models.simulator.script import Script

STOPS = {"end": "end_turn", "tool_calls": "tool_use", "length": "max_tokens", "pause": "pause_turn"}
_ERRORS = {
    400: ("invalid_request_error", "Invalid request."),
    401: ("authentication_error", "invalid x-api-key"),
    403: ("permission_error", "Your API key does not have permission to use the specified resource."),
    404: ("not_found_error", "The requested resource could not be found."),
    413: ("request_too_large", "Request exceeds the maximum size"),
    429: ("rate_limit_error", "This request would exceed your account's rate limit. Please try again later."),
    500: ("api_error", "Internal server error"),
    504: ("timeout_error", "The request timed out"),
    529: ("overloaded_error", "Overloaded"),
}
_SEAL_BYTES = 48
IMAGE_BYTES_MAX = 5 << 20
_TAKEN = {
    "image": (
        "'image/jpeg', 'image/png', 'image/gif' or 'image/webp'",
        ("image/jpeg", "image/png", "image/gif", "image/webp"),
    ),
    "document": ("'application/pdf'", ("application/pdf",)),
}


class _Source(msgspec.Struct):
    type: str
    media_type: str = ""
    data: str = ""
    url: str = ""


class _Block(msgspec.Struct):
    type: str
    text: str = ""
    thinking: str = ""
    signature: str = ""
    data: str = ""
    id: str = ""
    name: str = ""
    input: msgspec.Raw = msgspec.Raw(b"")
    tool_use_id: str = ""
    content: "str | list[_Block]" = ""
    source: _Source | None = None
    cache_control: dict[str, Any] | None = None

    @property
    def words(self) -> str:
        if isinstance(self.content, str):
            return self.text or self.content
        return "".join(block.text for block in self.content)


class _Message(msgspec.Struct):
    role: Literal["user", "assistant"]
    content: str | list[_Block]

    @property
    def blocks(self) -> list[_Block]:
        return [_Block("text", self.content)] if isinstance(self.content, str) else self.content


class _Tool(msgspec.Struct):
    name: str
    description: str = ""
    input_schema: msgspec.Raw = msgspec.Raw(b"{}")
    cache_control: dict[str, Any] | None = None


class _Body(msgspec.Struct):
    model: str
    messages: list[_Message]
    max_tokens: int
    system: str | list[_Block] = ""
    tools: list[_Tool] = []
    stream: bool = False


_decode = msgspec.json.Decoder(_Body).decode
_json = msgspec.json.encode


def key_of(headers: Mapping[str, str]) -> str:
    return headers.get("x-api-key") or headers.get("Authorization", "").removeprefix("Bearer ")


def read(data: bytes, headers: Mapping[str, str], script: Script) -> Asked:
    """Read a request. Raises Rejection where the real endpoint would answer 400."""
    if "anthropic-version" not in headers:
        raise Rejection(400, "anthropic-version: header is required")
    try:
        body = _decode(data)
    except msgspec.ValidationError as error:
        raise Rejection(400, str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Rejection(400, "The request body is not valid JSON") from None
    if not body.messages:
        raise Rejection(400, "messages: at least one message is required")
    if body.max_tokens < 1:
        raise Rejection(400, "max_tokens: Input should be greater than or equal to 1")
    prompt, reader = Prompt(), Reader()
    for tool in body.tools:
        prompt.add(tool.name, tool.description, bytes(tool.input_schema), cacheable=tool.cache_control is not None)
    system = [_Block("text", body.system)] if isinstance(body.system, str) else body.system
    for block in system:
        prompt.add(block.text, cacheable=block.cache_control is not None)
    for index, message in enumerate(body.messages):
        for number, block in enumerate(message.blocks):
            where = f"messages.{index}.content.{number}"
            _check(block, where, script.seed)
            _count(message.role, block, prompt)
            if block.source:
                reader.attachments.append(_seen(block.source, f"{where}.{block.type}.source", block.type))
        _fold(message, f"messages.{index}", reader)
    if reader.waiting and body.messages[-1].role == "user":
        raise _unanswered(f"messages.{len(body.messages) - 2}", reader)
    return Asked(
        dialect="anthropic",
        model=body.model,
        prompt=prompt,
        tools=tuple(Offered(tool.name, bytes(tool.input_schema)) for tool in body.tools),
        stream=body.stream,
        output_tokens_max=body.max_tokens,
        messages=len(body.messages),
        system="\n".join(block.text for block in system),
        **reader.facts(),
    )


def _fold(message: _Message, where: str, reader: Reader) -> None:
    if message.role == "assistant":
        if reader.waiting:
            raise _unanswered(where, reader)
        reader.replied({block.id: block.name for block in message.blocks if block.type == "tool_use"})
        return
    for index, block in enumerate(message.blocks):
        if block.type == "tool_result" and not reader.observed(block.tool_use_id, block.words):
            raise Rejection(
                400,
                f"{where}.content.{index}: unexpected `tool_use_id` found in `tool_result` blocks: "
                f"{block.tool_use_id}. Each `tool_result` block must have a corresponding `tool_use` block in the "
                "previous message.",
            )
    if reader.waiting:
        raise _unanswered(where, reader)
    words = [block.text for block in message.blocks if block.type == "text"]
    if words:
        reader.said("".join(words))


def _count(role: str, block: _Block, prompt: Prompt) -> None:
    parts = (role, block.type, block.words, block.thinking, block.data, block.id, block.name, bytes(block.input))
    inner = block.content if isinstance(block.content, list) else []
    images = [each.source.data or each.source.url for each in (block, *inner) if each.source]
    prompt.add(*parts, block.tool_use_id, images=images, cacheable=block.cache_control is not None)


def _check(block: _Block, where: str, seed: int) -> None:
    """Refuse what the real endpoint refuses in one block."""
    match block.type:
        case "text" if not block.text:
            raise Rejection(400, f"{where}: text content blocks must be non-empty")
        case "thinking" if block.signature != sign(block.thinking, seed):
            raise Rejection(400, f"{where}: Invalid `signature` in `thinking` block")
        case "redacted_thinking" if not _redacted_here(block.data, seed):
            raise Rejection(400, f"{where}: Invalid `data` in `redacted_thinking` block")
        case "tool_use" if not bytes(block.input).startswith(b"{"):
            raise Rejection(400, f"{where}.tool_use.input: Input should be a valid dictionary")


def _seen(source: _Source, where: str, kind: str) -> str:
    """Describe an image or a document. Raises Rejection."""
    if source.type == "text":
        return f"text {len(source.data.encode())} bytes"
    if source.type == "url":
        return source.url
    words, taken = _TAKEN[kind]
    if source.media_type not in taken:
        raise Rejection(400, f"{where}.base64.media_type: Input should be {words}")
    if len(source.data) * 3 // 4 > IMAGE_BYTES_MAX and kind == "image":
        size = len(source.data) * 3 // 4
        raise Rejection(400, f"{where}.base64: image exceeds 5 MB maximum: {size} bytes > {IMAGE_BYTES_MAX} bytes")
    try:
        return described(source.media_type, source.data)
    except ValueError:
        found = "Could not process image" if kind == "image" else "The PDF specified was not valid."
        raise Rejection(400, f"{where}.base64.data: {found}") from None


def _unanswered(where: str, reader: Reader) -> Rejection:
    return Rejection(
        400,
        f"{where}: `tool_use` ids were found without `tool_result` blocks immediately after: "
        f"{', '.join(reader.waiting)}. Each `tool_use` block must have a corresponding `tool_result` block in the next "
        "message.",
    )


def seal(data: bytes, seed: int) -> bytes:
    """Sign thinking; each seed is a provider of its own that knows only its own signatures."""
    return blake2b(data, key=b"%d" % seed, digest_size=_SEAL_BYTES).digest()


def sign(thinking: str, seed: int) -> str:
    return b64encode(seal(thinking.encode(), seed)).decode()


def redact(thinking: str, seed: int) -> str:
    """Hide thinking as opaque data that carries its own seal."""
    return b64encode(seal(thinking.encode(), seed) + thinking.encode()).decode()


def _redacted_here(data: str, seed: int) -> bool:
    try:
        raw = b64decode(data, validate=True)
    except ValueError:
        return False
    return raw[:_SEAL_BYTES] == seal(raw[_SEAL_BYTES:], seed)


def usage(spent: Usage, output: int) -> dict[str, Any]:
    """Say a usage in Anthropic's words, where the kinds of input do not overlap."""
    return {
        "input_tokens": spent.input,
        "cache_creation_input_tokens": spent.cache_write,
        "cache_read_input_tokens": spent.cache_read,
        "cache_creation": {"ephemeral_5m_input_tokens": spent.cache_write, "ephemeral_1h_input_tokens": 0},
        "output_tokens": output,
        "service_tier": "standard",
    }


def _message(said: Said, asked: Asked, content: list[dict[str, Any]], stop: str | None) -> dict[str, Any]:
    return {
        "id": said.id,
        "type": "message",
        "role": "assistant",
        "model": asked.model,
        "content": content,
        "stop_reason": stop,
        "stop_sequence": None,
    }


def whole(said: Said, asked: Asked, spent: Usage, script: Script) -> bytes:
    """Render a reply that is not streamed."""
    content: list[dict[str, Any]] = []
    if said.reasoning:
        content.append({"type": "thinking", "thinking": said.reasoning, "signature": sign(said.reasoning, script.seed)})
    if said.redacted:
        content.append({"type": "redacted_thinking", "data": redact(said.redacted, script.seed)})
    if said.text:
        content.append({"type": "text", "text": said.text})
    for call in said.calls:
        content.append({"type": "tool_use", "id": call.id, "name": call.name, "input": _input(call.arguments)})
    message = _message(said, asked, content, STOPS.get(said.stop, "refusal"))
    return _json(message | {"usage": usage(spent, spent.output)})


def _input(arguments: str) -> dict[str, Any]:
    """Give arguments as the object that a whole reply must hold, whatever the script wrote."""
    try:
        found = msgspec.json.decode(arguments or "{}")
    except msgspec.DecodeError:
        found = None
    return found if isinstance(found, dict) else {"INVALID_JSON": arguments}


def events(said: Said, asked: Asked, spent: Usage, script: Script) -> list[Cue]:
    """Render a streamed reply as one cue an event."""
    opening = _message(said, asked, [], None) | {"usage": usage(spent, 1)}
    cues = [_event("message_start", {"message": opening})]
    for index, (block, tokens, deltas) in enumerate(_blocks(said, script.seed)):
        start = _event("content_block_start", {"index": index, "content_block": block})
        cues.append(start._replace(tokens=tokens))
        if index == 0:
            cues.append(_event("ping", {}))
        for kind, parts in deltas:
            cues += _deltas(index, kind, parts)
        cues.append(_event("content_block_stop", {"index": index}))
    told = {name: count for name, count in usage(spent, spent.output).items() if isinstance(count, int)}
    stop = {"stop_reason": STOPS.get(said.stop, "refusal"), "stop_sequence": None}
    cues.append(_event("message_delta", {"delta": stop, "usage": told})._replace(tells=True))
    return [*cues, _event("message_stop", {})]


_Deltas = list[tuple[str, list[tuple[str, int]]]]


def _blocks(said: Said, seed: int) -> Iterator[tuple[dict[str, Any], int, _Deltas]]:
    """Give each content block as it starts, the tokens of that, and its deltas by kind."""
    size = said.pacing.chunk_tokens
    if said.reasoning:
        signature = [(sign(said.reasoning, seed), 0)]
        deltas = [("thinking", pieces(said.reasoning, size)), ("signature", signature)]
        yield {"type": "thinking", "thinking": "", "signature": ""}, 0, deltas
    if said.redacted:
        yield {"type": "redacted_thinking", "data": redact(said.redacted, seed)}, tokens_in(said.redacted), []
    if said.text:
        yield {"type": "text", "text": ""}, 0, [("text", pieces(said.text, size))]
    for call in said.calls:
        block = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
        yield block, tokens_in(call.name), [("input_json", [("", 0), *pieces(call.arguments, size)])]


def _deltas(index: int, kind: str, parts: list[tuple[str, int]]) -> list[Cue]:
    field = "partial_json" if kind == "input_json" else kind
    before = (
        f'event: content_block_delta\ndata: {{"type":"content_block_delta","index":{index},'
        f'"delta":{{"type":"{kind}_delta","{field}":'
    ).encode()
    return [Cue(before + _json(part) + b"}}\n\n", tokens) for part, tokens in parts]


def _event(kind: str, fields: dict[str, Any]) -> Cue:
    return Cue(f"event: {kind}\ndata: ".encode() + _json({"type": kind} | fields) + b"\n\n")


def error_body(rejection: Rejection, request_id: str) -> bytes:
    kind, words = _ERRORS.get(rejection.status, _ERRORS[400 if rejection.status < 500 else 500])
    error = {"type": rejection.code or kind, "message": rejection.message or words}
    return _json({"type": "error", "error": error, "request_id": request_id})


def error_event(code: str, message: str) -> bytes:
    """Render the error that ends a stream."""
    return _event("error", {"error": {"type": code, "message": message}}).data


def too_long(asked: Asked, tokens_max: int) -> Rejection:
    return Rejection(400, f"prompt is too long: {asked.prompt.tokens} tokens > {tokens_max} maximum")


def models(names: list[str]) -> bytes:
    data = [{"type": "model", "id": name, "display_name": name, "created_at": "2025-01-01T00:00:00Z"} for name in names]
    return _json({"data": data, "has_more": False, "first_id": names[0], "last_id": names[-1]})


def headers(request_id: str) -> dict[str, str]:
    return {"request-id": request_id, "anthropic-organization-id": "00000000-0000-4000-8000-000000000000"}


def request_id(dice: Dice) -> str:
    return f"req_011C{dice.word('request', 20)}"
