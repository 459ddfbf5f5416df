"""One measured figure beside its target, and how a bench hands it over. Every bench ends in `report`.

The rule: a figure without a target is a fact, and a figure that was not measured is not met.
"""

import math
import statistics
import sys
from collections.abc import Sequence

import msgspec


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
    """None: there is no target."""


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
    """Print figures: JSON lines where `--json` was given, else a table."""
    if "--json" in sys.argv:
        for figure in figures:
            print(msgspec.json.encode(figure).decode(), flush=True)
    else:
        print(table(figures))


def table(figures: Sequence[Figure]) -> str:
    """Lay figures out in columns."""
    rows = [HEAD, *map(_cells, figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _cells(figure: Figure) -> tuple[str, ...]:
    met = {None: "", True: "yes", False: "MISSED"}[figure.met]
    numbers = _number(figure.median), _number(figure.p99)
    return figure.id, figure.what, *numbers, figure.unit, figure.floor, figure.target, met


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
