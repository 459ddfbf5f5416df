"""The transcript: our own small message format, independent of any provider.

Every other room reads it; `models/` projects it to each dialect and back. The rule: what a provider signed or said in a
shape that we do not know is kept byte for byte and goes back only to the provider that it came from.
"""

from typing import Literal

import msgspec

FORMAT = 1

Role = Literal["user", "assistant", "tool"]
Stop = Literal["end", "tool_calls", "length", "content_filter", "refusal", "other"]


class Plain(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The base of all our data: frozen, closed, and written without what is default."""


class Text(Plain, tag="text", frozen=True):
    """Words."""

    text: str


class Reasoning(Plain, tag="reasoning", frozen=True):
    """What the model thought aloud. `signature` and `redacted` are opaque and never changed."""

    text: str = ""
    signature: str | None = None
    redacted: str | None = None
    """Encrypted reasoning that only its provider can read."""


class ToolCall(Plain, tag="tool_call", frozen=True):
    """A request to run a tool. `id` is the provider's: it pairs call and result, and identifies nothing else."""

    id: str
    name: str
    arguments: str
    """The raw text as the model wrote it; it may not even be JSON."""
    signature: str | None = None


class ToolResult(Plain, tag="tool_result", frozen=True):
    """What came back from a tool; an error is something that the model reads."""

    id: str
    text: str
    error: bool = False


class Image(Plain, tag="image", frozen=True):
    """A picture by blob reference, `sha256:<hex>`."""

    blob: str
    media_type: str


class File(Plain, tag="file", frozen=True):
    """A document by blob reference, `sha256:<hex>`."""

    blob: str
    media_type: str
    name: str = ""


class Native(Plain, tag="native", frozen=True):
    """An item of one dialect that we do not know, as its raw JSON text."""

    dialect: str
    data: str


Part = Text | Reasoning | ToolCall | ToolResult | Image | File | Native


class Source(Plain, frozen=True):
    """Who said it: signed parts go back only to the same provider."""

    dialect: str
    provider: str
    model: str
    response_id: str = ""


class Usage(Plain, frozen=True):
    """Tokens of one reply, normalised: the four input and output kinds do not overlap.

    `input` is what was neither read from nor written to the provider's cache; `reasoning` is the part of `output` that
    was thought.
    """

    input: int = 0
    cache_read: int = 0
    cache_write: int = 0
    output: int = 0
    reasoning: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            input=self.input + other.input,
            cache_read=self.cache_read + other.cache_read,
            cache_write=self.cache_write + other.cache_write,
            output=self.output + other.output,
            reasoning=self.reasoning + other.reasoning,
        )

    @property
    def prompt(self) -> int:
        """All tokens that went in, cached or not."""
        return self.input + self.cache_read + self.cache_write


class Message(Plain, frozen=True, kw_only=True):
    """One entry of a transcript. A `tool` message holds exactly one ToolResult."""

    v: int = FORMAT
    id: str
    role: Role
    parts: tuple[Part, ...]
    source: Source | None = None
    stop: Stop | None = None
    usage: Usage | None = None

    @property
    def text(self) -> str:
        """The words of the message, without reasoning and calls."""
        return "".join(part.text for part in self.parts if isinstance(part, Text))

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        return tuple(part for part in self.parts if isinstance(part, ToolCall))


def said(id: str, text: str, *attachments: Part) -> Message:
    """A user's message."""
    return Message(id=id, role="user", parts=(Text(text=text), *attachments) if text else attachments)


def observed(id: str, provider_id: str, text: str, *, error: bool = False) -> Message:
    """A tool's message: the observation that answers the call which the provider named `provider_id`."""
    return Message(id=id, role="tool", parts=(ToolResult(id=provider_id, text=text, error=error),))
