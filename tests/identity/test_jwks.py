"""The keys of an issuer: when they are read, how long they are kept, and which of them count."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from joserfc.jwk import ECKey, OctKey
from tests.conftest import until
from tests.hand_clock import HandClock
from tests.identity_provider import Published, Signer, published, rsa_key

from sojourn.errors import IssuerUnavailable
from sojourn.identity import jwks
from sojourn.identity.jwks import STALE_S, KeySet, at_url, in_file, parsed


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
async def provider() -> AsyncIterator[Published]:
    async with published(Signer(kid="k1")) as provider:
        yield provider


@pytest.fixture
async def keys(provider: Published, clock: HandClock) -> AsyncIterator[KeySet]:
    keys = KeySet(at_url(provider.url), clock)
    yield keys
    await keys.close()


async def found(keys: KeySet, kid: str | None = "k1", algorithm: str = "EdDSA") -> bool:
    return await keys.find(kid, algorithm) is not None


async def the_reading(keys: KeySet) -> None:
    """Begin to read if it is time, and wait for what is under way, as a token with a name that nobody knows does."""
    assert not await found(keys, "unknown")


# ---- when they are read ------------------------------------------------------------------------


async def test_keys_are_read_once_for_all_who_wait_and_then_remembered(provider: Published, keys: KeySet) -> None:
    assert await asyncio.gather(*(found(keys) for _ in range(50))) == [True] * 50
    assert await found(keys)
    assert provider.asked == 1


async def test_a_new_key_is_seen_when_a_token_names_it_and_the_old_one_stays_as_long_as_it_is_published(
    provider: Published, keys: KeySet, clock: HandClock
) -> None:
    old, new = Signer(kid="k1"), Signer(kid="k2")
    assert await found(keys, "k1")
    provider.publish(old, new)
    clock.now_s += keys.source.rest_s
    assert await found(keys, "k2")
    assert await found(keys, "k1"), "both are good while both are published"
    provider.publish(new)
    clock.now_s += keys.source.fresh_s
    assert await found(keys, "k1"), "the one that is remembered, while it is read again beside"
    await the_reading(keys)
    assert not await found(keys, "k1")
    assert await found(keys, "k2")


async def test_made_up_names_of_keys_have_them_read_no_more_than_once_in_a_rest(
    provider: Published, keys: KeySet, clock: HandClock
) -> None:
    assert await found(keys)
    for number in range(100):
        assert not await found(keys, f"made-up-{number}")
    assert provider.asked == 1
    clock.now_s += keys.source.rest_s
    assert not any(await asyncio.gather(*(found(keys, f"made-up-{number}") for number in range(100))))
    assert provider.asked == 2


async def test_keys_are_used_while_the_issuer_is_away_but_not_for_ever(
    provider: Published, keys: KeySet, clock: HandClock
) -> None:
    assert await found(keys)
    provider.status = 500
    clock.now_s += STALE_S - 1
    assert await found(keys)
    with pytest.raises(IssuerUnavailable):
        await the_reading(keys)
    clock.now_s += 1 + keys.source.rest_s
    with pytest.raises(IssuerUnavailable):
        await keys.find("k1", "EdDSA")
    provider.status = 200
    with pytest.raises(IssuerUnavailable):
        await keys.find("k1", "EdDSA")
    clock.now_s += keys.source.rest_s
    assert await found(keys)


async def test_a_key_that_nobody_knows_may_be_there_while_the_issuer_is_away(
    provider: Published, keys: KeySet, clock: HandClock
) -> None:
    assert await found(keys)
    provider.status = 503
    clock.now_s += keys.source.rest_s
    for _ in range(2):
        with pytest.raises(IssuerUnavailable):
            await keys.find("k2", "EdDSA")
    assert await found(keys), "the known one is still good"
    assert provider.asked == 2


async def test_a_caller_that_goes_away_takes_the_reading_from_nobody(provider: Published, keys: KeySet) -> None:
    provider.answering.clear()
    asking = [asyncio.create_task(found(keys)) for _ in range(3)]
    await until(lambda: provider.asked > 0)
    asking[0].cancel()
    provider.answering.set()
    assert await asyncio.gather(*asking[1:]) == [True, True]
    assert provider.asked == 1


async def test_an_issuer_that_does_not_answer_is_not_waited_for(
    provider: Published, keys: KeySet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "FETCH_S", 0.05)
    provider.answering.clear()
    with pytest.raises(IssuerUnavailable):
        await keys.find("k1", "EdDSA")


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        (404, {}, b""),
        (302, {"Location": "/elsewhere"}, b""),
        (200, {}, b"<html>"),
        (200, {}, b"[]"),
        (200, {}, b'{"keys": 1}'),
        (200, {}, b'{"keys": []}'),
        (200, {}, b'{"keys": [' + b"{}," * 64 + b"{}]}"),
        (200, {}, b"[" * 100_000),
        (200, {}, b" " * (jwks.BYTES_MAX + 1)),
        (200, {"Content-Encoding": "gzip"}, b"\x1f\x8b"),
    ],
)
async def test_what_is_no_set_of_keys_is_none(
    provider: Published, keys: KeySet, status: int, headers: dict[str, str], body: bytes
) -> None:
    provider.status, provider.headers, provider.body = status, headers, body
    with pytest.raises(IssuerUnavailable):
        await keys.find("k1", "EdDSA")
    assert provider.asked == 1


async def test_a_file_is_read_again_when_it_has_changed(tmp_path: Path, clock: HandClock) -> None:
    file, old, new = tmp_path / "keys.json", Signer(kid="k1"), Signer(kid="k2")
    keys = KeySet(in_file(str(file)), clock)
    with pytest.raises(IssuerUnavailable):
        await keys.find("k1", "EdDSA")
    clock.now_s += 1
    file.write_text(json.dumps({"keys": [old.jwk]}))
    assert await found(keys)
    clock.now_s += 1
    file.write_text(json.dumps({"keys": [new.jwk]}))
    assert await found(keys, "k2")
    assert not await found(keys, "k1")
    clock.now_s += 1
    file.write_text("half a fi")
    assert await found(keys, "k2"), "what cannot be read takes nothing away"
    await keys.close()


# ---- which of them count -----------------------------------------------------------------------


ED, EC, RSA = Signer("EdDSA"), Signer("ES256"), Signer("RS256")


@pytest.mark.parametrize(
    ("jwk", "fits"),
    [
        (ED.jwk, {"EdDSA", "Ed25519"}),
        (EC.jwk, {"ES256"}),
        (RSA.jwk, {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}),
        ({**RSA.jwk, "alg": "PS256"}, {"PS256"}),
        ({**ED.jwk, "alg": "Ed25519"}, {"EdDSA", "Ed25519"}),
        ({**EC.jwk, "key_ops": ["verify"]}, {"ES256"}),
        (ECKey.generate_key("P-384").as_dict(private=False), {"ES384"}),
    ],
)
def test_a_key_fits_the_algorithms_of_its_kind_and_the_one_that_it_names(jwk: dict, fits: set[str]) -> None:
    (key,) = parsed(json.dumps({"keys": [jwk]}).encode())
    assert {name for name in jwks.FAMILIES if key.fits(name)} == fits


@pytest.mark.parametrize(
    "jwk",
    [
        OctKey.generate_key(256).as_dict(),
        ED.key.as_dict(private=True),
        {**ED.jwk, "use": "enc"},
        {**ED.jwk, "key_ops": ["sign"]},
        {**ED.jwk, "key_ops": 1},
        {**ED.jwk, "kid": 1},
        {**ED.jwk, "alg": "HS256"},
        {**ED.jwk, "alg": ["EdDSA"]},
        {**ED.jwk, "x": "AA"},
        {**ED.jwk, "crv": "X25519"},
        {**EC.jwk, "crv": "secp256k1"},
        {**EC.jwk, "x": ED.jwk["x"]},
        {**RSA.jwk, "n": RSA.jwk["n"][:171]},
        {**RSA.jwk, "n": "A" * 171 + RSA.jwk["n"][:171]},
        {**RSA.jwk, "n": 7},
        {"kty": "RSA"},
        {"kty": ["RSA"]},
        {},
        [],
        None,
    ],
)
def test_a_key_that_is_secret_weak_or_for_something_else_is_left_out(jwk: object) -> None:
    with pytest.raises(ValueError, match="none of its 1 keys"):
        parsed(json.dumps({"keys": [jwk]}).encode())
    (key,) = parsed(json.dumps({"keys": [jwk, {**RSA.jwk, "kid": "good"}]}).encode())
    assert key.kid == "good"


async def test_a_token_that_names_no_key_is_verified_only_where_one_key_fits(
    provider: Published, keys: KeySet, clock: HandClock
) -> None:
    provider.publish(Signer(kid="k1"), Signer("RS256", kid="r1"))
    assert await found(keys, None)
    provider.publish(Signer(kid="k1"), Signer(kid="k2"), Signer("RS256", "r1", rsa_key(1)))
    clock.now_s += keys.source.fresh_s
    await the_reading(keys)
    assert not await found(keys, None)
    assert await found(keys, None, "RS256")
