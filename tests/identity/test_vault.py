"""Secrets at rest: what is sealed opens for its tenant, name and version alone, and only with the root key."""

import asyncio
import base64
import secrets
from pathlib import Path

import pytest
from tests.store.scripted_runs import enter

from sojourn.errors import Forbidden, Invalid, NotFound, StoreUnavailable, Unavailable
from sojourn.identity import seal
from sojourn.identity.secrets import envelope, roots
from sojourn.identity.secrets.roots import RootKeys
from sojourn.identity.secrets.vault import Vault, unlocked
from sojourn.store.db import Database
from sojourn.store.tenant import issuers, keys

VALUE = b"the secret of a webhook"


def given(*of: bytes) -> RootKeys:
    return RootKeys(",".join(base64.b64encode(key).decode() for key in of), Path("/nowhere"))


@pytest.fixture
def root() -> bytes:
    return secrets.token_bytes(32)


@pytest.fixture
async def vault(database: Database, root: bytes) -> Vault:
    return await unlocked(database, given(root), may_make=False)


async def everything(database: Database) -> bytes:
    """All that the tables of secrets hold."""
    async with database.migrator() as owner, owner.transaction():
        await owner.execute("set local role sojourn_keyring")
        rows = [await owner.fetch(f"select * from {name}") for name in ("root_key", "data_key", "secret", "seal_key")]
    return b"".join(
        value if isinstance(value, bytes) else str(value).encode() for some in rows for row in some for value in row
    )


# ---- sealing -----------------------------------------------------------------------------------


def test_what_is_sealed_opens_only_for_what_it_was_sealed_for() -> None:
    key = secrets.token_bytes(32)
    sealed = envelope.seal(key, VALUE, "secret", "acme", "hook", "1")
    assert VALUE not in sealed
    assert sealed != envelope.seal(key, VALUE, "secret", "acme", "hook", "1"), "two of the same are not seen to be"
    assert envelope.opened(key, sealed, "secret", "acme", "hook", "1") == VALUE
    edited = [sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :] for at in range(len(sealed))]
    for other, bound in (
        (sealed, ("secret", "rival", "hook", "1")),
        (sealed, ("secret", "acme", "hook", "2")),
        (sealed, ("secret", "acme", "hook1", "")),
        (sealed, ("secret", "acmehook", "", "1")),
        (sealed[:-1], ("secret", "acme", "hook", "1")),
        (b"", ("secret", "acme", "hook", "1")),
        *((one, ("secret", "acme", "hook", "1")) for one in edited),
    ):
        with pytest.raises(Unavailable, match="does not open"):
            envelope.opened(key, other, *bound)
    with pytest.raises(Unavailable):
        envelope.opened(secrets.token_bytes(32), sealed, "secret", "acme", "hook", "1")


def test_a_root_key_is_named_without_being_told(root: bytes, tmp_path: Path) -> None:
    two = given(root, secrets.token_bytes(32))
    assert two.ids[0] == roots.root_id(root) and len(two.ids) == 2
    assert root.hex()[:8] not in two.ids[0]
    path = tmp_path / "root.key"
    assert RootKeys("", path).ids == ()
    assert roots.make(path) == roots.make(path) == RootKeys("", path).ids[0], "made once"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in tmp_path.iterdir()] == ["root.key"]
    for text in ("short", "c2hvcnQ=", base64.b64encode(root).decode() + "!"):
        path.write_text(text)
        with pytest.raises(Invalid) as refused:
            RootKeys("", path)
        assert text not in str(refused.value), "what was read is not told"


def test_a_key_that_is_put_into_the_file_later_is_found(root: bytes, tmp_path: Path) -> None:
    path = tmp_path / "root.key"
    first, fresh = roots.make(path), roots.root_id(root)
    held = RootKeys("", path)
    with pytest.raises(Unavailable, match=fresh):
        held.key(fresh)
    roots.write(path, root, held.key(first))
    assert held.key(fresh) == root and held.ids == (fresh, first)


# ---- the vault ---------------------------------------------------------------------------------


async def test_a_tenant_keeps_versions_of_a_secret_that_nobody_else_can_read(database: Database, vault: Vault) -> None:
    caller, other = await enter(database), await enter(database, "rival")
    async with database.scoped(caller.handle) as conn:
        assert [await vault.put(conn, "hook", VALUE), await vault.put(conn, "hook", b"second")] == [1, 2]
        assert [await vault.get(conn, "hook"), await vault.get(conn, "hook", 1)] == [b"second", VALUE]
        assert await vault.rotate(conn, "hook", b"third") == 3
        assert [await vault.get(conn, "hook", version) for version in (None, 2)] == [b"third", b"second"]
        for version in (1, 4):
            with pytest.raises(NotFound):
                await vault.get(conn, "hook", version)
        with pytest.raises(Invalid):
            await vault.put(conn, "large", bytes((64 << 10) + 1))
        await vault.put(conn, "large", bytes(64 << 10))
    for handle in (other.handle, "", caller.handle + "0"):
        async with database.scoped(handle) as conn:
            with pytest.raises(NotFound):
                await vault.get(conn, "hook")
    held = await everything(database)
    assert b"acme" in held and not any(value in held for value in (VALUE, b"second", b"third"))


async def test_a_row_that_is_moved_to_another_name_or_tenant_opens_nowhere(database: Database, vault: Vault) -> None:
    caller, other = await enter(database), await enter(database, "rival")
    for who, name in ((caller, "mine"), (other, "theirs")):
        async with database.scoped(who.handle) as conn:
            await vault.put(conn, name, VALUE)
    async with database.migrator() as owner, owner.transaction():
        await owner.execute("set local role sojourn_keyring")
        await owner.execute("update secret set name = 'moved', version = 7 where name = 'mine'")
        await owner.execute(
            "update data_key d set wrapped = m.wrapped from data_key m where d.tenant = 'rival' and m.tenant = 'acme'"
        )
    for who, name in ((caller, "moved"), (other, "theirs")):
        async with database.scoped(who.handle) as conn:
            with pytest.raises(Unavailable) as refused:
                await vault.get(conn, name)
            assert refused.value.code == "vault.damaged"


async def test_first_secrets_that_come_at_once_are_under_one_data_key(database: Database, vault: Vault) -> None:
    caller = await enter(database)

    async def put(n: int) -> int:
        async with database.scoped(caller.handle) as conn:
            return await vault.put(conn, "same", f"value {n}".encode())

    versions = await asyncio.gather(*map(put, range(6)))
    assert sorted(versions) == list(range(1, 7))
    async with database.scoped(caller.handle) as conn:
        assert await conn.fetchval("select count(*) from data_key") == 1
        found = {await vault.get(conn, "same", version) for version in versions}
    assert found == {f"value {n}".encode() for n in range(6)}


async def test_without_a_root_key_nothing_is_kept_and_exports_are_signed_as_before(database: Database) -> None:
    vault = await unlocked(database, given(), may_make=False)
    caller = await enter(database)
    async with database.scoped(caller.handle) as conn:
        issuer, secret = await vault.signing_key(conn)
        assert seal.issuer(secret) == issuer == (await vault.signing_key(conn))[0]
        await vault.rotate_signing_key(conn)
        assert (await vault.signing_key(conn))[0] != issuer
        with pytest.raises(Unavailable) as refused:
            await vault.put(conn, "hook", VALUE)
        assert refused.value.code == "vault.root_key"


async def test_a_start_with_another_root_key_says_which_one_is_wanted(
    database: Database, vault: Vault, root: bytes, tmp_path: Path
) -> None:
    for wrong in (given(), given(secrets.token_bytes(32)), RootKeys("", tmp_path / "root.key")):
        with pytest.raises(Invalid, match=roots.root_id(root)):
            await unlocked(database, wrong, may_make=True)
    assert not list(tmp_path.iterdir()), "none is made where one is wanted"
    await unlocked(database, given(secrets.token_bytes(32), root), may_make=True)
    caller, stranger = await enter(database), Vault(given(secrets.token_bytes(32)))
    async with database.scoped(caller.handle) as conn:
        await vault.put(conn, "hook", VALUE)
        with pytest.raises(Unavailable, match=roots.root_id(root)):
            await stranger.get(conn, "hook")


async def test_a_first_start_makes_the_root_key_and_starts_that_come_together_agree(
    database: Database, tmp_path: Path
) -> None:
    path = tmp_path / "data" / "root.key"
    await asyncio.gather(*(unlocked(database, RootKeys("", path), may_make=True) for _ in range(4)))
    assert await unlocked(database, RootKeys("", path), may_make=False)


# ---- keys that sign exports --------------------------------------------------------------------


async def test_a_signing_key_is_made_once_sealed_and_its_secret_leaves_with_the_key_that_ends(
    database: Database, vault: Vault
) -> None:
    caller = await enter(database)
    async with database.scoped(caller.handle) as conn:
        issuer, secret = await vault.signing_key(conn)
        assert seal.issuer(secret) == issuer and (await vault.signing_key(conn)) == (issuer, secret)
        await vault.rotate_signing_key(conn)
        second, _ = await vault.signing_key(conn)
        await issuers.revoke(conn, second)
        third, _ = await vault.signing_key(conn)
        states = {row.issuer: row.state for row in await issuers.own(conn)}
        assert states == {issuer: "retired", second: "revoked", third: "active"}
    assert secret not in await everything(database)
    async with database.migrator() as owner, owner.transaction():
        await owner.execute("set local role sojourn_keyring")
        assert await owner.fetchval("select count(*) from seal_key where num_nonnulls(secret, sealed) > 0") == 1


async def test_who_may_not_read_runs_or_manage_keys_does_not_reach_the_signing_key(
    database: Database, vault: Vault
) -> None:
    caller = await enter(database)
    async with database.scoped(caller.handle) as conn:
        _, narrow = await keys.create(conn, user="bob", name="narrow", scopes=["runs:write"])
        _, reader = await keys.create(conn, user="bob", name="reader", scopes=["runs:read"])
    who = await keys.authenticate(database, narrow)
    for act in (vault.signing_key, vault.rotate_signing_key):
        with pytest.raises(Forbidden):
            async with database.scoped(who.handle) as conn:
                await act(conn)
    reads = await keys.authenticate(database, reader)
    async with database.scoped(reads.handle) as conn:
        assert await vault.signing_key(conn)
    with pytest.raises(Forbidden):
        async with database.scoped(reads.handle) as conn:
            await vault.rotate_signing_key(conn)


async def test_the_release_before_goes_on_with_its_keys_and_is_to_be_asked_again_for_sealed_ones(
    database: Database, vault: Vault
) -> None:
    old, new = await enter(database), await enter(database, "rival")
    async with database.scoped(old.handle) as conn:
        plain = await issuers.sealing(conn, seal.new())
        assert await vault.signing_key(conn) == plain == await issuers.sealing(conn, seal.new()), "both read it"
    async with database.scoped(new.handle) as conn:
        issuer, _ = await vault.signing_key(conn)
    with pytest.raises(StoreUnavailable):
        async with database.scoped(new.handle) as conn:
            await issuers.sealing(conn, seal.new())
    async with database.scoped(new.handle) as conn:
        assert (await vault.signing_key(conn))[0] == issuer, "nothing was changed by it"
        await issuers.rotate(conn, seal.new())
        assert (await vault.signing_key(conn))[0] != issuer, "nor is its own rotation lost"
