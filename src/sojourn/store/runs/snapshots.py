"""The snapshot of a run: its continuation without message bodies, and the bodies put back. Called by all of `store`.

The rule: what this release cannot read it does not touch.
"""

import msgspec
from msgspec.structs import replace

from sojourn.errors import BadSeal, Unreadable
from sojourn.loop.continuation import FORMAT, VERSION, Continuation, attach, detach
from sojourn.loop.messages import Message, Plain
from sojourn.loop.moving.versions import upgraded

_encoder = msgspec.json.Encoder()
_continuation = msgspec.json.Decoder(Continuation)
_message = msgspec.json.Decoder(Message)


class _Head(msgspec.Struct, frozen=True):
    """What every version of the format begins with."""

    format: str = FORMAT
    version: int = 1
    """Not written where it is 1."""


_head = msgspec.json.Decoder(_Head)


def encode(value: Plain) -> bytes:
    """Write a piece of our data as JSON."""
    return _encoder.encode(value)


def freeze(continuation: Continuation) -> bytes:
    """Write the continuation without bodies."""
    return _encoder.encode(replace(continuation, root=detach(continuation.root)))


def thaw(data: bytes) -> Continuation:
    """Read what `freeze` wrote, in this release or an older one.

    Raises UnknownFormat for a newer version's, Unreadable for anything else.
    """
    try:
        found = _continuation.decode(data)
        return found if (found.format, found.version) == (FORMAT, VERSION) else _older(data)
    except (msgspec.DecodeError, RecursionError):
        return _older(data)


def _older(data: bytes) -> Continuation:
    try:
        head = _head.decode(data)
        if (head.format, head.version) == (FORMAT, VERSION):
            raise Unreadable("The run's snapshot cannot be read by this release.")
        return msgspec.convert(upgraded(msgspec.json.decode(data)), Continuation)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Unreadable("The run's snapshot cannot be read by this release.") from error


def whole(continuation: Continuation, bodies: dict[tuple[str, int], Message]) -> Continuation:
    """Put the bodies back. Raises BadSeal where one is missing."""
    try:
        return replace(continuation, root=attach(continuation.root, bodies))
    except KeyError as error:
        raise BadSeal(f"Run {continuation.run_id} lacks message {error.args[0]}.") from None


def body(data: bytes) -> Message:
    """Read one message."""
    return _message.decode(data)


def text(value: str) -> str:
    """Make a text that a text column takes: what PostgreSQL or UTF-8 cannot hold becomes a replacement mark."""
    if value.isascii() and "\0" not in value:
        return value
    return value.replace("\0", "\ufffd").encode(errors="replace").decode()
