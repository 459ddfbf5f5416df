"""Allow, ask or deny: what happens to a tool call before anything runs.

The machine asks it for every call. The rule: the first rule that fits decides, and what no rule names falls to
`otherwise`.
"""

from fnmatch import fnmatchcase
from typing import Literal

from sojourn.loop.messages import Plain

Verdict = Literal["allow", "ask", "deny"]


class Rule(Plain, frozen=True):
    """A verdict for the tools whose name fits the pattern `tool` (shell wildcards)."""

    tool: str
    verdict: Verdict
    reason: str = ""


class Policy(Plain, frozen=True):
    """The rules of an agent version, first fit first."""

    rules: tuple[Rule, ...] = ()
    otherwise: Verdict = "allow"


class Gate(Plain, frozen=True):
    """What the policy said about one call, and why."""

    verdict: Verdict
    reason: str = ""


def gate(policy: Policy, tool: str) -> Gate:
    """Judge a call of `tool`."""
    for rule in policy.rules:
        if fnmatchcase(tool, rule.tool):
            return Gate(rule.verdict, rule.reason or f"the policy says {rule.verdict} for {rule.tool}")
    return Gate(policy.otherwise)
