"""What a model call costs, in micro-USD, and how much a model can read.

The worker asks after each call, for the ledger; estimates ask before. The rule: an unknown price is None and never
zero, and a price of the table belongs to the host that charges it, so that no server of your own is billed as a famous
one.

The table is written by scripts/prices.py; docs/decisions/0004-prices.md says why.
"""

import math
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import TypeVar

import msgspec

from sojourn.loop.budget import Price, Tariff
from sojourn.loop.messages import Usage
from sojourn.models.model import Endpoint

_TABLE = Path(__file__).with_name("prices.json")
WINDOW_TOKENS = 128_000
"""What a model is taken for that nobody knows."""

T = TypeVar("T")


def usd(input: float, output: float, *, cache_read: float | None = None, cache_write: float | None = None) -> Price:
    """Make a price of US dollars for a million tokens; the cache costs what input costs where nothing is said."""
    given = (
        input,
        output,
        input if cache_read is None else cache_read,
        input if cache_write is None else cache_write,
    )
    return Price(*(math.ceil(Decimal(str(dollars)) * 10**6) for dollars in given))


class _Model(msgspec.Struct, frozen=True):
    price: Price
    names: tuple[str, ...] = ()
    like: str = ""
    window: int | None = None
    tiers: tuple[tuple[int, Price], ...] = ()


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
    """Prices and windows: what the operator says, by `provider:model` or `provider:*`, comes before the table."""

    def __init__(
        self,
        endpoints: Iterable[Endpoint],
        *,
        own: Mapping[str, Price] | None = None,
        windows: Mapping[str, int] | None = None,
        window_default: int = WINDOW_TOKENS,
    ) -> None:
        table = msgspec.json.decode(_TABLE.read_bytes(), type=_Table)
        self._own = dict(own or {})
        self._windows = dict(windows or {})
        self._window_default = window_default
        self._providers = {
            endpoint.name: provider
            for endpoint in endpoints
            for provider in table.providers
            if re.match(provider.url, endpoint.base_url)
        }
        self._found: dict[str, _Model | None] = {}

    def tariff(self, reference: str) -> Tariff | None:
        """Look up what the model `provider:model` costs; None if nobody told."""
        own = _told(self._own, reference)
        model = _Model(own) if own else self._listed(reference)
        return Tariff(model.price, model.tiers) if model else None

    def cost_micros(self, reference: str, usage: Usage) -> int | None:
        """Price one call to the model `provider:model`; None if nobody told its price."""
        tariff = self.tariff(reference)
        return tariff.cost_micros(usage) if tariff else None

    def window(self, reference: str) -> int:
        """Tell how many tokens, prompt and reply together, the model `provider:model` can hold."""
        model = self._listed(reference)
        return _told(self._windows, reference) or (model and model.window) or self._window_default

    def _listed(self, reference: str) -> _Model | None:
        """Look a model up in the table, under the provider whose host it is."""
        if reference not in self._found:
            provider, _, model = reference.partition(":")
            charging = self._providers.get(provider)
            self._found[reference] = charging.find(model) if charging else None
        return self._found[reference]


def _told(own: Mapping[str, T], reference: str) -> T | None:
    """Look up what an operator says of one model, or else of all models of its provider."""
    return own.get(reference) or own.get(f"{reference.partition(':')[0]}:*")
