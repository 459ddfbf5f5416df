"""Tokens of identity providers: what is believed, whom it names, and everything that is not."""

import json
import logging
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from joserfc.jwk import RSAKey
from tests.identity_provider import AUDIENCE, ISSUER, TABLE, Published, Signer, coded, published

from sojourn.errors import Unauthenticated
from sojourn.identity.issuers import ADMIT_S, REFUSED, Issuer, Issuers
from sojourn.store.tenant.admission import Vouched

PARTNER = "https://partner.example.com"
ED, RSA = Signer(kid="ed"), Signer("RS256", kid="rsa")
OTHER = Signer(kid="other")
SIGNERS = [ED, RSA, Signer("PS256", kid="ps"), Signer("ES256", kid="es")]


@pytest.fixture(scope="module")
async def providers() -> AsyncIterator[tuple[Published, Published]]:
    async with published(*SIGNERS) as ours, published(OTHER) as other:
        yield ours, other


@pytest.fixture
async def issuers(providers: tuple[Published, Published]) -> AsyncIterator[Issuers]:
    ours, other = (provider.url for provider in providers)
    made = {
        "corp": table(jwks_url=ours),
        "partner": table(jwks_url=other, issuer=PARTNER, tenant="rival"),
    }
    issuers = Issuers(made, lambda: datetime.now(UTC))
    yield issuers
    await issuers.close()


def table(**fields: Any) -> Issuer:
    return msgspec.convert(TABLE | fields, Issuer)


async def vouched(url: str, token: str, **fields: Any) -> Vouched:
    """What a process with one issuer says of a token."""
    issuers = Issuers({"corp": table(jwks_url=url, **fields)}, lambda: datetime.now(UTC))
    try:
        return await issuers.vouch(token)
    finally:
        await issuers.close()


# ---- who it is -------------------------------------------------------------------------------


@pytest.mark.parametrize("signer", SIGNERS, ids=lambda signer: signer.algorithm)
async def test_a_token_names_a_caller(issuers: Issuers, signer: Signer) -> None:
    token = signer.token(sub="ann@example.com", scope="openid runs:read agents:*", aud=["else", AUDIENCE])
    caller = await issuers.vouch(token)
    assert (caller.tenant, caller.user, caller.issuer) == ("acme", "ann@example.com", "corp")
    assert caller.scopes == {"runs:read", "agents:*"}
    assert caller.token_id == (await issuers.vouch(token)).token_id
    assert caller.token_id.startswith("corp:")
    assert 0 < caller.until_s - time.time() <= ADMIT_S


async def test_a_caller_lives_no_longer_than_its_token(issuers: Issuers) -> None:
    ends = int(time.time()) + 60
    assert (await issuers.vouch(ED.token(exp=ends))).until_s == ends + 30
    assert (await issuers.vouch(ED.token(exp=ends + 0.5))).until_s == ends + 30


async def test_claims_are_read_as_the_settings_say(providers: tuple[Published, Published]) -> None:
    mapped = {
        "tenant": "",
        "tenant_claim": "org",
        "user_claim": "email",
        "user_prefix": "corp/",
        "scopes_claim": "roles",
    }
    token = ED.token(org="acme", email="ann", roles=["reader", "cook", 7, "ops"], scope="runs:write")
    roles = {"reader": ["runs:read"], "ops": ["*"]}
    caller = await vouched(providers[0].url, token, **mapped, scopes_map=roles, scopes_max=["runs:read", "admin:stop"])
    assert (caller.tenant, caller.user, caller.scopes) == ("acme", "corp/ann", {"runs:read", "admin:stop"})


@pytest.mark.parametrize(
    ("claimed", "most", "allowed"),
    [
        ("runs:read", ["runs:*"], {"runs:read"}),
        ("runs:*", ["runs:read"], {"runs:read"}),
        ("*", ["runs:read", "admin:*"], {"runs:read", "admin:*"}),
        ("*", ["*"], {"*"}),
        ("admin:keys", ["runs:*"], set()),
        ("runs:fly fly:* **", ["*"], set()),
        (["runs:read", "runs:write"], ["runs:*"], {"runs:read", "runs:write"}),
        ({"runs:read": True}, ["*"], set()),
        (7, ["*"], set()),
        (None, ["*"], set()),
    ],
)
async def test_a_token_allows_what_it_says_within_what_its_issuer_may_give(
    providers: tuple[Published, Published], claimed: Any, most: list[str], allowed: set[str]
) -> None:
    assert (await vouched(providers[0].url, ED.token(scope=claimed), scopes_max=most)).scopes == allowed


async def test_no_token_allows_administration_unless_the_settings_say_so(issuers: Issuers) -> None:
    caller = await issuers.vouch(ED.token(scope="* admin:keys admin:*"))
    assert caller.scopes
    assert not any(scope.startswith(("admin", "*")) for scope in caller.scopes)


# ---- what is refused -------------------------------------------------------------------------


TWICE = '{"alg":"none","kid":"ed","alg":"EdDSA"}'


def spoiled(token: str) -> str:
    """The same token with one bit of its signature changed."""
    head, _, last = token.rpartition(".")
    return f"{head}.{'B' if last[0] == 'A' else 'A'}{last[1:]}"


def unsigned(algorithm: object) -> str:
    return f"{coded(json.dumps({'alg': algorithm, 'kid': 'ed'}))}.{ED.token().split('.')[1]}."


def twice_in_header(signer: Signer) -> str:
    """A token with a good signature, whose header names its algorithm twice."""
    said = f"{coded(TWICE)}.{ED.token().split('.')[1]}"
    return f"{said}.{coded(signer.key.private_key.sign(said.encode()))}"


NOW = int(time.time())
GOOD = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ann", "exp": NOW + 10**6}
STRANGER = RSAKey.generate_key(2048)
EMBEDDED = {"jwk": STRANGER.as_dict(private=False), "jku": "http://127.0.0.1:1/", "x5u": "http://127.0.0.1:1/"}
UNREADABLE, NO_TEXT = "a part of it cannot be read", "its claim sub is no text"
BAD = {
    "it is no JWT": {
        "none without a signature": lambda: unsigned("none"),
        "four parts": lambda: ED.token() + ".x",
        "two parts": lambda: ED.token().rpartition(".")[0],
        "padding": lambda: ED.token() + "=",
        "blanks": lambda: ED.token().replace(".", " .", 1),
        "nothing": lambda: "..",
    },
    UNREADABLE: {
        "a name twice": lambda: ED.signed(json.dumps(GOOD)[:-1] + ', "sub": "root"}'),
        "a name twice in its header": lambda: twice_in_header(ED),
        "no JSON": lambda: ED.signed("{"),
        "no UTF-8": lambda: ED.signed(b"\xff"),
        "nested deep": lambda: ED.signed("[" * 5000),
        "a number of many digits": lambda: ED.signed(json.dumps(GOOD)[:-1] + f', "n": {"9" * 5000}}}'),
    },
    "a part of it is no object": {"a list of claims": lambda: ED.signed(json.dumps([GOOD]))},
    "its issuer is not in the settings": {
        "an unknown issuer": lambda: ED.token(iss="https://evil.example.com"),
        "an issuer with a slash more": lambda: ED.token(iss=ISSUER + "/"),
        "no issuer": lambda: ED.token(iss=None),
        "an issuer that is a list": lambda: ED.token(iss=[ISSUER]),
    },
    "it is for another audience": {
        "another audience": lambda: ED.token(aud="https://other.example.com"),
        "more than the audience": lambda: ED.token(aud=AUDIENCE + ".evil"),
        "no audience": lambda: ED.token(aud=None),
        "audiences of another kind": lambda: ED.token(aud={AUDIENCE: True}),
    },
    "its algorithm is not one of the issuer's": {
        "none": lambda: unsigned("none") + "x",
        "None": lambda: unsigned("None") + "x",
        "no algorithm": lambda: unsigned(None) + "x",
        "an algorithm that is a list": lambda: unsigned(["EdDSA"]) + "x",
        "the public key as a secret": lambda: Signer("HS256", "rsa", RSA.key.as_pem(private=False)).token(),
        "another algorithm of the same key": lambda: Signer("RS512", "rsa", RSA.key).token(),
    },
    "its header asks for what is not understood here": {
        "a name of a key that is no text": lambda: ED.token({"kid": 7}),
        "critical headers": lambda: ED.token({"crit": ["exp"], "exp": NOW + 60}),
        "an unencoded payload": lambda: ED.token({"crit": ["b64"], "b64": False}),
        "another kind of token": lambda: ED.token({"typ": "logout+jwt"}),
        "a kind that is no text": lambda: ED.token({"typ": 7}),
    },
    "the issuer has no such key": {
        "an unknown key": lambda: Signer(kid="unknown").token(),
        "a key of another kind": lambda: ED.token({"kid": "rsa"}),
        "an embedded key": lambda: Signer("RS256", "mine", STRANGER).token(EMBEDDED),
        "the key of another issuer": lambda: OTHER.token(),
        "our key in the name of another issuer": lambda: ED.token(iss=PARTNER),
    },
    "its signature does not fit": {
        "a spoiled signature": lambda: spoiled(ED.token()),
        "a signature of a stranger": lambda: Signer("RS256", "rsa", STRANGER).token(),
        "a signature of another kind": lambda: ED.token().rpartition(".")[0] + "." + RSA.token().rpartition(".")[2],
        "an embedded key under a known name": lambda: Signer("RS256", "rsa", STRANGER).token(EMBEDDED),
        "the key of another issuer under a known name": lambda: Signer(kid="ed", key=OTHER.key).token(),
    },
    "it does not say when it begins and ends": {
        "no end": lambda: ED.token(exp=None),
        "an end that is text": lambda: ED.token(exp=str(NOW + 600)),
        "an end that is true": lambda: ED.token(exp=True),
        "an end beyond all time": lambda: ED.token(exp=10**400),
        "an end that is no number": lambda: ED.token(exp=float("nan")),
        "an end that is infinite": lambda: ED.token(exp=float("inf")),
        "a beginning that is text": lambda: ED.token(nbf="0"),
    },
    "it has expired": {"expired": lambda: ED.token(exp=NOW - 60)},
    "it is not valid yet": {"not valid yet": lambda: ED.token(nbf=NOW + 3600)},
    "it is bound to a key of its sender, which is not checked here": {"bound": lambda: ED.token(cnf={"jkt": "x"})},
    NO_TEXT: {
        "a user that is a number": lambda: ED.token(sub=7),
        "a user that is a list": lambda: ED.token(sub=["ann"]),
        "no user": lambda: ED.token(sub=None),
        "an empty user": lambda: ED.token(sub=""),
    },
    "its user is no name of one": {
        "a bar": lambda: ED.token(sub="ann|key_x"),
        "a control character": lambda: ED.token(sub="ann\n"),
        "a null": lambda: ED.token(sub="ann\0"),
        "half a character": lambda: ED.token(sub="\ud800"),
        "what turns the text round": lambda: ED.token(sub="\u202enna"),
        "a long user": lambda: ED.token(sub="x" * 201),
    },
}


@pytest.mark.parametrize(
    ("reason", "name"), [(reason, name) for reason, cases in BAD.items() for name in cases], ids=lambda text: text
)
async def test_a_bad_token_is_refused_and_only_the_log_says_why(
    issuers: Issuers, reason: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    await issuers.vouch(ED.token())
    with caplog.at_level(logging.INFO, "sojourn.identity"), pytest.raises(Unauthenticated) as refused:
        await issuers.vouch(BAD[reason][name]())
    assert str(refused.value) == REFUSED
    assert [line.reason for line in caplog.records if line.message == "auth.token_refused"] == [reason]


async def test_a_good_token_with_foreign_keys_in_its_header_is_verified_with_ours(issuers: Issuers) -> None:
    assert (await issuers.vouch(ED.token(EMBEDDED))).user == "ann"


async def test_clocks_may_differ_by_the_skew_and_no_more(issuers: Issuers) -> None:
    now = int(time.time())
    for claims in ({"exp": now - 10}, {"nbf": now + 10}):
        assert await issuers.vouch(ED.token(**claims))


@pytest.mark.parametrize("tenant", ["", "a b", "a|b", "x" * 65, 7, None, ["acme"], "acme\n"])
async def test_a_claimed_tenant_is_a_name_of_one(providers: tuple[Published, Published], tenant: Any) -> None:
    with pytest.raises(Unauthenticated):
        await vouched(providers[0].url, ED.token(org=tenant), tenant="", tenant_claim="org")


async def test_only_the_algorithms_of_the_settings_are_taken(providers: tuple[Published, Published]) -> None:
    assert await vouched(providers[0].url, RSA.token(), algorithms=["RS256"])
    with pytest.raises(Unauthenticated):
        await vouched(providers[0].url, ED.token(), algorithms=["RS256"])


async def test_one_provider_may_stand_twice_for_two_audiences(providers: tuple[Published, Published]) -> None:
    tables = {
        "one": table(jwks_url=providers[0].url),
        "two": table(jwks_url=providers[0].url, audience="https://second.example.com", tenant="rival"),
    }
    issuers = Issuers(tables, lambda: datetime.now(UTC))
    assert (await issuers.vouch(ED.token())).tenant == "acme"
    assert (await issuers.vouch(ED.token(aud="https://second.example.com"))).tenant == "rival"
    await issuers.close()


# ---- settings --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "jwks_url or jwks_file"),
        ({"jwks_url": "https://a/", "jwks_file": "b"}, "jwks_url or jwks_file"),
        ({"jwks_url": "http://login.example.com/keys"}, "https"),
        ({"jwks_url": "ftp://127.0.0.1/keys"}, "https"),
        ({"jwks_file": "k", "tenant": ""}, "tenant or tenant_claim"),
        ({"jwks_file": "k", "tenant_claim": "org"}, "tenant or tenant_claim"),
        ({"jwks_file": "k", "algorithms": []}, "algorithms"),
        ({"jwks_file": "k", "algorithms": ["HS256"]}, "algorithms"),
        ({"jwks_file": "k", "algorithms": ["none"]}, "algorithms"),
        ({"jwks_file": "k", "scopes_max": ["runs:fly"]}, "runs:fly"),
        ({"jwks_file": "k", "scopes_map": {"a": ["runs:fly"]}}, "runs:fly"),
        ({"jwks_file": "k", "audience": ""}, "audience"),
        ({"jwks_file": "k", "clock_skew_s": 3600}, "clock_skew_s"),
        ({"jwks_file": "k", "jku": "x"}, "jku"),
        ({"jwks_file": "k", "tenant": "a|b"}, "tenant"),
        ({"jwks_file": "k", "user_prefix": "a|"}, "user_prefix"),
    ],
)
def test_a_table_that_could_not_work_or_not_be_safe_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=said):
        table(**fields)
