"""The rules of a tenant, made ready, and what they say of a text or a call. Pure.

`in_force` makes one Ruleset a tenant, and asks it. The rules: the strictest of all that fit wins; what is too long to
be looked at does not pass; and a guardrail that cannot be read refuses everything.
"""

from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, Literal, NamedTuple

import msgspec

from sojourn.guardrails.arguments import hosts, texts
from sojourn.guardrails.detectors import PERSONAL, Detector, Span, secrets, spans
from sojourn.guardrails.folding import folded
from sojourn.guardrails.policies.engine import NOWHERE, Absent, Asked, Engine, Origin
from sojourn.guardrails.rules import (
    Cedar,
    Hosts,
    Judge,
    On,
    Pattern,
    Personal,
    Rule,
    Secrets,
    Size,
    Then,
    Tools,
    compiled,
    decode,
)

TEXT_CHARS_MAX = 262_144
"""So much of a text is looked at; what comes after it does not pass."""
WORK_MAX = 1_000_000_000
"""Instructions of a pattern, times characters, for finding all of its places in one text; the rest is cut then."""
POLICIES_COST = 500
"""What policies cost a character, as patterns' instructions do."""

Verdict = Literal["pass", "redact", "ask", "refuse"]
STRICTNESS: tuple[Verdict, ...] = ("pass", "redact", "ask", "refuse")


class Named(NamedTuple):
    """A version of a guardrail, as it is kept."""

    name: str
    version: int
    spec: str
    operator: bool = False

    @property
    def label(self) -> str:
        """How it is told: name and version, and that it is the operator's."""
        return f"{'operator/' if self.operator else ''}{self.name}@{self.version}"


class Found(NamedTuple):
    """A rule that fits: which one, and what it wants."""

    guardrail: Named
    rule: int
    kind: str
    then: Verdict
    why: str = ""
    """Which of its policies decided, where it has some."""
    errors: tuple[str, ...] = ()
    """What is wrong with them; this may hold words of what was judged, and is for who tries them out."""

    @property
    def words(self) -> str:
        """Which rule it is, for people and models."""
        whose = "The operator's guardrail" if self.guardrail.operator else "The guardrail"
        kind = f"{self.kind}, {self.why}" if self.why else self.kind
        return f"{whose} {self.guardrail.name} (version {self.guardrail.version}, rule {self.rule}: {kind})"


class Judged(NamedTuple):
    """What the rules say. `text` is without what is redacted."""

    text: str
    found: tuple[Found, ...] = ()
    permits: tuple[Found, ...] = ()
    """Policies that permit it. They outweigh nothing."""

    @property
    def verdict(self) -> Verdict:
        return max((found.then for found in self.found), key=STRICTNESS.index, default="pass")

    @property
    def strictest(self) -> Found:
        """One of the rules that decided."""
        return next(found for found in self.found if found.then == self.verdict)


class _Text:
    """A text while all rules look at it; it is folded once, and not at all where no rule asks."""

    def __init__(self, whole: str) -> None:
        self.whole, self.seen = whole, whole[:TEXT_CHARS_MAX]

    @cached_property
    def folded(self) -> tuple[str, list[int]] | None:
        return folded(self.seen)


Finder = Callable[[_Text], Iterable[Span]]


class Asks(NamedTuple):
    """A rule that a model is asked for, and what is found where the text breaks its criteria."""

    found: Found
    rule: Judge


class _Ready(NamedTuple):
    """One rule, with what finds its places in a text; None where it is about calls."""

    found: Found
    on: tuple[On, ...]
    rule: Rule | None
    places: Finder | None
    cost: int


class Ruleset:
    """The guardrails in force for one tenant."""

    def __init__(self, guardrails: Iterable[Named] = (), engine: Engine | None = None) -> None:
        self._engine = engine or Absent()
        self.guardrails = tuple(sorted(guardrails, key=lambda one: (not one.operator, one.name)))
        self.versions = {one.label.rpartition("@")[0]: one.version for one in self.guardrails}
        self._rules = tuple(ready for one in self.guardrails for ready in _readied(one))
        self._on: frozenset[On] = frozenset(on for ready in self._rules for on in ready.on)

    def covers(self, on: On) -> bool:
        """Whether any rule is about this."""
        return on in self._on

    def judges(self, on: On) -> tuple[Asks, ...]:
        """The rules about this that nobody here can judge by: a model must be asked for each."""
        return tuple(
            Asks(ready.found, ready.rule) for ready in self._rules if on in ready.on and isinstance(ready.rule, Judge)
        )

    def cost(self, on: On) -> int:
        """What a character costs at most, in instructions."""
        return sum(ready.cost for ready in self._rules if on in ready.on)

    def text(self, on: On, text: str) -> Judged:
        """Judge what is said, or what came back."""
        found: list[Found] = []
        cuts: list[tuple[int, int, str]] = []
        seen = _Text(text)
        for ready in self._rules:
            if on in ready.on and (places := _places(ready, seen)):
                found.append(ready.found)
                cuts += [(start, end, ready.found.guardrail.name) for start, end in places]
        judged = Judged(text, tuple(found))
        return judged._replace(text=_redacted(text, cuts)) if judged.verdict == "redact" else judged

    def call(self, tool: str, args: str, *, effect: str = "", origin: Origin = NOWHERE) -> Judged:
        """Judge a call; arguments that are none pass, for nothing runs with them."""
        found = texts(args)
        if found is None:
            return Judged(args)
        text = _Text(found)
        asked = Asked(tool, args, effect, origin)
        rules = (ready for ready in self._rules if "tool_arguments" in ready.on)
        said = [one for ready in rules if (one := self._of_call(ready, text, asked)) is not None]
        permits = tuple(one for one in said if one.then == "pass")
        return Judged(args, tuple(one for one in said if one.then != "pass"), permits)

    def _of_call(self, ready: _Ready, text: _Text, asked: Asked) -> Found | None:
        if not isinstance(ready.rule, Cedar):
            return ready.found if _fits_call(ready, asked.tool, text) else None
        if len(asked.args) > TEXT_CHARS_MAX:
            return ready.found._replace(why="the arguments are too long to be looked at")
        then, why, errors = self._engine.decide(ready.rule.policies, asked)
        return ready.found._replace(then=then, why=why, errors=errors)


EMPTY = Ruleset()


# ---- making ready ----------------------------------------------------------------------------


def _readied(guardrail: Named) -> Iterator[_Ready]:
    try:
        rules = [(rule, *_finder(rule)) for rule in decode(guardrail.spec).rules]
    except msgspec.MsgspecError:
        everywhere: tuple[On, ...] = ("input", "output", "tool_arguments", "tool_result")
        yield _Ready(Found(guardrail, 0, "unreadable here", "refuse"), everywhere, None, lambda text: [(0, 1)], 0)
        return
    for number, (rule, places, cost) in enumerate(rules, 1):
        kind = str(rule.__struct_config__.tag)
        then: Then = "refuse" if isinstance(rule, Cedar) else rule.then
        yield _Ready(Found(guardrail, number, kind, then), rule.on, rule, places, cost)


def _finder(rule: Rule) -> tuple[Finder | None, int]:
    """What finds a rule's places in a text, and what a character costs it."""
    match rule:
        case Size(chars_max=most):
            return lambda text: [(most, len(text.whole))] if len(text.whole) > most else [], 0
        case Pattern(pattern=pattern):
            ready = compiled(pattern)
            finder = _bounded(ready) if rule.then == "redact" else _first(lambda text: spans(ready, text))
            return _both_ways(finder), int(ready.programsize)
        case Personal(find=kinds):
            return _detected([PERSONAL[kind] for kind in kinds], rule.then), 100 * len(kinds)
        case Secrets():
            return _detected([secrets], rule.then), 300
        case Cedar():
            return None, POLICIES_COST
        case Judge():
            return None, 0
        case _:
            return None, 10


def _detected(detectors: list[Detector], then: Then) -> Finder:
    def every(text: str) -> Iterator[Span]:
        return (span for detector in detectors for span in detector(text))

    return _both_ways(every if then == "redact" else _first(every))


def _first(finder: Callable[[str], Iterable[Span]]) -> Callable[[str], Iterable[Span]]:
    """One place is enough where nothing is cut."""
    return lambda text: [span for span, _ in zip(finder(text), range(1), strict=False)]


def _bounded(ready: Any) -> Callable[[str], Iterable[Span]]:
    """Every place of a pattern while the work is bounded, and then all that is left: each place looks at it again."""

    def find(text: str) -> Iterator[Span]:
        work = 0
        for start, end in spans(ready, text):
            work += int(ready.programsize) * (len(text) - start)
            if work > WORK_MAX:
                yield start, len(text)
                return
            yield start, end

    return find


def _both_ways(finder: Callable[[str], Iterable[Span]]) -> Finder:
    """Look at the text as it is and as it reads, and give places of the text as it is."""

    def find(text: _Text) -> Iterator[Span]:
        yield from finder(text.seen)
        if text.folded is not None:
            letters, places = text.folded
            yield from ((places[start], places[end - 1] + 1) for start, end in finder(letters) if end > start)
        if len(text.whole) > TEXT_CHARS_MAX:
            yield TEXT_CHARS_MAX, len(text.whole)

    return find


# ---- judging ---------------------------------------------------------------------------------


def _places(ready: _Ready, text: _Text) -> list[Span]:
    return [(start, end) for start, end in ready.places(text) if end > start] if ready.places and text.whole else []


def _fits_call(ready: _Ready, tool: str, text: _Text) -> bool:
    match ready.rule:
        case Tools(allow=allowed):
            return not any(fnmatchcase(tool, one) for one in allowed)
        case Hosts(allow=allowed):
            named = hosts(text.seen)
            return len(text.whole) > TEXT_CHARS_MAX or any(not _allowed(host, allowed) for host in named)
    return ready.places is not None and (ready.rule is None or bool(_places(ready, text)))


def _allowed(host: str, allowed: Iterable[str]) -> bool:
    return bool(host) and any(fnmatchcase(host, one) for one in allowed)


def _redacted(text: str, cuts: list[tuple[int, int, str]]) -> str:
    """The text with a mark in the place of everything that is cut."""
    pieces: list[str] = []
    reached = marked = 0
    for start, end, name in sorted(cuts):
        if start > reached or not marked:
            pieces += [text[reached:start], f"[redacted by {name}]"]
            marked = 1
        reached = max(reached, end)
    return "".join((*pieces, text[reached:]))
