"""Does everything that the audit log tells of, once each, and says what it should tell."""

from collections.abc import AsyncIterator
from typing import Any

from played_worker import Player
from served_api import Served
from tests.loop.exported_runs import ISSUER

from sojourn.errors import UnknownFormat
from sojourn.store import queue, runs

Told = tuple[str, str]
"""An action and its subject."""
ASKS = {"name": "analyst", "model": "sim:one", "tools": ["shell"], "policy": {"otherwise": "ask"}}
SECRETS = ("the prompt", "the command", "the reason", "sj_")
"""What is said and given on the way, and must not stand in the log."""


async def everything(api: Served, player: Player) -> list[Told]:
    """Do it all, and give what the log should say of it, in order."""
    parts = (
        _keys,
        _agents,
        _schedules,
        _issuers,
        _webhooks,
        _guardrails,
        _stops,
        _approvals,
        _budgets,
        _pools,
        _moves,
        _deletions,
    )
    return [told for part in parts async for told in part(api, player)]


async def made(api: Served, path: str, body: Any = None, method: str = "POST", **more: Any) -> Any:
    reply = await api.call(method, path, **({} if body is None else {"json": body}), **more)
    assert reply.status in (200, 201, 202, 204), (path, reply.body)
    return reply.json if reply.body else None


async def _keys(api: Served, player: Player) -> AsyncIterator[Told]:
    key = (await made(api, "/v1/keys", {"name": "ci", "user": "bob", "scopes": ["runs:read"]}))["id"]
    yield "key.create", key
    await made(api, f"/v1/keys/{key}/replace", {"overlap_s": 60})
    yield "key.replace", key
    await made(api, f"/v1/keys/{key}", method="DELETE")
    yield "key.revoke", key


async def _webhooks(api: Served, player: Player) -> AsyncIterator[Told]:
    wanted = {"url": "https://example.org/the-prompt", "events": ["run.*"]}
    webhook = (await made(api, "/v1/webhooks", wanted))["id"]
    yield "webhook.create", webhook
    await made(api, f"/v1/webhooks/{webhook}", {"disabled": True}, "PATCH")
    yield "webhook.change", webhook
    await made(api, f"/v1/webhooks/{webhook}/secret")
    yield "webhook.replace_secret", webhook
    await made(api, f"/v1/webhooks/{webhook}", method="DELETE")
    yield "webhook.delete", webhook


async def _guardrails(api: Served, player: Player) -> AsyncIterator[Told]:
    rule = {"kind": "pattern", "on": ["output"], "pattern": "what the prompt said"}
    await made(api, "/v1/guardrails/customers", {"rules": [rule]}, "PUT")
    yield "guardrail.set", "customers"
    await made(api, "/v1/guardrails/customers", method="DELETE")
    yield "guardrail.end", "customers"


async def _agents(api: Served, player: Player) -> AsyncIterator[Told]:
    await made(api, "/v1/agents", ASKS)
    yield "agent.create", "analyst"
    await made(api, "/v1/agents/analyst/versions", {"model": "sim:one", "system": "the prompt"})
    yield "agent.add_version", "analyst@2"
    await made(api, "/v1/agents/analyst/live", {"version": 2}, "PUT")
    yield "agent.set_live", "analyst"
    await made(api, "/v1/agents/analyst/runs_max", {"runs_max": 5}, "PUT")
    yield "agent.set_runs_max", "analyst"


async def _schedules(api: Served, player: Player) -> AsyncIterator[Told]:
    plan = {"cron": "@yearly", "run": {"agent": "analyst", "input": "the prompt"}}
    await made(api, "/v1/schedules", {"name": "nightly", **plan})
    yield "schedule.create", "nightly"
    await made(api, "/v1/schedules/nightly", {"cron": "@daily"}, "PATCH")
    yield "schedule.change", "nightly"
    for verb in ("pause", "resume"):
        await made(api, f"/v1/schedules/nightly/{verb}")
        yield f"schedule.{verb}", "nightly"
    await made(api, "/v1/schedules/nightly", method="DELETE")
    yield "schedule.delete", "nightly"


async def _issuers(api: Served, player: Player) -> AsyncIterator[Told]:
    first = (await made(api, "/v1/seals/rotate"))["data"][0]["issuer"]
    yield "seal.rotate", first
    yield "seal.rotate", (await made(api, "/v1/seals/rotate"))["data"][0]["issuer"]
    await made(api, f"/v1/seals/{first}", method="DELETE")
    yield "seal.revoke", first
    await made(api, "/v1/trust", {"issuer": ISSUER, "name": "staging"})
    yield "issuer.trust", ISSUER
    await made(api, f"/v1/trust/{ISSUER}", method="DELETE")
    yield "issuer.distrust", ISSUER


async def _stops(api: Served, player: Player) -> AsyncIterator[Told]:
    stop = (await made(api, "/v1/admin/stops", {"what": "user", "id": "mallory", "reason": "the reason"}))["id"]
    yield "stop.create", stop
    await made(api, f"/v1/admin/stops/{stop}", method="DELETE")
    yield "stop.lift", stop


async def waiting(api: Served, player: Player, *, call: bool = True, **spec: Any) -> str:
    """The question of a run that waits for an answer."""
    run_id = await api.start({"input": "the prompt", **spec})
    play = await player.take(run_id)
    play.asked()
    await play.commit()
    play.replied("", play.call())
    if not call:
        play.intended("/0.0")
        play.returned("/0.0", "the command's output")
    await play.commit(release="suspended")
    (wait,) = (await made(api, f"/v1/runs/{run_id}", method="GET"))["waits"]
    return wait["approval"]


async def _approvals(api: Served, player: Player) -> AsyncIterator[Told]:
    question = await waiting(api, player, policy={"otherwise": "ask"})
    body = {"decision": "edit", "arguments": {"command": "the command"}, "reason": "the reason"}
    await made(api, f"/v1/approvals/{question}", body)
    yield "approval.decide", question


async def _budgets(api: Served, player: Player) -> AsyncIterator[Told]:
    question = await waiting(api, player, call=False, priority=8, limits={"steps": 1, "on_exhaust": "suspend"})
    await made(api, f"/v1/approvals/{question}", {"decision": "extend", "limits": {"steps": 9, "usd": "1"}})
    yield "budget.raise", question


async def _pools(api: Served, player: Player) -> AsyncIterator[Told]:
    for path, subject in (("tenant", ""), ("users", ""), ("users/ann", "ann")):
        await made(api, f"/v1/budgets/{path}", {"usd": "9.5"}, "PUT")
        yield f"budget.set_{'user' if subject else path}", subject
        await made(api, f"/v1/budgets/{path}", {}, "PUT")
        yield f"budget.set_{'user' if subject else path}", subject


async def _moves(api: Served, player: Player) -> AsyncIterator[Told]:
    run_id = (await waiting(api, player, policy={"otherwise": "ask"}, priority=9)).partition(".")[0]
    export = await api.get(f"/v1/runs/{run_id}/continuation?files=false")
    assert export.status == 200, export.body
    yield "run.export", run_id
    fork = (await made(api, f"/v1/runs/{run_id}/fork", {"files": False}))["run_id"]
    yield "run.fork", fork
    await made(api, "/v1/trust", {"issuer": export.json["issuer"], "name": "acme"}, key=api.other)
    sent = {"data": export.body, "headers": {"Content-Type": "application/json"}}
    await made(api, "/v1/runs/import", key=api.other, **sent)


async def _deletions(api: Served, player: Player) -> AsyncIterator[Told]:
    run_id = await api.start({"input": "the prompt", "priority": 9})
    (claimed,) = await queue.claim(api.parts.database, player.id, 1)
    assert claimed.run_id == run_id
    await runs.quarantine(api.parts.database, player.id, (run_id, claimed.fence), UnknownFormat("Newer."))
    await made(api, f"/v1/runs/{run_id}/retry")
    yield "run.retry", run_id
    play = await player.take(run_id)
    await play.finish()
    await made(api, f"/v1/runs/{run_id}", method="DELETE")
    yield "run.delete", run_id
    session = (await made(api, "/v1/sessions", {}))["id"]
    await made(api, f"/v1/sessions/{session}/close")
    await made(api, f"/v1/sessions/{session}", method="DELETE")
    yield "session.delete", session
    await made(api, "/v1/agents/analyst/archive")
    yield "agent.archive", "analyst"
