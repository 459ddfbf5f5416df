"""Tools for servers that know none: a chat completion whose reply a JSON Schema forces into one of two shapes.

`{"tool": "...", "arguments": {...}}` calls a tool, `{"answer": "..."}` ends the turn. The rule: small enough for a
small model. One line a tool, plain words for the history, user and assistant in turns, and a schema of which a server
can make a grammar.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

import msgspec

from sojourn.loop.messages import Message, Part, Reasoning, Role, Text, ToolCall
from sojourn.models.kept import Transcripts
from sojourn.models.model import ArgumentsDelta, Delta, Endpoint, ReasoningDelta, Request, TextDelta, ToolDefinition
from sojourn.models.openai import OPENAI
from sojourn.models.openai.reply import ChatReply
from sojourn.models.openai.request import body as chat_body
from sojourn.models.projection import arguments_object, turns

_ANY = re.compile(r".+", re.DOTALL)
_SCHEMA_MEMBERS = ("type", "enum", "const", "required", "additionalProperties")
_PROMPT = """Tools:
{tools}

Reply with one tool as JSON. After its result, reply {{"answer": string}}."""


class _Forced(msgspec.Struct):
    tool: str | None = None
    arguments: msgspec.Raw = msgspec.Raw(b"{}")
    answer: str | None = None


def body(request: Request, endpoint: Endpoint, _: Transcripts) -> list[bytes]:
    """Write a request without tools whose reply is forced; it is told anew each time, for windows that are small."""
    schema = {"type": "json_schema", "json_schema": {"name": "reply", "schema": reply_schema(request.tools)}}
    prompt = _PROMPT.format(tools="\n".join(map(_line, request.tools)))
    plain = msgspec.structs.replace(
        request,
        system=f"{request.system}\n\n{prompt}".strip(),
        messages=tuple(in_words(request, endpoint.name)),
        tools=(),
    )
    return chat_body(plain, endpoint, Transcripts(), forced=schema)


def reply_schema(tools: Sequence[ToolDefinition]) -> dict[str, Any]:
    """Make the schema of a reply: one shape a tool, and one for the answer."""
    shapes = [
        {"tool": {"const": tool.name}, "arguments": _simple(msgspec.json.decode(tool.schema))} for tool in tools
    ] + [{"answer": {"type": "string"}}]
    return {
        "anyOf": [
            {"type": "object", "properties": shape, "required": list(shape), "additionalProperties": False}
            for shape in shapes
        ]
    }


def _simple(schema: Any) -> dict[str, Any]:
    """Keep what a grammar can force; a reference or an unknown word becomes "anything"."""
    if not isinstance(schema, dict):
        return {}
    kept: dict[str, Any] = {name: schema[name] for name in _SCHEMA_MEMBERS if name in schema}
    if isinstance(schema.get("properties"), dict):
        kept["properties"] = {name: _simple(inner) for name, inner in schema["properties"].items()}
    if "items" in schema:
        kept["items"] = _simple(schema["items"])
    for choice in ("anyOf", "oneOf"):
        if isinstance(schema.get(choice), list):
            kept["anyOf"] = [_simple(inner) for inner in schema[choice]]
    return kept


def _line(tool: ToolDefinition) -> str:
    """Show a tool in one line as the JSON to write: `{"tool": "wait", "arguments": {"time_s": number}} Wait.`"""
    schema = msgspec.json.decode(tool.schema)
    required = schema.get("required", ())
    members = [
        f'"{name}"{"" if name in required else "?"}: {inner.get("type", "any") if isinstance(inner, dict) else "any"}'
        for name, inner in schema.get("properties", {}).items()
    ]
    described = tool.description.strip().partition("\n")[0]
    return f'{{"tool": "{tool.name}", "arguments": {{{", ".join(members)}}}}} {described}'


def in_words(request: Request, provider: str) -> Iterator[Message]:
    """Tell the history in words, one message for all that a side says in a row."""
    for place, (role, told) in enumerate(groupby(_told(request, provider), key=itemgetter(0))):
        yield Message(id=f"told-{place}", role=role, parts=_joined([part for _, part in told]))


def _told(request: Request, provider: str) -> Iterator[tuple[Role, Part]]:
    """Tell calls in a sentence, because a small model repeats JSON that it sees, and results as the user's words."""
    for turn in turns(request.messages, provider, model=request.model, id_pattern=_ANY, used=set()):
        if turn.message.role == "user":
            yield from (("user", part) for part in turn.message.parts)
        elif text := turn.message.text.strip():
            yield "assistant", Text(text)
        for one in turn.exchanges:
            arguments = bytes(arguments_object(one.call.arguments)).decode()
            yield "assistant", Text(f"I use {one.call.name} with {arguments}.")
        for one in turn.exchanges:
            yield "user", Text(f"Result of {one.call.name}:\n{one.result.text}")


def _joined(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Put all words into one part, before the attachments: templates of small models know one string a message."""
    words = "\n\n".join(part.text for part in parts if isinstance(part, Text))
    return Text(words), *(part for part in parts if not isinstance(part, Text))


class ForcedReply(ChatReply):
    """A chat completion whose words are a call or an answer."""

    def feed(self, data: bytes) -> Sequence[Delta]:
        """Take in one chunk; thoughts are shown as they come, the call or the answer when its JSON is whole."""
        deltas: list[Delta] = [delta for delta in super().feed(data) if isinstance(delta, ReasoningDelta)]
        if self.done and self.finished:
            message = self.message()
            deltas += [ArgumentsDelta(0, call.name, call.arguments) for call in message.calls]
            deltas += [TextDelta(message.text)] if message.text else []
        return deltas

    def message(self) -> Message:
        """Read the forced JSON. Text that is none of it, cut off or by a server that forces nothing, stays text."""
        message = super().message()
        try:
            found = msgspec.json.decode(_unfenced(message.text), type=_Forced)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            return message
        kept = tuple(part for part in message.parts if isinstance(part, Reasoning))
        if found.tool:
            call = ToolCall(id=f"{message.id}-0", name=found.tool, arguments=bytes(found.arguments).decode())
            stop = "tool_calls" if message.stop == "end" else message.stop
            return msgspec.structs.replace(message, parts=(*kept, call), stop=stop)
        if found.answer is not None:
            return msgspec.structs.replace(message, parts=(*kept, Text(found.answer)))
        return message


def _unfenced(text: str) -> str:
    """Take the JSON out of a Markdown fence, into which models put it where nothing forces them."""
    found = re.fullmatch(r"\s*```(?:json)?\s*(\{.*\})\s*```\s*", text, re.DOTALL)
    return found[1] if found else text


JSON_SCHEMA = OPENAI._replace(body=body, reply=ForcedReply)
