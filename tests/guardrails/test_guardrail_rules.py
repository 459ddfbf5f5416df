"""Which rules are taken: what could not be carried out in bounded time, or means nothing, is refused with a place."""

from typing import Any

import msgspec
import pytest

from sojourn.errors import Invalid
from sojourn.guardrails.rules import JUDGES_MAX, PROGRAM_MAX, RULES_MAX, Guardrail, check, decode, encode


def rail(*rules: dict[str, Any]) -> Guardrail:
    return msgspec.convert({"rules": rules}, Guardrail)


def pattern(text: str, **more: Any) -> dict[str, Any]:
    return {"kind": "pattern", "on": ["input"], "pattern": text, **more}


def judge(**more: Any) -> dict[str, Any]:
    return {"kind": "judge", "on": ["output"], "model": "sim:m", "criteria": "It is rude.", **more}


@pytest.mark.parametrize(
    ("rule", "pointer"),
    [
        (pattern("a(?=b)"), "/rules/0/pattern"),
        (pattern(r"(a)\1"), "/rules/0/pattern"),
        (pattern("("), "/rules/0/pattern"),
        (pattern("(?:[ab]{0,100}){8}c"), "/rules/0/pattern"),
        (pattern("((a{100}){100}){100}"), "/rules/0/pattern"),
        (pattern("x*"), "/rules/0/pattern"),
        (pattern("a", then="ask"), "/rules/0/then"),
        (pattern("a", on=["tool_arguments", "output"], then="ask"), "/rules/0/then"),
        (pattern("a", on=["tool_arguments"], then="redact"), "/rules/0/then"),
        ({"kind": "tools", "on": ["output"], "allow": ["x"]}, "/rules/0/on"),
        ({"kind": "hosts", "on": ["tool_arguments", "tool_result"], "allow": []}, "/rules/0/on"),
        (judge(then="redact"), "/rules/0/then"),
        (judge(then="ask", on=["input"]), "/rules/0/then"),
        (judge(model="away:m"), "/rules/0/model"),
    ],
)
def test_a_rule_that_cannot_be_carried_out_is_refused_with_its_place(rule: dict[str, Any], pointer: str) -> None:
    with pytest.raises(Invalid) as refused:
        check(rail(rule), providers=("sim",))
    assert refused.value.pointer == pointer


@pytest.mark.parametrize(
    "rules",
    [
        (),
        (pattern("a"),) * (RULES_MAX + 1),
        (pattern(""),),
        (pattern("a" * 1001),),
        ({"kind": "model", "on": ["input"]},),
        (judge(model="sim"),),
        (judge(model="sim:m\n"),),
        (judge(criteria=""),),
        (judge(criteria="x" * 4_001),),
        ({"kind": "secrets", "on": []},),
        ({"kind": "secrets", "on": ["system"]},),
        ({"kind": "secrets", "on": ["input"], "than": "ask"},),
        ({"kind": "size", "on": ["input"], "chars_max": 0},),
        ({"kind": "pii", "on": ["input"], "find": ["passport"]},),
    ],
)
def test_what_is_no_rule_is_not_read(rules: tuple[dict[str, Any], ...]) -> None:
    with pytest.raises(msgspec.ValidationError):
        rail(*rules)


def test_judges_are_few_and_their_models_known() -> None:
    check(rail(*[judge()] * JUDGES_MAX), providers=("sim",))
    with pytest.raises(Invalid, match=f"at most {JUDGES_MAX}"):
        check(rail(*[judge()] * (JUDGES_MAX + 1)), providers=("sim",))
    with pytest.raises(Invalid, match=r"'sim:m' is no model here: .* a provider of this server \(a, b\)") as refused:
        check(rail(judge()), providers=("b", "a"))
    assert refused.value.code == "model.unknown"


def test_patterns_are_bounded_together() -> None:
    one = pattern("[a-z]{40}x")
    check(rail(*[one] * 5))
    with pytest.raises(Invalid, match=str(PROGRAM_MAX)):
        check(rail(*[one] * RULES_MAX))


def test_the_same_rules_are_the_same_text() -> None:
    one = rail({"on": ["input"], "kind": "size", "chars_max": 5}, pattern("a"))
    other = rail({"chars_max": 5, "kind": "size", "on": ["input"], "then": "refuse"}, pattern("a"))
    assert encode(one) == encode(other)
    assert decode(encode(one)) == one
