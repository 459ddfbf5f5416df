"""What every request cost, and the log of it.

The server writes it; tests, benches and reconciliation read it. The rule: usage that stands here as told is what the
client was told, and no line holds a key, a prompt or an argument (bodies are kept in memory only, when a test asks).
"""

from collections import OrderedDict, deque
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Literal

import msgspec

from sojourn.errors import Invalid
from sojourn.loop.messages import Usage
from sojourn.models.simulator.asked import Asked, Dialect, Mark, tokens_in
from sojourn.models.simulator.replies import Said

Outcome = Literal["open", "finished", "aborted", "failed", "refused"]

OPENAI_CACHE_STEP = 128
"""Hits come in multiples of this. Source: OpenAI's prompt caching guide, 2025."""
ANTHROPIC_LOOK_BACK = 20
"""Blocks before a breakpoint that are searched. Source: Anthropic's prompt caching guide, 2025."""


class Recent:
    """Counts of what was seen lately; the oldest is forgotten first, so memory is bounded."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._counts: OrderedDict[int | bytes, int] = OrderedDict()

    def __contains__(self, thing: int | bytes) -> bool:
        return thing in self._counts

    def add(self, thing: int | bytes) -> int:
        """Count `thing` once more and return its count."""
        count = self._counts[thing] = self._counts.pop(thing, 0) + 1
        if len(self._counts) > self._size:
            self._counts.popitem(last=False)
        return count


class PromptCache:
    """The providers' prompt caches. Entries never expire by time, which keeps a script deterministic."""

    def __init__(self, *, tokens_min: int, size: int = 200_000) -> None:
        self._tokens_min = tokens_min
        self._seen = Recent(size)

    def charge(self, asked: Asked) -> Usage:
        """Split the prompt's tokens by what was read from and written to the cache, and remember the prompt."""
        marks = asked.prompt.marks
        known = [hash((asked.key, asked.model, mark.prefix)) for mark in marks]
        if asked.dialect == "openai":
            ends = looked = list(range(len(marks)))
        else:
            ends = [index for index, mark in enumerate(marks) if mark.cacheable and mark.tokens >= self._tokens_min]
            looked = sorted({i for end in ends for i in range(max(0, end - ANTHROPIC_LOOK_BACK + 1), end + 1)})
        read = self._longest(marks, known, looked)
        written = 0
        if asked.dialect == "openai":
            read -= read % OPENAI_CACHE_STEP
        elif ends:
            written = marks[ends[-1]].tokens - read
        for index in ends:
            self._seen.add(known[index])
        return Usage(input=asked.prompt.tokens - read - written, cache_read=read, cache_write=written)

    def _longest(self, marks: list[Mark], known: list[int], places: list[int]) -> int:
        for index in reversed(places):
            if known[index] in self._seen:
                return marks[index].tokens if marks[index].tokens >= self._tokens_min else 0
        return 0


def bill(asked: Asked, said: Said, prompt: Usage) -> Usage:
    """Sum up what a reply costs, in what its dialect can tell: OpenAI no cache writes, Anthropic no reasoning."""
    charge = said.usage
    spent = Usage(
        input=_first(charge.input, prompt.input),
        cache_read=_first(charge.cache_read, prompt.cache_read),
        cache_write=_first(charge.cache_write, prompt.cache_write),
        output=_first(charge.output, said.tokens),
        reasoning=_first(charge.reasoning, tokens_in(said.reasoning)),
    )
    if asked.dialect == "anthropic":
        return msgspec.structs.replace(spent, reasoning=0)
    return msgspec.structs.replace(spent, input=spent.input + spent.cache_write, cache_write=0)


def _first(given: int | None, counted: int) -> int:
    return counted if given is None else given


class Entry(msgspec.Struct, kw_only=True):
    """One request that the simulator saw."""

    seq: int
    """Counts from 1 since the start or the last reset."""
    received_at: datetime
    ended_at: datetime | None = None
    dialect: Dialect
    model: str = ""
    key: str = ""
    """The last 12 hex digits of the key's SHA-256; empty where no key was sent."""
    stream: bool = False
    messages: int = 0
    turn: int = 0
    step: int = 0
    attempt: int = 1
    rule: str = ""
    fault: str = ""
    """The kind of the fault that struck."""
    status: int = 200
    outcome: Outcome = "open"
    """aborted: the client went; failed: a fault broke the reply; refused: answered with an HTTP error."""
    usage: Usage = Usage()
    """What is charged: all of a reply that was told, the prompt and what was sent of one that was not."""
    told: bool = False
    """Whether the final usage went out to the client."""
    request_id: str = ""
    response_id: str = ""
    body: msgspec.Raw | None = None
    """The request as it came, only where the log keeps bodies."""

    def note(self, asked: Asked) -> None:
        """Copy what the request says about itself."""
        self.model, self.stream, self.messages = asked.model, asked.stream, asked.messages
        self.turn, self.step = asked.turn, asked.step


class RequestLog:
    """The last requests in memory and, optionally, every one as a JSON line in a file when it ends."""

    def __init__(self, *, path: Path | str | None = None, size: int = 10_000, keep_bodies: bool = False) -> None:
        """Open the file, to append. Raises Invalid when it cannot be written."""
        self.keep_bodies = keep_bodies
        self._entries: deque[Entry] = deque(maxlen=size)
        try:
            self._file = Path(path).open("ab", buffering=0) if path else None  # noqa: SIM115 - close_file closes it
        except OSError as error:
            raise Invalid(f"cannot write the request log {path}: {error.strerror}") from None
        self._seq = 0

    def open(self, dialect: Dialect, key: str) -> Entry:
        self._seq += 1
        digest = sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[-12:] if key else ""
        entry = Entry(seq=self._seq, received_at=datetime.now(UTC), dialect=dialect, key=digest)
        self._entries.append(entry)
        return entry

    def close(self, entry: Entry) -> None:
        """Note that the request has ended; one that nobody ended otherwise was left by its client."""
        entry.ended_at = datetime.now(UTC)
        entry.outcome = "aborted" if entry.outcome == "open" else entry.outcome
        if self._file is not None:
            self._file.write(msgspec.json.encode(msgspec.structs.replace(entry, body=None)) + b"\n")

    def entries(self, **wanted: object) -> list[Entry]:
        """List what is remembered, oldest first, where every named field has the wanted value."""
        return [entry for entry in self._entries if all(getattr(entry, name) == wanted[name] for name in wanted)]

    def clear(self) -> None:
        self._entries.clear()
        self._seq = 0

    def close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
