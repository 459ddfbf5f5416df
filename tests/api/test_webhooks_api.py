"""/v1/webhooks and /v1/alerts as callers meet them."""

from typing import Any

import pytest
from served_api import Served, serve

from sojourn.store.db import Database

URL = "https://example.org/hook"


async def made(api: Served, **more: Any) -> dict[str, Any]:
    reply = await api.post("/v1/webhooks", {"url": URL, **more})
    assert reply.status == 201, reply.body
    found: dict[str, Any] = reply.json
    return found


async def test_a_webhook_is_made_shown_changed_and_deleted(api: Served) -> None:
    hook = await made(api, events=["run.failed", "run.failed"], description="pager")
    path = f"/v1/webhooks/{hook['id']}"
    assert hook["secret"].startswith("whsec_") and len(hook["secret"]) == 50
    shown = (await api.get(path)).json
    assert {**shown, "secret": hook["secret"]} == hook
    assert (shown["events"], shown["made_by"], shown["disabled_at"]) == (["run.failed"], "local", None)
    changed = await api.call("PATCH", path, json={"url": URL + "/2", "events": ["*"], "disabled": True})
    assert (changed.json["url"], changed.json["events"]) == (URL + "/2", ["*"])
    assert changed.json["disabled_code"] == "caller" and changed.json["disabled_at"]
    assert (await api.call("PATCH", path, json={"disabled": False})).json["disabled_at"] is None
    assert (await api.call("PATCH", path, json={})).json["url"] == URL + "/2"
    assert [one["id"] for one in (await api.get("/v1/webhooks")).json["data"]] == [hook["id"]]
    assert (await api.call("DELETE", path)).status == 204
    for method, rest in (("GET", ""), ("DELETE", ""), ("POST", "/test"), ("POST", "/retry"), ("GET", "/deliveries")):
        assert (await api.call(method, path + rest)).status == 404


async def test_every_webhook_has_a_secret_of_its_own(api: Served) -> None:
    assert (await made(api))["secret"] != (await made(api))["secret"]


async def test_a_secret_is_replaced_and_shown_once(api: Served) -> None:
    hook = await made(api)
    path = f"/v1/webhooks/{hook['id']}"
    reply = await api.post(f"{path}/secret", {"overlap_s": 3600})
    assert reply.status == 200 and reply.json["secret"] not in (hook["secret"], "")
    shown = (await api.get(path)).json
    assert "secret" not in shown
    assert (hook["former_until"], bool(shown["former_until"])) == (None, True)
    assert (await api.post(f"{path}/secret", {"overlap_s": -1})).pointer == "/overlap_s"
    assert (await api.post("/v1/webhooks/whk_" + "0" * 26 + "/secret")).status == 404
    assert (await api.post(f"{path}/secret", key=await api.key_with("webhooks:read"))).status == 403


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("url", "http://example.org"),
        ("url", "https://user:word@example.org"),
        ("url", "file:///etc/passwd"),
        ("events", []),
        ("events", ["run.started"]),
        ("events", ["*"] * 33),
        ("description", "x" * 201),
    ],
)
async def test_a_field_that_cannot_be_accepted_is_pointed_at(api: Served, field: str, value: Any) -> None:
    hook = await made(api)
    for method, path in (("POST", "/v1/webhooks"), ("PATCH", f"/v1/webhooks/{hook['id']}")):
        reply = await api.call(method, path, json={"url": URL, field: value})
        assert (reply.status, reply.code) == (422, "request.invalid")
        assert reply.pointer.startswith(f"/{field}")


async def test_an_operator_may_allow_plain_http(database: Database) -> None:
    async with serve(database, webhooks_http_allowed=True) as api:
        await made(api, url="http://example.org")


async def test_a_test_message_waits_for_a_worker_and_is_listed(api: Served) -> None:
    path = f"/v1/webhooks/{(await made(api))['id']}"
    sent = [(await api.post(f"{path}/test")).json for _ in range(3)]
    assert {(one["type"], one["state"], one["attempts"]) for one in sent} == {("webhook.test", "waiting", 0)}
    first = (await api.get(f"{path}/deliveries", params={"limit": 2})).json
    rest = (await api.get(f"{path}/deliveries", params={"limit": 2, "after": first["next"]})).json
    assert (first["has_more"], rest["has_more"]) == (True, False)
    assert [one["id"] for one in first["data"] + rest["data"]] == [one["id"] for one in reversed(sent)]
    assert (await api.get(f"{path}/deliveries", params={"state": "dead"})).json["data"] == []
    assert (await api.post(f"{path}/retry", {"deliveries": [sent[0]["id"]]})).json == {"retried": 0}, "it waits anyway"
    assert (await api.post(f"{path}/retry", {"deliveries": ["msg_" + "0" * 20]})).json == {"retried": 0}


async def test_deliveries_of_another_webhook_are_not_sent_again(api: Served) -> None:
    one, other = [f"/v1/webhooks/{(await made(api))['id']}" for _ in range(2)]
    sent = (await api.post(f"{one}/test")).json["id"]
    await api.call("PATCH", one, json={"disabled": True})
    await api.call("PATCH", one, json={"disabled": False})
    assert (await api.post(f"{other}/retry", {"deliveries": [sent]})).json == {"retried": 0}
    assert (await api.post(f"{one}/retry")).json == {"retried": 1}


async def test_alerts_are_listed_while_they_are_open_and_who_has_seen_one_is_shown(
    api: Served, database: Database
) -> None:
    async with database.engine() as engine:
        for closed in ("null", "now()"):
            await engine.execute(
                "insert into alert (tenant, id, kind, what, subject, value, bound, detail, opened_at, closed_at)"
                f" values ('acme', fresh_id('alr'), 'errors', 'agent', 'clerk', 5, 6, '5 of 6', now(), {closed})"
            )
    (alert,) = (await api.get("/v1/alerts")).json["data"]
    assert (alert["kind"], alert["subject"], alert["acked_at"]) == ("errors", "clerk", None)
    page = (await api.get("/v1/alerts", params={"all": "true", "limit": 1})).json
    assert page["has_more"] and page["data"][0]["closed_at"]
    for _ in range(2):
        seen = await api.post(f"/v1/alerts/{alert['id']}/ack")
        assert (seen.status, seen.json["acked_by"]) == (200, "local")
    assert (await api.get("/v1/alerts")).json["data"] == [seen.json], "it is still so"
    assert 'sojourn_alerts_open{kind="errors"} 1' in (await api.get("/metrics")).body.decode()
