"""What one program wrote, kept within a bound: the beginning, the end, and how much was dropped between them.

`running.py` adds to it and replays it to any number of readers. The rule: every reader sees the same pieces, live or
years later, so the end is shown only when the program has ended, and memory does not grow with the output.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal

import msgspec

from sojourn.sandboxes.sandbox import Exit, Output

_PIECE_BYTES = 64 << 10

Stream = Literal["stdout", "stderr"]


@dataclass(slots=True)
class _Piece:
    stream: Stream
    data: bytearray


class Transcript:
    """The first and the last half of `limit_bytes` of output, then the Exit."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.dropped_bytes = 0
        self.exit: Exit | None = None
        self._head: list[Output] = []
        self._head_room = limit_bytes // 2
        self._tail: deque[_Piece] = deque()
        self._tail_bytes = 0
        self._changed = asyncio.Event()

    @property
    def full(self) -> bool:
        """True when live readers get nothing more before the end."""
        return self._head_room == 0

    @property
    def pieces(self) -> int:
        return len(self._head)

    @property
    def kept_bytes(self) -> int:
        return self.limit_bytes // 2 - self._head_room + self._tail_bytes

    def add(self, stream: Stream, data: bytes) -> None:
        """Keep `data`, or the part of it that there is room for."""
        if self._head_room:
            first, data = data[: self._head_room], data[self._head_room :]
            self._head_room -= len(first)
            self._head.append(Output(seq=len(self._head) + 1, stream=stream, data=first))
            self._wake()
        if data:
            self._add_to_tail(stream, data)

    def end(self, exit: Exit) -> None:
        """Close the transcript; `exit` gets its place in the sequence and the count of dropped bytes."""
        for piece in self._tail:
            self._head.append(Output(seq=len(self._head) + 1, stream=piece.stream, data=bytes(piece.data)))
        self._tail.clear()
        self.exit = msgspec.structs.replace(exit, seq=len(self._head) + 1, truncated_bytes=self.dropped_bytes)
        self._wake()

    def forget(self) -> None:
        """Drop the output of an ended program and keep its Exit, so that its id still starts nothing."""
        if self.exit is not None:
            kept = sum(len(piece.data) for piece in self._head)
            self.dropped_bytes += kept
            self._head.clear()
            self._head_room, self._tail_bytes = self.limit_bytes // 2, 0
            self.exit = msgspec.structs.replace(self.exit, seq=1, truncated_bytes=self.dropped_bytes)

    async def follow(self) -> AsyncIterator[Output | Exit]:
        """Every piece from the first to the Exit, waiting for those to come."""
        shown = 0
        while True:
            changed = self._changed
            while shown < len(self._head):
                shown += 1
                yield self._head[shown - 1]
            if self.exit is not None:
                yield self.exit
                return
            await changed.wait()

    def _add_to_tail(self, stream: Stream, data: bytes) -> None:
        last = self._tail[-1] if self._tail else None
        if last is not None and last.stream == stream and len(last.data) < _PIECE_BYTES:
            last.data += data
        else:
            self._tail.append(_Piece(stream, bytearray(data)))
        self._tail_bytes += len(data)
        excess = self._tail_bytes - (self.limit_bytes - self.limit_bytes // 2)
        while excess > 0:
            first = self._tail[0]
            cut = min(excess, len(first.data))
            del first.data[:cut]
            if not first.data:
                self._tail.popleft()
            excess -= cut
            self._tail_bytes -= cut
            self.dropped_bytes += cut

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
