"""Questions: how they are put, what may be answered, and what the person is shown.

`calls.py`, `pauses.py` and `budgets.py` ask with it. The rule: what is shown is rendered from what would run, with
everything that could lie about it (control and direction marks) made visible.
"""

import json
import unicodedata
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from msgspec.structs import replace

from sojourn.loop.agent import digest
from sojourn.loop.continuation import Call, CallState, Decision, Frame, Wait, WaitKind
from sojourn.loop.policy import Asking
from sojourn.loop.step.taints import why

ARGS_DEPTH_MAX = 64
"""How deep arguments may be nested: what is read here must be readable everywhere, however deep the caller stands."""
DISPLAY_MAX = 4000
"""Characters of the arguments that are shown with the question; the whole can be read beside it."""

ALLOWED: Mapping[WaitKind, tuple[Decision, ...]] = {
    "approval": ("approve", "reject", "edit", "answer"),
    "answer": ("answer", "reject"),
    "client_tool": ("answer", "reject"),
    "auth": ("approve", "reject"),
    "timer": ("approve", "reject"),
    "event": ("answer", "reject"),
    "budget": ("extend", "reject"),
    "turns": ("approve", "reject"),
    "seconds": ("approve", "reject"),
    "outcome_unknown": ("retry", "mark_done", "cancel"),
    "hold": ("approve",),
    "loop_guard": ("approve", "reject"),
    "day_budget": ("approve", "reject"),
}


def ask(call: Call, kind: WaitKind, *, frame: str, at: datetime, title: str) -> Call:
    """Open a question about a call, bound to the tool and the arguments that would run."""
    wait = question(kind, f"{call.uid}?{call.waits}", frame=frame, at=at, title=title)
    wait = replace(bind(wait, call), call=call.uid, ask=_asking(call, kind))
    state: CallState = "unknown" if kind == "outcome_unknown" else "waiting"
    return replace(call, state=state, waits=call.waits + 1, wait=_until(wait, at))


def bind(wait: Wait, call: Call) -> Wait:
    """The question, bound to what would run, and shown as that."""
    return replace(wait, display=shown(arguments(call)), args_digest=bound(call), tool_digest=call.tool.digest)


def may_run(frame: Frame, call: Call) -> str:
    """The title of the question whether a call may run, and why that is asked of one that sends."""
    title = f"May {frame.agent.name} run {call.tool.name}?"
    return visible(f"{title} {why(frame)}") if call.sending == "asked" else title


def _asking(call: Call, kind: WaitKind) -> Asking:
    """To whom the question goes; whether a call runs again is for those who could let it run."""
    policy = asked(call)
    if kind == "approval":
        return policy
    if kind != "outcome_unknown":
        return Asking()
    approvers = (*policy.approvers, *policy.escalate_to) if policy.approvers else ()
    return Asking(approvers=approvers, exclude_initiator=policy.exclude_initiator)


def ask_frame(frame: Frame, kind: WaitKind, *, at: datetime, title: str, about: str | None = None) -> Frame:
    """Open a question about a whole frame: it makes no model call before the answer."""
    id = f"{frame.id.rstrip('/')}/?{frame.waits}"  # a sub-agent's frame has the name of its call, whose waits end in ?n
    wait = question(kind, id, frame=frame.id, at=at, title=title)
    return replace(frame, wait=replace(wait, about=about), waits=frame.waits + 1)


def question(kind: WaitKind, id: str, *, frame: str, at: datetime, title: str) -> Wait:
    """A new wait."""
    return Wait(id=id, kind=kind, frame=frame, title=title, allowed=ALLOWED[kind], created_at=at)


def escalated(call: Call, wait: Wait, at: datetime) -> Call:
    """The same question to the next ones, once."""
    asking = replace(wait.ask, approvers=wait.ask.escalate_to, escalate_to=(), on_expire="reject")
    return anew(call, _until(replace(wait, ask=asking, votes=()), at), at)


def anew(call: Call, wait: Wait, at: datetime) -> Call:
    """Put a question that has changed as a new one, so that an answer to the old one does not answer it."""
    return replace(call, waits=call.waits + 1, wait=replace(wait, id=f"{call.uid}?{call.waits}", created_at=at))


def _until(wait: Wait, at: datetime) -> Wait:
    if wait.ask.expires_s is None:
        return wait
    allowed = wait.allowed if "extend" in wait.allowed else (*wait.allowed, "extend")
    return replace(wait, allowed=allowed, expires_at=at + timedelta(seconds=wait.ask.expires_s))


# ---- what a question is about ----------------------------------------------------------------


def asked(call: Call) -> Asking:
    """How the policy wants the call to be asked about."""
    return (call.gate.ask if call.gate is not None else None) or Asking()


def arguments(call: Call) -> str:
    """The arguments that would run, as raw JSON text."""
    return call.args if call.args_effective is None else call.args_effective


def bound(call: Call) -> str:
    """Name the arguments that would run by their content."""
    return digest(arguments(call))


def parsed(args: str) -> dict[str, Any]:
    """Arguments as an object.

    Raises ValueError or RecursionError for anything else: a name given twice, half a character, a depth bomb.
    """
    value = json.loads(args, object_pairs_hook=_distinct, parse_constant=_no_number)
    if not isinstance(value, dict):
        raise ValueError(f"a JSON object is needed, not {type(value).__name__}")  # noqa: TRY004
    if args.count("[") + args.count("{") > ARGS_DEPTH_MAX and _depth(value) > ARGS_DEPTH_MAX:
        raise ValueError(f"it is nested more than {ARGS_DEPTH_MAX} deep")
    if "\\u" in args or not args.isascii():
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level := [one for one in level if isinstance(one, dict | list)]:
        depth += 1
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
    return depth


def shown(args: str) -> str:
    """Arguments for the eye: laid out, every mark that cannot be seen spelled out, cut where they are too long."""
    text = json.dumps(parsed(args), indent=2, ensure_ascii=False)
    clear = visible(text[:DISPLAY_MAX])
    return clear if len(text) <= DISPLAY_MAX else f"{clear}\n[{len(text) - DISPLAY_MAX} more characters]"


def visible(text: str) -> str:
    """The text with every mark spelled out that cannot be seen, or looks like a space and is none."""
    if text.isascii() and text.replace("\n", " ").isprintable():
        return text
    return "".join(f"\\u{ord(one):04x}" if _unseen(one) else one for one in text)


def _unseen(character: str) -> bool:
    marked = unicodedata.category(character).startswith(("C", "Z")) and character not in " \n"
    return marked or any(first <= character <= last for first, last in _BLANK)


_BLANK = (
    ("\u034f", "\u034f"), ("\u115f", "\u1160"), ("\u17b4", "\u17b5"), ("\u180b", "\u180f"), ("\u2800", "\u2800"),
    ("\u3164", "\u3164"), ("\ufe00", "\ufe0f"), ("\uffa0", "\uffa0"), ("\U000e0100", "\U000e01ef"),
)  # fmt: skip
"""Letters and marks by their category that leave no ink (Default_Ignorable_Code_Point), and the empty Braille cell."""


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name is given twice")
    return value


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
