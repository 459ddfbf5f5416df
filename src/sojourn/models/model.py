"""The model port: who thinks.

The worker asks through it; the adapters stand beside this file and pass one conformance suite (tests/models/).

The rule: a stream that ends without the dialect's own terminal event is a failure, never a reply. An adapter makes one
attempt and keeps no state between attempts: whether and when to try again, and on which model, is durable state of the
loop.
"""

from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Literal, Protocol

import msgspec

from sojourn.errors import ModelUnavailable
from sojourn.loop.agent import Params
from sojourn.loop.messages import Message, Plain, Usage

ToolMode = Literal["native", "json_schema"]

Failure = Literal[
    "connect",  # no connection within the time-out, refused, or cut before the first byte
    "first_token",  # connected, but nothing came in time
    "idle",  # the stream stopped in the middle
    "total",  # the whole took too long
    "interrupted",  # the stream ended or broke without its terminal event
    "rate_limited",  # 429
    "overloaded",  # 529, 503, or an error event in the stream that says so
    "server",  # any other 5xx or error event
    "no_key",  # no usable key: none configured, or all refused (401, 403)
    "not_found",  # the endpoint does not know the model
    "too_long",  # the prompt does not fit the model's window
    "media_type",  # the transcript holds a picture or file that the model or its provider does not take
    "refused_request",  # any other 4xx: the same request will fail again
    "protocol",  # the answer is not what the dialect promises
]


class ModelFailed(ModelUnavailable):
    """One attempt at a model call failed. `retry` tells whether the same request may succeed later there."""

    code = "model.failed"

    def __init__(self, kind: Failure, message: str, *, retry: bool, retry_after_s: float | None = None) -> None:
        super().__init__(message, code=f"model.{kind}", retry_after_s=retry_after_s)
        self.kind: Failure = kind
        self.retry = retry
        self.refused = False
        """The provider answered with an error in the place of a reply, and charges nothing."""


class ToolDefinition(Plain, frozen=True):
    """A tool as the model sees it. `schema` is the JSON Schema of its arguments, as raw JSON text."""

    name: str
    description: str
    schema: str


class Request(Plain, frozen=True):
    """One model call. The prefix (system, tools, older messages) is stable from step to step, so that it is cached."""

    model: str
    """The model's name at its provider, without the `provider:` prefix."""
    system: str
    messages: tuple[Message, ...]
    tools: tuple[ToolDefinition, ...] = ()
    params: Params = Params()
    tool_mode: ToolMode = "native"
    blobs: Mapping[str, bytes] = {}
    """The bytes of the images and files that the messages name, by digest; of the others the model is told."""
    cache_key: str = ""
    """The same for requests that begin alike, so that the provider sends them to one cache; see Endpoint.cache_key."""


class TextDelta(msgspec.Struct, frozen=True, tag="message"):
    text: str


class ReasoningDelta(msgspec.Struct, frozen=True, tag="thinking"):
    text: str


class ArgumentsDelta(msgspec.Struct, frozen=True, tag="tool_arguments"):
    """A piece of the arguments of the `index`-th tool call of this reply."""

    index: int
    name: str
    text: str


Delta = TextDelta | ReasoningDelta | ArgumentsDelta


class Model(Protocol):
    """An endpoint that speaks one dialect."""

    provider: str
    dialect: str

    def stream(
        self,
        request: Request,
        *,
        message_id: str,
        run: object | None = None,
        may_send: Callable[[], None] = lambda: None,
        told: Callable[[Usage], None] = lambda _: None,
    ) -> AsyncGenerator[Delta | Message, None]:
        """Make one attempt: deltas as they come, then exactly one whole assistant Message, last.

        The message's `source`, `stop` and `usage` are filled in. Raises ModelFailed. Closing the iterator closes the
        connection to the provider. What is written of the transcript may be kept for as long as the object `run` lives.
        `may_send` is asked once a connection is there and nothing was sent; what it raises keeps it so. `told` hears
        the provider's count each time that it comes, and the last one is that of the message.
        """
        ...


class TimeOuts(Plain, frozen=True):
    """How long one attempt may take, in seconds."""

    connect_s: float = 5.0
    first_token_s: float = 120.0
    idle_s: float = 60.0
    total_s: float = 1800.0


class Endpoint(Plain, frozen=True):
    """A provider as the settings name it."""

    name: str
    dialect: Literal["openai", "anthropic"]
    base_url: str
    keys: tuple[str, ...] = ()
    key_required: bool = True
    key_env: str = ""
    """The environment variable that holds the keys, so that messages can name it."""
    headers: dict[str, str] = {}
    tool_mode: ToolMode = "native"
    calls_max: int | None = None
    """Calls that all workers together may have on their way at once."""
    cache_key: bool = False
    """Tell it the request's cache_key as `prompt_cache_key`, which only some servers know."""
    time_outs: TimeOuts = TimeOuts()

    def __repr__(self) -> str:
        return f"Endpoint({self.name!r} at {self.base_url!r} with {len(self.keys)} keys)"


class Models(Protocol):
    """All endpoints of this process, by the prefix of a model reference."""

    def resolve(self, reference: str) -> tuple[Model, str]:
        """The adapter and the model's own name for `provider:model`. Raises Invalid for an unknown provider."""
        ...

    def endpoints(self) -> Mapping[str, Endpoint]: ...

    async def close(self) -> None: ...
