"""One model request as a script sees it, whichever dialect it came in.

The dialects fold a transcript into an `Asked`; rules match on it and templates read from it. The rule: everything that
looks like chance is drawn from the seed and the request's own bytes, so the order of arrival changes nothing.
"""

import re
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, Literal, NamedTuple

import msgspec

Dialect = Literal["openai", "anthropic"]

TOKEN_CHARS = 4
IMAGE_TOKENS = 1_000
CREATED = 1_735_689_600
"""The time that replies say: it stands still, 2025-01-01, so that the same seed gives the same bytes."""
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def tokens_in(text: str) -> int:
    """Count tokens as the simulator does: four characters each, rounded up."""
    return -(-len(text) // TOKEN_CHARS)


class Rejection(Exception):
    """A request that is answered with an HTTP error. `message` None means the dialect's own words for that status."""

    def __init__(
        self, status: int, message: str | None = None, *, code: str | None = None, retry_after: str | None = None
    ) -> None:
        super().__init__(message or f"HTTP {status}")
        self.status = status
        self.message = message
        self.code = code
        self.retry_after = retry_after


class Dice:
    """The chance of one request: the same seed, body and attempt give the same draws."""

    def __init__(self, seed: int, digest: bytes, attempt: int) -> None:
        self._key = blake2b(b"%d:%d:" % (seed, attempt) + digest, digest_size=32).digest()

    def bytes(self, purpose: str, size: int = 32) -> bytes:
        return blake2b(purpose.encode(), key=self._key, digest_size=size).digest()

    def fraction(self, purpose: str) -> float:
        """Draw from 0 (inclusive) to 1 (exclusive)."""
        return int.from_bytes(self.bytes(purpose, 6), "big") / (1 << 48)

    def word(self, purpose: str, length: int) -> str:
        """Draw letters and digits, for the ids."""
        number, letters = int.from_bytes(self.bytes(purpose), "big"), []
        for _ in range(length):
            number, rest = divmod(number, 62)
            letters.append(_ALPHABET[rest])
        return "".join(letters)


class Cue(NamedTuple):
    """One thing that the player does: wait `pause_s`, then as long as `tokens` take at the pace, then write `data`."""

    data: bytes
    tokens: int = 0
    pause_s: float = 0.0
    tells: bool = False
    """With this the client knows the whole usage."""


def pieces(text: str, size: int) -> list[tuple[str, int]]:
    """Split text into pieces of `size` tokens, each with its number of tokens."""
    step = size * TOKEN_CHARS
    found = [text[start : start + step] for start in range(0, len(text), step)]
    return [(piece, tokens_in(piece)) for piece in found]


class Mark(NamedTuple):
    """A place in the prompt where a cached prefix may end."""

    prefix: int
    """A hash of everything up to here."""
    tokens: int
    """Tokens up to here."""
    cacheable: bool
    """Anthropic: the caller put a cache_control here."""


class Prompt:
    """The prompt as a chain of segments, for counting and for the prompt cache."""

    def __init__(self) -> None:
        self.marks: list[Mark] = []
        self.tokens = 0
        self._chain = 0

    def add(self, *parts: str | bytes, images: Sequence[str | bytes] = (), cacheable: bool = False) -> None:
        """Append one segment: a tool, a block or a message."""
        self._chain = hash((self._chain, *parts, *images))
        self.tokens += -(-sum(map(len, parts)) // TOKEN_CHARS) + IMAGE_TOKENS * len(images)
        self.marks.append(Mark(self._chain, self.tokens, cacheable))


class Offered(NamedTuple):
    """A tool that the request offers. `schema` is raw JSON."""

    name: str
    schema: bytes


class Asked(msgspec.Struct, kw_only=True):
    """What one request asks, in words that rules and templates use."""

    dialect: Dialect
    model: str
    prompt: Prompt
    tools: tuple[Offered, ...] = ()
    stream: bool = False
    include_usage: bool = True
    output_tokens_max: int | None = None
    json_schema: bytes = b""
    """The schema that the reply's text must follow (`response_format`), raw JSON; empty for free text."""
    messages: int = 0
    system: str = ""
    user: str = ""
    """The text of the last user message."""
    turn: int = 0
    """Assistant messages so far."""
    step: int = 0
    """Assistant messages since the last user message."""
    tool: str = ""
    """The tool whose result is the last thing in the transcript, or nothing."""
    result: str = ""
    """The last tool result."""
    results: dict[str, str] = {}
    """The last result of each tool."""
    attachments: tuple[str, ...] = ()
    """What each image and file is, in the order of the transcript."""
    key: str = ""
    attempt: int = 1
    """How often this very body was seen, with this time."""


class Reader:
    """Folds a transcript, message by message, into the fields of an Asked."""

    def __init__(self) -> None:
        self.waiting: dict[str, str] = {}
        self.user = self.tool = self.result = ""
        self.results: dict[str, str] = {}
        self.attachments: list[str] = []
        self.turn = self.step = 0

    def said(self, text: str) -> None:
        self.user, self.step, self.tool = text, 0, ""

    def replied(self, calls: Mapping[str, str]) -> None:
        """Note an assistant message that asks for `calls`: name by id."""
        self.turn += 1
        self.step += 1
        self.tool = ""
        self.waiting = dict(calls)

    def observed(self, call_id: str, text: str) -> bool:
        """Note a tool result; False when no call waits for it."""
        name = self.waiting.pop(call_id, None)
        if name is None:
            return False
        self.tool, self.result = name, text
        self.results[name] = text
        return True

    def facts(self) -> dict[str, Any]:
        """Give the fields of an Asked that come from the messages."""
        names = ("user", "turn", "step", "tool", "result", "results")
        return {name: getattr(self, name) for name in names} | {"attachments": tuple(self.attachments)}


_SLOT = re.compile(r"\{\{(?:(\{\{)|([a-z_]+(?::.*?)?)\}\})", re.DOTALL)


def expand(text: str, asked: Asked) -> str:
    """Fill the `{{...}}` slots of a script's text in one pass; `{{{{` stands for two braces.

    Raises ValueError for a slot that does not exist.
    """
    return _SLOT.sub(lambda slot: "{{" if slot[1] else look_up(slot[2], asked), text) if "{{" in text else text


def look_up(slot: str, asked: Asked) -> str:
    """Read what the slot names. A result or a find that is not there reads as nothing."""
    word, _, rest = slot.partition(":")
    match word:
        case "last_user":
            return asked.user
        case "last_tool_result":
            return asked.result
        case "tool_result" if rest:
            return asked.results.get(rest, "")
        case "system":
            return asked.system
        case "attachments":
            return "\n".join(asked.attachments)
        case "model":
            return asked.model
        case "turn":
            return str(asked.turn)
        case "step":
            return str(asked.step)
        case "json" if rest:
            return msgspec.json.encode(look_up(rest, asked)).decode()
        case "find" if "~" in rest:
            source, _, pattern = rest.partition("~")
            found = re.search(pattern, look_up(source, asked), re.MULTILINE)
            return found[found.re.groups and 1] or "" if found else ""
    raise ValueError(f"there is no slot {{{{{slot}}}}}; docs/simulator.md lists them, and {{{{{{{{ writes two braces")
