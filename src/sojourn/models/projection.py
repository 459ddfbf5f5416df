"""A transcript made ready for a dialect: who said what, with every call beside its one result.

Both dialects build their messages from `turns`. The rule: a message is projected from itself and what stands before it,
never from what comes later, so that the projection of a transcript is a prefix of the projection of a longer one and
stays in the provider's cache. A transcript ends where no call is open; the loop asks no model elsewhere.
"""

import hashlib
import re
from base64 import b32encode
from collections.abc import Iterator, Sequence

import msgspec

from sojourn.loop.messages import Message, Source, ToolCall, ToolResult

NO_RESULT = "No result of this call was recorded."


class Exchange(msgspec.Struct, frozen=True):
    """A call, the id that it has in this projection, and its result."""

    id: str
    call: ToolCall
    result: ToolResult


class Turn(msgspec.Struct, frozen=True):
    """One message of a user or of the model; `own` tells that the model asked now, or one of its family, said it."""

    message: Message
    own: bool = False
    exchanges: tuple[Exchange, ...] = ()


def turns(
    messages: Sequence[Message], provider: str, *, model: str, id_pattern: re.Pattern[str], used: set[str]
) -> Iterator[Turn]:
    """Walk a transcript. Calls without a result get NO_RESULT, results without a call are left out.

    An id goes back as the same provider gave it, if it fits `id_pattern` and no earlier call of the transcript has it.
    Any other is replaced by nine letters and digits, which every provider accepts. Those that are taken go into `used`.
    """
    for place, message in enumerate(messages):
        if message.role == "user":
            yield Turn(message)
        elif message.role == "assistant":
            same = message.source is not None and message.source.provider == provider
            results = _results(messages, place)
            exchanges = []
            for index, call in enumerate(message.calls):
                id = call.id if same and id_pattern.fullmatch(call.id) else ""
                if not id or id in used:
                    id = _short_id(f"{message.id}/{index}/{call.id}/{len(used)}")
                used.add(id)
                waiting = results.get(call.id)
                found = waiting.pop(0) if waiting else ToolResult(id=call.id, text=NO_RESULT, error=True)
                exchanges.append(Exchange(id, call, found))
            yield Turn(message, spoken_by(message.source, provider, model=model), tuple(exchanges))


def _results(messages: Sequence[Message], place: int) -> dict[str, list[ToolResult]]:
    """Collect the results between this message of the model and its next one, by call id, in order."""
    found: dict[str, list[ToolResult]] = {}
    for later in range(place + 1, len(messages)):
        message = messages[later]
        if message.role == "assistant":
            break
        if message.role == "tool":
            for part in message.parts:
                if isinstance(part, ToolResult):
                    found.setdefault(part.id, []).append(part)
    return found


def _short_id(seed: str) -> str:
    return b32encode(hashlib.sha256(seed.encode("utf-8", "surrogatepass")).digest())[:9].decode().lower()


def spoken_by(source: Source | None, provider: str, *, model: str) -> bool:
    """Tell whether what this source signed may go back to this model: same provider, same family."""
    return source is not None and source.provider == provider and family(source.model) == family(model)


def family(model: str) -> str:
    """Name a model's family: `claude-sonnet-4-5` is `claude`, `google/gemini-3-pro` is `google/gemini`."""
    found = re.match(r"(?:.*/)?[A-Za-z]+", model)
    return found[0].lower() if found else model


def arguments_object(arguments: str) -> msgspec.Raw:
    """Make a JSON object of what the model wrote: the very bytes if it is one, else the text inside one.

    Providers parse the arguments of older calls and refuse the whole request over a malformed one.
    """
    raw = arguments.strip().encode("utf-8", "replace") or b"{}"
    try:
        is_object = isinstance(msgspec.json.decode(raw), dict)
    except (msgspec.MsgspecError, RecursionError):
        is_object = False
    return msgspec.Raw(raw if is_object else msgspec.json.encode({"malformed_arguments": raw.decode()}))
