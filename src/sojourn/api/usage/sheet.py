"""A page of usage as CSV, for spreadsheets. Pure; `routes` answers with it.

The rule: no cell is a formula, whatever a user, an agent or a model is called.

Source: RFC 4180; OWASP, CSV Injection (2026-11).
"""

import csv
import io
from collections.abc import Sequence

from sojourn.api.runs.shapes import Usage
from sojourn.api.usage.shapes import UsageGroup
from sojourn.store.tenant.usage import Key

COUNTS = ("calls", "estimated_calls", "unpriced_calls")
FORMULAS = ("=", "+", "-", "@", "\t", "\r")


def sheet(groups: Sequence[UsageGroup], by: Sequence[Key]) -> bytes:
    """Write one line for each group, below a line of heads."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    tokens = Usage.__struct_fields__
    writer.writerow([*by, *COUNTS, *tokens, "known_usd", "estimated_usd"])
    for one in groups:
        keys = [defused(str(getattr(one, key))) for key in by]
        sums = [getattr(one, name) for name in COUNTS] + [getattr(one.usage, name) for name in tokens]
        writer.writerow([*keys, *sums, one.known_usd, one.estimated_usd])
    return out.getvalue().encode()


def defused(text: str) -> str:
    """A cell that no spreadsheet reads as a formula."""
    return f"'{text}" if text.startswith(FORMULAS) else text
