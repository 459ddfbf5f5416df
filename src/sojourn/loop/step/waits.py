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
}


def ask(call: Call, kind: WaitKind, *, frame: str, at: datetime, title: str) -> Call:
    """Open a question about a call, bound to the tool and the arguments that would run."""
    asking = (call.gate.ask if call.gate is not None and kind == "approval" else None) or Asking()
    wait = question(kind, f"{call.uid}?{call.waits}", frame=frame, at=at, title=title)
    wait = replace(
        wait,
        call=call.uid,
        display=shown(arguments(call)),
        args_digest=bound(call),
        tool_digest=call.tool.digest,
        ask=asking,
    )
    state: CallState = "unknown" if kind == "outcome_unknown" else "waiting"
    return replace(call, state=state, waits=call.waits + 1, wait=_until(wait, at))


def ask_frame(frame: Frame, kind: WaitKind, *, at: datetime, title: str, about: str | None = None) -> Frame:
    """Open a question about a whole frame: it makes no model call before the answer."""
    wait = question(kind, f"{frame.id}?{frame.waits}", frame=frame.id, at=at, title=title)
    return replace(frame, wait=replace(wait, about=about), waits=frame.waits + 1)


def question(kind: WaitKind, id: str, *, frame: str, at: datetime, title: str) -> Wait:
    """A new wait."""
    return Wait(id=id, kind=kind, frame=frame, title=title, allowed=ALLOWED[kind], created_at=at)


def escalated(call: Call, wait: Wait, at: datetime) -> Call:
    """The same question to the next ones, once."""
    asking = replace(wait.ask, approvers=wait.ask.escalate_to, escalate_to=(), on_expire="reject")
    asked = replace(wait, id=f"{call.uid}?{call.waits}", created_at=at, ask=asking, votes=())
    return replace(call, waits=call.waits + 1, wait=_until(asked, at))


def _until(wait: Wait, at: datetime) -> Wait:
    if wait.ask.expires_s is None:
        return wait
    allowed = wait.allowed if "extend" in wait.allowed else (*wait.allowed, "extend")
    return replace(wait, allowed=allowed, expires_at=at + timedelta(seconds=wait.ask.expires_s))


# ---- what a question is about ----------------------------------------------------------------


def arguments(call: Call) -> str:
    """The arguments that would run, as raw JSON text."""
    return call.args if call.args_effective is None else call.args_effective


def bound(call: Call) -> str:
    """Name the arguments that would run by their content."""
    return digest(arguments(call))


def parsed(args: str) -> dict[str, Any]:
    """Arguments as an object. Raises ValueError for anything else, a name that is given twice included."""
    value = json.loads(args, object_pairs_hook=_distinct, parse_constant=_no_number)
    if not isinstance(value, dict):
        raise ValueError(f"a JSON object is needed, not {type(value).__name__}")  # noqa: TRY004
    return value


def shown(args: str) -> str:
    """Arguments for the eye: laid out, every mark that cannot be seen spelled out, cut where they are too long."""
    try:
        text = json.dumps(parsed(args), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        text = args
    clear = "".join(_visible(character) for character in text[:DISPLAY_MAX])
    return clear if len(text) <= DISPLAY_MAX else f"{clear}\n[{len(text) - DISPLAY_MAX} more characters]"


def _visible(character: str) -> str:
    if character == "\n" or not unicodedata.category(character).startswith(("C", "Zl", "Zp")):
        return character
    return f"\\u{ord(character):04x}"


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name is given twice")
    return value


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
