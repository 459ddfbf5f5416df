"""All providers of this process: `provider:model` to the adapter that speaks to it.

`wiring` builds it from the settings' endpoints and closes it. The rule: whatever is wrong with an endpoint is said
here, at the start, and not in the middle of a run.
"""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from sojourn.errors import Invalid
from sojourn.models.adapter import HttpModel
from sojourn.models.anthropic import ANTHROPIC
from sojourn.models.json_schema import JSON_SCHEMA
from sojourn.models.kept import Kept
from sojourn.models.model import Endpoint
from sojourn.models.openai import OPENAI
from sojourn.models.wire.keys import Keys
from sojourn.models.wire.transport import Transport

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_HEADER = re.compile(r"[A-Za-z0-9-]{1,128}:[\x20-\x7e]{0,8192}")


class Endpoints:
    """The port's `Models`: one adapter an endpoint, one HTTP session for all."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        *,
        transport: Transport | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._transport = transport or Transport()
        self._kept = Kept()
        self._endpoints = {endpoint.name: endpoint for endpoint in endpoints}
        self._models = {name: self._model(endpoint, now) for name, endpoint in self._endpoints.items()}

    def _model(self, endpoint: Endpoint, now: Callable[[], float]) -> HttpModel:
        if not _NAME.fullmatch(endpoint.name):
            raise Invalid(f"A provider cannot be called {endpoint.name!r}: use letters, digits, '-', '_' and '.'.")
        if any(not _HEADER.fullmatch(f"{name}:{value}") for name, value in endpoint.headers.items()):
            raise Invalid(f"A header of provider '{endpoint.name}' has characters that HTTP does not allow.")
        dialects = (ANTHROPIC, ANTHROPIC) if endpoint.dialect == "anthropic" else (OPENAI, JSON_SCHEMA)
        if endpoint.tool_mode == "json_schema" and endpoint.dialect == "anthropic":
            raise Invalid(f"Provider '{endpoint.name}': tool_mode json_schema is for the dialect openai.")
        keys = Keys(endpoint, now=now)
        return HttpModel(endpoint, dialects, transport=self._transport, keys=keys, kept=self._kept)

    def resolve(self, reference: str) -> tuple[HttpModel, str]:
        """Find the adapter and the model's own name, which may hold more colons. Raises Invalid."""
        provider, _, model = reference.partition(":")
        if not model:
            raise Invalid(f"A model is written provider:model; the providers here are {self._names()}.")
        if provider not in self._models:
            raise Invalid(f"There is no provider '{provider[:64]}'; the providers here are {self._names()}.")
        return self._models[provider], model

    def _names(self) -> str:
        return ", ".join(sorted(self._models)) or "none: add one to the settings"

    def endpoints(self) -> Mapping[str, Endpoint]:
        return MappingProxyType(self._endpoints)

    async def close(self) -> None:
        """Close every connection to a provider."""
        await self._transport.close()
