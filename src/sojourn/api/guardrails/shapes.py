"""What callers send to and get from /v1/guardrails. The routes use them, and the reference is made from them."""

from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from sojourn.errors import TooNew
from sojourn.guardrails.judging import TEXT_CHARS_MAX, Asks, Found, Judged
from sojourn.guardrails.rules import On, Rule, decode
from sojourn.loop.agent import EffectClass
from sojourn.store.guardrails import Version

WHY_CHARS_MAX = 1_000


class GuardrailSeen(msgspec.Struct, frozen=True, kw_only=True):
    """A version of a guardrail."""

    name: str
    version: int
    ended: bool
    """This version took it out of force."""
    description: str
    rules: tuple[Rule, ...]
    made_by: str
    made_at: datetime


class OperatorsGuardrail(msgspec.Struct, frozen=True, kw_only=True):
    """A guardrail of the operator, which holds beside your own; you cannot change it."""

    name: str
    version: int


class GuardrailsPage(msgspec.Struct, frozen=True, kw_only=True):
    """All guardrails in force, by name."""

    data: tuple[GuardrailSeen, ...]
    operator: tuple[OperatorsGuardrail, ...]
    has_more: bool = False


class VersionsPage(msgspec.Struct, frozen=True, kw_only=True):
    """All versions of a guardrail, newest first."""

    data: tuple[GuardrailSeen, ...]
    has_more: bool = False


class TryText(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A text to judge. It is not kept."""

    text: Annotated[str, Meta(max_length=TEXT_CHARS_MAX)]
    """What is said, or came back; the arguments as JSON text, where `on` is tool_arguments."""
    on: On = "input"
    tool: Annotated[str, Meta(max_length=200)] = ""
    """The tool that is called, where `on` is tool_arguments; what follows is for Cedar policies."""
    effect: EffectClass = "at_most_once"
    """The class of effects that the tool declares."""
    user: Annotated[str, Meta(max_length=200)] = ""
    """Whose run it is; yours if not said."""
    agent: Annotated[str, Meta(max_length=200)] = ""
    """The agent that calls it, by name."""
    depth: Annotated[int, Meta(ge=0, le=1000)] = 0
    """Frames above the agent's."""


class FoundSeen(msgspec.Struct, frozen=True, kw_only=True):
    """A rule that fits."""

    guardrail: str
    version: int
    operator: bool
    rule: int
    """Which rule of it, from 1."""
    kind: str
    then: str
    """What it wants; pass for policies that permit the call."""
    why: str
    """Which policies decided, and what is wrong with those that could not be evaluated."""


class JudgeSeen(msgspec.Struct, frozen=True, kw_only=True):
    """A judge that would be asked."""

    guardrail: str
    version: int
    operator: bool
    rule: int
    """Which rule of it, from 1."""
    then: str
    """What it wants where the text breaks its criteria, or where it does not say."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What the guardrails in force say of a text."""

    verdict: str
    """pass, redact, ask or refuse."""
    text: str | None
    """What would go on; null where nothing would."""
    found: tuple[FoundSeen, ...]
    judges: tuple[JudgeSeen, ...]
    """Judges that would be asked, too; none is where the text is refused without them."""


def seen(row: Version) -> GuardrailSeen:
    """Show a version. Raises TooNew for one that a newer release wrote."""
    try:
        spec = decode(row.spec) if row.spec is not None else None
    except msgspec.MsgspecError:
        raise TooNew from None
    return GuardrailSeen(
        name=row.name,
        version=row.version,
        ended=spec is None,
        description=spec.description if spec else "",
        rules=spec.rules if spec else (),
        made_by=row.made_by,
        made_at=row.made_at,
    )


def verdict(judged: Judged, judges: tuple[Asks, ...]) -> Verdict:
    """Show what was said of a text, and who else would be asked."""
    text = None if judged.verdict == "refuse" else judged.text
    left = judges if text else ()
    return Verdict(
        verdict=judged.verdict,
        text=text,
        found=tuple(map(_found, (*judged.found, *judged.permits))),
        judges=tuple(_judge(one.found) for one in left),
    )


def _judge(one: Found) -> JudgeSeen:
    rail = one.guardrail
    return JudgeSeen(guardrail=rail.name, version=rail.version, operator=rail.operator, rule=one.rule, then=one.then)


def _found(one: Found) -> FoundSeen:
    rail = one.guardrail
    return FoundSeen(
        guardrail=rail.name,
        version=rail.version,
        operator=rail.operator,
        rule=one.rule,
        kind=one.kind,
        then=one.then,
        why=": ".join((one.why, *one.errors))[:WHY_CHARS_MAX],
    )
