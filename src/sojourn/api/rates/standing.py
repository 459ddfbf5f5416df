"""How a request stands with its limits, in the words of the answer: two headers, and a refusal.

The rule: it says what this caller may know, and a client that keeps to it is not refused. Source:
draft-ietf-httpapi-ratelimit-headers-11 (2026-05), https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from sojourn.errors import RateLimited
from sojourn.store.sharing.rates import SUBJECTS, US, Class, Limits, Rate, Subject

WHOSE: Mapping[Subject, str] = {"tenant": "your tenant", "user": "your user", "agent": "this agent"}


@dataclass(frozen=True)
class Standing:
    """What is left of each limit of a request, once it was taken or refused."""

    class_: Class
    limits: Limits
    debts_us: tuple[int | None, ...]
    """How long until nothing counts any more, by subject; None where a limit does not count, or it is not known."""
    refused: bool = False

    def headers(self) -> dict[str, str]:
        """The fields RateLimit-Policy and RateLimit."""
        policies = (
            f'"{self.class_}-{subject}";q={rate.max};w={rate.window_s};sojourn-burst={rate.at_once}'
            for subject, rate in zip(SUBJECTS, self.limits.by_subject(), strict=True)
            if rate
        )
        fields = {"RateLimit-Policy": ", ".join(policies)}
        if left := ", ".join(self._left()):
            fields["RateLimit"] = left
        return fields

    def refusal(self) -> RateLimited:
        """Say which limits are used up, and when to come back."""
        empty = list(self.empty())
        wait_s = max(wait_us for _, _, wait_us in empty) / US
        words = " ".join(
            f"The limit on {self.class_} of {WHOSE[subject]} is reached: {rate.max} in {rate.window_s} s, "
            f"{rate.at_once} at once."
            for subject, rate, _ in empty
        )
        return RateLimited(
            f"{words} The next one fits in {math.ceil(wait_s)} s.",
            retry_after_s=wait_s,
            policies=tuple(f"{self.class_}-{subject}" for subject, _, _ in empty),
        )

    def empty(self) -> Iterator[tuple[Subject, Rate, int]]:
        """The limits that have nothing left, each with how long until one comes free, in us."""
        for subject, rate, debt_us in self._counted():
            if (wait_us := _wait_us(rate, debt_us)) > 0:
                yield subject, rate, wait_us

    def _left(self) -> Iterator[str]:
        """How many are left of each, and the seconds until there is one where there is none."""
        for subject, rate, debt_us in self._counted():
            left = max(0, (rate.at_once * rate.every_us - debt_us) // rate.every_us)
            reset = "" if left else f";t={math.ceil(_wait_us(rate, debt_us) / US)}"
            yield f'"{self.class_}-{subject}";r={left}{reset}'

    def _counted(self) -> Iterator[tuple[Subject, Rate, int]]:
        for subject, rate, debt_us in zip(SUBJECTS, self.limits.by_subject(), self.debts_us, strict=True):
            if rate is not None and debt_us is not None:
                yield subject, rate, debt_us


def _wait_us(rate: Rate, debt_us: int) -> int:
    """How long until one more fits; 0 or less where it fits now."""
    return debt_us + rate.every_us - rate.at_once * rate.every_us
