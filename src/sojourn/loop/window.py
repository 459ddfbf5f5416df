"""What a model is shown of a long transcript: all of it while it fits, and a shorter telling of its older part after.

The worker asks models through it, and asks it what to leave out. The rules: the transcript itself never
changes, so nothing is lost that a person may want to read; a call and its observation are shown together or not at all;
and what the run was asked to do is always shown in its own words.

    older                                                                  recent
    [ told by the summary ][ observations in one line ][ observations cut ][ whole ]
                       upto                      cleared            spilled
"""

from collections.abc import Callable
from typing import NamedTuple

from msgspec.structs import replace

from sojourn.loop.agent import digest
from sojourn.loop.continuation import Compaction
from sojourn.loop.messages import Message, Text, ToolResult, said

TRIGGER, TARGET = 0.7, 0.45
"""Where a request passes the first share of the model's window, it is reduced to the second."""
RECENT = 0.4
"""This share of what is shown after it, the newest messages, is not reduced."""
LINE_CHARS = 200
SPILL_CHARS = 8_000
KEPT_CHARS = 1_000
"""What stays of either end of a longer observation."""
NOTE = "[What follows stands for {count} earlier messages of this run, which are left out here.]"

Tokens = Callable[[Message], int]
"""An upper estimate of what one message costs."""


# ---- what is shown ---------------------------------------------------------------------------


def shown(messages: tuple[Message, ...], compaction: Compaction | None, goal: int = 0) -> tuple[Message, ...]:
    """The messages that the model reads. `goal` is the position of what the frame was asked to do."""
    if compaction is None:
        return messages
    left = enumerate(messages[compaction.upto :], compaction.upto)
    return (*_told(messages, compaction, goal), *(_reduced(message, compaction, at) for at, message in left))


def _told(messages: tuple[Message, ...], compaction: Compaction, goal: int) -> tuple[Message, ...]:
    """One message for those that the summary stands for, after what the frame was asked to do."""
    if not compaction.upto:
        return ()
    note = f"{NOTE.format(count=compaction.upto)}\n{compaction.summary}"
    if goal >= compaction.upto or messages[goal].role != "user":
        return (said(f"summary {compaction.upto}", note),)
    asked = messages[goal]
    return (replace(asked, parts=(*asked.parts, Text(f"\n\n{note}"))),)


def _reduced(message: Message, compaction: Compaction, position: int) -> Message:
    if message.role != "tool" or position >= max(compaction.spilled, compaction.cleared):
        return message
    short = _line if position < compaction.cleared else _ends
    return replace(message, parts=tuple(short(part) for part in results(message)))


def results(message: Message) -> tuple[ToolResult, ...]:
    """The observations of a tool's message."""
    return tuple(part for part in message.parts if isinstance(part, ToolResult))


def _line(part: ToolResult) -> ToolResult:
    if len(part.text) <= LINE_CHARS:
        return part
    return replace(part, text=f"[{len(part.text)} characters left out: {digest(part.text)[:19]}]")


def _ends(part: ToolResult) -> ToolResult:
    if len(part.text) <= SPILL_CHARS:
        return part
    head, tail = part.text[:KEPT_CHARS], part.text[-KEPT_CHARS:]
    left_out = len(part.text) - 2 * KEPT_CHARS
    return replace(part, text=f"{head}\n[{left_out} characters left out: {digest(part.text)[:19]}]\n{tail}")


# ---- what to leave out -----------------------------------------------------------------------


class Reduction(NamedTuple):
    """What to show from now on. Where `told` is not empty, a summary of these messages is still to be written."""

    compaction: Compaction
    told: tuple[Message, ...]


def reduction(
    messages: tuple[Message, ...], compaction: Compaction | None, *, tokens: Tokens, room: float, goal: int = 0
) -> Reduction:
    """The mildest reduction that shows the transcript in `room` tokens, or the strongest there is.

    In this order: long observations are cut, observations become a line, a closed part at the front is summarised.
    """
    before = compaction or Compaction()
    boundary = max(before.upto, _recent(messages, tokens, RECENT * room))
    spilled = max(before.spilled, boundary)
    for cleared in (before.cleared, max(before.cleared, boundary)):
        tried = replace(before, spilled=spilled, cleared=cleared)
        if sum(map(tokens, shown(messages, tried, goal))) <= room:
            return Reduction(tried, ())
    return Reduction(replace(tried, upto=boundary), messages[before.upto : boundary])


def _recent(messages: tuple[Message, ...], tokens: Tokens, room: float) -> int:
    """Where the newest messages begin that fit into `room`, with a step or something that was said."""
    position, used = len(messages), 0.0
    while position > 0 and (used := used + tokens(messages[position - 1])) <= room:
        position -= 1
    while position < len(messages) and messages[position].role == "tool":
        position += 1
    return min(position, _last_step(messages))


def _last_step(messages: tuple[Message, ...]) -> int:
    """Where the newest step begins: it is shown however large it is."""
    steps = (at for at in range(len(messages) - 1, -1, -1) if messages[at].role == "assistant")
    return next(steps, 0)


# ---- the summary -----------------------------------------------------------------------------


def transcript(messages: tuple[Message, ...], chars_max: int) -> str:
    """Messages as plain text, for a model that summarises them or in the place of its summary: the ends of each."""
    each = max(200, chars_max // max(1, len(messages)))
    return "\n".join(_line_of(message, each) for message in messages)[:chars_max]


def _line_of(message: Message, chars_max: int) -> str:
    words = message.text or " ".join(part.text for part in results(message))
    calls = "".join(f"\n  called {call.name} {call.arguments[:200]}" for call in message.calls)
    cut = words if len(words) <= chars_max else f"{words[: chars_max // 2]} [...] {words[-chars_max // 2 :]}"
    return f"{message.role}: {cut}{calls}"
