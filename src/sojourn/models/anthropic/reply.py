"""A Messages API stream, event by event, into one message.

The rule: only `message_stop` ends a reply. Signatures, redacted thoughts and blocks of a kind that we do not know are
kept byte for byte.

Source: https://docs.anthropic.com/en/api/messages-streaming (2026-11).
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from sojourn.loop.messages import Message, Native, Part, Reasoning, Source, Stop, Text, ToolCall, Usage
from sojourn.models.dialect import Tokens, counted, decoded, not_promised
from sojourn.models.model import ArgumentsDelta, Delta, ModelFailed, ReasoningDelta, Request, TextDelta
from sojourn.models.wire.failures import Problem, interrupted_by

_STOPS: dict[str, Stop] = {
    "end_turn": "end",
    "stop_sequence": "end",
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "refusal",
}


class _Usage(msgspec.Struct, gc=False):
    input_tokens: Tokens | None = None
    cache_read_input_tokens: Tokens | None = None
    cache_creation_input_tokens: Tokens | None = None
    output_tokens: Tokens | None = None


class _Start(msgspec.Struct, gc=False):
    id: str = ""
    usage: Any = None


class _Delta(msgspec.Struct, gc=False):
    type: str = ""
    text: str = ""
    thinking: str = ""
    signature: str = ""
    partial_json: str = ""
    stop_reason: str | None = None


class _Event(msgspec.Struct, gc=False):
    type: str
    index: int = 0
    delta: _Delta | None = None
    content_block: msgspec.Raw = msgspec.Raw()
    message: _Start | None = None
    usage: Any = None
    error: Problem | None = None


class _Block(msgspec.Struct):
    """A content block in the making: how it began, and the pieces that came."""

    type: str = ""
    id: str = ""
    name: str = ""
    text: str = ""
    thinking: str = ""
    signature: str | None = None
    data: str = ""
    input: msgspec.Raw = msgspec.Raw(b"{}")


class _Open(msgspec.Struct):
    start: _Block
    raw: bytes
    call: int
    """Its place among the tool calls."""
    pieces: list[str] = []
    signature: str | None = None

    def joined(self) -> str:
        return "".join(self.pieces)


_decode = msgspec.json.Decoder(_Event).decode
_decode_block = msgspec.json.Decoder(_Block).decode


class MessagesReply:
    """Collects one reply; parts stand in the order of their blocks."""

    def __init__(self, request: Request, provider: str, *, message_id: str) -> None:
        self.done = False
        self.told: Usage | None = None
        self._source = Source(dialect="anthropic", provider=provider, model=request.model)
        self._message_id = message_id
        self._blocks: dict[int, _Open] = {}
        self._calls = 0
        self._started: _Start | None = None
        self._stop_reason: str | None = None
        self._usage: _Usage | None = _Usage()

    def feed(self, data: bytes) -> Sequence[Delta]:
        """Take in one event. Raises ModelFailed."""
        event = decoded(_decode, data, provider=self._source.provider)
        match event.type:
            case "content_block_delta" if event.delta:
                return self._grow(event.index, event.delta)
            case "content_block_start":
                return self._open(event.index, bytes(event.content_block))
            case "message_start" if event.message:
                self._started = event.message
                self._count(event.message.usage)
            case "message_delta":
                self._stop_reason = (event.delta.stop_reason if event.delta else None) or self._stop_reason
                self._count(event.usage)
            case "message_stop":
                self.done = True
            case "error":
                raise interrupted_by(self._source.provider, event.error or Problem())
            case _:
                pass  # ping, content_block_stop, and what is not invented yet
        return ()

    def _open(self, index: int, raw: bytes) -> Sequence[Delta]:
        start = decoded(_decode_block, raw, provider=self._source.provider)
        block = self._blocks[index] = _Open(start, raw, self._calls)
        match start.type:
            case "text" if start.text:
                return self._grow(index, _Delta(type="text_delta", text=start.text))
            case "thinking":
                block.signature = start.signature
                block.pieces.append(start.thinking)
            case "tool_use":
                self._calls += 1
            case _:
                pass
        return ()

    def _grow(self, index: int, delta: _Delta) -> Sequence[Delta]:
        block = self._blocks.get(index)
        if block is None:
            raise not_promised(self._source.provider, "sent a piece of a content block that it did not begin")
        match delta.type:
            case "text_delta":
                block.pieces.append(delta.text)
                return (TextDelta(delta.text),)
            case "thinking_delta":
                block.pieces.append(delta.thinking)
                return (ReasoningDelta(delta.thinking),)
            case "input_json_delta":
                block.pieces.append(delta.partial_json)
                if delta.partial_json and block.start.type == "tool_use":
                    return (ArgumentsDelta(block.call, block.start.name, delta.partial_json),)
            case "signature_delta":
                block.signature = (block.signature or "") + delta.signature
            case _:
                pass
        return ()

    def _count(self, told: Any) -> None:
        """Take in counts; they are totals, and a later event overrules an earlier one where it speaks."""
        if not told or self._usage is None:
            return
        usage = counted(_Usage, told, provider=self._source.provider)
        if usage is None:
            self._usage = self.told = None
            return
        for name in _Usage.__struct_fields__:
            if (value := getattr(usage, name)) is not None:
                setattr(self._usage, name, max(value, 0))
        self.told = self._normalised()

    def message(self) -> Message:
        """Assemble the message. Raises ModelFailed when the reply was never finished."""
        provider = self._source.provider
        if not self.done:
            told = f"'{provider}' ended its stream without message_stop; the reply is not whole."
            raise ModelFailed("interrupted", told, retry=True)
        if self._started is None:
            raise not_promised(provider, "ended a message that it did not begin")
        parts = [part for _, block in sorted(self._blocks.items()) if (part := self._part(block))]
        return Message(
            id=self._message_id,
            role="assistant",
            parts=tuple(parts),
            source=msgspec.structs.replace(self._source, response_id=self._started.id),
            stop=_STOPS.get(self._stop_reason or "", "other"),
            usage=self.told,
        )

    def _part(self, block: _Open) -> Part | None:
        match block.start.type:
            case "text":
                return Text(text) if (text := block.joined()) else None
            case "thinking":
                # Some servers sign with an empty text; thoughts that were cut off have nothing to go back with.
                cut = self._stop_reason == "max_tokens" and not block.signature
                return Reasoning(text=block.joined(), signature=None if cut else block.signature)
            case "redacted_thinking":
                return Reasoning(redacted=block.start.data)
            case "tool_use":
                if not block.start.name or not block.start.id:
                    raise not_promised(self._source.provider, "sent a tool call without a name or an id")
                arguments = block.joined() or bytes(block.start.input).decode()
                return ToolCall(id=block.start.id, name=block.start.name, arguments=arguments)
            case _:
                return Native("anthropic", _with_input(block))

    def _normalised(self) -> Usage | None:
        found = self._usage
        if found is None or found == _Usage():
            return None
        return Usage(
            input=found.input_tokens or 0,
            cache_read=found.cache_read_input_tokens or 0,
            cache_write=found.cache_creation_input_tokens or 0,
            output=found.output_tokens or 0,
        )


def _with_input(block: _Open) -> str:
    """Put a streamed input into an unknown block, and leave every other byte of it alone."""
    streamed = block.joined().encode()
    if not streamed:
        return block.raw.decode()
    members = msgspec.json.decode(block.raw, type=dict[str, msgspec.Raw])
    return msgspec.json.encode(members | {"input": msgspec.Raw(streamed)}).decode()
