"""The rows of the table, and what one product measured. `measures` makes them, `page` and `chart` show them.

The rule: what was not measured says why, and what ran out of time says how long it was given; neither has a number.
"""

from typing import Literal

import msgspec


class Row(msgspec.Struct, frozen=True):
    """One line of the table."""

    key: str
    id: str
    what: str
    unit: str
    better: Literal["less", "more", ""]
    """Empty: a fact that is not compared."""


ROWS = (
    Row("asked", "B1", "request to the model's first, worker idle", "ms", "less"),
    Row("added", "B2", "added to a step, 1 run", "ms", "less"),
    Row("steps", "B2", "durable steps a second, many runs, one worker", "1/s", "more"),
    Row("cpu", "B2", "CPU of a step, product and database", "ms", "less"),
    Row("cpu_database", "B2", "of which the database", "ms", ""),
    Row("runs", "B3", "one-step runs a second, one worker", "1/s", "more"),
    Row("memory", "B4", "memory of a run that waits for a person", "KB", "less"),
    Row("decided", "B4", "decision to the model's next request", "ms", "less"),
    Row("takeover", "B5", "kill -9 to the runs going on at another worker", "s", "less"),
    Row("restart", "B5", "the same, at the worker started again", "s", "less"),
    Row("delta", "B6", "piece of a reply to its reader", "ms", "less"),
    Row("small", "B9", "small tenant's run behind a big one's queue", "s", "less"),
)


class Figure(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was measured for a row."""

    value: float | None = None
    """The median where there are many; None where there is no number."""
    p99: float | None = None
    """The slowest, where there are fewer than a hundred."""
    more_than: float | None = None
    """The time that it was given, where that was not enough."""
    note: str = ""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One product."""

    name: str
    product: str = ""
    versions: dict[str, str] = {}
    setup: str = ""
    notes: str = ""
    figures: dict[str, Figure] = {}
    failed: str = ""
    """Why nothing could be measured."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """All of one run of the target."""

    at: str
    machine: str
    load: float
    """Of the minute before."""
    cores: int
    database: str
    sizes: dict[str, float]
    reports: tuple[Report, ...]


def ratio(row: Row, figure: Figure, ours: Figure | None) -> float | None:
    """Tell how many times worse than ours a figure is; below 1 it is better. None where there is no such number."""
    value = figure.more_than if figure.value is None else figure.value
    if not row.better or ours is None or not ours.value or value is None or value <= 0:
        return None
    return value / ours.value if row.better == "less" else ours.value / value
