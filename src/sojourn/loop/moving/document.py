"""An export: a run that can go on anywhere, as one JSON object that needs nothing beside it.

The API writes and reads them; docs/continuation-v1.schema.json is made from the types here. The rules: it holds what it
names and names all that it holds, it never holds a secret, and its signature is over the JSON value, so that it may be
laid out anew, but not changed.
"""

import base64
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from math import isfinite
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from sojourn.loop.agent import Agent
from sojourn.loop.continuation import Continuation, frames, slots
from sojourn.loop.messages import Message, Plain

DOMAIN = b"sojourn.continuation.v1\n"
"""What stands before the signed bytes, so that the signature is good for nothing else."""

UNKNOWN_TYPE = "application/octet-stream"
DIGEST = "sha256:[0-9a-f]{64}"
ISSUER = "ed25519:[A-Za-z0-9_-]{43}"


def whole(pattern: str) -> str:
    """Write a pattern of a text that is this and nothing else, as JSON Schema and Python both read it.

    In Python `$` lets a newline pass at the end.
    """
    return rf"^{pattern}(?![\s\S])"


Digest = Annotated[str, Meta(pattern=whole(DIGEST))]
Issuer = Annotated[str, Meta(pattern=whole(ISSUER))]


class Export(Plain, frozen=True, kw_only=True):
    """A run, with all that it needs to go on elsewhere."""

    format: Literal["sojourn.continuation"]
    version: Literal[1]
    exported_at: datetime
    issuer: Issuer
    """The public key that `sig` is verified with; whoever imports must trust it."""
    continuation: Continuation
    """The run, with every message in its place."""
    agents: dict[Digest, Agent]
    """The agent versions of its frames, and those that their tools can start."""
    workspace: Digest | None = None
    """The archive of the session's files, among the blobs."""
    blobs: dict[Digest, Annotated[str, Meta(extra_json_schema={"contentEncoding": "base64"})]]
    """The bytes that the messages refer to, in base64."""
    sig: Annotated[str, Meta(pattern=whole("[A-Za-z0-9_-]{86}"))]
    """Ed25519 over "sojourn.continuation.v1", a newline, and this object without `sig` in the form of RFC 8785."""


def sealed(export: Export, sign: Callable[[bytes], str]) -> bytes:
    """The export as it is sent, signed."""
    sig = sign(canonical(msgspec.json.decode(msgspec.json.encode(export))))
    return msgspec.json.encode(replace(export, sig=sig))


def canonical(plain: Mapping[str, Any]) -> bytes:
    """The bytes that are signed of an export as plain data: sorted names, one spelling of every number and text.

    Raises ValueError for a number or text that JSON cannot hold.
    """
    unsigned = {name: value for name, value in plain.items() if name != "sig"}
    return DOMAIN + msgspec.json.encode(_numbers(unsigned), order="sorted")


def _numbers(value: Any) -> Any:
    """The value with whole numbers as integers: some programs write 3600.0 as 3600, and mean the same."""
    match value:
        case float():
            if not isfinite(value):
                raise ValueError(f"{value} is no number")
            return int(value) if value.is_integer() else value
        case dict():
            return {name: _numbers(one) for name, one in value.items()}
        case list():
            return [_numbers(one) for one in value]
    return value


def schema() -> dict[str, Any]:
    """The JSON Schema of exports."""
    made = msgspec.json.schema(Export)
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "An exported run of Sojourn, version 1",
    }
    return {**head, **made}


# ---- what it holds ---------------------------------------------------------------------------


def messages(continuation: Continuation) -> Iterator[Message]:
    """Every message of a whole run, those that wait to be heard included."""
    for frame in frames(continuation.root):
        yield from (message for _, message in slots(frame))
        yield from frame.inbox


def referred(continuation: Continuation, workspace: str | None) -> dict[str, str]:
    """The digests of the blobs that a run needs, each with its media type."""
    found = {workspace: UNKNOWN_TYPE} if workspace is not None else {}
    for message in messages(continuation):
        for part in message.parts:
            blob = getattr(part, "blob", None)
            if blob is not None:
                found[blob] = getattr(part, "media_type", UNKNOWN_TYPE)
    return found


def pinned(continuation: Continuation, agents: Mapping[str, Agent]) -> set[str]:
    """The digests of the agent versions that a run needs; one that is not among `agents` has none below it."""
    found: set[str] = set()
    left: Iterable[str] = {frame.agent.digest for frame in frames(continuation.root)}
    while new := set(left) - found:
        found |= new
        left = {tool.agent for name in new if name in agents for tool in agents[name].tools if tool.agent is not None}
    return found


def blob_text(data: bytes) -> str:
    """A blob as an export holds it."""
    return base64.b64encode(data).decode()
