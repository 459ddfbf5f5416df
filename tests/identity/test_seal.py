"""Signatures: one spelling of each, and good for one key and one text alone."""

import pytest

from sojourn.errors import BadSeal
from sojourn.identity import seal

# Source: RFC 8032, section 7.1, test 2.
SECRET = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
PUBLIC = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
SIGNATURE = bytes.fromhex(
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)


def test_it_is_ed25519() -> None:
    issuer, sig = seal.issuer(SECRET), seal.sign(SECRET, b"\x72")
    assert seal._bytes(issuer.removeprefix("ed25519:"), 32) == PUBLIC
    assert seal._bytes(sig, 64) == SIGNATURE
    seal.verify(issuer, sig, b"\x72")


def test_keys_are_new_each_time() -> None:
    (one, secret), (two, _) = seal.new(), seal.new()
    assert one != two and seal.issuer(secret) == one and len(one) == len("ed25519:") + 43


def test_another_text_key_or_spelling_is_refused() -> None:
    issuer, sig = seal.issuer(SECRET), seal.sign(SECRET, b"text")
    last = "AEIMQUYcgkosw048"
    assert sig[-1] in "AQgw", "the last letter carries two bits"
    other_spelling = sig[:-1] + chr(ord(sig[-1]) + 1)
    bad = [
        (issuer, sig, b"texts"),
        (seal.issuer(bytes(32)), sig, b"text"),
        (issuer, other_spelling, b"text"),
        (issuer[:-1] + next(one for one in "BCDFGHJ" if one not in last), sig, b"text"),
        (issuer, sig + "==", b"text"),
        (issuer, sig + "\n", b"text"),
        (issuer, sig[:-1], b"text"),
        (issuer, "ä" * 86, b"text"),
        (issuer, "", b"text"),
        (issuer.removeprefix("ed25519:"), sig, b"text"),
        ("ed25519:", sig, b"text"),
        ("ed25519:" + "_" * 43, sig, b"text"),
    ]
    for case in bad:
        with pytest.raises(BadSeal):
            seal.verify(*case)
