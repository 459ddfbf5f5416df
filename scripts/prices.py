"""Write src/sojourn/models/prices.json from the genai-prices package (MIT), as its prices stand today.

    uv run --with genai-prices==0.2.3 scripts/prices.py

See docs/decisions/0004-prices.md. Prices that change with the hour, batch and service tiers are left out: the plain
price of the day is what a call is estimated at.
"""

import datetime
import importlib.metadata
import json
import math
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

from genai_prices import types
from genai_prices.data import providers

TABLE = Path(__file__).parents[1] / "src/sojourn/models/prices.json"
TODAY = datetime.datetime.now(datetime.UTC).date()


def main() -> None:
    """Write the table, one model a line, so that a new version reads well as a diff."""
    lines = []
    for provider in providers:
        models = [line for model in provider.models if (line := entry(model))]
        if models:
            listed = ",\n".join(f"   {json.dumps(model)}" for model in models)
            lines.append(
                f'  {{"id": "{provider.id}", "url": {json.dumps(provider.api_pattern)}, "models": [\n{listed}]}}'
            )
    source = f"genai-prices {importlib.metadata.version('genai-prices')}"
    body = ",\n".join(lines)
    TABLE.write_text(f'{{"source": "{source}", "date": "{TODAY}", "providers": [\n{body}]}}\n')


def entry(model: Any) -> dict[str, Any] | None:
    """Write one model: its exact names, a pattern for others, its window, and micro-USD for a million tokens."""
    prices = current(model.prices)
    if prices is None or prices.input_mtok is None or prices.output_mtok is None:
        return None
    names, patterns = names_of(model.match)
    starts = {
        tier.start for _, price in fields(prices) if isinstance(price, types.TieredPrices) for tier in price.tiers
    }
    written: dict[str, Any] = {"names": names} if names else {}
    if patterns:
        written["like"] = "|".join(patterns)
    if model.context_window:
        written["window"] = model.context_window
    written["price"] = row(prices, 0)
    if starts:
        written["tiers"] = [[start, row(prices, start + 1)] for start in sorted(starts)]
    return written


def current(prices: Any) -> Any:
    """Choose the price that holds today at any hour."""
    if not isinstance(prices, list):
        return prices
    chosen = None
    for each in prices:
        start = getattr(each.constraint, "start_date", None)
        if each.constraint is None or (start and start <= TODAY):
            chosen = each.prices
    return chosen


def fields(prices: Any) -> list[tuple[str, Any]]:
    return [(name, getattr(prices, f"{name}_mtok")) for name in ("input", "output", "cache_read", "cache_write")]


def row(prices: Any, tokens: int) -> list[int]:
    """Write the four prices of a prompt of so many tokens; the cache costs what input costs where nothing is said."""
    found = dict(fields(prices))
    return [micros(found[name] if found[name] is not None else found["input"], tokens) for name in found]


def micros(price: Any, tokens: int) -> int:
    if isinstance(price, types.TieredPrices):
        price = next((tier.price for tier in reversed(price.tiers) if tokens > tier.start), price.base)
    return math.ceil(round(price * 10**6, 3)) if isinstance(price, Decimal) else math.ceil(price * 10**6)


def names_of(clause: Any) -> tuple[list[str], list[str]]:
    """Take a match apart into exact names and patterns that are searched for."""
    match clause:
        case types.ClauseEquals():
            return [clause.equals], []
        case types.ClauseStartsWith():
            return [], [f"^{re.escape(clause.starts_with)}"]
        case types.ClauseEndsWith():
            return [], [f"{re.escape(clause.ends_with)}$"]
        case types.ClauseContains():
            return [], [re.escape(clause.contains)]
        case types.ClauseRegex():
            return [], [clause.regex]
        case types.ClauseOr():
            parts = [names_of(inner) for inner in clause.or_]
            return [name for names, _ in parts for name in names], [each for _, found in parts for each in found]
        case types.ClauseAnd():
            parts = [names_of(inner) for inner in clause.and_]
            return [], ["".join(f"(?=.*(?:{'|'.join([*map(re.escape, names), *found])}))" for names, found in parts)]
    raise TypeError(clause)


if __name__ == "__main__":
    main()
