"""What a model call cost, in micro-USD.

The worker asks after each call, for the ledger. The rule: an unknown price is None and never zero, and a price of the
table belongs to the host that charges it, so that no server of your own is billed as a famous one.

The table is written by scripts/prices.py; docs/decisions/0004-prices.md says why.
"""

import math
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Self

import msgspec

from sojourn.loop.messages import Usage
from sojourn.models.model import Endpoint

_TABLE = Path(__file__).with_name("prices.json")
_MILLION = 1_000_000


class Price(msgspec.Struct, frozen=True, array_like=True):
    """Micro-USD for a million tokens of each kind."""

    input: int
    output: int
    cache_read: int
    cache_write: int

    @classmethod
    def usd(
        cls, input: float, output: float, *, cache_read: float | None = None, cache_write: float | None = None
    ) -> Self:
        """Make a price of US dollars for a million tokens; the cache costs what input costs where nothing is said."""
        given = (
            input,
            output,
            input if cache_read is None else cache_read,
            input if cache_write is None else cache_write,
        )
        return cls(*(math.ceil(Decimal(str(dollars)) * _MILLION) for dollars in given))

    def cost_micros(self, usage: Usage) -> int:
        """Multiply, and round up."""
        spent = (
            usage.input * self.input
            + usage.output * self.output
            + usage.cache_read * self.cache_read
            + usage.cache_write * self.cache_write
        )
        return -(-spent // _MILLION)


class _Model(msgspec.Struct, frozen=True):
    price: Price
    names: tuple[str, ...] = ()
    like: str = ""
    tiers: tuple[tuple[int, Price], ...] = ()
    """A prompt of more tokens than the first costs the second, all of it."""


class _Provider(msgspec.Struct, frozen=True):
    id: str
    url: str
    models: tuple[_Model, ...]

    def find(self, model: str) -> _Model | None:
        """Find a model by an exact name, or else by the first pattern."""
        name = model.lower()
        exact = (each for each in self.models if name in each.names)
        similar = (each for each in self.models if each.like and re.search(each.like, name))
        return next(exact, None) or next(similar, None)


class _Table(msgspec.Struct, frozen=True):
    source: str
    date: str
    providers: tuple[_Provider, ...]


class Prices:
    """The prices of this process: the operator's, by `provider:model` or `provider:*`, before those of the table."""

    def __init__(self, endpoints: Iterable[Endpoint], *, own: Mapping[str, Price] | None = None) -> None:
        table = msgspec.json.decode(_TABLE.read_bytes(), type=_Table)
        self._own = dict(own or {})
        self._providers = {
            endpoint.name: provider
            for endpoint in endpoints
            for provider in table.providers
            if re.match(provider.url, endpoint.base_url)
        }
        self._found: dict[str, _Model | None] = {}

    def cost_micros(self, reference: str, usage: Usage) -> int | None:
        """Price one call to the model `provider:model`; None if nobody told its price."""
        if reference not in self._found:
            self._found[reference] = self._find(reference)
        model = self._found[reference]
        if model is None:
            return None
        price = next((price for start, price in reversed(model.tiers) if usage.prompt > start), model.price)
        return price.cost_micros(usage)

    def _find(self, reference: str) -> _Model | None:
        provider, _, model = reference.partition(":")
        own = self._own.get(reference) or self._own.get(f"{provider}:*")
        if own:
            return _Model(own)
        charging = self._providers.get(provider)
        return charging.find(model) if charging else None
