"""The figures that the agent was asked for, computed again from the data, and what is wrong with those it found.

The story and its tests call `wrong`. The rule: nothing here was seen by the agent, and nothing of the agent's is used.
"""

import csv
import gzip
import math
from collections import Counter
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data" / "birdstrikes.csv.gz"
INTERVAL_SLACK = 0.15
"""How far, in percentage points, an end of a bootstrap interval may lie from the normal approximation."""


def reports(path: Path = DATA) -> list[dict[str, str]]:
    """Read the reports, one dict a row."""
    with gzip.open(path, "rt", newline="") as lines:
        return list(csv.DictReader(lines))


def computed(rows: list[dict[str, str]]) -> dict[str, Any]:
    """Compute every figure of figures.json except the interval, which `interval` gives."""
    damaged = [row for row in rows if row["Effect Amount of damage"] != "None"]
    large = [row for row in rows if row["Wildlife Size"] == "Large"]
    cost: Counter[str] = Counter()
    for row in rows:
        cost[row["Wildlife Species"]] += int(row["Cost Total $"])
    total = cost.total()
    return {
        "records": len(rows),
        "first_date": min(row["Flight Date"] for row in rows),
        "last_date": max(row["Flight Date"] for row in rows),
        "damaged": len(damaged),
        "damaged_percent": _percent(len(damaged), len(rows)),
        "cost_total_usd": total,
        "large_reports_percent": _percent(len(large), len(rows)),
        "large_cost_percent": _percent(sum(int(row["Cost Total $"]) for row in large), total),
        "costliest_species": cost.most_common(1)[0][0],
    }


def interval(rows: list[dict[str, str]]) -> tuple[float, float]:
    """The 95 % interval of the share with damage, in percent, by the normal approximation."""
    share = sum(row["Effect Amount of damage"] != "None" for row in rows) / len(rows)
    half = 1.96 * math.sqrt(share * (1 - share) / len(rows))
    return 100 * (share - half), 100 * (share + half)


def wrong(found: dict[str, Any], report: str, rows: list[dict[str, str]]) -> list[str]:
    """List what is wrong with the agent's figures.json, and which figures its report.md does not tell."""
    right = computed(rows)
    problems = [
        f"{name} is {value!r}, and the agent found {found.get(name)!r}"
        for name, value in right.items()
        if found.get(name) != value
    ]
    ends = found.get("damaged_percent_interval")
    if not isinstance(ends, list) or len(ends) != 2:
        return [*problems, f"damaged_percent_interval is {ends!r}"]
    for end, expected in zip(ends, interval(rows), strict=True):
        if abs(end - expected) > INTERVAL_SLACK:
            problems.append(f"damaged_percent_interval has {end}, expected about {expected:.2f}")
    told = report.replace(",", "")
    for name in ("records", "damaged", "damaged_percent", "cost_total_usd", "large_cost_percent", "costliest_species"):
        if str(right[name]) not in told:
            problems.append(f"report.md does not tell {name}, {right[name]}")
    return problems


def _percent(part: int, whole: int) -> float:
    return round(100 * part / whole, 1)
