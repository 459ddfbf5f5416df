"""Judges over HTTP: which are taken, what is tried without them, and how a call to one is shown."""

from datetime import timedelta
from typing import Any

from served_api import Served
from test_guardrails_api import put, rule
from tests.loop.run_kit import T0

from sojourn.api.events.kinds import GuardrailConsulted
from sojourn.api.events.public import project
from sojourn.api.runs.trace import Book
from sojourn.loop import events as ev
from sojourn.loop.budget import Bill
from sojourn.loop.messages import Usage


def judge(*on: str, **more: Any) -> dict[str, Any]:
    return rule("judge", *on, **{"model": "openai:small", "criteria": "It is rude."} | more)


async def test_a_judge_whose_model_is_not_known_here_is_refused(api: Served) -> None:
    body = {"rules": [judge("output", model="nobody:small")]}
    reply = await api.call("PUT", "/v1/guardrails/g", json=body)
    assert (reply.status, reply.code, reply.pointer) == (422, "model.unknown", "/rules/0/model")
    assert "write provider:model with a provider of this server" in reply.json["detail"]
    made = await put(api, judge("output"))
    assert made["rules"] == [judge("output")]


async def test_a_text_is_tried_without_the_judges_and_names_them(api: Served) -> None:
    await put(api, judge("output", "tool_result"), rule("secrets", "output"), judge("tool_arguments", then="ask"))
    tried = (await api.post("/v1/guardrails/test", {"text": "You fool.", "on": "output"})).json
    named = {"guardrail": "g", "version": 1, "operator": False, "rule": 1, "then": "refuse"}
    assert (tried["verdict"], tried["found"], tried["judges"]) == ("pass", [], [named])
    secret = {"text": "the password is 9f8Xk2LmQ7pRt5Vw1ZcB", "on": "output"}
    assert (await api.post("/v1/guardrails/test", secret)).json["judges"] == [], "it would not be asked any more"
    call = {"text": "{}", "on": "tool_arguments", "tool": "shell"}
    assert (await api.post("/v1/guardrails/test", call)).json["judges"] == [{**named, "rule": 3, "then": "ask"}]
    assert (await api.post("/v1/guardrails/test", {"text": "You fool."})).json["judges"] == []


async def test_what_is_said_to_a_run_does_not_wait_for_a_judge(api: Served) -> None:
    await put(api, judge("input"))
    assert (await api.post("/v1/runs", {"model": "sim:one", "input": "You fool."})).status == 202


def consulted(**more: Any) -> ev.Consulted:
    told: dict[str, Any] = {
        "frame": "/",
        "step": 0,
        "on": "output",
        "guardrail": "g",
        "version": 2,
        "rule": 1,
        "key": "k",
    }
    return ev.Consulted(at=T0 + timedelta(seconds=3), began_at=T0 + timedelta(seconds=1), **told | more)


BILL = Bill(model="openai:small", usage=Usage(input=30, output=2), usd_micros=9)


def test_the_trace_has_a_judge_in_the_step_of_what_it_judged() -> None:
    book = Book()
    for event in (consulted(verdict="passes", bill=BILL), consulted(verdict="failed", error="judge.slow")):
        book.take(event)
    step, first, second = book.close()
    assert (step.kind, first.parent, first.kind, first.name, first.status) == ("step", "/#0", "judge", "g@2", "ok")
    assert first.usage is not None and first.cost is not None
    assert (first.usage.output_tokens, first.cost.usd, first.ended_at) == (2, "0.000009", T0 + timedelta(seconds=3))
    assert second.error is not None
    assert (second.status, second.error.code, second.cost) == ("failed", "judge.slow", None)


def test_the_event_says_what_was_asked_and_not_what_it_was_about() -> None:
    (seen,) = project("run_1", None, 7, consulted(verdict="breaks", call="/0.0", bill=BILL))
    assert isinstance(seen, GuardrailConsulted) and seen.cost is not None
    shown = {name: getattr(seen, name) for name in ("verdict", "model", "error", "call", "guardrail", "version")}
    assert shown == {
        "verdict": "breaks", "model": "openai:small", "error": None, "call": "/0.0", "guardrail": "g", "version": 2,
    }  # fmt: skip
    assert seen.cost.usd == "0.000009"
