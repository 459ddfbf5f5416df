"""A public spec into a version of the loop, checked against what this server has. Called by agents and runs.

The rule: whatever a run would stumble over later is refused here, with what exists instead and where it was asked for.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from decimal import Decimal

import msgspec
from msgspec import UNSET
from msgspec.structs import replace

from sojourn.api import schemas
from sojourn.api.agents.shapes import LimitsSeen, LimitsSpec, Spec, ToolSpec, dollars
from sojourn.api.parts import Api
from sojourn.errors import Invalid
from sojourn.loop.agent import Agent, Tool, digest
from sojourn.loop.budget import Limits
from sojourn.loop.continuation import Flow
from sojourn.loop.messages import Usage
from sojourn.loop.policy import CHOICES_MAX, CONDITIONS_MAX, WILDCARDS_MAX, Policy, heavy
from sojourn.loop.step.taints import more_of

SubAgent = Callable[[str, str], Awaitable[Agent]]
"""The live version of an agent by name; the second argument points at who asked. Raises Invalid."""

COUNTED = (
    "steps", "tool_calls", "input_tokens", "output_tokens", "usd_micros", "active_s", "wall_s", "depth", "children",
)  # fmt: skip
TASK = (
    '{"type":"object","properties":{"input":{"type":"string","description":"The task, in full."}},"required":["input"]}'
)


async def agent(parts: Api, spec: Spec, *, name: str, version: int, sub_agent: SubAgent) -> Agent:
    """Make the version that a spec describes; its sub-agents are pinned by digest. Raises Invalid with a pointer."""
    models = _models(parts, spec)
    if any(isinstance(tool, ToolSpec) and tool.schema is not None for tool in spec.tools):
        await asyncio.to_thread(_check_schemas, spec.tools)
    tools = [await _tool(parts, wanted, f"/tools/{i}", sub_agent) for i, wanted in enumerate(spec.tools)]
    _distinct(tools)
    _answerable(spec.policy)
    return Agent(
        name=name,
        version=version,
        models=models,
        system=spec.system,
        tools=tuple(tools),
        policy=spec.policy,
        limits=limits(parts, _defaults(parts), spec.limits),
        params=spec.params,
        suspend=spec.suspend,
    )


def need_key(parts: Api, models: Iterable[str], pointer: str) -> None:
    """See that at least one model of a chain can be asked. Raises Invalid, naming the variable to set."""
    endpoints = parts.models.endpoints()
    missing = []
    for reference in models:
        endpoint = endpoints.get(reference.partition(":")[0])
        if endpoint is None:
            continue
        if endpoint.keys or not endpoint.key_required:
            return
        missing.append(endpoint.key_env or f"a key for {endpoint.name}")
    names = " or ".join(dict.fromkeys(missing)) or "a provider"
    raise Invalid(
        f"This server has no key for {', '.join(models)}: set {names} in its environment and restart it.",
        code="model.no_key",
        pointer=pointer,
    )


def need_price(parts: Api, agents: Sequence[Agent], *, day: bool = False) -> None:
    """Raise Invalid where a model that may be asked has no price: a limit, or a day's budget, could not be kept."""
    for model in {model for agent in agents for model in agent.models}:
        if parts.price(model, Usage(input=1)) is None:
            if day:
                raise Invalid(
                    f"The price of {model} is not known, so the day's budget of money cannot be kept. Ask the operator "
                    f"to set [prices.{model!r}] in the server's settings.",
                    code="budget.price_unknown",
                    pointer="/model",
                )
            raise Invalid(
                f"The price of {model} is not known, so a limit of money cannot be kept. Set [prices.{model!r}] in the "
                "server's settings, or leave out `usd`.",
                code="budget.no_price",
                pointer="/limits/usd",
            )


def limits(parts: Api, base: Limits, spec: LimitsSpec) -> Limits:
    """Put the limits that were said over those that are inherited. Raises Invalid."""
    deepest = parts.settings.depth_max
    if spec.depth is not UNSET and spec.depth > deepest:
        text = f"On this server sub-agents are nested at most {deepest} deep (its setting depth_max)."
        raise Invalid(text, pointer="/limits/depth")
    said = {name: value for name, value in msgspec.structs.asdict(spec).items() if value is not UNSET}
    if "usd" in said:
        said["usd_micros"] = _micros(said.pop("usd"))
    made = replace(base, **said)
    return replace(made, depth=min(made.depth, deepest))


def wider(given: Limits, than: Limits) -> bool:
    """Whether limits leave more room than others: to give them takes the scope budgets:raise."""
    pairs = [(getattr(given, name), getattr(than, name)) for name in COUNTED]
    return any(bound is not None and (asked is None or asked > bound) for asked, bound in pairs)


def limits_seen(given: Limits) -> LimitsSeen:
    """Show limits to a caller."""
    values = msgspec.structs.asdict(given)
    del values["usd_micros"]
    return LimitsSeen(**values, usd=dollars(given.usd_micros))


def _defaults(parts: Api) -> Limits:
    return Limits(steps=parts.settings.steps_default, active_s=parts.settings.active_s_default)


def _micros(usd: Decimal) -> int:
    if not usd.is_finite() or not 0 < usd <= 10**9 or usd * 10**6 % 1:
        raise Invalid("A budget is more than 0 US dollars, with at most six decimals.", pointer="/limits/usd")
    return int(usd * 10**6)


# ---- models ----------------------------------------------------------------------------------


def _models(parts: Api, spec: Spec) -> tuple[str, ...]:
    """The failover chain. Raises Invalid for a reference that no provider fits."""
    if (spec.model is None) == (not spec.models):
        raise Invalid("Give either `model` or a list of `models`.", pointer="/model")
    chain = [("/model", spec.model)] if spec.model else [(f"/models/{i}", one) for i, one in enumerate(spec.models)]
    for pointer, reference in chain:
        provider, colon, model = reference.partition(":")
        if not (colon and model) or provider not in parts.models.endpoints():
            known = ", ".join(sorted(parts.models.endpoints())) or "none"
            raise Invalid(
                f"{reference!r} is no model here: write provider:model with a provider of this server ({known}).",
                code="model.unknown",
                pointer=pointer,
            )
    return tuple(reference for _, reference in chain)


# ---- tools -----------------------------------------------------------------------------------


async def _tool(parts: Api, wanted: str | ToolSpec, pointer: str, sub_agent: SubAgent) -> Tool:
    """A server tool, a tool of the caller's, or a sub-agent."""
    if isinstance(wanted, str):
        return _server_tool(parts, wanted, pointer)
    if wanted.agent is not None:
        if wanted.schema is not None:
            raise Invalid("A sub-agent has no schema of its own: its argument is `input`.", pointer=f"{pointer}/schema")
        return await _agent_tool(wanted, pointer, sub_agent)
    if wanted.name is not None and wanted.schema is None and (wanted.taints or wanted.outward):
        return more_of(_server_tool(parts, wanted.name, f"{pointer}/name"), _flow(wanted))
    if wanted.name is None:
        raise Invalid("A tool of yours needs a name; a sub-agent is {agent: name}.", pointer=pointer)
    if wanted.schema is None:
        raise Invalid(
            f"A tool of yours needs the JSON Schema of its arguments; a server tool is just {wanted.name!r}.",
            pointer=f"{pointer}/schema",
        )
    text = msgspec.json.encode(wanted.schema).decode()
    tool = Tool(name=wanted.name, description=wanted.description, schema=text, executor="client")
    return more_of(tool, _flow(wanted))


def _flow(wanted: ToolSpec) -> Flow:
    return Flow(taints=wanted.taints, outward=wanted.outward)


def _server_tool(parts: Api, name: str, pointer: str) -> Tool:
    tool = parts.tools.get(name)
    if tool is None:
        known = ", ".join(sorted(parts.tools)) or "none"
        raise Invalid(
            f"This server has no tool named {name!r}. Its tools are: {known}.", code="tool.unknown", pointer=pointer
        )
    return tool


async def _agent_tool(wanted: ToolSpec, pointer: str, sub_agent: SubAgent) -> Tool:
    assert wanted.agent is not None
    sub = await sub_agent(wanted.agent, f"{pointer}/agent")
    name = wanted.name or "".join(c if c.isalnum() or c in "_-" else "_" for c in wanted.agent)
    text = wanted.description or f"Give a task to the agent {wanted.agent} and read its answer."
    tool = Tool(name=name, description=text, schema=TASK, effect="read", executor="agent", agent=digest(sub))
    return more_of(tool, _flow(wanted))


def _check_schemas(tools: Sequence[str | ToolSpec]) -> None:
    """Raise Invalid for what is not the JSON Schema (2020-12) of an object."""
    given = [(i, tool.schema) for i, tool in enumerate(tools) if not isinstance(tool, str) and tool.schema is not None]
    for i, schema in given:
        if schema.get("type") != "object":
            text = 'The schema of a tool\'s arguments says "type": "object".'
            raise Invalid(text, code="tool.schema", pointer=f"/tools/{i}/schema")
    found = schemas.checked(schema for _, schema in given)
    for i, _ in given:
        try:
            error = next(found)
        except Invalid as refused:
            raise Invalid(str(refused), code="tool.schema", pointer=f"/tools/{i}/schema") from None
        if error is not None:
            place = "".join(f"/{step}" for step in error.absolute_path)
            text = f"This is not a JSON Schema: {error.message[:200]}."
            raise Invalid(text, code="tool.schema", pointer=f"/tools/{i}/schema{place}")


def _answerable(policy: Policy) -> None:
    """Raise Invalid for a rule that says nothing, a question that could let a call pass unseen, or far too many."""
    if heavy(policy):
        raise Invalid(
            f"A policy has at most {CONDITIONS_MAX} rules and conditions, {WILDCARDS_MAX} wildcards and "
            f"{CHOICES_MAX} choices in all.",
            pointer="/policy/rules",
        )
    asking = [("/policy/ask", policy.ask)]
    for i, rule in enumerate(policy.rules):
        asking += [(f"/policy/rules/{i}/ask", rule.ask)] if rule.ask else []
        for n, one in enumerate(rule.when):
            if (one.like, one.one_of, one.at_most, one.at_least) == (None, None, None, None):
                text = "Say what the argument must be: like, one_of, at_most or at_least."
                raise Invalid(text, pointer=f"/policy/rules/{i}/when/{n}")
    for pointer, ask in asking:
        if ask.on_expire == "resume":
            raise Invalid("A call is never run because nobody answered.", pointer=f"{pointer}/on_expire")
        if (ask.on_expire == "escalate") != bool(ask.escalate_to):
            raise Invalid("`escalate` and `escalate_to` go together.", pointer=f"{pointer}/escalate_to")
        if ask.on_expire == "escalate" and ask.expires_s is None:
            raise Invalid("Say after how long the next ones are asked.", pointer=f"{pointer}/expires_s")


def _distinct(tools: list[Tool]) -> None:
    names: set[str] = set()
    for i, tool in enumerate(tools):
        if tool.name in names:
            raise Invalid(f"Two tools are named {tool.name}.", pointer=f"/tools/{i}")
        names.add(tool.name)
