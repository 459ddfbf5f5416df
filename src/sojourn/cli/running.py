"""What goes on right now below the lines of a run: arguments as they are written, output as it is printed.

`view` feeds it deltas and takes from it what became durable. The rule: it holds the last lines only, however much is
printed, and nothing of it stays on the screen; what stays is told by events.
"""

from collections import deque
from typing import Any

from sojourn.cli.terminal import Out, count, one_line

TAIL_LINES = 8
LINE_CHARS_MAX = 1000
CALLS_MAX = 4
"""So many that run side by side are shown."""


class Tail:
    """The last lines of a text that comes in pieces, and how many there were."""

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=TAIL_LINES)
        self.count = 0
        self._open = ""
        """The line that is being written."""

    def add(self, text: str) -> None:
        """Take the next piece; after a carriage return alone a line begins anew, as progress bars do it."""
        *whole, rest = (self._open + text).replace("\r\n", "\n").split("\n")
        for line in whole:
            self.lines.append(_last(line))
            self.count += 1
        self._open = rest if rest.endswith("\r") and len(rest) <= LINE_CHARS_MAX else _last(rest)

    def last(self, lines: int) -> list[str]:
        """Give the last lines, under a note of those that are left out."""
        kept, total = [*self.lines], self.count
        if self._open:
            kept, total = [*kept, _last(self._open)], total + 1
        kept = kept[-lines:]
        left = total - len(kept)
        return [f"… {count(left, 'line')} before", *kept] if left else kept


class Running:
    """The calls of the root frame that are being written, and those that run."""

    def __init__(self, out: Out) -> None:
        self.out = out
        self._written: dict[int, tuple[str, str]] = {}
        """Name and arguments so far, by the call's number within the reply."""
        self._printed: dict[tuple[str, Any], Tail] = {}
        """By call and attempt."""

    def write(self, item: dict[str, Any]) -> None:
        """Take a piece of a call's arguments."""
        name, so_far = self._written.get(item.get("index") or 0, ("", ""))
        so_far = (so_far + item.get("text", ""))[-LINE_CHARS_MAX:]
        self._written[item.get("index") or 0] = (name or item.get("name") or "", so_far)

    def written(self) -> None:
        """Forget the arguments: the calls are durable, or void."""
        self._written = {}

    def print(self, item: dict[str, Any]) -> None:
        """Take a piece of a call's output; another attempt begins anew."""
        key = (item.get("call") or "", item.get("attempt"))
        if key not in self._printed:
            self.printed(key[0])
        self._printed.setdefault(key, Tail()).add(item.get("text", ""))

    def printed(self, call: str) -> bool:
        """Forget a call's output, and say whether there was any."""
        mine = [key for key in self._printed if key[0] == call]
        for key in mine:
            del self._printed[key]
        return bool(mine)

    def forget(self) -> None:
        """Forget all: it is told again, or over."""
        self._written, self._printed = {}, {}

    def show(self, labels: dict[str, str]) -> None:
        """Show all of it in a few lines at the bottom; `labels` names the calls."""
        room = self.out.width - 4
        lines = [f"→ {_head(name, so_far, room)}" for name, so_far in self._written.values()][-CALLS_MAX:]
        calls = [*self._printed.items()][-CALLS_MAX:]
        for (call, _), tail in calls:
            if len(labels) > 1:
                lines.append("  ↳ " + one_line(labels.get(call, ""), room - 4))
            lines += [f"  {line}" for line in tail.last(max(TAIL_LINES // len(calls), 2))]
        self.out.passing(lines)


def _last(line: str) -> str:
    """What of a line is seen: all that follows its last carriage return, cut."""
    return line.rstrip("\r").rpartition("\r")[2][-LINE_CHARS_MAX:]


def _head(name: str, so_far: str, room: int) -> str:
    """A call as far as it is written: the name, and the end of its arguments."""
    end = " ".join(so_far.split())
    space = max(room - len(name) - 2, 10)
    return f"{name} {end}" if len(end) <= space else f"{name} …{end[-space:]}"
