"""What a dialect is: the request that it wants, and the reply that it sends.

`openai`, `anthropic` and `json_schema` each make one; the adapter drives it. The rule: a dialect computes and does no
I/O, so that all of it can be tested on bytes.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

import msgspec

from sojourn.loop.messages import Message
from sojourn.models.model import Delta, Endpoint, ModelFailed, Request

T = TypeVar("T")
_SURROGATES = re.compile(rb"(\\\\|\\u[dD][89abAB]..\\u[dD][c-fC-F]..)|\\u[dD][89a-fA-F]..")


class Reply(Protocol):
    """One streamed reply in the making."""

    done: bool
    """The dialect's own terminal event has come."""

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
    body: Callable[[Request, Endpoint], bytes]
    reply: Callable[..., Reply]
    """A new reply: `(request, provider, *, message_id)`."""


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
