"""The keys of one endpoint: which one the next attempt uses.

The adapter takes one per attempt and says how it fared. The rule: a key leaves this file only to become a header;
messages and logs know keys by their place.
"""

import logging
import time
from collections.abc import Callable

from sojourn.errors import Invalid
from sojourn.models.model import Endpoint, ModelFailed

QUARANTINE_S = 600.0
"""A refused key is left alone this long: it may have been re-enabled, and asking costs one attempt."""
COOL_S = 5.0
"""How long a key rests that was limited without a Retry-After, when there are others."""

log = logging.getLogger("sojourn.models")


class Key:
    """One key and when it may be used again, in seconds of the monotonic clock."""

    __slots__ = ("place", "refused", "rests_until", "secret")

    def __init__(self, place: int, secret: str) -> None:
        self.place = place
        self.secret = secret
        self.refused = False
        self.rests_until = 0.0


class Keys:
    """Round robin over the keys that are neither refused nor cooling down."""

    def __init__(self, endpoint: Endpoint, *, now: Callable[[], float] = time.monotonic) -> None:
        if any(not key.isascii() or not key.isprintable() or " " in key or not key for key in endpoint.keys):
            raise Invalid(f"A key of '{endpoint.name}' is empty or has characters that a header cannot carry.")
        self._provider = endpoint.name
        self._required = endpoint.key_required
        self._source = endpoint.key_env or f"`keys` of '{endpoint.name}' in the settings"
        self._now = now
        self._keys = [Key(place, secret) for place, secret in enumerate(dict.fromkeys(endpoint.keys), 1)]
        self._next = 0

    def take(self) -> Key | None:
        """Choose the key of the next attempt; None where the endpoint needs none. Raises ModelFailed."""
        if not self._keys and not self._required:
            return None
        now = self._now()
        for step in range(len(self._keys)):
            place = (self._next + step) % len(self._keys)
            if self._keys[place].rests_until <= now:
                self._next = place + 1
                return self._keys[place]
        raise self._none_left()

    def refuse(self, key: Key | None, status: int) -> ModelFailed:
        """Put a key aside that the provider does not accept, and say what the attempt failed of."""
        if key is None:
            return self._failed(f"'{self._provider}' asks for a key (HTTP {status}): set {self._source}.")
        key.refused, key.rests_until = True, self._now() + QUARANTINE_S
        log.warning("model.key_refused", extra={"provider": self._provider, "key": key.place, "status": status})
        told = f"'{self._provider}' refused key {key.place} of {len(self._keys)} (HTTP {status}): check {self._source}."
        others_s = self._others_s()
        return self._failed(told, retry=others_s is not None, retry_after_s=others_s)

    def cool(self, key: Key | None, retry_after_s: float | None) -> float | None:
        """Let a limited key rest; returns after how many seconds another attempt makes sense, None if unknown."""
        if key is None or (retry_after_s is None and len(self._keys) == 1):
            return retry_after_s
        key.rests_until = self._now() + (COOL_S if retry_after_s is None else retry_after_s)
        return self._others_s()

    def _others_s(self) -> float | None:
        """Seconds until the first key that is not refused may be used; None if all are refused."""
        now = self._now()
        waits = [key.rests_until - now for key in self._keys if not (key.refused and key.rests_until > now)]
        return max(min(waits), 0.0) if waits else None

    def _none_left(self) -> ModelFailed:
        if not self._keys:
            return self._failed(f"'{self._provider}' has no key: set {self._source}.")
        wait_s = self._others_s()
        if wait_s is None:
            return self._failed(f"'{self._provider}' refused every key: correct {self._source} and restart.")
        told = f"Every key of '{self._provider}' is cooling down; the first is free in {wait_s:.0f} s."
        return ModelFailed("rate_limited", told, retry=True, retry_after_s=wait_s)

    def _failed(self, message: str, *, retry: bool = False, retry_after_s: float | None = None) -> ModelFailed:
        return ModelFailed("no_key", message, retry=retry, retry_after_s=retry_after_s)
