"""Cedar policies over HTTP: what is not taken is told with its place, and a call is tried out with all its reasons."""

from typing import Any

from served_api import Served

from sojourn.guardrails.policies.engine import Absent

SMALL = """
@id("small")
permit(principal == User::"acme/ann", action == Action::"refund", resource == Agent::"clerk")
when { context.arguments.amount <= 100 && context.effect == "read" && context.depth == 1 };
"""


def rule(policies: str) -> dict[str, Any]:
    return {"rules": [{"kind": "cedar", "on": ["tool_arguments"], "policies": policies}]}


async def test_policies_that_are_none_are_refused_with_cedars_words_and_their_place(api: Served) -> None:
    reply = await api.call("PUT", "/v1/guardrails/g", json=rule(SMALL + "\nforbid(principal, action);"))
    assert (reply.status, reply.code, reply.pointer) == (422, "request.invalid", "/rules/0/policies")
    assert "policy1, which begins at line 6" in reply.json["detail"]
    assert (await api.get("/v1/guardrails")).json["data"] == []


async def test_a_bomb_for_the_parser_is_refused_and_the_server_goes_on(api: Served) -> None:
    for bomb in ("(" * 4_000, "{a:" * 2_600, "[" * 8_000, "!(" * 4_000):
        reply = await api.call(
            "PUT", "/v1/guardrails/g", json=rule(f"permit(principal, action, resource) when {{{bomb}")
        )
        assert reply.code == "request.invalid"
    assert (await api.get("/v1/guardrails")).status == 200


async def test_a_call_is_tried_out_with_the_reasons_for_what_is_decided(api: Served) -> None:
    made = await api.call("PUT", "/v1/guardrails/g", json=rule(SMALL))
    assert (made.status, made.json["rules"]) == (201, rule(SMALL)["rules"])

    async def tried(text: str, **more: Any) -> tuple[Any, ...]:
        asked = {
            "on": "tool_arguments",
            "tool": "refund",
            "effect": "read",
            "agent": "clerk",
            "user": "ann",
            "depth": 1,
        }
        reply = await api.post("/v1/guardrails/test", {"text": text, **asked, **more})
        assert reply.status == 200, reply.body
        (found,) = reply.json["found"]
        return reply.json["verdict"], found["then"], found["why"]

    assert await tried('{"amount": 5}') == ("pass", "pass", "permitted by small")
    for other in ({"agent": "x"}, {"depth": 0}, {"effect": "idempotent"}, {"user": "bob"}, {"tool": "ship"}):
        assert await tried('{"amount": 5}', **other) == ("ask", "ask", "no policy decides")
    verdict, _, why = await tried('{"amount": 5.5}')
    assert (verdict, "policy0 cannot be evaluated" in why, "expected long, got decimal" in why) == (
        "refuse",
        True,
        True,
    )


async def test_a_server_without_cedarpy_says_what_to_install(api: Served, monkeypatch: Any) -> None:
    monkeypatch.setattr(api.parts.guardrails, "engine", Absent())
    reply = await api.call("PUT", "/v1/guardrails/g", json=rule(SMALL))
    assert (reply.code, "pip install 'sojourn[cedar]'" in reply.json["detail"]) == ("request.invalid", True)
