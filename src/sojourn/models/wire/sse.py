"""Server-Sent Events out of bytes, however the network cuts them.

The adapter feeds it what each read brought. The rule: memory is bounded by one event, and time by the bytes that came
in, whatever the sender does. `id` and `retry` are read over: nobody reconnects to a model's reply.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream (2026-11).
"""

import msgspec

EVENT_BYTES_MAX = 8 << 20
_BOM = b"\xef\xbb\xbf"


class Event(msgspec.Struct, frozen=True, gc=False):
    """One event: the last `event:` field and the `data:` lines, joined by newlines."""

    name: bytes
    data: bytes


class EventTooLarge(ValueError):
    """An event is larger than the bound."""


class EventParser:
    """Turns chunks into events; what a stream leaves unfinished is dropped, as the standard wants."""

    __slots__ = ("_bytes", "_bytes_max", "_data", "_fresh", "_name", "_skip_lf", "_tail", "_tail_bytes")

    def __init__(self, *, event_bytes_max: int = EVENT_BYTES_MAX) -> None:
        self._bytes_max = event_bytes_max
        self._fresh = True
        self._skip_lf = False
        self._tail: list[bytes] = []  # pieces of a line whose end has not come
        self._tail_bytes = 0
        self._name = b""
        self._data: list[bytes] = []
        self._bytes = 0

    def feed(self, chunk: bytes) -> list[Event]:
        """Take in the next bytes and return the events that they complete. Raises EventTooLarge."""
        if self._skip_lf and chunk:
            self._skip_lf = False
            if chunk[0] == 0x0A:
                chunk = chunk[1:]
        if b"\n" not in chunk and b"\r" not in chunk:
            self._hold(chunk)
            return []
        if self._tail:
            chunk = b"".join((*self._tail, chunk))
            self._tail.clear()
            self._tail_bytes = 0
        lines = chunk.splitlines()
        tail = lines.pop() if chunk[-1] not in b"\r\n" else b""
        self._skip_lf = chunk[-1] == 0x0D
        events = self._read(lines)
        self._hold(tail)
        return events

    def _hold(self, piece: bytes) -> None:
        if piece:
            self._tail.append(piece)
            self._tail_bytes += len(piece)
            self._check()

    def _read(self, lines: list[bytes]) -> list[Event]:
        if self._fresh:
            self._fresh = False
            lines[0] = lines[0].removeprefix(_BOM)
        events: list[Event] = []
        for line in lines:
            if line:
                self._field(line)
                continue
            if self._data:
                events.append(Event(self._name, b"\n".join(self._data)))
                self._data = []
            self._name = b""
            self._bytes = 0
        return events

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value[1:] if value[:1] == b" " else value)
        elif name == b"event":
            self._name = value[1:] if value[:1] == b" " else value
        else:
            return
        self._bytes += len(line)
        self._check()

    def _check(self) -> None:
        if self._bytes + self._tail_bytes > self._bytes_max:
            raise EventTooLarge(f"an event is larger than {self._bytes_max:,} bytes")
