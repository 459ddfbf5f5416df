"""Allow, ask or deny: what happens to a tool call before anything runs.

The machine asks it for every call, and again for every edit. The rule: the first rule that fits decides, and what no
rule names falls to `otherwise`. A condition on an argument that is not there does not hold, so write what is allowed
and let the rest be asked.
"""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

from msgspec import Meta

from sojourn.loop.messages import Plain

CONDITIONS_MAX, WILDCARDS_MAX, CHOICES_MAX, PATTERNS_CHARS_MAX = 500, 1000, 10_000, 100_000
"""Of one policy, which is gone through for every call: each wildcard may look at the whole of a long argument."""

Verdict = Literal["allow", "ask", "deny"]
OnExpire = Literal["keep", "reject", "fail", "resume", "escalate"]
Scalar = str | int | float | bool | None


class Condition(Plain, frozen=True, kw_only=True):
    """What one argument must be like; all that is said must hold, and something must be said."""

    argument: Annotated[str, Meta(min_length=1, max_length=200, examples=["customer.country"])]
    """The name of the argument; a dot goes into an object, a number into a list."""
    like: Annotated[str, Meta(max_length=500)] | None = None
    """Shell wildcards over the whole of a text, with case."""
    one_of: tuple[Scalar, ...] | None = None
    at_most: float | None = None
    at_least: float | None = None

    def holds(self, args: Mapping[str, Any]) -> bool:
        """Whether the arguments are like this."""
        found, value = _find(args, self.argument)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return (
            found
            and (self.like, self.one_of, self.at_most, self.at_least) != (None, None, None, None)
            and (self.like is None or (isinstance(value, str) and fnmatchcase(value, self.like)))
            and (self.one_of is None or any(_same(value, one) for one in self.one_of))
            and (self.at_most is None or (number and value <= self.at_most))
            and (self.at_least is None or (number and value >= self.at_least))
        )


class Asking(Plain, frozen=True, kw_only=True):
    """How a question is put to people."""

    need: Annotated[int, Meta(ge=1, le=20)] = 1
    """So many different people must approve."""
    approvers: Annotated[tuple[str, ...], Meta(max_length=50)] = ()
    """The users who may answer (shell wildcards); empty: everybody whose key may decide."""
    exclude_initiator: bool = False
    """The user that the run acts for may not answer."""
    expires_s: Annotated[float, Meta(gt=0, le=31_536_000)] | None = None
    on_expire: OnExpire = "reject"
    escalate_to: Annotated[tuple[str, ...], Meta(max_length=50)] = ()
    """Who is asked next, for as long again, where `on_expire` is "escalate"; then the call is rejected."""

    def may(self, user: str) -> bool:
        """Whether the question is for this user."""
        return not self.approvers or any(fnmatchcase(user, pattern) for pattern in self.approvers)


class Rule(Plain, frozen=True):
    """A verdict for the tools whose name fits the pattern `tool` (shell wildcards), where every condition holds."""

    tool: str
    verdict: Verdict
    reason: str = ""
    when: tuple[Condition, ...] = ()
    ask: Asking | None = None


class Policy(Plain, frozen=True):
    """The rules of an agent version, first fit first."""

    rules: tuple[Rule, ...] = ()
    otherwise: Verdict = "allow"
    ask: Asking = Asking()
    """How questions are put, where the rule does not say it."""
    barrier: bool = False
    """No call of a step runs before every question of that step is answered."""
    outward: Verdict = "ask"
    """What becomes of a call that sends outward, in a frame that has read what is private and what is untrusted."""
    loop_guard: bool = True
    """Whether an agent that goes round in circles is told so once, and then stopped for a person to look."""


class Gate(Plain, frozen=True):
    """What the policy said about one call, and why."""

    verdict: Verdict
    reason: str = ""
    ask: Asking | None = None


def gate(policy: Policy, tool: str, args: Mapping[str, Any]) -> Gate:
    """Judge a call of `tool` with these arguments."""
    for rule in policy.rules:
        if fnmatchcase(tool, rule.tool) and all(condition.holds(args) for condition in rule.when):
            reason = rule.reason or f"the policy says {rule.verdict} for {rule.tool}"
            return Gate(rule.verdict, reason, (rule.ask or policy.ask) if rule.verdict == "ask" else None)
    return Gate(policy.otherwise, "", policy.ask if policy.otherwise == "ask" else None)


def heavy(policy: Policy) -> bool:
    """Whether judging a call by the policy could keep a worker from its other runs."""
    conditions = [condition for rule in policy.rules for condition in rule.when]
    askings = [policy.ask, *(rule.ask for rule in policy.rules if rule.ask is not None)]
    patterns = [condition.like or "" for condition in conditions] + [rule.tool for rule in policy.rules]
    patterns += [pattern for asking in askings for pattern in (*asking.approvers, *asking.escalate_to)]
    return (
        len(policy.rules) + len(conditions) > CONDITIONS_MAX
        or sum(pattern.count(mark) for pattern in patterns for mark in "*?[") > WILDCARDS_MAX
        or sum(map(len, patterns)) > PATTERNS_CHARS_MAX
        or sum(len(condition.one_of or ()) for condition in conditions) > CHOICES_MAX
    )


def _find(args: Any, path: str) -> tuple[bool, Any]:
    """The value at a dotted path, and whether there is one."""
    value = args
    for step in path.split("."):
        if isinstance(value, dict) and step in value:
            value = value[step]
        elif isinstance(value, list) and step.isascii() and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
        else:
            return False, None
    return True, value


def _same(value: Any, wanted: Scalar) -> bool:
    """Equality that does not take true for 1."""
    return value == wanted and isinstance(value, bool) == isinstance(wanted, bool)
