"""What `sojourn doctor` says of identity providers."""

import json
from pathlib import Path

import msgspec
from tests.identity_provider import TABLE, Signer, published

from sojourn.doctor import issuer
from sojourn.identity.issuers import Issuer


async def test_an_issuer_whose_keys_can_be_read_is_well(tmp_path: Path):
    async with published(Signer("ES256"), Signer(kid="k2")) as provider:
        found = await issuer("corp", msgspec.convert({**TABLE, "jwks_url": provider.url}, Issuer))
    assert (found.name, found.ok) == ("issuer corp", True)
    assert found.detail == f"{provider.url}, 2 keys for ES256, EdDSA, Ed25519"


async def test_an_issuer_whose_keys_cannot_be_read_is_not(tmp_path: Path):
    table = msgspec.convert({**TABLE, "jwks_file": str(tmp_path / "jwks.json")}, Issuer)
    missing = await issuer("corp", table)
    assert missing.ok is False
    assert "No such file" in missing.detail
    (tmp_path / "jwks.json").write_text(json.dumps({"keys": [Signer().jwk]}))
    pinned = msgspec.structs.replace(table, algorithms=("RS256",))
    useless = await issuer("corp", pinned)
    assert (useless.ok, useless.hint) == (False, "Set algorithms in [issuers.corp].")
