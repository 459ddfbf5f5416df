"""The OpenAI dialect, `POST /v1/chat/completions`: reads requests and renders replies, byte for byte.

The server calls it. The rule: what api.openai.com refuses is refused here in the same words, so that an adapter that
passes here is not surprised there. Source: OpenAI's API reference, chat completions and streaming, 2025.
"""

from collections.abc import Mapping
from itertools import chain, zip_longest
from typing import Any, Literal

import msgspec

from sojourn.loop.messages import Usage
from sojourn.models.simulator.asked import (
    CREATED,
    Asked,
    Cue,
    Dice,
    Offered,
    Prompt,
    Reader,
    Rejection,
    pieces,
    tokens_in,
)
from sojourn.models.simulator.attached import apart, described
from sojourn.models.simulator.replies import Said
from sojourn.models.simulator.script import Script

STOPS = {"end": "stop", "pause": "stop", "refusal": "stop", "tool_calls": "tool_calls"}
_ERRORS = {
    400: ("invalid_request_error", None, "Invalid request."),
    401: ("invalid_request_error", "invalid_api_key", "Incorrect API key provided."),
    403: ("invalid_request_error", "model_not_found", "Project does not have access to this model."),
    404: ("invalid_request_error", "model_not_found", "The model does not exist or you do not have access to it."),
    413: ("invalid_request_error", None, "The request is too large."),
    429: ("requests", "rate_limit_exceeded", "Rate limit reached. Please try again later."),
    500: ("server_error", None, "The server had an error while processing your request. Sorry about that!"),
    503: ("server_error", None, "The engine is currently overloaded, please try again later."),
}


class _Image(msgspec.Struct):
    url: str


class _File(msgspec.Struct):
    file_data: str = ""


class _Part(msgspec.Struct):
    type: str
    text: str = ""
    image_url: _Image | None = None
    file: _File | None = None

    @property
    def url(self) -> str:
        """The attachment of this part, nothing where it is words."""
        return self.image_url.url if self.image_url else self.file.file_data if self.file else ""


class _Function(msgspec.Struct):
    name: str
    arguments: str = ""


class _Call(msgspec.Struct):
    id: str
    function: _Function


class _Message(msgspec.Struct):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[_Part] | None = None
    tool_calls: list[_Call] | None = None
    tool_call_id: str | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class _Declared(msgspec.Struct):
    name: str
    description: str = ""
    parameters: msgspec.Raw = msgspec.Raw(b"{}")


class _Tool(msgspec.Struct):
    function: _Declared


class _Options(msgspec.Struct):
    include_usage: bool | None = None


class _Schema(msgspec.Struct):
    schema: msgspec.Raw = msgspec.Raw(b"{}")


class _Format(msgspec.Struct):
    type: str
    json_schema: _Schema | None = None


class _Body(msgspec.Struct):
    model: str
    messages: list[_Message]
    tools: list[_Tool] | None = None
    stream: bool | None = None
    stream_options: _Options | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    response_format: _Format | None = None
    n: int | None = None


_decode = msgspec.json.Decoder(_Body).decode
_json = msgspec.json.encode


def key_of(headers: Mapping[str, str]) -> str:
    return headers.get("Authorization", "").removeprefix("Bearer ")


def read(data: bytes, headers: Mapping[str, str], script: Script) -> Asked:
    """Read a request. Raises Rejection where the real endpoint would answer 400."""
    try:
        body = _decode(data)
    except msgspec.ValidationError as error:
        raise Rejection(400, f"Invalid request: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        words = "We could not parse the JSON body of your request. (HINT: the body must be valid JSON.)"
        raise Rejection(400, words) from None
    if not body.messages:
        raise Rejection(400, "Invalid 'messages': empty array. Expected an array with minimum length 1.")
    if body.n not in (None, 1):
        raise Rejection(400, "The simulator gives one choice: leave out 'n'.")
    prompt = Prompt()
    for tool in body.tools or ():
        prompt.add(tool.function.name, tool.function.description, bytes(tool.function.parameters))
    reader = Reader()
    for message in body.messages:
        _fold(message, reader, prompt)
    if reader.waiting:
        raise _unanswered(reader)
    schema = body.response_format.json_schema if body.response_format else None
    return Asked(
        dialect="openai",
        model=body.model,
        prompt=prompt,
        tools=tuple(Offered(tool.function.name, bytes(tool.function.parameters)) for tool in body.tools or ()),
        stream=bool(body.stream),
        include_usage=not body.stream or bool(body.stream_options and body.stream_options.include_usage),
        output_tokens_max=body.max_completion_tokens or body.max_tokens,
        json_schema=bytes(schema.schema) if schema else b"",
        messages=len(body.messages),
        system="\n".join(message.text for message in body.messages if message.role in ("system", "developer")),
        **reader.facts(),
    )


def _fold(message: _Message, reader: Reader, prompt: Prompt) -> None:
    calls = message.tool_calls or []
    parts = message.content if isinstance(message.content, list) else []
    images = [part.url for part in parts if part.url]
    reader.attachments += [_seen(part) for part in parts if part.url]
    words = chain.from_iterable((call.id, call.function.name, call.function.arguments) for call in calls)
    prompt.add(message.role, message.text, *words, images=images)
    if message.role == "tool":
        if not reader.observed(message.tool_call_id or "", message.text):
            raise Rejection(
                400,
                "Invalid parameter: messages with role 'tool' must be a response to a preceding message with "
                "'tool_calls'.",
            )
        return
    if reader.waiting:
        raise _unanswered(reader)
    if message.role == "user":
        reader.said(message.text)
    elif message.role == "assistant":
        if message.content is None and not calls:
            raise Rejection(400, "Invalid value for 'content': expected a string, got null.")
        reader.replied({call.id: call.function.name for call in calls})


def _seen(part: _Part) -> str:
    """Describe an image or a file. Raises Rejection."""
    attached = apart(part.url)
    if attached is None and part.image_url and part.url.startswith(("http://", "https://")):
        return part.url
    try:
        media_type, encoded = attached or ("", "")
        if media_type.startswith("image/") != bool(part.image_url):
            raise KeyError
        return described(media_type, encoded)
    except (KeyError, ValueError):
        if part.file:
            words = (
                "Invalid file data: 'file_data'. Expected a base64-encoded data URL with an application/pdf MIME type."
            )
            raise Rejection(400, words, code="invalid_value") from None
        words = (
            "You uploaded an unsupported image. Please make sure your image has of one the following formats: "
            "['png', 'jpeg', 'gif', 'webp']."
        )
        raise Rejection(400, words, code="invalid_image_format") from None


def _unanswered(reader: Reader) -> Rejection:
    return Rejection(
        400,
        "An assistant message with 'tool_calls' must be followed by tool messages responding to each 'tool_call_id'. "
        f"The following tool_call_ids did not have response messages: {', '.join(reader.waiting)}",
    )


def usage(spent: Usage) -> dict[str, Any]:
    """Say a usage in OpenAI's words, where the prompt includes what was cached."""
    return {
        "prompt_tokens": spent.prompt,
        "completion_tokens": spent.output,
        "total_tokens": spent.prompt + spent.output,
        "prompt_tokens_details": {"cached_tokens": spent.cache_read, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": spent.reasoning,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def whole(said: Said, asked: Asked, spent: Usage, script: Script) -> bytes:
    """Render a reply that is not streamed."""
    message: dict[str, Any] = {"role": "assistant", "content": said.text or (None if said.calls else "")}
    if said.reasoning and script.openai_reasoning != "hidden":
        message[script.openai_reasoning] = said.reasoning
    if said.calls:
        message["tool_calls"] = [_call(call.id, call.name, call.arguments) for call in said.calls]
    message |= {"refusal": None, "annotations": []}
    if said.stop == "refusal":
        message |= {"refusal": said.text, "content": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": STOPS.get(said.stop, said.stop)}
    return _json(
        {
            "id": said.id,
            "object": "chat.completion",
            "created": CREATED,
            "model": asked.model,
            "choices": [choice],
            "usage": usage(spent),
            "service_tier": "default",
            "system_fingerprint": "fp_simulator",
        }
    )


def events(said: Said, asked: Asked, spent: Usage, script: Script) -> list[Cue]:
    """Render a streamed reply as one cue an event."""
    head = (
        f'data: {{"id":"{said.id}","object":"chat.completion.chunk","created":{CREATED},"model":'.encode()
        + _json(asked.model)
        + b',"service_tier":"default","system_fingerprint":"fp_simulator","choices":['
    )
    tail = (b',"usage":null}' if asked.include_usage else b"}") + b"\n\n"
    before = head + b'{"index":0,"delta":'
    after = b',"logprobs":null,"finish_reason":null}]' + tail
    size = said.pacing.chunk_tokens
    content = b'""' if said.text or not said.calls else b"null"
    cues = [Cue(before + b'{"role":"assistant","content":' + content + b',"refusal":null}' + after)]
    if script.openai_reasoning == "hidden":
        cues.append(Cue(b"", tokens_in(said.reasoning)))
    said_aloud = "refusal" if said.stop == "refusal" else "content"
    for field, text in ((script.openai_reasoning, said.reasoning), (said_aloud, said.text)):
        if field == "hidden":
            continue
        start, end = before + f'{{"{field}":'.encode(), b"}" + after
        cues += [Cue(start + _json(piece) + end, tokens) for piece, tokens in pieces(text, size)]
    streams = [_call_cues(index, said, before, after) for index in range(len(said.calls))]
    turns = zip_longest(*streams) if said.interleave else streams
    cues += [cue for turn in turns for cue in turn if cue is not None]
    stop = _json(STOPS.get(said.stop, said.stop))
    cues.append(Cue(before + b'{},"logprobs":null,"finish_reason":' + stop + b"}]" + tail))
    if asked.include_usage:
        cues.append(Cue(head + b'],"usage":' + _json(usage(spent)) + b"}\n\n", tells=True))
    return [*cues, Cue(b"data: [DONE]\n\n")]


def _call_cues(index: int, said: Said, before: bytes, after: bytes) -> list[Cue]:
    """Render one call: its id and name come in the first piece only."""
    call = said.calls[index]
    first = _json({"tool_calls": [{"index": index} | _call(call.id, call.name, "")]})
    start = before + f'{{"tool_calls":[{{"index":{index},"function":{{"arguments":'.encode()
    end = b"}}]}" + after
    rest = [Cue(start + _json(piece) + end, n) for piece, n in pieces(call.arguments, said.pacing.chunk_tokens)]
    return [Cue(before + first + after, tokens_in(call.name)), *rest]


def error_body(rejection: Rejection, request_id: str) -> bytes:
    kind, code, words = _ERRORS.get(rejection.status, _ERRORS[400 if rejection.status < 500 else 500])
    error = {"message": rejection.message or words, "type": kind, "param": None, "code": rejection.code or code}
    if rejection.status == 400 and not rejection.code:
        error["param"] = "messages"
    return _json({"error": error})


def error_event(code: str, message: str) -> bytes:
    """Render the error that ends a stream."""
    error = {"message": message, "type": "server_error", "param": None, "code": code}
    return b"data: " + _json({"error": error}) + b"\n\n"


def too_long(asked: Asked, tokens_max: int) -> Rejection:
    return Rejection(
        400,
        f"This model's maximum context length is {tokens_max} tokens. However, your messages resulted in "
        f"{asked.prompt.tokens} tokens. Please reduce the length of the messages.",
        code="context_length_exceeded",
    )


def models(names: list[str]) -> bytes:
    data = [{"id": name, "object": "model", "created": CREATED, "owned_by": "simulator"} for name in names]
    return _json({"object": "list", "data": data})


def headers(request_id: str) -> dict[str, str]:
    return {"x-request-id": request_id, "openai-version": "2020-10-01", "openai-organization": "simulator"}


def request_id(dice: Dice) -> str:
    return f"req_{dice.bytes('request', 16).hex()}"
