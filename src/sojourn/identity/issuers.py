"""Callers with the token (JWT) of an identity provider: which issuers are believed, and whom and what they name.

`callers` asks. The rules: the settings name each issuer with its algorithms, its audience and its keys; what a token
says chooses among these and adds none; a refusal tells the log why, and the caller not.
"""

import base64
import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
from joserfc import jws
from joserfc.errors import JoseError
from msgspec import Meta

from sojourn.errors import Unauthenticated
from sojourn.identity import scopes
from sojourn.identity.jwks import KeySet, Source, at_url, in_file
from sojourn.identity.users import is_user
from sojourn.store.tenant.admission import Vouched

log = logging.getLogger("sojourn.identity")

Algorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519"
]  # fmt: skip
Text = Annotated[str, Meta(min_length=1, max_length=1000)]

ADMIT_S = 300
TIME_S_MAX = 1e11
"""The year 5138: later times are none."""
SHAPE = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
TYPES = {"jwt", "at+jwt", "application/jwt", "application/at+jwt"}
"""Other kinds of tokens that the same key may have signed are not for us. Source: RFC 8725, 3.11."""
TENANT = re.compile(r"[A-Za-z0-9_-]{1,64}")
LOOPBACK = ("127.0.0.1", "::1", "localhost")
REFUSED = "The token has expired, or is not one that this server takes. The server's log says more."


class Issuer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table [issuers.NAME] of the settings file: an identity provider whose tokens are taken for callers."""

    issuer: Text
    """What its tokens have as `iss`."""
    audience: Text
    """What their `aud` must name: this server."""
    jwks_url: str = ""
    jwks_file: str = ""
    algorithms: Annotated[tuple[Algorithm, ...], Meta(min_length=1)] = ("RS256", "PS256", "ES256", "EdDSA", "Ed25519")
    tenant: str = ""
    tenant_claim: str = ""
    user_claim: Text = "sub"
    user_prefix: str = ""
    """What stands before the user's name here. A `sub` is unique within its issuer only."""
    scopes_claim: Text = "scope"
    """A text with blanks between, or a list."""
    scopes_map: dict[str, tuple[str, ...]] = {}
    """What each value of the claim allows here; without a map, values are our scopes, and others count for nothing."""
    scopes_max: tuple[str, ...] = (
        "runs:*", "sessions:*", "agents:*", "schedules:*", "approvals:*", "budgets:raise"
    )  # fmt: skip
    """No token allows more than this."""
    confined: bool = True
    """Whether its callers see and touch what is their own alone."""
    clock_skew_s: Annotated[int, Meta(ge=0, le=300)] = 30

    def __post_init__(self) -> None:
        if bool(self.jwks_url) == bool(self.jwks_file):
            raise ValueError("give jwks_url or jwks_file, and not both")
        if bool(self.tenant) == bool(self.tenant_claim):
            raise ValueError("give tenant or tenant_claim, and not both")
        if self.tenant and not TENANT.fullmatch(self.tenant):
            raise ValueError("tenant is no name of one")
        if not is_user(f"{self.user_prefix}x"):
            raise ValueError("user_prefix cannot begin a user's name")
        url = urlsplit(self.jwks_url)
        if self.jwks_url and url.scheme != "https" and (url.scheme != "http" or url.hostname not in LOOPBACK):
            raise ValueError("jwks_url must begin with https://, or name this machine")
        for scope in (*self.scopes_max, *(scope for mapped in self.scopes_map.values() for scope in mapped)):
            if not scopes.known(scope):
                raise ValueError(f"there is no scope {scope!r}")

    @property
    def source(self) -> Source:
        """Where its keys are."""
        return at_url(self.jwks_url) if self.jwks_url else in_file(self.jwks_file)


class _Registry(jws.JWSRegistry):
    """All algorithms that an issuer may be given: each is pinned, so none needs to be recommended or warned of."""

    def get_alg(self, name: str) -> Any:
        return self.algorithms[name]


class _Bad(Exception):
    """Why a token is not good."""


class Issuers:
    """The issuers of the settings, and their keys as this process knows them."""

    def __init__(
        self, tables: Mapping[str, Issuer], now: Callable[[], datetime], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._known = [(name, one, KeySet(one.source, clock)) for name, one in tables.items()]
        self._now = now

    def __bool__(self) -> bool:
        return bool(self._known)

    async def vouch(self, token: str) -> Vouched:
        """Verify a token and say whom it names. Raises Unauthenticated and IssuerUnavailable."""
        name = ""
        try:
            header, claims = _opened(token)
            name, issuer, keys = self._addressed(claims)
            await _verify(token, header, issuer, keys)
            return self._named(token, name, issuer, claims)
        except _Bad as why:
            raise refusal(name, str(why)) from None

    async def close(self) -> None:
        for _, _, keys in self._known:
            await keys.close()

    def _addressed(self, claims: dict[str, Any]) -> tuple[str, Issuer, KeySet]:
        """Find the issuer that a token claims to be of, among those that it is for us by."""
        audience = claims.get("aud")
        audiences = [audience] if isinstance(audience, str) else audience
        said = [one for one in self._known if one[1].issuer == claims.get("iss")]
        if not said:
            raise _Bad("its issuer is not in the settings")
        for name, issuer, keys in said:
            if isinstance(audiences, list) and issuer.audience in audiences:
                return name, issuer, keys
        raise _Bad("it is for another audience")

    def _named(self, token: str, name: str, issuer: Issuer, claims: dict[str, Any]) -> Vouched:
        """Read a verified token's claims."""
        until_s = _ends_s(claims, issuer.clock_skew_s, self._now().timestamp())
        if "cnf" in claims:
            raise _Bad("it is bound to a key of its sender, which is not checked here")
        tenant = issuer.tenant or _text(claims, issuer.tenant_claim)
        user = issuer.user_prefix + _text(claims, issuer.user_claim)
        if not TENANT.fullmatch(tenant):
            raise _Bad("its tenant is no name of one")
        if not is_user(user):
            raise _Bad("its user is no name of one")
        return Vouched(
            tenant=tenant,
            user=user,
            token_id=f"{name}:{hashlib.sha256(token.encode()).hexdigest()[:16]}",
            issuer=name,
            scopes=_allowed(issuer, claims.get(issuer.scopes_claim)),
            until_s=until_s,
            confined=issuer.confined,
        )


def refusal(issuer: str, reason: str) -> Unauthenticated:
    """Tell the log why a token is not taken, and make what tells its sender nothing."""
    log.info("auth.token_refused", extra={"issuer": issuer, "reason": reason})
    return Unauthenticated(REFUSED)


def _opened(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Take a token apart, without believing any of it."""
    if not SHAPE.fullmatch(token):
        raise _Bad("it is no JWT")
    header, payload, _ = token.split(".")
    return _object(header), _object(payload)


def _object(segment: str) -> dict[str, Any]:
    """Read a part of a token, in which no name may stand twice."""
    try:
        data = base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
        value = json.loads(data.decode(), object_pairs_hook=_distinct)
    except (ValueError, RecursionError):
        raise _Bad("a part of it cannot be read") from None
    if not isinstance(value, dict):
        raise _Bad("a part of it is no object")
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is given twice")
    return found


async def _verify(token: str, header: dict[str, Any], issuer: Issuer, keys: KeySet) -> None:
    """See that one of the issuer's keys signed the token, with one of its algorithms."""
    algorithm, kid, kind = header.get("alg"), header.get("kid"), header.get("typ", "JWT")
    if algorithm not in issuer.algorithms:
        raise _Bad("its algorithm is not one of the issuer's")
    if "crit" in header or not isinstance(kid, str | None) or not isinstance(kind, str) or kind.lower() not in TYPES:
        raise _Bad("its header asks for what is not understood here")
    key = await keys.find(kid, algorithm)
    if key is None:
        raise _Bad("the issuer has no such key")
    registry = _Registry(strict_check_header=False)
    registry.max_header_length = len(token)  # some issuers put their certificates there
    try:
        jws.deserialize_compact(token, key, registry=registry)
    except (JoseError, ValueError):
        raise _Bad("its signature does not fit") from None


def _ends_s(claims: dict[str, Any], skew_s: int, now_s: float) -> int:
    """When the token ends for us, five minutes ahead at most."""
    expires_s, begins_s = claims.get("exp"), claims.get("nbf", 0)
    for moment in (expires_s, begins_s):
        if isinstance(moment, bool) or not isinstance(moment, int | float) or not 0 <= moment <= TIME_S_MAX:
            raise _Bad("it does not say when it begins and ends")
    if now_s >= expires_s + skew_s:
        raise _Bad("it has expired")
    if now_s < begins_s - skew_s:
        raise _Bad("it is not valid yet")
    return int(min(expires_s + skew_s, now_s + ADMIT_S))


def _text(claims: dict[str, Any], name: str) -> str:
    value = claims.get(name)
    if not isinstance(value, str) or not value:
        raise _Bad(f"its claim {name} is no text")
    return value


def _allowed(issuer: Issuer, claimed: Any) -> frozenset[str]:
    """The scopes that a claim names, as far as the issuer may give them."""
    values = claimed.split() if isinstance(claimed, str) else claimed if isinstance(claimed, list) else []
    texts = [value for value in values if isinstance(value, str)]
    if issuer.scopes_map:
        asked = {scope for text in texts for scope in issuer.scopes_map.get(text, ())}
    else:
        asked = {text for text in texts if scopes.known(text)}
    within = {scope for scope in asked if scopes.allows(issuer.scopes_max, scope)}
    return frozenset(within | {scope for scope in issuer.scopes_max if scopes.allows(asked, scope)})
