"""The public keys of one issuer, by URL or from a file: read, remembered, and read again. Called by `issuers`.

The rule: whatever tokens ask for, the keys are read once at a time and after a rest; while the issuer does not answer,
those that were read last are used for STALE_S and no longer. A key that cannot sign a caller's token is not there.
"""

import asyncio
import base64
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import msgspec
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OKPKey, RSAKey

from sojourn.errors import IssuerUnavailable

log = logging.getLogger("sojourn.identity")

FETCH_S = 5.0
BYTES_MAX, KEYS_MAX = 256 << 10, 64
STALE_S = 6 * 3600.0
CURVES = ("P-256", "P-384", "P-521")
RSA_BITS_MIN, RSA_BITS_MAX = 2048, 8192
FAMILIES = {
    "RS256": "RSA", "RS384": "RSA", "RS512": "RSA", "PS256": "RSA", "PS384": "RSA", "PS512": "RSA",
    "ES256": "P-256", "ES384": "P-384", "ES512": "P-521", "EdDSA": "Ed25519", "Ed25519": "Ed25519",
}  # fmt: skip
"""The kind of key, or its curve, that each algorithm takes. Source: RFC 7518, 8037 and 9864."""
SAME = {"EdDSA": "Ed25519"}
"""The older name of an algorithm, and the newer one."""

PublicKey = RSAKey | ECKey | OKPKey
Read = Callable[[], Awaitable[bytes]]


class Key(NamedTuple):
    """A key that signatures are verified with."""

    kid: str | None
    family: str
    algorithm: str | None
    """The only algorithm that it is for, where it says so."""
    public: PublicKey

    def fits(self, algorithm: str) -> bool:
        """Say whether it verifies signatures of an algorithm."""
        own = self.algorithm or algorithm
        return self.family == FAMILIES[algorithm] and SAME.get(own, own) == SAME.get(algorithm, algorithm)


class Source(NamedTuple):
    """Where keys are, and how often they are read."""

    where: str
    read: Read
    fresh_s: float
    """After this time they are read again beside the next token."""
    rest_s: float
    """So long nothing is read again, whatever tokens ask for."""


def at_url(url: str) -> Source:
    """Keys that an issuer publishes; a new one is seen as soon as a token names it."""
    return Source(url, lambda: _fetch(url), fresh_s=600.0, rest_s=30.0)


def in_file(path: str) -> Source:
    """Keys in a file, which may be changed at any time."""
    return Source(path, lambda: asyncio.to_thread(_load, Path(path)), fresh_s=1.0, rest_s=1.0)


class KeySet:
    """The keys of a source as they were read last."""

    def __init__(self, source: Source, clock: Callable[[], float]) -> None:
        self.source, self._clock = source, clock
        self._keys: tuple[Key, ...] = ()
        self._read_s = self._tried_s = float("-inf")
        self._failure = ""
        self._reading: asyncio.Task[None] | None = None

    async def find(self, kid: str | None, algorithm: str) -> PublicKey | None:
        """Find the key that a token names; without a name, the only one that fits. None where there is none.

        Raises IssuerUnavailable where it may be there, and cannot be read now.
        """
        age_s = self._clock() - self._read_s
        if age_s < STALE_S:
            if age_s >= self.source.fresh_s:
                self._begin()
            if (found := self._pick(kid, algorithm)) is not None:
                return found
        if (reading := self._begin()) is not None:
            await asyncio.shield(reading)
        if self._clock() - self._read_s < STALE_S and (found := self._pick(kid, algorithm)) is not None:
            return found
        if self._failure:
            raise IssuerUnavailable
        return None

    async def read(self) -> tuple[Key, ...]:
        """Read the keys now. Raises IssuerUnavailable with the reason."""
        try:
            return parsed(await self.source.read())
        except (aiohttp.ClientError, OSError, ValueError) as error:  # OSError holds TimeoutError
            raise IssuerUnavailable(f"{type(error).__name__}: {error}") from error

    async def close(self) -> None:
        """Stop reading."""
        if self._reading is not None:
            self._reading.cancel()
            with suppress(asyncio.CancelledError):
                await self._reading

    def _pick(self, kid: str | None, algorithm: str) -> PublicKey | None:
        fitting = [key.public for key in self._keys if key.fits(algorithm) and kid in (None, key.kid)]
        return fitting[0] if len(fitting) == 1 or (fitting and kid is not None) else None

    def _begin(self) -> asyncio.Task[None] | None:
        """Give the reading that is under way, or begin one; None while resting."""
        if self._reading is None and self._clock() - self._tried_s >= self.source.rest_s:
            self._tried_s = self._clock()
            self._reading = asyncio.create_task(self._renew())
        return self._reading

    async def _renew(self) -> None:
        began_s = self._clock()
        try:
            self._keys, self._read_s, self._failure = await self.read(), began_s, ""
        except IssuerUnavailable as error:
            self._failure = str(error)
            log.warning("issuer.keys_unreadable", extra={"where": self.source.where, "reason": self._failure})
        finally:
            self._reading = None


def parsed(data: bytes) -> tuple[Key, ...]:
    """Take the keys out of a JWKS. Raises ValueError where it is none, or none of its keys can be used."""
    try:
        listed = msgspec.json.decode(data, type=dict[str, Any]).get("keys")
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(f"this is no JWKS: {error}") from None
    if not isinstance(listed, list) or len(listed) > KEYS_MAX:
        raise ValueError(f"this is no JWKS of up to {KEYS_MAX} keys")
    keys = tuple(key for one in listed if isinstance(one, dict) and (key := _key(one)) is not None)
    if not keys:
        raise ValueError(f"none of its {len(listed)} keys can verify a signature")
    return keys


def _key(jwk: dict[str, Any]) -> Key | None:
    """Read one key; None for one that is secret, weak, for something else, or not understood."""
    kid, algorithm = jwk.get("kid"), jwk.get("alg")
    plain = {name: jwk[name] for name in ("kty", "n", "e", "crv", "x", "y") if name in jwk}
    try:
        for_signatures = jwk.get("use", "sig") == "sig" and "verify" in list(jwk.get("key_ops", ["verify"]))
        if "d" in jwk or not for_signatures or not isinstance(kid, str | None) or algorithm not in (None, *FAMILIES):
            return None
        match jwk["kty"]:
            case "RSA" if RSA_BITS_MIN <= _bits(jwk["n"]) <= RSA_BITS_MAX:
                return Key(kid, "RSA", algorithm, RSAKey.import_key(plain))
            case "EC" if jwk["crv"] in CURVES:
                return Key(kid, jwk["crv"], algorithm, ECKey.import_key(plain))
            case "OKP" if jwk["crv"] == "Ed25519":
                return Key(kid, "Ed25519", algorithm, OKPKey.import_key(plain))
    except (JoseError, KeyError, TypeError, ValueError):
        pass
    return None


def _bits(number: str) -> int:
    return int.from_bytes(base64.urlsafe_b64decode(number + "==")).bit_length()


async def _fetch(url: str) -> bytes:
    """Get a JWKS, following nobody elsewhere. Raises ClientError, OSError and ValueError."""
    timeout, headers = (
        aiohttp.ClientTimeout(total=FETCH_S),
        {"Accept": "application/json", "Accept-Encoding": "identity"},
    )
    async with (
        aiohttp.ClientSession(timeout=timeout, headers=headers, auto_decompress=False) as http,
        http.get(url, allow_redirects=False) as answer,
    ):
        if answer.status != 200:
            raise ValueError(f"it answers {answer.status}")
        data = bytearray()
        async for piece in answer.content.iter_any():
            data += piece
            _bounded(len(data))
    return bytes(data)


def _load(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(BYTES_MAX + 1)
    _bounded(len(data))
    return data


def _bounded(size: int) -> None:
    if size > BYTES_MAX:
        raise ValueError(f"it is larger than {BYTES_MAX} bytes")
