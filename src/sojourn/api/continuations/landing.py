"""A new run made of another one, checked against what this server has. Called by the handlers of imports and forks.

The rule: everything that can be refused is refused before the transaction ends, and then nothing of it was written.
"""

import asyncio
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from sojourn.api.agents import specs
from sojourn.api.continuations.gathering import Gathered
from sojourn.api.parts import RUN_BELL, WORK_BELL, Api
from sojourn.api.route import Answer, Ask
from sojourn.api.runs.shapes import Accepted
from sojourn.errors import BadSeal, Invalid
from sojourn.identity import scopes, seal
from sojourn.loop.agent import Agent
from sojourn.loop.continuation import Continuation, Principal, frames
from sojourn.loop.machine import due, phase, wake_at
from sojourn.loop.moving import reading
from sojourn.loop.moving.adoption import Adoption, Home, imported
from sojourn.loop.moving.document import messages, referred
from sojourn.store import runs
from sojourn.store.budgets import pools
from sojourn.store.db import Connection
from sojourn.store.rows import AdoptedRun, SourceRun
from sojourn.store.tenant import blobs, issuers, sessions


async def verified(ask: Ask[Any, Any], data: bytes) -> reading.Whole:
    """The export that these bytes are, of an issuer that is trusted. Raises Unreadable."""
    opened = await asyncio.to_thread(reading.opened, data)
    async with ask.transaction() as connection:
        issuer = await issuers.find(connection, opened.issuer)
    if issuer is None:
        raise BadSeal(
            f"It is signed by {opened.issuer[:60]}, whom nobody here trusts. If you do: sojourn trust add KEY.",
            code="continuation.unknown_issuer",
        )
    if issuer.state == "revoked":
        raise BadSeal("It is signed with a key that was revoked.", code="continuation.revoked_issuer")
    return await asyncio.to_thread(_checked, opened)


def _checked(opened: reading.Opened) -> reading.Whole:
    seal.verify(opened.issuer, opened.sig, opened.signed)
    return reading.whole(opened.plain)


async def import_(ask: Ask[Any, Any], connection: Connection, whole: reading.Whole) -> Answer:
    """Write down an imported run, in a session of its own. Raises Refused."""
    export, settings = whole.export, ask.parts.settings
    adoption = imported(export.agents, export.continuation, home(ask, ask.parts.new_id("ses")))
    await runs.arrive(connection, export.continuation, adoption.event.run_id)
    for digest, media_type in sorted(referred(export.continuation, export.workspace).items()):
        await blobs.put(
            connection,
            whole.blobs[digest],
            bytes_max=settings.export_max_bytes,
            tenant_bytes_max=settings.blobs_max_bytes,
            media_type=media_type,
        )
    said = next((one.text for one in messages(export.continuation) if one.role == "user"), "")
    source = SourceRun(continuation=export.continuation, priority=0, input=said, labels={})
    await begin_session(connection, adoption.event.session_id, export.workspace)
    return await land(ask, connection, adoption, Gathered(source, export.agents, export.workspace))


def home(ask: Ask[Any, Any], session_id: str) -> Home:
    """Where a new run of the caller will live."""
    caller = ask.principal
    return Home(
        at=ask.parts.now(),
        run_id=ask.parts.new_id("run"),
        tenant=caller.tenant,
        session_id=session_id,
        principal=Principal(caller.user, caller.key_id),
    )


async def begin_session(connection: Connection, session_id: str, workspace: str | None) -> None:
    """Make a session whose sandbox begins with the files of an archive."""
    await sessions.create(connection, session_id)
    if workspace is not None:
        await sessions.save_workspace(connection, session_id, digest=workspace)


async def land(ask: Ask[Any, Any], connection: Connection, adoption: Adoption, gathered: Gathered) -> Answer:
    """Write down the new run. Raises Refused."""
    event, agents, source = adoption.event, gathered.agents, gathered.source
    _need_here(ask.parts, adoption.continuation, agents)
    _need_raise(ask, adoption.continuation, agents)
    status, due_at = _standing(agents, adoption.continuation, event.at)
    if status == "queued" and not adoption.continuation.root.ended:
        await pools.admit(connection, ask.principal.user, ask.parts.settings.day_defaults)
    new = AdoptedRun(
        event=event,
        continuation=adoption.continuation,
        agents=dict(agents),
        status=status,
        due_at=due_at,
        priority=source.priority,
        input=source.input,
        labels=source.labels,
    )
    await runs.adopt(connection, new, queued_max=ask.parts.settings.queued_runs_max)
    return Answer(
        status=202,
        body=Accepted(run_id=event.run_id, session_id=event.session_id, status=status),
        headers={"Location": f"/v1/runs/{event.run_id}"},
        rings=((WORK_BELL, event.run_id), (RUN_BELL, event.run_id)),
    )


def _standing(
    agents: Mapping[str, Agent], continuation: Continuation, at: datetime
) -> tuple[Literal["queued", "suspended"], datetime | None]:
    """How the new run stands, and from when on a worker is to look at it; one that has ended is told so by one."""
    if phase(agents, continuation) == "suspended":
        return "suspended", wake_at(continuation)
    now = continuation.root.ended or due(agents, continuation)
    return "queued", at if now else wake_at(continuation)


def _need_here(parts: Api, continuation: Continuation, agents: Mapping[str, Agent]) -> None:
    """See that this server can go on with it: its models, tools and prices. Raises Invalid."""
    working = [agents[frame.agent.digest] for frame in frames(continuation.root) if not frame.ended]
    for agent in working:
        specs.need_key(parts, agent.models, "/agents")
        for tool in agent.tools:
            here = parts.tools.get(tool.name)
            if tool.executor != "server" or (here is not None and here.effect == tool.effect):
                continue
            if here is None:
                raise Invalid(f"This server has no tool named {tool.name!r}.", code="tool.unknown", pointer="/agents")
            detail = f"Here {tool.name} is {here.effect}, and the run is pinned to {tool.effect}."
            raise Invalid(detail, code="tool.changed", pointer="/agents")
    bounds = (continuation.limits, *(agent.limits for agent in agents.values()))
    if working and any(one.usd_micros is not None for one in bounds):
        specs.need_price(parts, list(agents.values()))


def _need_raise(ask: Ask[Any, Any], continuation: Continuation, agents: Mapping[str, Agent]) -> None:
    """See that the caller may give it its limits, as for any new run: they may have been raised. Raises Forbidden."""
    given = [(continuation.root, continuation.limits)]
    given += [(frame, frame.limits) for frame in frames(continuation.root) if frame.limits is not None]
    if any(specs.wider(limits, agents[frame.agent.digest].limits) for frame, limits in given):
        scopes.require(ask.principal.scopes, "budgets:raise")
