"""`sojourn webhooks` and `sojourn alerts`."""

from typing import Any

from console_script import Console
from scripted_api import AT, ScriptedApi, page

HOOK: dict[str, Any] = {
    "id": "whk_1", "url": "https://example.org/hook", "events": ["run.failed", "alert.*"], "description": "",
    "made_by": "ann", "created_at": AT, "disabled_at": None, "disabled_code": None, "failures": 0,
    "failing_since": None,
}  # fmt: skip
SENT: dict[str, Any] = {
    "id": "msg_1", "webhook_id": "whk_1", "type": "webhook.test", "state": "waiting", "created_at": AT, "next_at": AT,
    "attempts": 0, "attempted_at": None, "delivered_at": None, "status": None, "error": None,
}  # fmt: skip
ALERT: dict[str, Any] = {
    "id": "alr_1", "kind": "errors", "what": "agent", "subject": "clerk\x1b[2J", "value": 5, "bound": 6,
    "detail": "5 of 6 runs of the last hour failed", "opened_at": AT, "closed_at": None, "acked_at": None,
    "acked_by": None,
}  # fmt: skip


async def test_a_secret_stands_alone_on_standard_output(sojourn: Console, api: ScriptedApi):
    api.answers["POST /v1/webhooks"] = {**HOOK, "secret": "whsec_abc"}
    said = await sojourn("webhooks", "add", HOOK["url"], "--event", "run.failed", "--event", "alert.*")
    assert (said.code, said.out) == (0, "whsec_abc\n")
    assert "whk_1" in said.err and "only time" in said.err and "sojourn webhooks test whk_1" in said.err
    (asked,) = api.asked("POST /v1/webhooks")
    assert asked.json == {"url": HOOK["url"], "description": "", "events": ["run.failed", "alert.*"]}
    assert "idempotency-key" not in {name.lower() for name in asked.headers}, "the secret would be remembered"
    assert (await sojourn("webhooks", "add", HOOK["url"], "--json")).json["secret"] == "whsec_abc"


async def test_a_webhooks_secret_is_replaced_and_printed_alone(sojourn: Console, api: ScriptedApi):
    api.answers["POST /v1/webhooks/whk_1/secret"] = {**HOOK, "secret": "whsec_new"}
    said = await sojourn("webhooks", "replace-secret", "whk_1", "--overlap", "2h")
    assert (said.code, said.out) == (0, "whsec_new\n")
    assert "only time" in said.err and "the former one too for 2h more" in said.err
    (asked,) = api.asked("POST /v1/webhooks/whk_1/secret")
    assert asked.json == {"overlap_s": 7200} and "Idempotency-Key" not in asked.headers
    assert (await sojourn("webhooks", "replace-secret", "whk_1", "--overlap", "soon")).code == 2


async def test_webhooks_are_listed_with_how_they_do_and_none_says_what_to_do(sojourn: Console, api: ScriptedApi):
    gone = {**HOOK, "id": "whk_2", "disabled_at": AT, "disabled_code": "gone"}
    failing = {**HOOK, "id": "whk_3", "failing_since": AT, "failures": 3}
    api.answers["GET /v1/webhooks"] = page(HOOK, gone, failing)
    lines = (await sojourn("webhooks", "list")).out.splitlines()
    for line, words in zip(lines[1:], ("active", "disabled (gone)", "failing since"), strict=True):
        assert words in line and line.endswith(HOOK["url"])
    api.answers["GET /v1/webhooks"] = page()
    assert "sojourn webhooks add URL" in (await sojourn("webhooks", "list")).err


async def test_a_test_waits_for_how_it_went(sojourn: Console, api: ScriptedApi):
    api.answers["POST /v1/webhooks/whk_1/test"] = SENT
    path = "GET /v1/webhooks/whk_1/deliveries"
    api.answers[path] = page({**SENT, "state": "delivered", "attempted_at": AT, "status": 204})
    said = await sojourn("webhooks", "test", "whk_1")
    assert (said.code, said.out) == (0, "msg_1 was taken with 204\n")
    api.answers[path] = page({**SENT, "attempted_at": AT, "error": "no connection"})
    said = await sojourn("webhooks", "test", "whk_1")
    assert said.code == 1 and "no connection" in said.out


async def test_deliveries_are_listed_and_sent_once_more(sojourn: Console, api: ScriptedApi):
    dead = {**SENT, "state": "dead", "next_at": None, "attempts": 8, "error": "answered 500"}
    api.answers["GET /v1/webhooks/whk_1/deliveries"] = page(dead)
    line = (await sojourn("webhooks", "deliveries", "whk_1", "--state", "dead")).out.splitlines()[1]
    assert line.split()[:2] == ["msg_1", "webhook.test"] and line.endswith("answered 500")
    assert api.asked("GET /v1/webhooks/whk_1/deliveries")[0].query["state"] == "dead"
    api.answers["GET /v1/webhooks/whk_1/deliveries"] = page()
    assert "sojourn webhooks test whk_1" in (await sojourn("webhooks", "deliveries", "whk_1")).err
    api.answers["POST /v1/webhooks/whk_1/retry"] = {"retried": 3}
    assert "3 are sent" in (await sojourn("webhooks", "retry", "whk_1")).out
    await sojourn("webhooks", "retry", "whk_1", "msg_1")
    assert [one.json for one in api.asked("POST /v1/webhooks/whk_1/retry")] == [{}, {"deliveries": ["msg_1"]}]


async def test_a_webhook_is_disabled_enabled_and_removed(sojourn: Console, api: ScriptedApi):
    api.answers["PATCH /v1/webhooks/whk_1"] = {**HOOK, "disabled_at": AT, "disabled_code": "caller"}
    assert "disabled (caller)" in (await sojourn("webhooks", "disable", "whk_1")).out
    api.answers["PATCH /v1/webhooks/whk_1"] = HOOK
    assert "is active" in (await sojourn("webhooks", "enable", "whk_1")).out
    assert [one.json["disabled"] for one in api.asked("PATCH /v1/webhooks/whk_1")] == [True, False]
    api.answers["DELETE /v1/webhooks/whk_1"] = None
    assert "removed" in (await sojourn("webhooks", "remove", "whk_1")).out
    assert (await sojourn("webhooks", "remove", "whk_2")).code == 5


async def test_alerts_are_listed_and_none_is_good_news(sojourn: Console, api: ScriptedApi):
    api.answers["GET /v1/alerts"] = page(
        ALERT, {**ALERT, "acked_at": AT, "acked_by": "ann"}, {**ALERT, "closed_at": AT}
    )
    said = await sojourn("alerts", "list", "--all")
    for line, state in zip(said.out.splitlines()[1:], ("open", "seen by ann", "over"), strict=True):
        assert state in line and line.endswith("failed") and "\x1b" not in line
    assert api.asked("GET /v1/alerts")[0].query["all"] == "true"
    api.answers["GET /v1/alerts"] = page()
    assert "Nothing is open" in (await sojourn("alerts", "list")).err
    api.answers["POST /v1/alerts/alr_1/ack"] = {**ALERT, "acked_at": AT, "acked_by": "ann"}
    assert "seen by ann" in (await sojourn("alerts", "ack", "alr_1")).out
