"""Counts of this process's requests, for /metrics. The guard feeds it.

The rule: labels are route templates and statuses, never what a caller wrote.
"""

from bisect import bisect_left
from collections import Counter

BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class Meter:
    """Requests by route and status, and how long they took."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str, int]] = Counter()
        self.limited: Counter[tuple[str, str]] = Counter()
        """Requests that a rate limit refused, by class and subject."""
        self.buckets = [0] * (len(BUCKETS_S) + 1)
        self.seconds = 0.0

    def count(self, method: str, route: str, status: int, *, seconds: float | None) -> None:
        """Take note of an answered request; an event stream has no duration that would say anything."""
        self.requests[method, route, status] += 1
        if seconds is not None:
            self.buckets[bisect_left(BUCKETS_S, seconds)] += 1
            self.seconds += seconds
