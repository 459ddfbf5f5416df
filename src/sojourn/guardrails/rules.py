"""What a guardrail is: rules with a kind each, as a tenant or the operator writes them.

The API and the command line accept them, `judging` makes them ready. The rule: what is taken can be judged in bounded
time, so sizes are refused here and patterns are RE2, which does not backtrack.
"""

from collections.abc import Collection
from typing import Annotated, Any, Literal

import msgspec
import re2  # type: ignore[import-untyped]
from msgspec import Meta

from sojourn.errors import Invalid
from sojourn.guardrails.policies.bounds import POLICIES_CHARS_MAX
from sojourn.guardrails.policies.engine import Absent, Engine
from sojourn.loop.messages import Plain

RULES_MAX = 100
PATTERN_CHARS_MAX = 1_000
PROGRAM_MAX = 500
"""Instructions of all patterns of one guardrail: judging costs at most this, times the characters."""
MEMORY_BYTES = 1 << 20
"""What one pattern may take."""

JUDGES_MAX = 3
"""Judges of one guardrail: each is a call to a model for every text that it is about."""

On = Literal["input", "output", "tool_arguments", "tool_result"]
Then = Literal["refuse", "redact", "ask"]
Pii = Literal["email", "phone", "card", "iban"]
Wildcards = Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=200)], ...], Meta(max_length=RULES_MAX)]


class _Rule(Plain, frozen=True, kw_only=True, tag_field="kind"):
    """What all rules have."""

    on: Annotated[tuple[On, ...], Meta(min_length=1, max_length=4)]
    """What is judged."""
    then: Then = "refuse"
    """What becomes of it. A call is refused or asked about; anything else is refused or redacted."""


class Size(_Rule, frozen=True, kw_only=True, tag="size"):
    """Longer than so many characters; to redact it is to cut it."""

    chars_max: Annotated[int, Meta(ge=1)]


class Pattern(_Rule, frozen=True, kw_only=True, tag="pattern"):
    """Holds something that fits a regular expression (RE2)."""

    pattern: Annotated[str, Meta(min_length=1, max_length=PATTERN_CHARS_MAX)]


class Personal(_Rule, frozen=True, kw_only=True, tag="pii"):
    """Holds a person's data."""

    find: Annotated[tuple[Pii, ...], Meta(min_length=1, max_length=4)] = ("email", "phone", "card", "iban")


class Secrets(_Rule, frozen=True, kw_only=True, tag="secrets"):
    """Holds what looks like a key, a token or a password."""


class Tools(_Rule, frozen=True, kw_only=True, tag="tools"):
    """Calls a tool whose name fits none of these (shell wildcards)."""

    allow: Wildcards


class Hosts(_Rule, frozen=True, kw_only=True, tag="hosts"):
    """Names a URL whose host fits none of these (shell wildcards, lower case)."""

    allow: Wildcards


class Cedar(Plain, frozen=True, kw_only=True, tag_field="kind", tag="cedar"):
    """Calls that Cedar policies do not permit: what they forbid is refused, what none decides is asked about."""

    policies: Annotated[str, Meta(min_length=1, max_length=POLICIES_CHARS_MAX)]
    on: Annotated[tuple[Literal["tool_arguments"], ...], Meta(min_length=1, max_length=1)]


class Judge(_Rule, frozen=True, kw_only=True, tag="judge"):
    """Breaks these criteria, as a model says who is asked."""

    model: Annotated[str, Meta(pattern=r"^[^:\s]{1,64}:\S{1,200}(?![\s\S])")]
    """As `provider:model`."""
    criteria: Annotated[str, Meta(min_length=1, max_length=4_000)]
    """In words, what must not be."""


Rule = Size | Pattern | Personal | Secrets | Tools | Hosts | Cedar | Judge


class Guardrail(Plain, frozen=True, kw_only=True):
    """Rules under one name. Of all that fit the strictest wins, in whatever guardrail it stands."""

    description: Annotated[str, Meta(max_length=500)] = ""
    rules: Annotated[tuple[Rule, ...], Meta(min_length=1, max_length=RULES_MAX)]


def encode(guardrail: Guardrail) -> str:
    """The guardrail as it is kept: the same rules are the same text."""
    return msgspec.json.encode(guardrail, order="sorted").decode()


def decode(text: str) -> Guardrail:
    """The reverse of `encode`. Raises msgspec.ValidationError for what a newer release wrote."""
    return msgspec.json.decode(text, type=Guardrail)


def compiled(pattern: str) -> Any:
    """The pattern, ready. Raises re2.error."""
    options = re2.Options()
    options.max_mem, options.log_errors = MEMORY_BYTES, False
    return re2.compile(pattern, options)


def check(guardrail: Guardrail, engine: Engine | None = None, *, providers: Collection[str] = ()) -> None:
    """Raise Invalid, pointing at the field, for rules that could not be carried out.

    `engine` says which policies it takes, and `providers` are those whose models can be asked.
    """
    size = decided = 0
    if sum(isinstance(rule, Judge) for rule in guardrail.rules) > JUDGES_MAX:
        raise Invalid(f"A guardrail has at most {JUDGES_MAX} judges: put their criteria together.", pointer="/rules")
    for i, rule in enumerate(guardrail.rules):
        if isinstance(rule, Cedar):
            decided += 1
            _check_policies(rule, decided, engine or Absent(), f"/rules/{i}")
            continue
        _check_place(rule, f"/rules/{i}")
        if isinstance(rule, Judge):
            _check_judge(rule, f"/rules/{i}", providers)
        if isinstance(rule, Pattern):
            size += _program(rule.pattern, f"/rules/{i}/pattern")
            if size > PROGRAM_MAX:
                raise Invalid(
                    f"The patterns come to {size} instructions with this one, and a guardrail may have {PROGRAM_MAX}. "
                    "Make counted repetitions smaller.",
                    pointer=f"/rules/{i}/pattern",
                )


def _check_judge(rule: Judge, pointer: str, providers: Collection[str]) -> None:
    if rule.then == "redact":
        raise Invalid(
            "A judge says whether, and not where: refuse what breaks its criteria.", pointer=f"{pointer}/then"
        )
    if rule.model.partition(":")[0] not in providers:
        known = ", ".join(sorted(providers)) or "none: add one to the settings"
        raise Invalid(
            f"{rule.model!r} is no model here: write provider:model with a provider of this server ({known}).",
            code="model.unknown",
            pointer=f"{pointer}/model",
        )


def _check_place(rule: _Rule, pointer: str) -> None:
    of_call = "tool_arguments" in rule.on
    if isinstance(rule, Tools | Hosts) and rule.on != ("tool_arguments",):
        raise Invalid("Rules about tools and hosts are for tool_arguments alone.", pointer=f"{pointer}/on")
    if rule.then == "ask" and rule.on != ("tool_arguments",):
        raise Invalid("Only a call can be asked about: `ask` is for tool_arguments alone.", pointer=f"{pointer}/then")
    if rule.then == "redact" and of_call:
        raise Invalid("A call with holes would do something else: refuse it, or ask.", pointer=f"{pointer}/then")


def _check_policies(rule: Cedar, number: int, engine: Engine, pointer: str) -> None:
    if number > 1:
        raise Invalid("A guardrail has one rule of kind cedar: put all policies into that one.", pointer=pointer)
    try:
        engine.check(rule.policies)
    except ValueError as error:
        raise Invalid(f"These policies are not taken: {str(error)[:300]}.", pointer=f"{pointer}/policies") from None


def _program(pattern: str, pointer: str) -> int:
    try:
        ready = compiled(pattern)
    except re2.error as error:
        why = error.args[0] if error.args else ""
        text = why.decode(errors="replace") if isinstance(why, bytes) else str(why)
        raise Invalid(f"This is no regular expression that RE2 takes: {text[:200]}.", pointer=pointer) from None
    if ready.search("") is not None:
        raise Invalid("The pattern fits every text, the empty one too.", pointer=pointer)
    return int(ready.programsize)
