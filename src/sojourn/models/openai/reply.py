"""A chat completions stream, chunk by chunk, into one message.

The rule: a reply is whole when a `finish_reason` came and then either `[DONE]` or a clean end of the body, because some
servers leave `[DONE]` out. `[DONE]` alone is not enough: proxies send it after a reply that was cut off.

Source: https://platform.openai.com/docs/api-reference/chat-streaming (2026-11).
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from sojourn.loop.messages import Message, Native, Part, Reasoning, Source, Stop, Text, ToolCall, Usage
from sojourn.models.dialect import Tokens, counted, decoded, not_promised
from sojourn.models.model import ArgumentsDelta, Delta, ModelFailed, ReasoningDelta, Request, TextDelta
from sojourn.models.wire.failures import Problem, interrupted_by

_STOPS: dict[str, Stop] = {
    "stop": "end",
    "eos": "end",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "length": "length",
    "max_tokens": "length",
    "content_filter": "content_filter",
    "refusal": "refusal",
}


class _Function(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class _CallPiece(msgspec.Struct, gc=False):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None
    extra_content: msgspec.Raw = msgspec.Raw()


class _ContentPiece(msgspec.Struct, gc=False):
    """A piece of typed content, as Mistral streams it: words, or thoughts made of words."""

    type: str = ""
    text: str = ""
    thinking: list["_ContentPiece"] = []


class _Delta(msgspec.Struct, gc=False):
    content: str | list[_ContentPiece] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    reasoning_details: list[dict[str, Any]] | None = None
    refusal: str | None = None
    tool_calls: list[_CallPiece] | None = None


class _Choice(msgspec.Struct, gc=False):
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Details(msgspec.Struct, gc=False):
    cached_tokens: Tokens | None = None
    cache_write_tokens: Tokens | None = None
    reasoning_tokens: Tokens | None = None


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: Tokens | None = None
    completion_tokens: Tokens | None = None
    total_tokens: Tokens | None = None
    prompt_cache_hit_tokens: Tokens | None = None
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None


class _Chunk(msgspec.Struct, gc=False):
    id: str | None = None
    choices: list[_Choice] | None = None
    usage: Any = None
    error: Problem | str | None = None


class _Call:
    """A tool call in the making."""

    __slots__ = ("arguments", "extra", "id", "name", "place")

    def __init__(self, place: int) -> None:
        self.place = place
        self.id = ""
        self.name = ""
        self.arguments: list[str] = []
        self.extra: str | None = None


_decode = msgspec.json.Decoder(_Chunk).decode


class ChatReply:
    """Collects one reply; the order of its parts is thoughts, words, calls, as the dialect knows no other."""

    def __init__(self, request: Request, provider: str, *, message_id: str) -> None:
        self.done = False
        self.told: Usage | None = None
        self._source = Source(dialect="openai", provider=provider, model=request.model)
        self._message_id = message_id
        self._response_id = ""
        self._finish = ""
        self._refused = False
        self._text: list[str] = []
        self._thoughts: list[str] = []
        self._thoughts_member: str | None = None
        self._details: list[dict[str, Any]] = []
        self._calls: list[_Call] = []
        self._slots: dict[int, _Call] = {}

    def feed(self, data: bytes) -> Sequence[Delta]:
        """Take in one chunk. Raises ModelFailed."""
        if data == b"[DONE]":
            self.done = True
            return ()
        chunk = decoded(_decode, data, provider=self._source.provider)
        if chunk.error:
            found = Problem(message=chunk.error) if isinstance(chunk.error, str) else chunk.error
            raise interrupted_by(self._source.provider, found)
        if chunk.id and not self._response_id:
            self._response_id = chunk.id
        if chunk.usage:
            self._count(chunk.usage)
        if not chunk.choices:
            return ()
        choice = chunk.choices[0]
        if choice.finish_reason:
            self._finish = choice.finish_reason
        return self._take(choice.delta) if choice.delta else ()

    def _count(self, told: Any) -> None:
        """Take in counts; they are totals, and some servers tell them with every chunk."""
        usage = counted(_Usage, told, provider=self._source.provider)
        self.told = _normalised(usage) if usage else None

    @property
    def finished(self) -> bool:
        return bool(self._finish)

    def _take(self, delta: _Delta) -> Sequence[Delta]:
        deltas: list[Delta] = []
        thought = delta.reasoning_content or delta.reasoning
        if thought:
            self._thoughts_member = "reasoning_content" if delta.reasoning_content else "reasoning"
            self._think(thought, deltas)
        if delta.content:
            self._say(delta.content, deltas)
        if delta.refusal:
            self._refused = True
            self._say(delta.refusal, deltas)
        if delta.reasoning_details:
            self._keep(delta.reasoning_details)
        if delta.tool_calls:
            for piece in delta.tool_calls:
                self._call(piece, deltas)
        return deltas

    def _say(self, content: str | list[_ContentPiece], deltas: list[Delta]) -> None:
        if isinstance(content, str):
            self._text.append(content)
            deltas.append(TextDelta(content))
            return
        for piece in content:
            if piece.text:
                self._say(piece.text, deltas)
            for thought in piece.thinking:
                self._think(thought.text, deltas)

    def _think(self, text: str, deltas: list[Delta]) -> None:
        self._thoughts.append(text)
        deltas.append(ReasoningDelta(text))

    def _keep(self, details: list[dict[str, Any]]) -> None:
        """Join streamed reasoning_details (OpenRouter): texts grow, everything else is as it came."""
        for piece in details:
            last = self._details[-1] if self._details else {}
            if "index" not in piece or (last.get("index"), last.get("type")) != (piece["index"], piece.get("type")):
                self._details.append(dict(piece))
                continue
            for name, value in piece.items():
                grows = (
                    name in ("text", "summary", "data") and isinstance(value, str) and isinstance(last.get(name), str)
                )
                if grows or value is not None:
                    last[name] = last[name] + value if grows else value

    def _call(self, piece: _CallPiece, deltas: list[Delta]) -> None:
        call = self._slot(piece)
        call.id = call.id or piece.id or ""
        if piece.extra_content:
            call.extra = bytes(piece.extra_content).decode()
        if piece.function is None:
            return
        call.name = call.name or piece.function.name or ""
        arguments = piece.function.arguments
        if isinstance(arguments, dict):
            arguments = msgspec.json.encode(arguments).decode()
        if arguments:
            call.arguments.append(arguments)
            deltas.append(ArgumentsDelta(call.place, call.name, arguments))

    def _slot(self, piece: _CallPiece) -> _Call:
        """Find the call that a piece belongs to.

        Some servers leave the index out or give every call the same one; then a new id with a name begins a new call.
        """
        named = piece.function is not None and bool(piece.function.name)
        if piece.index is not None:
            call = self._slots.get(piece.index)
        else:
            call = self._calls[-1] if self._calls and not (named and not piece.id) else None
        if call is not None and not (piece.id and call.id and piece.id != call.id and named):
            return call
        call = _Call(len(self._calls))
        self._calls.append(call)
        if piece.index is not None:
            self._slots[piece.index] = call
        return call

    def message(self) -> Message:
        """Assemble the message. Raises ModelFailed when the reply was never finished."""
        provider = self._source.provider
        if not self.finished:
            told = f"'{provider}' ended its stream without a finish_reason; the reply is not whole."
            raise ModelFailed("interrupted", told, retry=True)
        if self._finish == "error":
            raise interrupted_by(provider, Problem())
        if any(not call.name for call in self._calls):
            raise not_promised(provider, "sent a tool call without a name")
        return Message(
            id=self._message_id,
            role="assistant",
            parts=self._parts(),
            source=msgspec.structs.replace(self._source, response_id=self._response_id),
            stop=self._stop(),
            usage=self.told,
        )

    def _parts(self) -> tuple[Part, ...]:
        parts: list[Part] = []
        if self._thoughts:
            # Nothing is signed here: the signature is the member under which the server wants its thoughts back.
            member = None if self._details else self._thoughts_member
            parts.append(Reasoning(text="".join(self._thoughts), signature=member))
        if self._details:
            parts.append(Native("openai", msgspec.json.encode({"reasoning_details": self._details}).decode()))
        if any(self._text):
            parts.append(Text("".join(self._text)))
        ids: set[str] = set()
        for call in self._calls:
            id = call.id if call.id and call.id not in ids else f"{self._message_id}-{call.place}"
            ids.add(id)
            parts.append(ToolCall(id=id, name=call.name, arguments="".join(call.arguments), signature=call.extra))
        return tuple(parts)

    def _stop(self) -> Stop:
        stop = "refusal" if self._refused else _STOPS.get(self._finish, "other")
        if stop in ("end", "tool_calls"):  # servers disagree on which of the two a reply with calls has
            return "tool_calls" if self._calls else "end"
        return stop


def _normalised(found: _Usage) -> Usage:
    """Split the prompt, which includes what was cached, and find thoughts that are missing in the output."""
    of_prompt = found.prompt_tokens_details or _Details()
    prompt = max(found.prompt_tokens or 0, 0)
    read = min(max(of_prompt.cached_tokens or found.prompt_cache_hit_tokens or 0, 0), prompt)
    write = min(max(of_prompt.cache_write_tokens or 0, 0), prompt - read)
    output = max(found.completion_tokens or 0, (found.total_tokens or 0) - prompt, 0)
    thought = (found.completion_tokens_details or _Details()).reasoning_tokens or 0
    return Usage(
        input=prompt - read - write,
        cache_read=read,
        cache_write=write,
        output=output,
        reasoning=min(max(thought, 0), output),
    )
