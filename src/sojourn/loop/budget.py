"""What a run may use and has used, counted over the whole tree of frames, and at which prices.

The machine charges it with every event. The rules: it is checked before something begins, so a limit is never passed by
more than what was in flight; and a price that is not known is None and never zero.
"""

from datetime import datetime, timedelta
from typing import Final, Literal

import msgspec

from sojourn.loop.messages import Plain, Usage

OnExhaust = Literal["fail", "suspend"]
DEPTH: Final = 8
CHILDREN: Final = 100
"""How deep sub-agents may be nested, and how many a run may begin, where nothing else is said."""
DEPTH_MAX: Final = 16
"""How deep they may be nested, whatever is said."""
_MILLION = 1_000_000


class Limits(Plain, frozen=True, kw_only=True):
    """The hard bounds of one run, None where there is none. Money is in micro-USD."""

    steps: int | None = 75
    tool_calls: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    usd_micros: int | None = None
    active_s: float | None = 3600.0
    """Time during which something was in flight; waiting for a person costs none."""
    wall_s: float | None = None
    """Time from the start to the end, whatever it passed with."""
    depth: int = DEPTH
    """How many agents may stand above a sub-agent; 0 lets none begin."""
    children: int = CHILDREN
    """How many sub-agents may be begun in all, those of sub-agents too."""
    on_exhaust: OnExhaust = "fail"


# ---- prices ----------------------------------------------------------------------------------


class Price(msgspec.Struct, frozen=True, array_like=True):
    """Micro-USD for a million tokens of each kind."""

    input: int
    output: int
    cache_read: int
    cache_write: int

    def cost_micros(self, usage: Usage) -> int:
        """Multiply, and round up."""
        spent = (
            usage.input * self.input
            + usage.output * self.output
            + usage.cache_read * self.cache_read
            + usage.cache_write * self.cache_write
        )
        return -(-spent // _MILLION)


class Tariff(Plain, frozen=True):
    """What a model costs: a price, and dearer ones for long prompts."""

    price: Price
    tiers: tuple[tuple[int, Price], ...] = ()
    """A prompt of more tokens than the first costs the second, all of it."""

    def cost_micros(self, usage: Usage) -> int:
        """Price one call."""
        price = next((price for start, price in reversed(self.tiers) if usage.prompt > start), self.price)
        return price.cost_micros(usage)

    def ceiling_micros(self, *, input_tokens: int, output_tokens: int) -> int:
        """Price the dearest call of this size: nothing is read from the cache, and all that is new is written to it."""
        plain = self.cost_micros(Usage(input=input_tokens, output=output_tokens))
        return max(plain, self.cost_micros(Usage(cache_write=input_tokens, output=output_tokens)))


class Pin(Plain, frozen=True):
    """What a model, `provider:model`, costs a run from its first call on, whatever becomes of the operator's prices."""

    model: str
    tariff: Tariff


class Bill(Plain, frozen=True, kw_only=True):
    """What one call to a model, `provider:model`, cost."""

    model: str
    usage: Usage = Usage()
    usd_micros: int | None = None
    """None where the price is not known."""
    estimated: bool = False
    """The provider gave no whole count: the call was cut, or it never counts."""


# ---- what is used ----------------------------------------------------------------------------


class Spent(Plain, frozen=True, kw_only=True):
    """What a run used so far."""

    steps: int = 0
    tool_calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    usd_micros: int = 0
    active_ms: int = 0
    children: int = 0
    """So many sub-agents were begun."""
    usage: Usage = Usage()
    estimated: int = 0
    """So many calls are in it by an estimate: they gave no count."""
    unpriced: int = 0
    """So many calls are not in `usd_micros`: nobody told their price."""


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


def charge(spent: Spent, bill: Bill, *, steps: int = 0) -> Spent:
    """Add what one call to a model cost."""
    return msgspec.structs.replace(
        spent,
        steps=spent.steps + steps,
        input_tokens=spent.input_tokens + bill.usage.prompt,
        output_tokens=spent.output_tokens + bill.usage.output,
        usd_micros=spent.usd_micros + (bill.usd_micros or 0),
        usage=spent.usage + bill.usage,
        estimated=spent.estimated + bill.estimated,
        unpriced=spent.unpriced + (bill.usd_micros is None),
    )


def exhausted(limits: Limits, spent: Spent, *, since: datetime, at: datetime) -> tuple[str, ...]:
    """Name the limits that leave no room for another step, of something that began at `since`."""
    pairs = (
        ("steps", limits.steps, spent.steps),
        ("tool_calls", limits.tool_calls, spent.tool_calls),
        ("input_tokens", limits.input_tokens, spent.input_tokens),
        ("output_tokens", limits.output_tokens, spent.output_tokens),
        ("usd_micros", limits.usd_micros, spent.usd_micros),
        ("active_s", limits.active_s, spent.active_ms / 1000),
    )
    names = tuple(name for name, limit, used in pairs if limit is not None and used >= limit)
    over = limits.wall_s is not None and at - since >= timedelta(seconds=limits.wall_s)
    return (*names, "wall_s") if over else names
