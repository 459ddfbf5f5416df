"""What is already written of the transcripts in flight, so that a call writes only what its step added.

`Endpoints` makes one Kept for the process, and the dialects write through the Transcripts of a run. The rule: what
comes out is what would be written anew. Only what stands before the last reply is kept, because what follows may still
answer a call of that one; it goes when the run goes, and it is bounded for each run and for all.
"""

import re
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from sojourn.loop.messages import Message
from sojourn.models.model import Request
from sojourn.models.projection import Turn, turns

KEPT_BYTES_MAX = 64 << 20
"""Of all runs of the process; while that is full, what is new is written anew with each call."""
RUN_BYTES_MAX = 16 << 20
PIECE_BYTES = 600
"""What a piece costs beside its bytes, measured with small ones."""


class Piece(NamedTuple):
    """A message, or a block of one, as the dialect sends it."""

    data: bytes
    role: str = ""
    kind: str = ""


Write = Callable[[Turn], Iterable[Piece]]


class _Beginning:
    """The messages of one transcript that are written, and how."""

    __slots__ = ("bytes", "messages", "pieces", "used", "variant")

    def __init__(self, variant: object) -> None:
        self.variant = variant
        self.messages: tuple[Message, ...] = ()
        self.pieces: list[Piece] = []
        self.used: frozenset[str] = frozenset()
        """The ids that its calls have there."""
        self.bytes = 0

    def opens(self, messages: tuple[Message, ...], variant: object) -> bool:
        """Tell whether a transcript goes on from here, with a reply."""
        size = len(self.messages)
        goes_on = variant == self.variant and size < len(messages) and messages[size].role == "assistant"
        return goes_on and self.messages == messages[:size]  # the same objects mostly, which is quick to see


class Transcripts:
    """What is written of the transcripts of one run, its own and its sub-agents', by the id of their first message."""

    __slots__ = ("_begun", "_kept", "bytes")

    def __init__(self, kept: "Kept | None" = None) -> None:
        """Keep what there is room for; without a Kept, nothing."""
        self._kept = kept
        self._begun: dict[str, _Beginning] = {}
        self.bytes = 0

    def pieces(self, request: Request, provider: str, *, id_pattern: re.Pattern[str], write: Write) -> list[Piece]:
        """Write the turns of a transcript, or take what is kept of them."""
        messages = request.messages
        begun = self._beginning(messages, (provider, request.model, tuple(request.blobs)))
        start = len(begun.messages)
        last = next((at for at in reversed(range(start, len(messages))) if messages[at].role == "assistant"), start)
        used = set(begun.used)

        def written(part: Sequence[Message]) -> list[Piece]:
            walk = turns(part, provider, model=request.model, id_pattern=id_pattern, used=used)
            return [piece for turn in walk for piece in write(turn)]

        if last > start:
            early = written(messages[start:last])
            size = sum(len(piece.data) + PIECE_BYTES for piece in early)
            pieces = [*begun.pieces, *early]
            if self._take(begun, size):
                begun.messages, begun.pieces, begun.used = messages[:last], pieces, frozenset(used)
                self._begun[messages[0].id] = begun
        else:
            pieces = begun.pieces
        return pieces + written(messages[last:])

    def _beginning(self, messages: tuple[Message, ...], variant: object) -> _Beginning:
        """Find what is kept of a transcript; what was kept of another that began with the same message goes."""
        key = messages[0].id if messages else ""
        found = self._begun.get(key)
        if found is None or found.opens(messages, variant):
            return found or _Beginning(variant)
        self._drop(key)
        return _Beginning(variant)

    def _take(self, begun: _Beginning, size: int) -> bool:
        """Take room for so many bytes, if need be that of the run's other transcripts."""
        if self._kept is None or begun.bytes + size > RUN_BYTES_MAX:
            return False
        if self.bytes + size > RUN_BYTES_MAX:
            for key in [key for key, other in self._begun.items() if other is not begun]:
                self._drop(key)
        if self._kept.bytes + size > self._kept.bytes_max:
            return False
        begun.bytes += size
        self.bytes += size
        self._kept.bytes += size
        return True

    def _drop(self, key: str) -> None:
        freed = self._begun.pop(key).bytes
        self.bytes -= freed
        if self._kept is not None:
            self._kept.bytes -= freed


class Kept:
    """The transcripts of all runs of this process."""

    def __init__(self, bytes_max: int = KEPT_BYTES_MAX) -> None:
        self.bytes = 0
        self.bytes_max = bytes_max
        self._runs: dict[int, tuple[weakref.ref[object], Transcripts]] = {}

    def of(self, run: object | None) -> Transcripts:
        """Find the transcripts of a run, which is any object that lives as long as it; of None nothing is kept."""
        if run is None:
            return Transcripts()
        key = id(run)
        if key not in self._runs:
            self._runs[key] = weakref.ref(run, lambda _: self._forget(key)), Transcripts(self)
        return self._runs[key][1]

    def _forget(self, key: int) -> None:
        self.bytes -= self._runs.pop(key)[1].bytes
