"""Cedar as the engine, through cedarpy, which is an extra: a server without it has `Absent` in its place.

`in_force` and the operator's commands open it. The rule: policies are looked at by `bounds` every time before they are
parsed, whoever took them; forbidden, not decided and broken are three things, and an error in one policy breaks all.
"""

import re
from functools import lru_cache

from sojourn.guardrails.policies.bounds import statements
from sojourn.guardrails.policies.engine import Absent, Asked, Decision, Engine
from sojourn.guardrails.policies.mapping import entities, request

try:
    import cedarpy
except ImportError:
    cedarpy = None  # type: ignore[assignment]

PARSED_MAX = 128
"""Policies that are kept parsed, at most about 1 MB each."""
NAMED_MAX = 5
NAME_CHARS_MAX = 80
_POLICY = re.compile(r"policy `([^`]+)`")


def installed() -> Engine:
    """The engine of this process."""
    return Cedar() if cedarpy is not None else Absent()


class Cedar:
    """Decides calls by Cedar policies."""

    def __init__(self) -> None:
        self._parsed = lru_cache(PARSED_MAX)(_parsed)

    def check(self, policies: str) -> None:
        """Raise ValueError for what is not Cedar, or decides nothing."""
        self._parsed(policies)

    def decide(self, policies: str, asked: Asked) -> Decision:
        """Decide a call. Forbidden wins over permitted, and an error over both."""
        try:
            ready = self._parsed(policies)
        except ValueError as error:
            return Decision("refuse", "its policies cannot be read here", (str(error),))
        try:
            asking = request(asked)
        except ValueError as error:
            return Decision("refuse", str(error))
        said = cedarpy.is_authorized(asking, ready, entities(asked))
        names = [said.diagnostics.id_annotations_by_reason.get(one) or one for one in sorted(said.diagnostics.reasons)]
        if said.diagnostics.errors or said.decision is cedarpy.Decision.NoDecision:
            errors = tuple(said.diagnostics.errors)
            broken = sorted({found for error in errors for found in _POLICY.findall(error)[:1]})
            return Decision("refuse", f"{_listed(broken) or 'the request'} cannot be evaluated", errors)
        if said.decision is cedarpy.Decision.Allow:
            return Decision("pass", f"permitted by {_listed(names)}")
        return Decision("refuse", f"forbidden by {_listed(names)}") if names else Decision("ask", "no policy decides")


def _listed(names: list[str]) -> str:
    more = [f"{len(names) - NAMED_MAX} more"] if len(names) > NAMED_MAX else []
    return ", ".join([*(name[:NAME_CHARS_MAX] for name in names[:NAMED_MAX]), *more])


def _parsed(policies: str) -> "cedarpy.PolicySet":
    """The policies, ready. Raises ValueError."""
    parts = statements(policies)
    try:
        ready = cedarpy.PolicySet.from_str(policies)
    except ValueError as error:
        raise ValueError(f"{_place(parts)}{error}") from None
    if ready.templates():
        raise ValueError("a policy with a slot (?principal, ?resource) decides nothing: name what it is for")
    if not len(ready):
        raise ValueError("there is no policy in it")
    return ready


def _place(parts: list[str]) -> str:
    """Where the first policy stands that cannot be parsed by itself: Cedar says only what is wrong."""
    line = 1
    for number, part in enumerate(parts):
        begin = line + part[: len(part) - len(part.lstrip())].count("\n")
        try:
            cedarpy.PolicySet.from_str(part)
        except ValueError:
            return f"policy{number}, which begins at line {begin}: "
        line += part.count("\n")
    return ""
