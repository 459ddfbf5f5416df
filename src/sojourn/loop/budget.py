"""What a run may use and has used, counted over the whole tree of frames.

The machine charges it with every event. The rule: it is checked before something begins, so a limit is never passed by
more than what was in flight.
"""

from typing import Literal

import msgspec

from sojourn.loop.messages import Plain, Usage

OnExhaust = Literal["fail", "suspend"]


class Limits(Plain, frozen=True, kw_only=True):
    """The hard bounds of one run, None where there is none. Money is in micro-USD."""

    steps: int | None = 75
    tool_calls: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    usd_micros: int | None = None
    active_s: float | None = 3600.0
    """Time during which something was in flight; waiting for a person costs none."""
    on_exhaust: OnExhaust = "fail"


class Spent(Plain, frozen=True, kw_only=True):
    """What a run used so far."""

    steps: int = 0
    tool_calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    usd_micros: int = 0
    active_ms: int = 0
    usage: Usage = Usage()


class Held(Plain, frozen=True, kw_only=True):
    """What a model call that is in flight may cost at most."""

    input_tokens: int = 0
    output_tokens: int = 0
    usd_micros: int = 0

    def __add__(self, other: "Held") -> "Held":
        return Held(
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            usd_micros=self.usd_micros + other.usd_micros,
        )


class Room(Plain, frozen=True, kw_only=True):
    """What the next model call may cost, None where there is no bound."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    usd_micros: int | None = None

    def under(self, limits: Limits, spent: Spent, held: Held) -> "Room":
        """The room that is left where these limits bind too."""

        def least(name: str) -> int | None:
            mine: int | None = getattr(self, name)
            limit: int | None = getattr(limits, name)
            if limit is None:
                return mine
            left: int = max(0, limit - getattr(spent, name) - getattr(held, name))
            return left if mine is None else min(mine, left)

        return Room(
            input_tokens=least("input_tokens"), output_tokens=least("output_tokens"), usd_micros=least("usd_micros")
        )

    def lacks(self, held: Held) -> str | None:
        """Name the first bound that a call of this size would pass."""
        for name in ("input_tokens", "output_tokens", "usd_micros"):
            left = getattr(self, name)
            if left is not None and getattr(held, name) > left:
                return name
        return None


def charge_step(spent: Spent, usage: Usage, usd_micros: int) -> Spent:
    """Add one model reply."""
    return msgspec.structs.replace(charge_tokens(spent, usage, usd_micros), steps=spent.steps + 1)


def charge_tokens(spent: Spent, usage: Usage, usd_micros: int) -> Spent:
    """Add what was paid for without a step."""
    return msgspec.structs.replace(
        spent,
        input_tokens=spent.input_tokens + usage.prompt,
        output_tokens=spent.output_tokens + usage.output,
        usd_micros=spent.usd_micros + usd_micros,
        usage=spent.usage + usage,
    )


def exhausted(limits: Limits, spent: Spent) -> tuple[str, ...]:
    """Name the limits that leave no room for another step."""
    pairs = (
        ("steps", limits.steps, spent.steps),
        ("tool_calls", limits.tool_calls, spent.tool_calls),
        ("input_tokens", limits.input_tokens, spent.input_tokens),
        ("output_tokens", limits.output_tokens, spent.output_tokens),
        ("usd_micros", limits.usd_micros, spent.usd_micros),
        ("active_s", limits.active_s, spent.active_ms / 1000),
    )
    return tuple(name for name, limit, used in pairs if limit is not None and used >= limit)
