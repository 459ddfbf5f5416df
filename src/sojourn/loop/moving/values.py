"""Single values that no run of ours holds: they would stop a worker, or say more than they seem to.

`reading` asks once an export's signature was verified. The rule: what is calculated with here can be calculated with,
and what is put into somebody's JSON as it is, is JSON itself.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import msgspec

from sojourn.loop.budget import Limits
from sojourn.loop.continuation import frames
from sojourn.loop.messages import Native, ToolCall
from sojourn.loop.moving.document import Export, messages
from sojourn.loop.policy import heavy

INTEGER_MAX = 2**53
YEARS = range(1970, 9000)
SECONDS_MAX = 10**9


def wrong(export: Export) -> str | None:
    """Name a value that cannot stand; None where all can."""
    state = export.continuation
    if not all(map(_plain, _leaves((state, export.agents)))):
        return "a time or a number in it"
    if not all(_short(one.active_s) and _short(one.wall_s) for one in _limits(export)):
        return "the time limits"
    if any(heavy(agent.policy) for agent in export.agents.values()):
        return "a policy, which is too long"
    if not all(_is_json(text, kind) for text, kind in _raw(export)):
        return "a tool's schema, or what a provider said in its own way"
    return None


def _leaves(value: object) -> Iterator[Any]:
    left = [msgspec.to_builtins(value, builtin_types=(datetime,))]
    while left:
        match left.pop():
            case dict() as one:
                left.extend(one.values())
            case list() | tuple() as one:
                left.extend(one)
            case leaf:
                yield leaf


def _plain(value: Any) -> bool:
    """Whether a time has its zone and a number is none that overflows."""
    if isinstance(value, datetime):
        return value.tzinfo is not None and value.year in YEARS
    return not isinstance(value, int) or abs(value) <= INTEGER_MAX


def _limits(export: Export) -> Iterator[Limits]:
    yield export.continuation.limits
    yield from (agent.limits for agent in export.agents.values())
    yield from (frame.limits for frame in frames(export.continuation.root) if frame.limits is not None)


def _short(seconds: float | None) -> bool:
    return seconds is None or 0 < seconds <= SECONDS_MAX


def _raw(export: Export) -> Iterator[tuple[str, type]]:
    """What goes into a request to a provider as raw JSON text, and of which type it is."""
    for agent in export.agents.values():
        yield from ((tool.schema, dict) for tool in agent.tools)
    for message in messages(export.continuation):
        for part in message.parts:
            match part:
                case Native(data=text) | ToolCall(signature=str(text)):
                    yield text, object


def _is_json(text: str, kind: type) -> bool:
    try:
        return isinstance(msgspec.json.decode(text), kind)
    except (msgspec.DecodeError, RecursionError):
        return False
