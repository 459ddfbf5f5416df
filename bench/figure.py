"""One measured figure beside its target, how a bench is asked, and how it hands over. Every bench ends in `report`.

The rule: a figure without a target is a fact, a figure that was not measured is not met, and one of a small run is not
judged.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

SMALL_RUN = "a small run: it shows that the benches work, and its figures mean little"
T = TypeVar("T", bound=msgspec.Struct)


def chosen(doc: str | None, full: T, small: T) -> T:
    """Read a bench's command line: `--json`, `--small`, and an option for each of its sizes."""
    parser = argparse.ArgumentParser(
        prog=f"python -m bench.{Path(sys.argv[0]).stem}",
        description=(doc or "").partition("\n")[0],
        allow_abbrev=False,  # `report` looks for the whole words
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object a line")
    parser.add_argument("--small", action="store_true", help="a second or so, to see that it works")
    for name, value in msgspec.structs.asdict(full).items():
        much = f"{value:,}, or {getattr(small, name):,} in a small run"
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), metavar="N", help=much)
    given = vars(parser.parse_args())
    named = {name: given[name] for name in full.__struct_fields__ if given[name] is not None}
    return msgspec.structs.replace(small if given["small"] else full, **named)


class Figure(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of the table. `id` is the row of the table of targets, such as B1."""

    id: str
    what: str
    unit: str
    median: float
    p99: float | None = None
    floor: str = ""
    """What the machine itself costs, measured in the same run, in words."""
    target: str = ""
    """In words, such as "p50 <= 10, p99 <= 30"."""
    met: bool | None = None
    """None: there is no target, or it was not judged."""
    small: bool = False
    """Whether it is of a small run."""

    def __post_init__(self) -> None:
        """Refuse what is no number: JSON would make nothing of it."""
        for value in (self.median, self.p99):
            if value is not None and not (isinstance(value, float | int) and math.isfinite(value)):
                raise ValueError(f"{self.id} {self.what}: {value!r} is no figure")


def spread(
    id: str, what: str, unit: str, values: Sequence[float], *, most: tuple[float, float | None] = (math.inf, None)
) -> Figure:
    """Make a figure of many values. `most` bounds its median, and its 99th percentile where one is wanted."""
    median, tail = statistics.median(values), sorted(values)[math.ceil(0.99 * len(values)) - 1]
    median_max, tail_max = most
    target = f"p50 <= {median_max:g}" + (f", p99 <= {tail_max:g}" if tail_max is not None else "")
    return Figure(
        id=id,
        what=what,
        unit=unit,
        median=median,
        p99=tail if len(values) >= 50 else None,
        target="" if median_max == math.inf else target,
        met=None if median_max == math.inf else median <= median_max and (tail_max is None or tail <= tail_max),
    )


HEAD = ("id", "what", "median", "p99", "unit", "floor", "target", "met")


def report(figures: Sequence[Figure]) -> None:
    """Print figures: JSON lines where `--json` was given, else a table. Those of a small run say so, unjudged."""
    if "--small" in sys.argv:
        figures = [msgspec.structs.replace(figure, small=True, met=None) for figure in figures]
    if "--json" in sys.argv:
        for figure in figures:
            print(msgspec.json.encode(figure).decode(), flush=True)
    else:
        print(table(figures))


def table(figures: Sequence[Figure]) -> str:
    """Lay figures out in columns, below a line that says so where they are of a small run."""
    rows = [HEAD, *map(_cells, figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    head = [f"({SMALL_RUN})"] if any(figure.small for figure in figures) else []
    return "\n".join([*head, lines[0], "-" * len(lines[0]), *lines[1:]])


def _cells(figure: Figure) -> tuple[str, ...]:
    met = {None: "", True: "yes", False: "MISSED"}[figure.met]
    numbers = number(figure.median), number(figure.p99)
    return figure.id, figure.what, *numbers, figure.unit, figure.floor, figure.target, met


def number(value: float | None) -> str:
    """Write a figure in as few digits as say enough; nothing where there is none."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
