"""An agent version: what a run is pinned to, immutable and named by its digest.

The machine reads it, the catalog stores it, the API accepts it. The rule: two equal versions have one digest, and
nothing in a version can change after a run began with it.
"""

import hashlib
from datetime import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from sojourn.loop.budget import Limits
from sojourn.loop.messages import Plain
from sojourn.loop.policy import Policy

EffectClass = Literal["read", "idempotent", "transactional", "verifiable", "at_least_once", "at_most_once"]
"""What another try of a call may do, declared per tool; the undeclared are `at_most_once`.

`verifiable` tools find out by themselves, from the idempotency key, what an earlier attempt did.
"""

Executor = Literal["server", "client", "agent", "person", "event", "clock"]
"""Who answers a call: a worker, the caller's program, a sub-agent, a person, the outside world, or the time."""


def digest(value: object) -> str:
    """Name a piece of data by its content: sha256:<hex> of its canonical JSON."""
    if isinstance(value, msgspec.Struct):  # as JSON gives it back: 50 in the place of a float is 50.0
        value = msgspec.json.decode(msgspec.json.encode(value), type=type(value))
    return "sha256:" + hashlib.sha256(msgspec.json.encode(value, order="sorted")).hexdigest()


Taint = Literal["private", "untrusted"]
"""What reading something does to a frame: it knows what is not for everybody, or has read what may carry orders."""


class Params(Plain, frozen=True):
    """Sampling and size of a model call, None where the provider's default is meant."""

    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    reasoning_effort: Literal["minimal", "low", "medium", "high"] | None = None
    reasoning_tokens_max: int | None = None


class Tool(Plain, frozen=True, kw_only=True):
    """What an agent can do. `schema` is the JSON Schema of the arguments, as raw JSON text."""

    name: str
    description: str = ""
    schema: str = '{"type":"object"}'
    effect: EffectClass = "at_most_once"
    executor: Executor = "server"
    agent: str | None = None
    """The digest of the sub-agent that a call of this tool starts, where `executor` is "agent"."""
    taints: tuple[Taint, ...] = ()
    """What its results are."""
    outward: bool = False
    """It can send something to where the tenant's word does not reach."""


class Suspend(Plain, frozen=True, kw_only=True):
    """When an agent stops before its next model call, until somebody says that it may go on."""

    every_turns: Annotated[int, Meta(ge=1)] | None = None
    after_active_s: Annotated[float, Meta(gt=0, le=31_536_000)] | None = None
    """Seconds during which something of the run was in flight, counted anew after each stop."""
    at: Annotated[datetime, Meta(tz=True)] | None = None
    """Once, at the first step that ends after this time."""


class Agent(Plain, frozen=True, kw_only=True):
    """One version of an agent. `models` is its failover chain of `provider:model` references, the first one first."""

    name: str
    version: int = 0
    models: tuple[str, ...]
    system: str = ""
    tools: tuple[Tool, ...] = ()
    policy: Policy = Policy()
    limits: Limits = Limits()
    params: Params = Params()
    suspend: Suspend = Suspend()

    def tool(self, name: str) -> Tool | None:
        return next((tool for tool in self.tools if tool.name == name), None)


class AgentRef(Plain, frozen=True):
    """An agent version by name, number and content."""

    name: str
    version: int
    digest: str


def ref(agent: Agent) -> AgentRef:
    return AgentRef(agent.name, agent.version, digest(agent))
