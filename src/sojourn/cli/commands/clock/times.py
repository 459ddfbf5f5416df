"""Times that people type and read: 2h, 2027-01-31T09:00, and how far ahead a time is. Called by the commands.

The rule: a time without a zone is one of this machine's clock, and reaches the server with its zone.
"""

import re
from datetime import UTC, datetime, timedelta

from sojourn.cli.exits import USAGE, Stop

LENGTH = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)(s|m|h|d)?")
UNITS_S = {None: 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(text: str) -> float:
    """A length of time, such as 90s, 15m, 2h or 3d. Raises Stop."""
    found = LENGTH.fullmatch(text.strip().lower())
    if found is None:
        raise Stop(f"{text!r} is no length of time; say 90s, 15m, 2h or 3d.", USAGE)
    return float(found[1]) * UNITS_S[found[2]]


def instant(text: str) -> str:
    """A point in time, as the API takes it. Raises Stop."""
    try:
        return datetime.fromisoformat(text.strip()).astimezone().isoformat()
    except (ValueError, OverflowError):
        raise Stop(
            f"{text!r} is no time; say 2027-01-31T09:00, or with a zone 2027-01-31T09:00+01:00.", USAGE
        ) from None


def past(text: str) -> str:
    """A point in time that may be said as a length: 7d is as long ago, 2027-01-31 begins that day here. Raises Stop."""
    found = LENGTH.fullmatch(text.strip().lower())
    if found is None or found[2] is None:
        return instant(text)
    try:
        return (datetime.now(UTC) - timedelta(seconds=seconds(text))).isoformat()
    except OverflowError:
        raise Stop(f"{text} ago is too long.", USAGE) from None


def ahead(text: str | None) -> str:
    """How far ahead a time of the API is, in one unit."""
    if not text:
        return "-"
    left_s = (datetime.fromisoformat(text) - datetime.now(UTC)).total_seconds()
    for unit, length_s in (("d", 86400), ("h", 3600), ("min", 60)):
        if left_s >= length_s:
            return f"in {int(left_s // length_s)} {unit}"
    return f"in {int(left_s)} s" if left_s > 0 else "now"
