"""Calls decided by Cedar: what policies say, what arguments may pretend to be, and what its parser is never given."""

import json
import subprocess
import sys
from typing import Any

import msgspec
import pytest

from sojourn.errors import Invalid
from sojourn.guardrails.judging import TEXT_CHARS_MAX, Judged, Named, Ruleset
from sojourn.guardrails.policies import cedar
from sojourn.guardrails.policies.bounds import (
    LIKE_CHARS_MAX,
    NESTED_MAX,
    POLICIES_CHARS_MAX,
    STEPS_MAX,
    statements,
)
from sojourn.guardrails.policies.engine import Absent, Origin
from sojourn.guardrails.policies.mapping import CONTEXT_CHARS_MAX, STRING_CHARS_MAX
from sojourn.guardrails.rules import Guardrail, check, encode

REFUNDS = """
@id("small")
permit(principal, action == Action::"refund", resource) when { context.arguments.amount <= 100 };
@id("no-gifts")
forbid(principal, action == Action::"refund", resource)
when { context.arguments has reason && context.arguments.reason like "*gift*" };
"""
HERE = Origin("acme", "ann", "clerk", 0)
ANY = "permit(principal, action, resource);"


def named(policies: str, name: str = "g", *, operator: bool = False) -> Named:
    rule = {"kind": "cedar", "on": ["tool_arguments"], "policies": policies}
    return Named(name, 1, encode(msgspec.convert({"rules": [rule]}, Guardrail)), operator)


def judged(policies: str, args: Any, tool: str = "refund", **origin: Any) -> Judged:
    text = args if isinstance(args, str) else json.dumps(args)
    return Ruleset([named(policies)], cedar.installed()).call(tool, text, effect="read", origin=HERE._replace(**origin))


def when(condition: str, args: Any, tool: str = "refund", **origin: Any) -> str:
    """What is said of a call that is permitted where the condition holds."""
    return judged(f"permit(principal, action, resource) when {{ {condition} }};", args, tool, **origin).verdict


# ---- what policies say -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "tool", "verdict", "why"),
    [
        ({"amount": 5}, "refund", "pass", "permitted by small"),
        ({"amount": 500}, "refund", "ask", "no policy decides"),
        ({"amount": 5}, "ship", "ask", "no policy decides"),
        ({"amount": 5, "reason": "a gift"}, "refund", "refuse", "forbidden by no-gifts"),
        ({"amount": "5"}, "refund", "refuse", "policy0 cannot be evaluated"),
        ({}, "refund", "refuse", "policy0 cannot be evaluated"),
        ({"amount": 5, "reason": 7}, "refund", "refuse", "policy1 cannot be evaluated"),
    ],
)
def test_forbidden_is_refused_unknown_asks_and_broken_is_refused(args: Any, tool: str, verdict: str, why: str) -> None:
    said = judged(REFUNDS, args, tool)
    assert (said.verdict, [found.why for found in (*said.found, *said.permits)]) == (verdict, [why])


def test_an_error_outweighs_a_permit_and_is_told_without_the_arguments() -> None:
    said = judged(
        ANY + "forbid(principal, action, resource) when { ip(context.arguments.host).isLoopback() };",
        {"host": "x-secret"},
    )
    assert said.verdict == "refuse"
    assert "policy1 cannot be evaluated" in said.strictest.words
    assert "secret" not in said.strictest.words
    assert "secret" in said.strictest.errors[0], "whoever tries it out needs it"


def test_policies_know_who_calls_what_from_where() -> None:
    assert when('principal == User::"acme/ann" && principal in Tenant::"acme"', {}) == "pass"
    assert when('action == Action::"refund" && resource == Agent::"clerk" && resource in Tenant::"acme"', {}) == "pass"
    assert when('context.effect == "read" && context.depth == 2', {}, depth=2) == "pass"
    assert when('principal in Tenant::"acme"', {}, tenant="rival") == "ask"
    assert when('principal == User::"acme/ann"', {}, tenant="acme/ann", user="") == "ask"


def test_nobody_weakens_what_another_guardrail_says() -> None:
    no = "forbid(principal, action, resource) when { context.arguments has x };"
    both = Ruleset([named(no + ANY, operator=True), named(ANY)], cedar.installed())
    assert both.call("t", '{"x": 1}', origin=HERE).verdict == "refuse"
    assert both.call("t", "{}", origin=HERE).verdict == "pass"
    doubtful = Ruleset(
        [named(ANY, operator=True), named('permit(principal, action == Action::"u", resource);')], cedar.installed()
    )
    assert doubtful.call("t", "{}", origin=HERE).verdict == "ask"
    assert doubtful.call("u", "{}", origin=HERE).verdict == "pass"


# ---- what arguments may pretend to be --------------------------------------------------------


@pytest.mark.parametrize(
    "name", ['x") || true; //', 'a"b', "a\\", "line\nbreak", "ünï-cödé", "\u202eevil", 'Action::"refund"', ""]
)  # fmt: skip
def test_a_name_is_an_id_whatever_stands_in_it(name: str) -> None:
    assert when('action == Action::"refund"', {}, tool=name) == "ask"
    assert when('resource == Agent::"clerk" || principal == User::"acme/ann"', {}, agent=name, user=name) == "ask"
    quoted = name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    assert when(f'action == Action::"{quoted}"', {}, tool=name) == "pass"


def test_an_argument_is_nothing_but_an_argument() -> None:
    assert when("context.depth == 0", {"depth": 5}) == "pass"
    assert when('context.arguments["näme \\" of"] == "ü"', {'näme " of': "ü"}) == "pass"
    admin = {"__entity": {"type": "User", "id": "admin"}}
    for escape in (admin, {**admin, "x": 1}, {"__extn": {"fn": "ip", "arg": "::1"}}, {"__expr": "1"}):
        for args in (escape, {"who": escape}, {"who": [escape]}, {"who": {"he": escape}}):
            said = judged(ANY, args)
            assert (said.verdict, "reserved" in said.strictest.why) == ("refuse", True), "it cannot be told"


@pytest.mark.parametrize(
    ("value", "condition"),
    [
        (5.0, "x == 5"),
        (9223372036854775807, "x == 9223372036854775807"),
        (-0.1, 'x == decimal("-0.1")'),
        (0.0001, 'x == decimal("0.0001")'),
        (922337203685477.5, 'x == decimal("922337203685477.5")'),
        (1e-5, 'x == JSON::"1e-05"'),
        (1e300, 'x == JSON::"1e+300"'),
        (2**63, 'x == JSON::"9223372036854775808"'),
        (922337203685477.6 * 10, "x == 9223372036854776"),
        (922337203685478.5, 'x == JSON::"922337203685478.5"'),
        (1e19, 'x == JSON::"1e+19"'),
        (None, 'x == JSON::"null"'),
        (["a", "a", "b"], 'x == ["b", "a"]'),
        ([None, {"y": None}], 'x.contains({y: JSON::"null"})'),
        ("x" * STRING_CHARS_MAX, 'x like "*x"'),
    ],
)
def test_a_value_is_told_exactly(value: Any, condition: str) -> None:
    assert when(f"context.arguments.{condition}".replace("(x", "(context.arguments.x"), {"x": value}) == "pass"


@pytest.mark.parametrize("value", [None, 1e-5, 1e300, 2**63, -(2**70), "x" * (STRING_CHARS_MAX + 1)])
@pytest.mark.parametrize("look", ["x > 5", 'x like "*a*"', "x.contains(1)", "x.y", "x == 1 + context.arguments.x"])
def test_what_cedar_cannot_hold_is_never_looked_past(value: Any, look: str) -> None:
    args = {"x": value}
    assert when(f"context.arguments.{look}", args) == "refuse"
    assert (
        judged(ANY + f"forbid(principal, action, resource) when {{ context.arguments.{look} }};", args).verdict
        == "refuse"
    )
    assert judged(ANY, args).verdict == "pass", "a policy that does not look at it decides all the same"


def test_long_texts_are_equal_only_to_themselves() -> None:
    long, other = "x" * 10_000, "x" * 9_999 + "y"
    assert when("context.arguments.a == context.arguments.b", {"a": long, "b": long}) == "pass"
    assert when("context.arguments.a == context.arguments.b", {"a": long, "b": other}) == "ask"


def test_what_is_too_large_is_refused_and_what_is_no_call_is_let_be() -> None:
    assert judged(ANY, {"x": "y" * (TEXT_CHARS_MAX - 100)}).verdict == "pass", "one long text is told by its digest"
    assert judged(ANY, {"x": "y" * TEXT_CHARS_MAX}).verdict == "refuse"
    assert judged(ANY, {"x": [0] * CONTEXT_CHARS_MAX}).verdict == "refuse"
    deep: Any = 1
    for _ in range(15):
        deep = [deep]
    assert judged(ANY, {"x": deep}).verdict == "pass"
    assert judged(ANY, {"x": [deep]}).verdict == "refuse"
    for nothing in ('{"x": 1, "x": 2}', '{"x": "\\ud800"}', "[]", '{"x": NaN}'):
        assert judged("forbid(principal, action, resource);", nothing).verdict == "pass", "no tool runs with it"


# ---- what is taken ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policies", "why"),
    [
        (ANY + "\n\n  permit(principal, action, resource) when { 1 + };", "policy1, which begins at line 3: unexpec"),
        ("permt(principal, action, resource);", "invalid policy effect"),
        ("permit(principal, action, resource)", "unexpected end of input"),
        ("permit(principal == ?principal, action, resource);", "slot"),
        ("// nothing", "no policy"),
        (ANY.replace(")", "]"), "`]` closes nothing"),
        ('permit(principal, action, resource) when { "a };', "line 1: a string does not end"),
        (f"permit(principal, action, resource) when {{ {'(' * NESTED_MAX}true{')' * NESTED_MAX} }};", "nested"),
        (f"permit(principal, action, resource) when {{ context has {'a.' * (STEPS_MAX + 1)}aa }};", "dots"),
        ("permit(principal, action, resource) when {" + "if true then true else " * (STEPS_MAX + 1) + "true};", "ifs"),
        (f'permit(principal, action, resource) when {{ context.x like "{"a" * LIKE_CHARS_MAX}" }};', "like"),
    ],
)  # fmt: skip
def test_what_is_not_taken_is_told_with_its_place(policies: str, why: str) -> None:
    rule = {"kind": "cedar", "on": ["tool_arguments"], "policies": policies}
    guardrail = msgspec.convert({"rules": [{"kind": "secrets", "on": ["input"]}, rule]}, Guardrail)
    with pytest.raises(Invalid) as refused:
        check(guardrail, cedar.installed())
    assert (refused.value.pointer, why in str(refused.value)) == ("/rules/1/policies", True), str(refused.value)
    assert judged(policies, {}).verdict == "refuse", "nor is it where it stands already"


def test_a_guardrail_has_one_text_of_policies_of_bounded_length() -> None:
    rule = {"kind": "cedar", "on": ["tool_arguments"], "policies": ANY}
    with pytest.raises(Invalid) as refused:
        check(msgspec.convert({"rules": [rule, rule]}, Guardrail), cedar.installed())
    assert refused.value.pointer == "/rules/1"
    for wrong in ({"policies": ANY + " " * POLICIES_CHARS_MAX}, {"then": "ask"}, {"on": ["output"]}, {"policies": ""}):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert({"rules": [{**rule, **wrong}]}, Guardrail)


@pytest.mark.parametrize("hidden", ['"\\""', '")"', "// )\n", "// ) \r", '"// "', '"a\nb"'])
def test_brackets_in_strings_and_comments_hide_no_depth(hidden: str) -> None:
    deep = f"permit(principal, action, resource) when {{ {f'( {hidden} == ' * 400}1{')' * 400} }};"
    with pytest.raises(ValueError, match="nested"):
        statements(deep)
    assert len(statements(f"permit(principal, action, resource) when {{ {hidden} }};")) == 2


@pytest.mark.parametrize("opening", ["(", "[", "{a:", "!(", "ip(", "if true then true else ", "1 + ", "context["])
def test_the_deepest_policy_that_is_taken_ends_no_process_with_a_small_stack(opening: str) -> None:
    closing = {"(": ")", "[": "]", "{": "}"}
    times = next(n for n in (4_000, 2_000, 1_000, STEPS_MAX, NESTED_MAX - 1) if _taken(opening, n))
    text = _policy(opening, times, "".join(closing.get(one, "") for one in opening))
    code = (
        "import sys, threading, cedarpy\n"
        "threading.stack_size(1 << 20)\n"
        "def work():\n"
        "    try:\n"
        "        ready = cedarpy.PolicySet.from_str(sys.argv[1])\n"
        "        asked = {name: {'type': 'T', 'id': 'x'} for name in ('principal', 'action', 'resource')}\n"
        "        cedarpy.is_authorized(asked, ready, '[]')\n"
        "    except ValueError: pass\n"
        "thread = threading.Thread(target=work); thread.start(); thread.join()\n"
    )
    assert subprocess.run([sys.executable, "-c", code, text], timeout=100).returncode == 0


def _policy(opening: str, times: int, closing: str) -> str:
    return f"permit(principal, action, resource) when {{ {opening * times}1{closing * times} }};"


def _taken(opening: str, times: int) -> bool:
    closing = {"(": ")", "[": "]", "{": "}"}
    try:
        return bool(statements(_policy(opening, times, "".join(closing.get(one, "") for one in opening))))
    except ValueError:
        return False


# ---- where it is not installed ---------------------------------------------------------------


def test_a_server_without_cedarpy_takes_no_policies_and_a_worker_without_refuses() -> None:
    code = (
        "import sys; sys.modules['cedarpy'] = None\n"
        "from sojourn.guardrails.policies import cedar\n"
        "from sojourn.guardrails.in_force import InForce\n"
        "print(type(InForce(None, None).engine).__name__)\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert told.stdout == "Absent\n", told.stderr
    rule = {"kind": "cedar", "on": ["tool_arguments"], "policies": ANY}
    with pytest.raises(Invalid, match=r"pip install 'sojourn\[cedar\]'"):
        check(msgspec.convert({"rules": [rule]}, Guardrail), Absent())
    said = Ruleset([named(ANY)], Absent()).call("refund", "{}")
    assert (said.verdict, "pip install" in said.strictest.words) == ("refuse", True)


def test_policies_are_parsed_once_however_often_they_are_asked() -> None:
    engine = cedar.Cedar()
    rules = Ruleset([named(ANY)], engine)
    for _ in range(50):
        assert rules.call("refund", "{}", origin=HERE).verdict == "pass"
    kept = engine._parsed.cache_info()
    assert (kept.misses, kept.maxsize) == (1, cedar.PARSED_MAX)
