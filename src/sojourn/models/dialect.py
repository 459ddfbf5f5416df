"""What a dialect is: the request that it wants, and the reply that it sends.

`openai`, `anthropic` and `json_schema` each make one; the adapter drives it. The rule: a dialect computes and does no
I/O, so that all of it can be tested on bytes.
"""

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, Protocol, TypeVar

import msgspec

from sojourn.loop.messages import Message, Usage
from sojourn.models.kept import Transcripts
from sojourn.models.model import Delta, Endpoint, ModelFailed, Request

log = logging.getLogger("sojourn.models")

T = TypeVar("T")
Tokens = Annotated[int, msgspec.Meta(le=100_000_000)]
"""A count that a provider tells; one that is larger than any window cannot be true."""
_SURROGATES = re.compile(rb"(\\\\|\\u[dD][89abAB]..\\u[dD][c-fC-F]..)|\\u[dD][89a-fA-F]..")


class Reply(Protocol):
    """One streamed reply in the making."""

    done: bool
    """The dialect's own terminal event has come."""
    told: Usage | None
    """What the provider counted so far, as it said last."""

    def feed(self, data: bytes) -> Sequence[Delta]:
        """Take in the data of one event. Raises ModelFailed."""
        ...

    def message(self) -> Message:
        """Assemble the whole message. Raises ModelFailed."""
        ...


class Dialect(NamedTuple):
    """How to ask, and how to read the answer."""

    name: str
    path: str
    """Where requests go, after the version in the base URL."""
    headers: Callable[[str | None], dict[str, str]]
    """The headers that carry a key."""
    body: Callable[[Request, Endpoint, Transcripts], list[bytes]]
    """The request in pieces, written with the help of what is kept of its transcript. Raises ModelFailed."""
    reply: Callable[..., Reply]
    """A new reply: `(request, provider, *, message_id)`."""


def whole(before: Mapping[str, Any], messages: Iterable[bytes], after: Mapping[str, Any]) -> list[bytes]:
    """Put a request together: its first members, its messages as they are written, and its last members."""
    opening, rest = msgspec.json.encode(before), msgspec.json.encode(after)
    return [opening[:-1] + b',"messages":[', *messages, b"]," + rest[1:]]


def listed(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Set commas between the pieces."""
    for place, piece in enumerate(pieces):
        if place:
            yield b","
        yield piece


def not_promised(provider: str, what: str) -> ModelFailed:
    """Say that an answer breaks its dialect. Another attempt may go better: proxies do this under load."""
    return ModelFailed("protocol", f"'{provider}' {what}.", retry=True)


def decoded(decode: Callable[[bytes], T], data: bytes, *, provider: str) -> T:
    """Decode one event. Raises ModelFailed.

    Half a surrogate pair is no JSON text, but servers that cut by UTF-16 units stream it: it becomes U+FFFD.
    """
    try:
        return decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        mended = _SURROGATES.sub(lambda found: found[1] or rb"\ufffd", data)
        if mended != data:
            return decoded(decode, mended, provider=provider)
    raise not_promised(provider, "sent an event that its dialect does not know")


def counted(kind: type[T], told: Any, *, provider: str) -> T | None:
    """Read the token counts of a reply; None where a provider tells what cannot be true, so that nobody is charged."""
    try:
        return msgspec.convert(told, kind, strict=False)
    except msgspec.ValidationError:
        log.warning("model.usage_unusable", extra={"provider": provider})
        return None
