"""What a tenant can own, and one call or more of every route with the names of it. The cross-tenant fuzz stands on it.

furnish    make one of everything in a tenant, runs in every state
nowhere    names that look the same and are of nothing
CALLS      what to send to the routes that take more than a path
same       two answers, without what is different in any two answers
"""

import io
import re
from typing import Any

import msgspec
from acting import ASKS, made, waiting
from played_worker import Player
from served_api import Reply, Served
from tests.loop import exported_runs
from tests.loop.exported_runs import ISSUER

from sojourn.api.app import served
from sojourn.api.route import Route
from sojourn.errors import UnknownFormat
from sojourn.store import queue, runs
from sojourn.store.db import Database
from sojourn.store.tenant import blobs

Names = dict[str, str]
PICTURE = b"\x89PNG of the first tenant, and of nobody else"
FOREIGN = exported_runs.Tree(exported_runs.Agent(name="one", models=("sim:one",)))
BINARY = {"Content-Type": "application/octet-stream"}
MODEL = {"model": "sim:one"}
PLAN = {"cron": "@yearly", "run": {"agent": "x-theirs", "input": "words of the first"}}
HOOK = {"webhook-id": "msg_1", "webhook-timestamp": "1", "webhook-signature": "v1,AAAA"}
SIZE = {"kind": "size", "on": ["input"], "chars_max": 1000}
MARK = "of the first"
"""What all texts of the first tenant hold."""
STATES = ("suspended", "queued", "delayed", "held", "completed", "cancelled", "quarantined", "running")

CALLS: dict[str, list[dict[str, Any]]] = {
    "POST /v1/runs": [
        {"json": {"input": "go", "agent": "{name}"}},
        {"json": {"input": "go", "agent": "{name}", "version": 1}},
        {"json": {"input": "go", **MODEL, "session": "{chat_id}"}},
        {"json": {"input": [{"type": "image", "blob": "{digest}"}], **MODEL}},
        {"json": {"input": "go", **MODEL, "tools": [{"name": "ask", "agent": "{name}"}]}},
        {"json": {"input": "once", **MODEL}, "headers": {"Idempotency-Key": "{once}"}},
        {"json": {"input": "twice", **MODEL}, "headers": {"Idempotency-Key": "{once}"}},
    ],
    "GET /v1/runs": [
        {"params": {"after": "{run_id}"}}, {"params": {"agent": "{name}"}}, {"params": {"session": "{chat_id}"}},
        {"params": {"user": "{user}"}}, {"params": {"schedule": "{name}"}}, {"params": {"status": "suspended"}},
    ],
    "GET /v1/dead_letters": [
        {}, {"params": {"after": "{run_id}"}}, {"params": {"agent": "{name}"}}, {"params": {"session": "{chat_id}"}},
        {"params": {"user": "{user}"}},
    ],
    "GET /v1/runs/{run_id}": [{}, {"headers": {"If-None-Match": '"1"'}}],
    "GET /v1/runs/{run_id}/events": [
        {}, {"params": {"after": "1"}}, {"headers": {"Accept": "text/event-stream"}},
        {"headers": {"Accept": "text/event-stream", "Last-Event-ID": "2"}},
    ],
    "GET /v1/runs/{run_id}/continuation": [{}, {"params": {"files": "false"}}],
    "GET /v1/agents": [{}, {"params": {"after": "the"}}],
    "GET /v1/schedules": [{}, {"params": {"after": "the"}}],
    "GET /v1/schedules/{name}/next": [{}],
    "GET /v1/keys": [{}, {"params": {"after": "1.{key_id}"}}],
    "GET /v1/sessions": [{}, {"params": {"after": "{session_id}"}}],
    "GET /v1/sessions/{session_id}/files": [{}, {"params": {"path": "data"}}],
    "GET /v1/approvals": [{}, {"params": {"run": "{run_id}"}}, {"params": {"kind": "hold", "after": "{run_id}"}}],
    "GET /v1/admin/stops": [{}, {"params": {"after": "{stop_id}", "all": "true"}}],
    "GET /v1/admin/stops/{stop_id}/runs": [{}, {"params": {"after": "{run_id}"}}],
    "GET /v1/usage": [{}, {"params": {"by": "user,agent,model,day"}}, {"params": {"format": "csv", "by": "user"}}],
    "GET /v1/me/usage": [{}, {"params": {"by": "user,day"}}, {"params": {"format": "csv", "by": "agent,model"}}],
    "GET /v1/audit": [
        {"params": {"user": "{user}"}}, {"params": {"action": "run.fork"}}, {"params": {"after": "1"}},
        {"params": {"format": "jsonl", "after": "10000"}},
    ],
    "POST /v1/runs/{run_id}/messages": [{"json": {"input": "hello"}}],
    "POST /v1/runs/{run_id}/signals": [{"json": {"name": "paid", "id": "e1"}}],
    "POST /v1/runs/{run_id}/tool_results": [{"json": {"call": "/0.0", "output": "done"}}],
    "POST /v1/hooks/{run_id}": [{"json": {"type": "paid", "data": 1}, "headers": HOOK, "key": ""}],
    "POST /v1/runs/{run_id}/fork": [{}, {"json": {"session": "same", "files": False}}],
    "POST /v1/runs/import": [{"data": "{export}", "headers": {"Content-Type": "application/json"}}],
    "POST /v1/trust": [{"json": {"issuer": "{issuer}", "name": "x"}}],
    "POST /v1/agents": [
        {"json": {"name": "{taken}", **MODEL}},
        {"json": {"name": "boss", **MODEL, "tools": [{"name": "ask", "agent": "{gone}"}]}},
    ],
    "GET /v1/agents/{name}/versions": [{}, {"params": {"after": "2"}}],
    "POST /v1/agents/{name}/versions": [{"json": MODEL}],
    "PUT /v1/agents/{name}/live": [{"json": {"version": 1}}],
    "PUT /v1/agents/{name}/runs_max": [{"json": {"runs_max": 1}}],
    "POST /v1/agents/{name}/run": [{"json": {"input": "go", "wait": 0}}],
    "POST /v1/schedules": [
        {"json": {"name": "{taken}", "cron": "@yearly", "run": {**MODEL, "input": "go"}}},
        {"json": {"name": "own", "cron": "@yearly", "run": {"agent": "{gone}", "input": "go"}}},
        {"json": {"name": "own", "cron": "@yearly", "run": {**MODEL, "input": "go", "session": "{chat_id}"}}},
    ],
    "PATCH /v1/schedules/{name}": [{"json": {"cron": "@daily"}}],
    "POST /v1/sessions": [{}],
    "PUT /v1/sessions/{session_id}/files/{path}": [{"data": b"mine", "headers": BINARY}],
    "POST /v1/blobs": [{"data": "{picture}", "headers": {"Content-Type": "text/plain"}}],
    "POST /v1/approvals/{approval_id}": [
        {"json": {"decision": "approve"}}, {"json": {"decision": "reject", "rev": 1}},
        {"json": {"decision": "extend", "limits": {"steps": 9}}},
    ],
    "POST /v1/webhooks": [{"json": {"url": "https://example.org/x"}}],
    "PATCH /v1/webhooks/{webhook_id}": [{"json": {"disabled": True}}],
    "GET /v1/webhooks/{webhook_id}/deliveries": [{}, {"params": {"after": "{delivery_id}", "state": "waiting"}}],
    "POST /v1/webhooks/{webhook_id}/retry": [{}, {"json": {"deliveries": ["{delivery_id}"]}}],
    "PUT /v1/guardrails/{name}": [{"json": {"rules": [SIZE]}}],
    "POST /v1/guardrails/test": [{"json": {"text": "go"}}, {"json": {"text": "secret", "on": "output"}}],
    "GET /v1/alerts": [{}, {"params": {"all": "true", "after": "{alert_id}"}}],
    "GET /v1/budgets": [{}, {"params": {"user": "{user}"}}, {"params": {"after": "{user}", "limit": "1"}}],
    "PUT /v1/budgets/tenant": [{"json": {"tokens": 10**9}}],
    "PUT /v1/budgets/users": [{"json": {"tokens": 10**9}}],
    "PUT /v1/budgets/users/{user}": [{"json": {"tokens": 10**9}}],
    "POST /v1/keys": [{"json": {"name": "x", "user": "{user}"}}],
    "POST /v1/admin/stops": [
        {"json": {"what": what, "id": named, "mode": "hold"}}
        for what, named in (
            ("run", "{run_id}"), ("session", "{chat_id}"), ("agent", "{gone}"), ("user", "{user}"),
            ("tenant", "{tenant}"),
        )
    ],
}  # fmt: skip
"""By route; where the route has nothing but a path, it needs no entry."""
EXCEPT = {"GET /metrics": "it counts all tenants, for operators"}


ALERT = """
insert into alert (tenant, id, kind, what, value, bound, detail, opened_at)
values ('acme', $1, 'queue', 'tenant', 1, 1, $2, now())
"""
SPENT = """
with held as (
    insert into reservation (tenant, run_id, call, user_id, day, held_tokens)
    values ('acme', $1, '/#1@1', $2, (now() at time zone 'UTC')::date, 5)
), spent as (
    insert into day_account (tenant, day, user_id, usd_micros) values ('acme', (now() at time zone 'UTC')::date, $2, 7)
)
insert into day_wait (tenant, run_id, wait, user_id, usd_micros, tokens) values ('acme', $3, 'w', $2, 1, 1)
"""


async def furnish(api: Served, player: Player) -> Names:
    """Make one of everything in the first tenant; a run of each state is named by `run_id:STATE`."""
    await made(api, "/v1/agents", {**ASKS, "name": "x-theirs", "system": f"words {MARK}"})
    for name in ("x-another", "x-claimed"):
        await made(api, "/v1/agents", {**ASKS, "name": name})
    names = await _runs(api, player)
    names |= {"name": "x-theirs", "gone": "x-another", "taken": "x-claimed", "version": "1", "user": f"ann {MARK}"}
    session = (await made(api, "/v1/sessions", {}))["id"]
    files = f"/v1/sessions/{session}/files/data/a.csv"
    assert (await api.call("PUT", files, data=io.BytesIO(MARK.encode()))).status == 201
    for name in ("x-theirs", "x-claimed"):
        await made(api, "/v1/schedules", {**PLAN, "name": name})
    await made(api, "/v1/schedules/x-theirs/run")
    key = await made(api, "/v1/keys", {"name": f"key {MARK}", "user": names["user"]})
    await made(api, "/v1/trust", {"issuer": ISSUER, "name": f"issuer {MARK}"})
    elsewhere = exported_runs.sealed(exported_runs.export(FOREIGN.state, FOREIGN.agents))
    await made(api, "/v1/runs/import", data=elsewhere, headers={"Content-Type": "application/json"})
    stop = await made(api, "/v1/admin/stops", {"what": "user", "id": "nobody", "reason": f"reason {MARK}"})
    webhook = await made(api, "/v1/webhooks", {"url": "https://example.org/x", "description": f"told {MARK}"})
    delivery = await made(api, f"/v1/webhooks/{webhook['id']}/test")
    rails = {
        "description": f"rules {MARK}",
        "rules": [SIZE, {"kind": "pattern", "on": ["output"], "pattern": "secret"}],
    }
    await made(api, "/v1/guardrails/x-theirs", rails, "PUT")
    async with api.parts.database.engine() as engine:
        await engine.execute(ALERT, alert := api.parts.new_id("alr"), f"alert {MARK}")
        await engine.execute(SPENT, names["run_id:running"], names["user"], names["run_id:suspended"])
    await made(api, "/v1/budgets/users", {"tokens": 10**9}, "PUT")
    blob = (await api.call("POST", "/v1/blobs", data=PICTURE, headers={"Content-Type": "image/png"})).json
    once = {"Idempotency-Key": f"key {MARK}"}
    for _ in range(2):
        await made(api, "/v1/runs", {"input": "once", **MODEL}, headers=once)
    export = await api.get(f"/v1/runs/{names['run_id']}/continuation?files=false")
    assert (await api.get(f"/v1/runs/{names['run_id']}/hook")).status == 200
    return names | {
        "key_id": key["id"], "stop_id": stop["id"], "digest": blob["digest"], "once": once["Idempotency-Key"],
        "issuer": export.json["issuer"], "export": export.body.decode(), "picture": PICTURE.decode("latin-1"),
        "webhook_id": webhook["id"], "delivery_id": delivery["id"], "alert_id": alert,
        "tenant": "acme", "session_id": session, "path": "data/a.csv",
    }  # fmt: skip


async def _runs(api: Served, player: Player) -> Names:
    """Runs of the first tenant in every state."""
    words = {"input": f"words {MARK}", "agent": "x-theirs", "model": None, "tools": []}
    question = await waiting(api, player, **words)
    found = {"suspended": question.partition(".")[0]}
    found["cancelled"] = await api.start(words)
    await made(api, f"/v1/runs/{found['cancelled']}/cancel", {"reason": MARK})
    play = await player.take(found["cancelled"])
    await play.commit(release="cancelled")
    found["completed"] = await api.start(words)
    await (await player.take(found["completed"])).finish(f"answer {MARK}")
    found["held"] = await api.start(words)
    await made(api, f"/v1/runs/{found['held']}/hold", {"reason": MARK})
    await (await player.take(found["held"])).commit(release="suspended")
    found["quarantined"] = await api.start(words)
    (claimed,) = await queue.claim(api.parts.database, player.id, 1)
    lease = (claimed.run_id, claimed.fence)
    assert await runs.quarantine(api.parts.database, player.id, lease, UnknownFormat(MARK))
    found["running"] = await api.start(words)
    play = await player.take(found["running"])
    play.asked()
    await play.commit()
    play.delta(f"delta {MARK}")
    found["delayed"] = (await made(api, "/v1/runs", {"input": MARK, **MODEL, "delay_s": 3600}))["run_id"]
    found["queued"] = await api.start(words)
    await made(api, f"/v1/runs/{found['delayed']}/messages", {"input": MARK})
    assert found.keys() == set(STATES)
    session = (await made(api, f"/v1/runs/{found['suspended']}", method="GET"))["session_id"]
    named = {f"run_id:{state}": run_id for state, run_id in found.items()}
    return {**named, "run_id": found["suspended"], "chat_id": session, "approval_id": question}


def nowhere(names: Names) -> Names:
    """Names as long as these, of what is nowhere."""
    made_up = {name: re.sub(r"\w(?=$|\.)", "x", value, count=1) for name, value in names.items() if "_id" in name}
    texts = {name: names[name].replace("first", "ninth") for name in ("user", "once", "picture")}
    issuer = "ed25519:" + "Q" * 43
    return names | made_up | texts | {
        "name": "x-nobody", "gone": "x-nothing", "taken": "x-unknown", "tenant": "zeta", "issuer": issuer,
        "digest": blobs.digest_of(texts["picture"].encode("latin-1")),
        "export": names["export"].replace(names["issuer"], issuer),
    }  # fmt: skip


def route_name(route: Route) -> str:
    return f"{route.method} {route.path}"


def calls(names: Names) -> list[tuple[str, str, str, dict[str, Any]]]:
    """Every call: its route, method, path, and the rest. Reads come first, deletions last. Fails where one lacks."""
    found = []
    for route in sorted(served(), key=lambda one: (one.method != "GET", one.method == "DELETE")):
        name = route_name(route)
        needs = (route.body is not None and not route.body_optional) or route.upload or route.query is not None
        assert name in CALLS or not needs, f"two_tenants.CALLS does not say what to send to {name}"
        if name in EXCEPT:
            continue
        for more in CALLS.get(name, [{}]):
            for state in STATES if "{run_id}" in route.path else STATES[:1]:
                of_state = names | {"run_id": names[f"run_id:{state}"]}
                found.append((name, route.method, route.path.format_map(of_state), filled(more, of_state)))
    return found


def filled(value: Any, names: Names) -> Any:
    """A call with names in their places."""
    match value:
        case dict():
            return {key: filled(item, names) for key, item in value.items()}
        case list():
            return [filled(item, names) for item in value]
        case str() if found := re.fullmatch(r"\{(\w+)\}", value):
            text = names[found[1]]
            return text.encode("latin-1") if found[1] in ("picture", "export") else text
    return value


def same(reply: Reply, names: Names) -> dict[str, Any]:
    """An answer, without its names, ids and times."""
    told = sorted({value for name, value in names.items() if name not in ("tenant", "version")}, key=len, reverse=True)

    def bare(text: str) -> str:
        for value in told:
            text = text.replace(value, "<name>").replace(msgspec.json.encode(value).decode()[1:-1], "<name>")
        for pattern in (
            r"(run|ses|key|stp|msg|whk|alr|req)_[0-9A-Za-z]{16,40}(\.[\w-]+)?", r"(sj|whsec)_[\w+/=-]{5,}",
            r"sha256:[0-9a-f]{64}",
            r"ed25519:[\w-]{43}", r"\d{4}-\d\d-\d\dT\d\d:\d\d:[\d.]+(Z|\+00:00)", r'"(rival|third)"', r'"[0-9a-f]{64}"',
        ):  # fmt: skip
            text = re.sub(pattern, "<any>", text)
        return text

    headers = {name: bare(value) for name, value in reply.headers.items() if name not in ("X-Request-Id", "Date")}
    if reply.status < 300:
        headers.pop("Content-Length", None)  # times are written without zeros at their end
    return {"status": reply.status, "headers": headers, "body": bare(reply.body.decode("latin-1"))}


ROWS = """
select coalesce(md5(string_agg(t::text, '|' order by t::text)), '') from {0} t where {1} = $1
"""


async def rows(database: Database, tenant: str) -> dict[str, str]:
    """A digest over all rows of a tenant, by table."""
    async with database.migrator() as owner:
        every = await tables(owner)
        return {table: await owner.fetchval(ROWS.format(table, column), tenant) for table, column in every}


async def tables(owner: Any) -> list[tuple[str, str]]:
    """The tables that hold tenants' rows, with the column that says whose, opened to the owner's eyes.

    One by one, so that no lock is waited for while another is held.
    """
    found = await owner.fetch(
        "select c.relname, c.relforcerowsecurity as forced from pg_class c join pg_attribute a on a.attrelid = c.oid"
        " where c.relkind = 'r' and c.relnamespace = 'public'::regnamespace and a.attname = 'tenant' order by 1"
    )
    every = [(row["relname"], "tenant", row["forced"]) for row in found] + [("tenant", "id", True)]
    for table, _, forced in every:
        if forced:
            await owner.execute(f"alter table {table} no force row level security")
    return [(table, column) for table, column, _ in every]
