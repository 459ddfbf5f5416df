"""Agents and their immutable versions. Called by the API.

The rule: a version never changes, runs are pinned to its digest, and moving the live pointer is all that a promotion or
a rollback is. The store numbers the versions.
"""

from collections.abc import Collection

import asyncpg  # type: ignore[import-untyped]
import msgspec
from msgspec.structs import replace

from sojourn.errors import Conflict, NotFound, StaleVersion
from sojourn.loop.agent import Agent, digest
from sojourn.store.db import Connection
from sojourn.store.rows import AgentRow, VersionRow
from sojourn.store.runs.pins import pin

CREATE = """
with made as (
    insert into agent (tenant, name, live_version) values (scope_tenant(), $1, 1) returning tenant, name
)
insert into agent_version (tenant, name, version, digest, created_by)
select tenant, name, 1, $2, $3 from made
returning name, version, digest, created_at, created_by
"""
LOCK = "select from agent where tenant = (select scope_tenant()) and name = $1 for no key update"
LIVE = """
select a.live_version, s.spec,
    (select max(version) from agent_version v where v.tenant = a.tenant and v.name = a.name) as last_version
from agent a
join agent_version v on v.tenant = a.tenant and v.name = a.name and v.version = a.live_version
join agent_spec s on s.tenant = v.tenant and s.digest = v.digest
where a.tenant = (select scope_tenant()) and a.name = $1
"""
ADD = """
insert into agent_version (tenant, name, version, digest, created_by) values (scope_tenant(), $1, $2, $3, $4)
returning name, version, digest, created_at, created_by
"""
VERSIONS = """
select name, version, digest, created_at, created_by from agent_version
where tenant = (select scope_tenant()) and name = $1
"""
AGENTS = """
select a.name, a.live_version, a.runs_max, v.digest, a.created_at, a.archived_at
from agent a join agent_version v on v.tenant = a.tenant and v.name = a.name and v.version = a.live_version
where a.tenant = (select scope_tenant())
"""
SET_LIVE = """
update agent set live_version = $2
where tenant = (select scope_tenant()) and name = $1 and ($3::int is null or live_version = $3)
"""
LIMIT = "update agent set runs_max = $2 where tenant = (select scope_tenant()) and name = $1"
ARCHIVE = """
update agent set archived_at = coalesce(archived_at, now()) where tenant = (select scope_tenant()) and name = $1
"""
RESOLVE = """
select s.spec, a.archived_at
from agent a
join agent_version v on v.tenant = a.tenant and v.name = a.name and v.version = coalesce($2, a.live_version)
join agent_spec s on s.tenant = v.tenant and s.digest = v.digest
where a.tenant = (select scope_tenant()) and a.name = $1
"""
CLOSURE = """
with recursive agent (digest, subs, spec) as (
    select digest, subs, spec from agent_spec where tenant = (select scope_tenant()) and digest = any($1::text[])
    union
    select s.digest, s.subs, s.spec
    from agent a join agent_spec s on s.tenant = (select scope_tenant()) and s.digest = any(a.subs)
)
select digest, spec from agent
"""

_agent = msgspec.json.Decoder(Agent)


async def create(conn: Connection, agent: Agent, *, by: str, subs: Collection[Agent] = ()) -> VersionRow:
    """Make an agent with version 1; `subs` are the agents that its tools start. Raises Conflict where it exists."""
    first = replace(agent, version=1)
    await pin(conn, [first, *subs])
    try:
        return _version(await conn.fetchrow(CREATE, agent.name, digest(first), by))
    except asyncpg.UniqueViolationError:
        raise Conflict(f"There is an agent {agent.name} already; add a version to it.", code="agent.exists") from None


async def add_version(
    conn: Connection, agent: Agent, *, by: str, subs: Collection[Agent] = ()
) -> tuple[VersionRow, bool]:
    """Add a version, which is not live yet; content that is live already gives the live version, and False.

    Raises NotFound.
    """
    await conn.execute(LOCK, agent.name)  # first: who waited for it must see the version that was added meanwhile
    live = await conn.fetchrow(LIVE, agent.name)
    if live is None:
        raise _missing(agent.name)
    if replace(agent, version=live["live_version"]) == _agent.decode(live["spec"]):
        return await version(conn, agent.name, live["live_version"]), False
    added = replace(agent, version=live["last_version"] + 1)
    await pin(conn, [added, *subs])
    return _version(await conn.fetchrow(ADD, agent.name, added.version, digest(added), by)), True


async def get(conn: Connection, name: str) -> AgentRow:
    """Read one agent. Raises NotFound."""
    row = await conn.fetchrow(f"{AGENTS} and a.name = $1", name)
    if row is None:
        raise _missing(name)
    return AgentRow(**row)


async def page(conn: Connection, *, after: str | None = None, limit: int = 50) -> list[AgentRow]:
    """Read agents by name, those after `after`."""
    rows = await conn.fetch(f"{AGENTS} and ($1::text is null or a.name > $1) order by a.name limit $2", after, limit)
    return [AgentRow(**row) for row in rows]


async def version(conn: Connection, name: str, number: int) -> VersionRow:
    """Read one version of an agent. Raises NotFound."""
    row = await conn.fetchrow(f"{VERSIONS} and version = $2", name, number)
    if row is None:
        raise NotFound(f"There is no version {number} of an agent {name}.")
    return _version(row)


async def versions(
    conn: Connection, name: str, *, before: int | None = None, limit: int | None = None
) -> list[VersionRow]:
    """Read versions of an agent, newest first."""
    older = "and ($2::int is null or version < $2) order by version desc limit $3"
    return [_version(row) for row in await conn.fetch(f"{VERSIONS} {older}", name, before, limit)]


async def set_live(conn: Connection, name: str, version: int, *, expected: int | None = None) -> AgentRow:
    """Point an agent at a version, for all runs that begin from now on.

    Raises StaleVersion where `expected` is not live any more, and NotFound.
    """
    known = {row.version for row in await versions(conn, name)}
    if version not in known:
        raise NotFound(f"Agent {name} has no version {version}.")
    if await conn.execute(SET_LIVE, name, version, expected) == "UPDATE 0":
        raise StaleVersion(f"Version {expected} of agent {name} is not live any more; read it again.")
    return await get(conn, name)


async def limit(conn: Connection, name: str, runs_max: int | None) -> AgentRow:
    """Say how many runs of an agent, of any version, workers hold at once. Raises NotFound."""
    await conn.execute(LIMIT, name, runs_max)
    return await get(conn, name)


async def archive(conn: Connection, name: str) -> AgentRow:
    """Let no new run begin with an agent; those that go on are not touched. Raises NotFound."""
    await conn.execute(ARCHIVE, name)
    return await get(conn, name)


async def spec(conn: Connection, of_digest: str) -> Agent:
    """Read an agent version by its content's name. Raises NotFound."""
    found = await conn.fetchval(
        "select spec from agent_spec where tenant = (select scope_tenant()) and digest = $1", of_digest
    )
    if found is None:
        raise NotFound(f"There is no agent version {of_digest}.")
    return _agent.decode(found)


async def resolve(conn: Connection, name: str, version: int | None = None) -> Agent:
    """Read the version that a new run begins with: the live one, or the one that is asked for.

    Raises NotFound, and Conflict where the agent is archived.
    """
    row = await conn.fetchrow(RESOLVE, name, version)
    if row is None:
        raise _missing(name if version is None else f"{name} version {version}")
    if row["archived_at"] is not None:
        raise Conflict(f"Agent {name} is archived.", code="agent.archived")
    return _agent.decode(row["spec"])


async def closure(conn: Connection, digests: Collection[str]) -> dict[str, Agent]:
    """Read agent versions with all that their tools can start, by digest."""
    return {row["digest"]: _agent.decode(row["spec"]) for row in await conn.fetch(CLOSURE, list(digests))}


def _version(row: asyncpg.Record) -> VersionRow:
    return VersionRow(**row)


def _missing(name: str) -> NotFound:
    return NotFound(f"There is no agent {name}.")
