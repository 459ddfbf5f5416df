"""Writing to the terminal: cleaning, colours, tables, and numbers as people read them.

Every command writes through `Out`. The rule: what came from a model, a tool or the server never reaches a terminal
raw, so that no escape sequence of theirs can move the cursor, set a title or forge a line.
"""

import json
import os
import shutil
import sys
import termios
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TextIO

_BIDI = (0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_UNSAFE = {
    **{code: chr(0x2400 + code) for code in range(0x20) if code not in (0x09, 0x0A)},
    0x0D: None,
    0x7F: "\u2421",
    **dict.fromkeys((*range(0x80, 0xA0), *range(0xD800, 0xE000), *_BIDI), "\ufffd"),
}
_STYLES = {"": "", "bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}
_STATUS_STYLES = {
    "completed": "green", "failed": "red", "suspended": "yellow", "running": "cyan", "cancelled": "dim",
    "quarantined": "red",
}  # fmt: skip


def clean(text: str) -> str:
    """Make a stranger's text safe to show: control, bidi and surrogate characters become visible, CR goes."""
    return text.translate(_UNSAFE)


def json_text(value: Any) -> str:
    """A value as JSON that is safe to show: whatever is not ASCII is escaped."""
    return json.dumps(value, separators=(",", ":")).replace("\x7f", "\\u007f")


def one_line(text: str, width: int) -> str:
    """Cut a text to one line of at most `width` characters."""
    line = " ".join(text[: width * 8 + 8].split())
    return line if len(line) <= width else line[: max(width - 1, 0)].rstrip() + "…"


def cut(text: str, lines: int, chars: int, *, whole: str = "--json shows all") -> str:
    """The beginning of a text, with a note of what is left out and where it is `whole`."""
    kept = "\n".join(text[:chars].split("\n")[:lines])
    rest = len(text) - len(kept)
    return kept if rest <= 0 else f"{kept.rstrip()}\n… {count(rest, 'character')} more ({whole})"


def columns(text: str, width: int) -> str:
    """Clean a line and cut it, so that it takes `width` columns at most and never goes on in the next line."""
    kept = ""
    for char in clean(text.expandtabs(8).replace("\n", " ")):
        width -= 1 if char.isascii() or unicodedata.east_asian_width(char) in ("N", "Na", "H") else 2
        if width < 0:
            break
        kept += char
    return kept


class Out:
    """A stream that people read: it cleans what is written, and colours it when it is a terminal."""

    def __init__(self, stream: TextIO, environ: Mapping[str, str]) -> None:
        self.stream = stream
        self.tty = stream.isatty()
        self.color = self.tty and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"
        self.fresh = True
        """Whether the cursor stands at the start of a line."""
        self._passing = 0
        """How many passing lines stand below all that was written."""

    @property
    def width(self) -> int:
        return shutil.get_terminal_size().columns if self.tty else 160

    def write(self, text: str, style: str = "") -> None:
        """Write a piece of text, and show it at once."""
        if not text:
            return
        self.passing(())
        text = clean(text)
        self.stream.write(f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if style and self.color else text)
        self.stream.flush()
        self.fresh = text.endswith("\n")

    def line(self, text: str = "", style: str = "") -> None:
        """Write whole lines, on lines of their own."""
        if not self.fresh:
            self.write("\n")
        self.write(text.removesuffix("\n"), style)
        self.write("\n")

    def ask(self, prompt: str) -> str:
        """Ask the person at the terminal for a line; empty at the end of input. What was typed before is not heard."""
        self.write("" if self.fresh else "\n")
        termios.tcflush(sys.stdin, termios.TCIFLUSH)
        self.write(prompt, "bold")
        line = sys.stdin.readline()
        self.fresh = line.endswith("\n")
        return line.strip()

    def passing(self, lines: Sequence[str]) -> None:
        """Show lines that go away when others come or anything is written; only where the cursor may be moved."""
        if self._passing:
            self.stream.write(f"\x1b[{self._passing}F\x1b[J")
            self._passing = 0
        if lines and self.color:
            if not self.fresh:
                self.write("\n")
            self.stream.write("".join(f"\x1b[2m{columns(line, self.width - 1)}\x1b[0m\n" for line in lines))
            self._passing = len(lines)
        self.stream.flush()

    def table(self, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Write columns; the last one takes what the terminal has left. A status is coloured."""
        cells = [[one_line(clean(cell), 200) for cell in row] for row in rows]
        widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
        self.line("  ".join(head.ljust(width) for head, width in zip(heads, widths, strict=True)).rstrip(), "dim")
        room = max(self.width - sum(widths[:-1]) - 2 * (len(heads) - 1), 20)
        for row in cells:
            for cell, width in zip(row[:-1], widths[:-1], strict=True):
                self.write(cell.ljust(width) + "  ", _STATUS_STYLES.get(cell, ""))
            self.line_end(one_line(row[-1], room))

    def line_end(self, text: str, style: str = "") -> None:
        """Finish the line that is being written."""
        self.write(text, style)
        self.write("\n")

    def detach(self) -> None:
        """Write into nothing from now on: the reader has gone away."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())


# ---- what the API's values look like -----------------------------------------------------------


def status_style(status: str) -> str:
    return _STATUS_STYLES.get(status, "")


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def size(number: int) -> str:
    """A number of bytes, with the unit that suits it."""
    amount, unit = float(number), "B"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024 or unit == "GiB":
            break
        amount /= 1024
    return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"


def tokens(usage: Mapping[str, Any]) -> str:
    """The tokens of a run or a call, in and out; cached ones are part of what went in."""
    cached = int(usage.get("cache_read_tokens") or 0)
    fed = int(usage.get("input_tokens") or 0) + cached + int(usage.get("cache_write_tokens") or 0)
    note = f" ({cached:,} cached)" if cached else ""
    return f"{fed:,} tokens in{note}, {int(usage.get('output_tokens') or 0):,} out"


def money(cost: Mapping[str, Any] | None) -> str:
    """A cost {usd}, about so much where some of it is estimated, or that it is not known."""
    usd, about = (cost or {}).get("usd"), "~" if (cost or {}).get("estimated") else ""
    return "cost unknown" if usd is None else f"{about}${usd}"


def duration(seconds: float) -> str:
    """A length of time, as exact as is useful."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def moment(text: str | None) -> datetime | None:
    """A time of the API."""
    return datetime.fromisoformat(text) if text else None


def between(start: str | None, end: str | None) -> float | None:
    """The seconds between two times of the API; up to now where the second is missing."""
    begun = moment(start)
    return None if begun is None else ((moment(end) or datetime.now(UTC)) - begun).total_seconds()


def ago(text: str | None) -> str:
    """How long a time of the API lies back, in one unit."""
    seconds = between(text, None)
    if seconds is None:
        return "-"
    for unit, length_s in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length_s:
            return f"{int(seconds // length_s)} {unit} ago"
    return f"{max(int(seconds), 0)} s ago"
