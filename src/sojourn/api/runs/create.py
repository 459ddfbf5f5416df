"""A request into the first row of a run. Called by the routes that start one.

The rule: everything that can be refused is refused here, before a row is written; what is accepted will be worked on.
"""

from datetime import datetime, timedelta
from functools import partial

from msgspec.structs import replace

from sojourn.api.agents import specs
from sojourn.api.agents.shapes import LimitsSpec, Spec
from sojourn.api.parts import RUN_BELL, WORK_BELL, Acting
from sojourn.api.route import Answer
from sojourn.api.runs.hear import heard
from sojourn.api.runs.shapes import DELAY_MAX_S, Accepted, CreateRun
from sojourn.errors import Invalid, NotFound
from sojourn.identity import scopes
from sojourn.loop import continuation as cont
from sojourn.loop.agent import Agent, Suspend, ref
from sojourn.loop.budget import Limits
from sojourn.loop.events import Began
from sojourn.loop.machine import begin
from sojourn.loop.step import taints
from sojourn.store import runs
from sojourn.store.budgets import pools
from sojourn.store.db import Connection
from sojourn.store.rows import NewRun
from sojourn.store.tenant import catalog, sessions

INLINE = "inline"
"""The name of an agent that was written out in the request."""
INPUT_SHOWN_CHARS = 500
NOTHING = Spec()


async def create(
    ask: Acting,
    connection: Connection,
    wanted: CreateRun,
    *,
    schedule: str | None = None,
    fire_at: datetime | None = None,
) -> Answer:
    """Write down a run, and its session where none is given. Raises Refused."""
    settings = ask.parts.settings
    new = replace(await drafted(ask, connection, wanted), schedule=schedule, fire_at=fire_at)
    run_id, session_id = new.event.run_id, new.event.session_id
    if wanted.session is None:
        await sessions.create(connection, session_id)
    queued_max = settings.queued_runs_max if new.start_at is None else settings.delayed_runs_max
    if await runs.create(connection, new, queued_max=queued_max) or settings.day_defaults.bind:
        await _affordable(ask, connection, new)
    return Answer(
        status=202,
        body=Accepted(run_id=run_id, session_id=session_id, status="queued"),
        headers={"Location": f"/v1/runs/{run_id}"},
        rings=((WORK_BELL, run_id), (RUN_BELL, run_id)),
    )


async def _affordable(ask: Acting, connection: Connection, new: NewRun) -> None:
    """Raise OverLimit where a pool of the day is empty, and Invalid where it cannot be kept."""
    money = await pools.admit(connection, new.event.principal.user, ask.parts.settings.day_defaults)
    if money:
        specs.need_price(ask.parts, (new.agent, *new.agents), day=True)


async def drafted(ask: Acting, connection: Connection, wanted: CreateRun) -> NewRun:
    """A run as it would be written, once all is seen that can be refused before. Raises Refused."""
    parts = ask.parts
    agent = await _agent(ask, connection, wanted)
    specs.need_key(parts, agent.models, "/model" if wanted.agent is None else "/agent")
    run_id = parts.new_id("run")
    message = await heard(ask, connection, run_id, wanted.input)
    session_id = parts.new_id("ses") if wanted.session is None else wanted.session
    before = await runs.conversation(connection, session_id) if wanted.session else runs.Conversation()
    at, limits = parts.now(), _limits(ask, agent, wanted.limits)
    start_at = _start(at, wanted)
    event = Began(
        at=at,
        run_id=run_id,
        tenant=ask.principal.tenant,
        session_id=session_id,
        principal=cont.Principal(ask.principal.user, ask.principal.key_id),
        agent=ref(agent),
        limits=limits,
        suspend=wanted.suspend if wanted.agent is not None else Suspend(),
        history=before.segments,
        message=message,
        taints=taints.merged(taints.said(wanted.taints, "input"), before.taints),
        start_at=start_at if limits.wall_s is not None else None,
    )
    below = await _below(connection, agent)
    if any(one.usd_micros is not None for one in (limits, *(agent.limits for agent in below))):
        specs.need_price(parts, (agent, *below))
    return NewRun(
        event=event,
        continuation=begin(event),
        agent=agent,
        agents=below,
        priority=wanted.priority,
        input=(message.text or "[attachments alone]")[:INPUT_SHOWN_CHARS],
        labels=wanted.labels,
        start_at=start_at,
    )


def _start(now: datetime, wanted: CreateRun) -> datetime | None:
    """When the run is to begin; None is now. Raises Invalid."""
    if wanted.delay_s is not None:
        if wanted.start_at is not None:
            raise Invalid("Say either when it begins, or how long after now.", pointer="/delay_s")
        return now + timedelta(seconds=wanted.delay_s)
    if wanted.start_at is None or wanted.start_at <= now:
        return None
    if wanted.start_at > now + timedelta(seconds=DELAY_MAX_S):
        raise Invalid("A run begins within a year from now.", pointer="/start_at")
    return wanted.start_at


# ---- who runs --------------------------------------------------------------------------------


async def _agent(ask: Acting, connection: Connection, wanted: CreateRun) -> Agent:
    """The version that is asked for: by name, or written out. Raises Invalid."""
    if wanted.agent is not None:
        for field in ("model", "models", "system", "tools", "policy", "params"):
            if getattr(wanted, field) != getattr(NOTHING, field):
                raise Invalid("An agent is given; what it is stands there, and not beside it.", pointer=f"/{field}")
    if isinstance(wanted.agent, str):
        return await by_name(connection, wanted.agent, wanted.version, "/agent")
    if wanted.version is not None:
        raise Invalid("A version goes with the name of an agent.", pointer="/version")
    spec, finder = wanted.agent or wanted, partial(_live, connection)
    try:
        return await specs.agent(ask.parts, spec, name=INLINE, version=0, sub_agent=finder)
    except Invalid as error:
        if wanted.agent is not None and error.pointer is not None:
            error.pointer = f"/agent{error.pointer}"
        raise


async def by_name(connection: Connection, name: str, version: int | None, pointer: str) -> Agent:
    """A version in the catalog, the live one where none is given. Raises Invalid."""
    try:
        return await catalog.resolve(connection, name, version)
    except NotFound:
        which = f"agent named {name!r}" if version is None else f"version {version} of an agent named {name!r}"
        raise Invalid(
            f"There is no {which}; GET /v1/agents lists yours.", code="agent.unknown", pointer=pointer
        ) from None


async def _live(connection: Connection, name: str, pointer: str) -> Agent:
    return await by_name(connection, name, None, pointer)


async def _below(connection: Connection, agent: Agent) -> tuple[Agent, ...]:
    """All agents that this one may start, however deep."""
    digests = [tool.agent for tool in agent.tools if tool.agent is not None]
    return tuple((await catalog.closure(connection, digests)).values()) if digests else ()


def _limits(ask: Acting, agent: Agent, wanted: LimitsSpec) -> Limits:
    """The run's limits: the agent's, made tighter; to widen them takes a scope of its own. Raises Forbidden."""
    made = specs.limits(ask.parts, agent.limits, wanted)
    if specs.wider(made, agent.limits):
        scopes.require(ask.principal.scopes, "budgets:raise")
    return made
