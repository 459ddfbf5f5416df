"""Keeps agent versions by their content, so that a run can be pinned to one. Called by `create` and by the catalog.

The rule: a spec is written once and never changed; its name is its digest.
"""

from collections.abc import Collection

import msgspec

from sojourn.loop.agent import Agent, digest
from sojourn.store.db import Connection

PIN = """
insert into agent_spec (tenant, digest, subs, spec)
select scope_tenant(), digest, string_to_array(subs, ' '), spec
from unnest($1::text[], $2::text[], $3::text[]) as agent (digest, subs, spec)
on conflict do nothing
"""


async def pin(conn: Connection, agents: Collection[Agent]) -> None:
    """Keep specs by their content."""
    await conn.execute(PIN, *columns(agents))


def columns(agents: Collection[Agent]) -> tuple[list[str], list[str], list[str]]:
    """Give digests, the digests of the agents that their tools start (spaces between), and specs."""
    specs = {digest(agent): agent for agent in agents}
    return (
        list(specs),
        [" ".join(tool.agent for tool in agent.tools if tool.agent is not None) for agent in specs.values()],
        [msgspec.json.encode(agent).decode() for agent in specs.values()],
    )
