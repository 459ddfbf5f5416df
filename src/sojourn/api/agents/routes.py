"""The handlers of /v1/agents."""

from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from sojourn.api.agents import shapes, specs
from sojourn.api.audit.acts import made
from sojourn.api.guardrails.screen import screened_input
from sojourn.api.http.once import once
from sojourn.api.http.pages import Size
from sojourn.api.route import Answer, Ask, Audited, Route
from sojourn.api.runs import wait
from sojourn.api.runs.create import by_name, create
from sojourn.api.runs.routes import STARTS, WaitS, accepted
from sojourn.api.runs.shapes import Accepted, CreateRun, Id, Input
from sojourn.loop.agent import Agent
from sojourn.store.db import Connection
from sojourn.store.rows import AgentRow, RunRow, VersionRow
from sojourn.store.tenant import catalog


class ByName(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    after: Annotated[str, Meta(max_length=64, description="The last name of the page before.")] | None = None
    limit: Size = 50


class ByNumber(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    after: Annotated[shapes.VersionNumber, Meta(description="The last number of the page before.")] | None = None
    limit: Size = 50


class AgentsPage(msgspec.Struct, frozen=True, kw_only=True):
    """Agents, by name."""

    data: tuple[shapes.AgentSeen, ...]
    has_more: bool
    next: str | None


class VersionSeen(msgspec.Struct, frozen=True, kw_only=True):
    """A version in a list."""

    version: int
    digest: str
    created_at: datetime
    created_by: str


class VersionsPage(msgspec.Struct, frozen=True, kw_only=True):
    """Versions, the newest first."""

    data: tuple[VersionSeen, ...]
    has_more: bool
    next: str | None


class RunAgent(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A goal for this agent."""

    input: Input
    session: Id | None = None
    limits: shapes.LimitsSpec = shapes.LimitsSpec()
    wait: WaitS = 60


class RunCost(msgspec.Struct, frozen=True, kw_only=True):
    """What it took; total_cost is in US dollars, null where a price is not known."""

    input_tokens: int
    output_tokens: int
    total_cost: str | None


class RunDone(msgspec.Struct, frozen=True, kw_only=True):
    """The run that has ended, or stands where it stands."""

    agent: str
    user_id: str
    run_id: str
    session_id: str
    status: str
    output: str | None
    steps: int
    cost: RunCost


async def make(ask: Ask[shapes.CreateAgent, None]) -> Answer:
    """Make an agent with its first version."""

    async def work(connection: Connection) -> Answer:
        agent = await _built(ask, connection, ask.body, ask.body.name)
        row = await catalog.create(connection, agent, by=ask.principal.user)
        return Answer(status=201, body=_seen(row, agent), headers={"Location": f"/v1/agents/{row.name}"})

    return await once(ask, work)


async def add(ask: Ask[shapes.Spec, None]) -> Answer:
    """Make another version; it becomes live when somebody says so."""

    async def work(connection: Connection) -> Answer:
        name = ask.names["name"]
        await catalog.get(connection, name)
        agent = await _built(ask, connection, ask.body, name)
        row, new = await catalog.add_version(connection, agent, by=ask.principal.user)
        agent = await catalog.spec(connection, row.digest)
        headers = {"Location": f"/v1/agents/{name}/versions/{row.version}"}
        return Answer(status=201 if new else 200, body=_seen(row, agent), headers=headers)

    return await once(ask, work)


async def page(ask: Ask[None, ByName]) -> Answer:
    """List agents."""
    limit = ask.query.limit
    async with ask.transaction() as connection:
        rows = await catalog.page(connection, after=ask.query.after, limit=limit + 1)
    more = len(rows) > limit
    data = tuple(_agent(row) for row in rows[:limit])
    return Answer(body=AgentsPage(data=data, has_more=more, next=data[-1].name if more else None))


async def get(ask: Ask[None, None]) -> Answer:
    """Show an agent and its live version."""
    name = ask.names["name"]
    async with ask.transaction() as connection:
        row = await catalog.get(connection, name)
        live = await _version(connection, name, row.live_version)
    return Answer(body=_agent(row, live))


async def versions(ask: Ask[None, ByNumber]) -> Answer:
    """List an agent's versions."""
    name, asked = ask.names["name"], ask.query
    async with ask.transaction() as connection:
        await catalog.get(connection, name)
        rows = await catalog.versions(connection, name, before=asked.after, limit=asked.limit + 1)
    data = tuple(
        VersionSeen(version=r.version, digest=r.digest, created_at=r.created_at, created_by=r.created_by)
        for r in rows[: asked.limit]
    )
    more = len(rows) > asked.limit
    return Answer(body=VersionsPage(data=data, has_more=more, next=str(data[-1].version) if more else None))


async def version(ask: Ask[None, None]) -> Answer:
    """Show one version."""
    async with ask.transaction() as connection:
        return Answer(body=await _version(connection, ask.names["name"], int(ask.names["version"])))


async def set_live(ask: Ask[shapes.SetLive, None]) -> Answer:
    """Say which version new runs get."""
    name = ask.names["name"]

    async def work(connection: Connection) -> Answer:
        row = await catalog.set_live(connection, name, ask.body.version, expected=ask.body.expected)
        return Answer(body=_agent(row, await _version(connection, name, row.live_version)))

    return await once(ask, work)


async def limit(ask: Ask[shapes.SetRunsMax, None]) -> Answer:
    """Say how many of an agent's runs are worked on at once."""

    async def work(connection: Connection) -> Answer:
        return Answer(body=_agent(await catalog.limit(connection, ask.names["name"], ask.body.runs_max)))

    return await once(ask, work)


async def archive(ask: Ask[None, None]) -> Answer:
    """Put an agent away: its runs go on, and no new ones begin."""

    async def work(connection: Connection) -> Answer:
        return Answer(body=_agent(await catalog.archive(connection, ask.names["name"])))

    return await once(ask, work)


async def run(ask: Ask[RunAgent, None]) -> Answer:
    """Run an agent and answer with its result, or with where to look for it."""
    given = await screened_input(ask, ask.body.input)

    async def work(connection: Connection) -> Answer:
        name, body = ask.names["name"], ask.body
        await catalog.get(connection, name)
        wanted = CreateRun(agent=name, input=given(), session=body.session, limits=body.limits)
        return await create(ask, connection, wanted)

    answer = await once(ask, work)
    run_id = accepted(answer).run_id
    done = await wait.ended(ask, run_id, ask.body.wait)
    if done is None or done.finished_at is None:
        return answer
    return Answer(body=_done(done), headers=answer.headers)


# ---- shown -----------------------------------------------------------------------------------


async def _built(ask: Ask[Any, Any], connection: Connection, spec: shapes.Spec, name: str) -> Agent:
    async def sub_agent(wanted: str, pointer: str) -> Agent:
        return await by_name(connection, wanted, None, pointer)

    return await specs.agent(ask.parts, spec, name=name, version=1, sub_agent=sub_agent)


async def _version(connection: Connection, name: str, number: int) -> shapes.Version:
    """One version with all that it says. Raises NotFound."""
    row = await catalog.version(connection, name, number)
    return _seen(row, await catalog.spec(connection, row.digest))


def _agent(row: AgentRow, live: shapes.Version | None = None) -> shapes.AgentSeen:
    return shapes.AgentSeen(
        name=row.name,
        live_version=row.live_version,
        runs_max=row.runs_max,
        archived_at=row.archived_at,
        created_at=row.created_at,
        live=live,
    )


def _seen(row: VersionRow, agent: Agent) -> shapes.Version:
    tools = map(shapes.tool_seen, agent.tools)
    return shapes.Version(
        name=row.name,
        version=row.version,
        digest=row.digest,
        models=agent.models,
        system=agent.system,
        tools=tuple(tools),
        policy=agent.policy,
        limits=specs.limits_seen(agent.limits),
        params=agent.params,
        suspend=agent.suspend,
        created_at=row.created_at,
        created_by=row.created_by,
    )


def _done(row: RunRow) -> RunDone:
    return RunDone(
        agent=row.agent.name,
        user_id=row.user_id,
        run_id=row.id,
        session_id=row.session_id,
        status=row.status,
        output=row.result,
        steps=row.steps,
        cost=RunCost(
            input_tokens=row.usage.prompt, output_tokens=row.usage.output, total_cost=shapes.dollars(row.usd_micros)
        ),
    )


def _version_named(ask: Ask[Any, Any], answer: Answer) -> str:
    return f"{answer.body.name}@{answer.body.version}"


def _digest(ask: Ask[Any, Any], answer: Answer) -> dict[str, str]:
    return {"digest": answer.body.digest}


def _live(ask: Ask[Any, Any], answer: Answer) -> dict[str, str]:
    return {"version": str(answer.body.live_version)}


def _runs_max(ask: Ask[Any, Any], answer: Answer) -> dict[str, str]:
    return {"runs_max": str(answer.body.runs_max)}


def _route(method: str, path: str, handler: Any, summary: str, **more: Any) -> Route:
    scope = "agents:read" if method == "GET" else "agents:write"
    return Route(
        **{"method": method, "path": f"/v1/agents{path}", "handler": handler, "summary": summary, "tag": "agents",
           "scope": scope, **more}
    )  # fmt: skip


SPEC: dict[str, Any] = {
    "models": ["anthropic:claude-sonnet-4-5", "openai:gpt-5"],
    "system": "You answer from the data, and show how.",
    "tools": ["shell", "read_file"],
    "limits": {"steps": 40, "usd": "0.50"},
}
MADE = ("model.unknown", "tool.unknown", "tool.schema", "agent.unknown")

ROUTES = (
    _route("POST", "", make, "Make an agent", body=shapes.CreateAgent, creates=True, refusals=("agent.exists", *MADE),
           audit=Audited(action="agent.create", subject=made("name"), detail=_digest),
           answers={201: (shapes.Version, "Its version 1, which is live")}, example={"name": "analyst", **SPEC}),
    _route("GET", "", page, "List agents by name", query=ByName, answers={200: (AgentsPage, "Agents")}),
    _route("GET", "/{name}", get, "Get an agent and its live version", refusals=("request.not_found",),
           answers={200: (shapes.AgentSeen, "The agent")}),
    _route("GET", "/{name}/versions", versions, "List an agent's versions", query=ByNumber,
           refusals=("request.not_found",), answers={200: (VersionsPage, "Versions, the newest first")}),
    _route("POST", "/{name}/versions", add, "Make a version", body=shapes.Spec, creates=True, example=SPEC,
           audit=Audited(action="agent.add_version", subject=_version_named, detail=_digest),
           refusals=("request.not_found", "agent.archived", *MADE),
           detail="It does not become live by itself. What is the same as the live version is no new one.",
           answers={201: (shapes.Version, "The new version"), 200: (shapes.Version, "The live one is the same")}),
    _route("GET", "/{name}/versions/{version}", version, "Get one version", refusals=("request.not_found",),
           answers={200: (shapes.Version, "The version")}),
    _route("PUT", "/{name}/live", set_live, "Say which version is live", body=shapes.SetLive, example={"version": 2},
           audit=Audited(action="agent.set_live", detail=_live),
           detail="All new runs get it at once; going back is the same call.",
           refusals=("request.not_found", "request.stale_version"), answers={200: (shapes.AgentSeen, "The agent")}),
    _route("PUT", "/{name}/runs_max", limit, "Say how many of an agent's runs are worked on at once",
           body=shapes.SetRunsMax, example={"runs_max": 5}, refusals=("request.not_found",),
           audit=Audited(action="agent.set_runs_max", detail=_runs_max),
           detail="It holds for all versions together, over all workers. The other runs stay queued.",
           answers={200: (shapes.AgentSeen, "The agent")}),
    _route("POST", "/{name}/archive", archive, "Put an agent away", refusals=("request.not_found",), creates=True,
           audit=Audited(action="agent.archive"),
           answers={200: (shapes.AgentSeen, "The agent; its runs go on, and no new ones begin")}),
    _route("POST", "/{name}/run", run, "Run an agent and wait for its result", scope="runs:write", body=RunAgent,
           rate="runs", agent=lambda _, names: names["name"], creates=True, counted_meanwhile=True, fills=True,
           refusals=("request.not_found", *STARTS), example={"input": "Which year was the warmest?"},
           answers={200: (RunDone, "It ended in time"), 202: (Accepted, "It goes on; Location names the run")}),
)  # fmt: skip
