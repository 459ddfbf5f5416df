"""What callers send to and get from /v1/agents. `specs` and `routes` use them, and the reference is made from them."""

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from sojourn.api.patterns import NAME, whole
from sojourn.loop.agent import Params, Suspend, Taint, Tool
from sojourn.loop.budget import DEPTH_MAX
from sojourn.loop.policy import Policy

Name = Annotated[str, Meta(pattern=whole(NAME), examples=["analyst"])]
VersionNumber = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Model = Annotated[str, Meta(min_length=3, max_length=200, examples=["openai:gpt-5-mini"])]
Taints = Annotated[tuple[Taint, ...], Meta(max_length=2)]
Count = Annotated[int, Meta(ge=1, le=10**12)]
Dollars = Annotated[Decimal, Meta(description="US dollars, best as a decimal string.", examples=["0.50"])]


class LimitsSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Hard bounds of a run over its whole tree of agents; what is not said is inherited."""

    steps: Count | UnsetType = UNSET
    """Model replies."""
    tool_calls: Count | UnsetType = UNSET
    input_tokens: Count | UnsetType = UNSET
    output_tokens: Count | UnsetType = UNSET
    usd: Dollars | UnsetType = UNSET
    active_s: Annotated[float, Meta(gt=0, le=10**8)] | UnsetType = UNSET
    """Seconds during which something was in flight; waiting for a person costs none."""
    wall_s: Annotated[float, Meta(gt=0, le=10**8)] | UnsetType = UNSET
    """Seconds from when the run was to begin until its end, whatever it waits for meanwhile."""
    depth: Annotated[int, Meta(ge=0, le=DEPTH_MAX)] | UnsetType = UNSET
    """How many agents may stand above a sub-agent; 0 lets none begin. The server may allow less."""
    children: Annotated[int, Meta(ge=0, le=10**6)] | UnsetType = UNSET
    """How many sub-agents may be begun in all, those of sub-agents too."""
    on_exhaust: Literal["fail", "suspend"] | UnsetType = UNSET


class ToolSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """A tool of the caller (name and schema: its calls wait for you), a sub-agent (agent), or a server tool (name) of
    which you say more than the server does.
    """

    name: Annotated[str, Meta(pattern=whole("[A-Za-z0-9_-]{1,64}"))] | None = None
    description: Annotated[str, Meta(max_length=8000)] = ""
    schema: dict[str, Any] | None = None
    """The JSON Schema of the arguments, of type object."""
    agent: Name | None = None
    """The agent whose live version answers a call of this tool; it is pinned when this version is made."""
    taints: Taints = ()
    """What its results are."""
    outward: bool = False
    """It can send something to where your word does not reach."""


class Spec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """What an agent is."""

    model: Model | None = None
    """One model, as `provider:model`."""
    models: Annotated[list[Model], Meta(max_length=8)] = []
    """A failover chain, the first one first."""
    system: Annotated[str, Meta(max_length=200_000)] = ""
    tools: Annotated[list[Annotated[str, Meta(max_length=64)] | ToolSpec], Meta(max_length=128)] = []
    """Server tools by name (GET /v1/tools), the caller's own tools, and sub-agents."""
    policy: Policy = Policy()
    limits: LimitsSpec = LimitsSpec()
    params: Params = Params()
    suspend: Suspend = Suspend()
    """When it stops before its next model call, until somebody says that it may go on."""


class CreateAgent(Spec, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A new agent; this is its version 1, and live."""

    name: Name


class SetLive(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which version new runs get."""

    version: VersionNumber
    expected: VersionNumber | None = None
    """Refuse when another version is live than this one."""


class SetRunsMax(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How many runs of an agent are worked on at once; null: as many as the tenant may have."""

    runs_max: Annotated[int, Meta(ge=1, le=10**6)] | None


class ToolSeen(msgspec.Struct, frozen=True, kw_only=True):
    """A tool of a version."""

    name: str
    description: str
    schema: msgspec.Raw
    effect: str
    """What another try of a call may do after a crash."""
    executor: str
    """Who runs it: the server, the client (the caller), or an agent."""
    agent: str | None = None
    """The digest of the sub-agent's version."""
    taints: tuple[Taint, ...] = ()
    """What its results are: private, or untrusted."""
    outward: bool = False
    """It can send something to where the tenant's word does not reach."""


def tool_seen(tool: Tool) -> ToolSeen:
    """Show a tool to a caller."""
    return ToolSeen(
        name=tool.name,
        description=tool.description,
        schema=msgspec.Raw(tool.schema.encode()),
        effect=tool.effect,
        executor=tool.executor,
        agent=tool.agent,
        taints=tool.taints,
        outward=tool.outward,
    )


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """One version of an agent, which never changes."""

    object: Literal["agent_version"] = "agent_version"
    name: str
    version: int
    digest: str
    models: tuple[str, ...]
    system: str
    tools: tuple[ToolSeen, ...]
    policy: Policy
    limits: "LimitsSeen"
    params: Params
    suspend: Suspend
    created_at: datetime
    created_by: str


class LimitsSeen(msgspec.Struct, frozen=True, kw_only=True):
    """The bounds of a run, null where there is none."""

    steps: int | None
    tool_calls: int | None
    input_tokens: int | None
    output_tokens: int | None
    usd: str | None
    active_s: float | None
    wall_s: float | None
    depth: int
    children: int
    on_exhaust: str


class AgentSeen(msgspec.Struct, frozen=True, kw_only=True):
    """An agent, with its live version."""

    object: Literal["agent"] = "agent"
    name: str
    live_version: int
    runs_max: int | None
    """How many of its runs, of any version, are worked on at once; null: as many as the tenant may have."""
    archived_at: datetime | None
    created_at: datetime
    live: Version | None = None
    """Not in lists."""


def dollars(usd_micros: int | None) -> str | None:
    """Say micro-USD as a decimal."""
    return None if usd_micros is None else f"{usd_micros // 10**6}.{usd_micros % 10**6:06}"
