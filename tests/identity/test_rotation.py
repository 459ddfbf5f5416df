"""Keys are renewed while they are used: nothing that was sealed, signed or lent stops being good before its time."""

import asyncio
import base64
import hashlib
import hmac
import secrets
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest
from msgspec.structs import replace
from tests.store.scripted_runs import blocked, enter, submit

from sojourn.errors import Invalid, NotFound
from sojourn.identity import seal
from sojourn.identity.secrets import roots, rotation
from sojourn.identity.secrets.roots import RootKeys
from sojourn.identity.secrets.rotation import Done, Wanted
from sojourn.identity.secrets.vault import Vault, unlocked
from sojourn.store.db import Database
from sojourn.store.retention import expiry
from sojourn.store.rows import Principal
from sojourn.store.runs import hooks
from sojourn.store.tenant import issuers, keys
from sojourn.store.vault import roots as kept
from sojourn.store.vault.rotation import alone

ALL = Wanted(scope=True, hooks=True, data=True, signing=())


class Held:
    """An installation's root key file, and a vault that reads it."""

    def __init__(self, path: Path, vault: Vault) -> None:
        self.path, self.vault = path, vault

    @property
    def keys(self) -> RootKeys:
        return RootKeys("", self.path)


@pytest.fixture
async def held(database: Database, tmp_path: Path) -> Held:
    path = tmp_path / "root.key"
    return Held(path, await unlocked(database, RootKeys("", path), may_make=True))


@pytest.fixture
async def callers(database: Database, held: Held) -> AsyncIterator[list[Principal]]:
    """Two tenants with two secrets and a signing key each."""
    callers = [await enter(database, name) for name in ("acme", "rival")]
    for caller in callers:
        async with database.scoped(caller.handle) as conn:
            for version in (1, 2):
                await held.vault.put(conn, "hook", f"{caller.tenant} {version}".encode())
            await held.vault.signing_key(conn)
    yield callers


async def renewed(database: Database, keys: RootKeys, wanted: Wanted) -> list[Done]:
    async with alone(database) as conn:
        return [done async for done in rotation.renew(conn, keys, await kept.read(database), wanted)]


async def opens(database: Database, vault: Vault, callers: list[Principal]) -> None:
    """See that everything of all tenants opens, and that each signs with its own key."""
    for caller in callers:
        async with database.scoped(caller.handle) as conn:
            for version in (1, 2):
                assert await vault.get(conn, "hook", version) == f"{caller.tenant} {version}".encode()
            issuer, secret = await vault.signing_key(conn)
            assert seal.issuer(secret) == issuer


async def says(database: Database, statement: str, *values: object) -> list[asyncpg.Record]:
    """What the keyring finds, or changes."""
    async with database.migrator() as owner, owner.transaction():
        await owner.execute("set local role sojourn_keyring")
        rows: list[asyncpg.Record] = await owner.fetch(statement, *values)
        return rows


async def test_all_keys_are_renewed_twice_and_everything_opens_at_every_step(
    database: Database, held: Held, callers: list[Principal]
) -> None:
    async with database.scoped(callers[0].handle) as conn:
        first, secret = await held.vault.signing_key(conn)
    signed = seal.sign(secret, b"an export")
    for _ in range(2):
        async with alone(database) as conn:
            async for done in rotation.renew(conn, held.keys, await kept.read(database), ALL):
                assert done.id or done.what == "swept"
                await opens(database, held.vault, callers)
    rows = await says(
        database, "select distinct s.data_key, d.ended_at from secret s join data_key d on d.id = s.data_key"
    )
    assert [row["ended_at"] for row in rows] == [None, None], "nothing is left under an older key"
    seal.verify(first, signed, b"an export")
    async with database.scoped(callers[0].handle) as conn:
        found = await issuers.find(conn, first)
        assert found is not None and found.state == "retired", "what it has signed stays good"


async def test_a_rotation_that_was_killed_between_two_tenants_is_finished_by_the_next(
    database: Database, held: Held, callers: list[Principal], tmp_path: Path
) -> None:
    for wanted, last in ((Wanted(data=True), "data"), (Wanted(root=tmp_path / "second.key"), "wrapped")):
        with pytest.raises(asyncio.CancelledError):
            async with alone(database) as conn:
                async for done in rotation.renew(conn, held.keys, await kept.read(database), wanted):
                    if (done.what, done.tenant) == (last, "acme"):
                        raise asyncio.CancelledError
        await opens(database, held.vault, callers)
    assert len((await kept.read(database)).wanted) == 2, "one tenant is under the old root key, and one under the new"
    steps = await renewed(database, held.keys, Wanted(root=tmp_path / "second.key", data=True))
    assert [step.tenant for step in steps if step.what == "data"] == ["acme", "rival"]
    assert (await kept.read(database)).wanted == (roots.make(tmp_path / "second.key"),)
    await opens(database, held.vault, callers)


async def test_two_rotations_at_once_come_one_after_the_other(
    database: Database, held: Held, callers: list[Principal]
) -> None:
    async with alone(database) as conn:
        second = asyncio.ensure_future(renewed(database, held.keys, ALL))
        await blocked(database)
        first = [done async for done in rotation.renew(conn, held.keys, await kept.read(database), ALL)]
        assert not second.done()
    assert [len(first), len(await second)] == [6, 6]
    await opens(database, held.vault, callers)
    rows = await says(
        database, "select tenant, count(*) filter (where ended_at is null) as now from data_key group by 1"
    )
    assert {row["tenant"]: row["now"] for row in rows} == {"acme": 1, "rival": 1}


async def test_a_secret_that_is_put_while_its_key_is_renewed_opens_and_moves_with_the_next_rotation(
    database: Database, held: Held, callers: list[Principal]
) -> None:
    async with database.scoped(callers[0].handle) as conn:
        await held.vault.put(conn, "late", b"put before the commit")
        await renewed(database, held.keys, Wanted(data=True))
    async with database.scoped(callers[0].handle) as conn:
        assert await held.vault.get(conn, "late") == b"put before the commit"
    await says(database, "update data_key set ended_at = now() - interval '2 hours' where ended_at is not null")
    await expiry.keys(database)
    async with database.scoped(callers[0].handle) as conn:
        assert await held.vault.get(conn, "late") == b"put before the commit", "its key is still used"
    await renewed(database, held.keys, Wanted(data=True))
    await says(database, "update data_key set ended_at = now() - interval '2 hours' where ended_at is not null")
    await expiry.keys(database)
    assert len(await says(database, "select from data_key")) == 2
    await opens(database, held.vault, callers)


async def test_handles_of_an_older_key_are_good_until_they_expire_and_the_key_goes_after_them(
    database: Database,
) -> None:
    caller = await enter(database)
    (step,) = await renewed(database, RootKeys("", Path("/nowhere")), Wanted(scope=True))
    async with database.scoped(caller.handle) as conn:
        assert await conn.fetchval("select id from tenant") == "acme"
        _, token = await keys.create(conn, user="ann", name="after", scopes=["*"])
    fresh = await keys.authenticate(database, token)
    assert fresh.handle.split("|")[4] == step.id != caller.handle.split("|")[4]
    assert (await expiry.keys(database)).gone == {"keys": 0}, "it may be in use"
    await says(database, "update scope_key set created_at = created_at - interval '11 minutes'")
    assert (await expiry.keys(database)).gone == {"keys": 1}
    for handle, sees in ((fresh.handle, 1), (caller.handle, 0)):
        async with database.scoped(handle) as conn:
            assert await conn.fetchval("select count(*) from tenant") == sees


async def test_webhooks_are_good_with_both_secrets_for_the_overlap_and_the_new_one_is_shown(database: Database) -> None:
    caller, nobody = await enter(database), RootKeys("", Path("/nowhere"))
    run_id, body, now_s = await submit(database, caller), b"{}", int(time.time())

    async def shown() -> bytes:
        async with database.scoped(caller.handle) as conn:
            return await hooks.secret(conn, run_id)

    async def good(secret: bytes) -> bool:
        signature = hmac.digest(secret, f"m.{now_s}.".encode() + body, hashlib.sha256)
        return await hooks.scope(database, run_id, "m", sent_s=now_s, signed=(body, signature)) is not None

    first = await shown()
    await renewed(database, nobody, Wanted(hooks=True, overlap=timedelta(hours=1)))
    second = await shown()
    await renewed(database, nobody, Wanted(hooks=True, overlap=timedelta(hours=1)))
    third = await shown()
    assert len({first, second, third}) == 3
    assert [await good(one) for one in (first, second, third, bytes(32))] == [True, True, True, False]
    await says(database, "update hook_key set ends_at = ends_at - interval '2 hours'")
    assert [await good(one) for one in (first, second, third)] == [False, False, True]
    assert (await expiry.keys(database)).gone == {"keys": 2}
    assert await shown() == third
    await renewed(database, nobody, Wanted(hooks=True, overlap=timedelta()))
    assert not await good(third), "a secret that leaked ends at once"


async def test_one_tenants_signing_key_is_renewed_alone(
    database: Database, held: Held, callers: list[Principal]
) -> None:
    steps = await renewed(database, held.keys, Wanted(signing=("rival",)))
    assert [(step.what, step.tenant) for step in steps] == [("signing", "rival")]
    async with database.scoped(callers[1].handle) as conn:
        assert (await held.vault.signing_key(conn))[0] == steps[0].id
    await enter(database, "third")
    (made,) = await renewed(database, held.keys, Wanted(signing=("third",)))
    assert made.id.startswith("ed25519:"), "also where there was none"
    with pytest.raises(NotFound, match="nobody"):
        await renewed(database, held.keys, Wanted(signing=("nobody",)))


async def test_keys_that_were_not_sealed_are_sealed_by_the_rotation_of_data_keys(
    database: Database, held: Held
) -> None:
    caller = await enter(database)
    async with database.scoped(caller.handle) as conn:
        plain = await issuers.sealing(conn, seal.new())
    assert (await kept.read(database)).plain == 1
    await renewed(database, held.keys, Wanted(data=True))
    assert (await kept.read(database)).plain == 0
    async with database.scoped(caller.handle) as conn:
        assert await held.vault.signing_key(conn) == plain, "it is the same key"


async def test_the_root_key_is_renewed_under_processes_that_go_on(
    database: Database, held: Held, callers: list[Principal], tmp_path: Path
) -> None:
    old = held.keys.ids[0]
    steps = await renewed(database, held.keys, Wanted(root=tmp_path / "second.key"))
    fresh = roots.make(tmp_path / "second.key")
    assert [(step.what, step.id, step.count) for step in steps] == [("root", fresh, 0), *[("wrapped", fresh, 1)] * 2]
    assert held.keys.ids == (fresh, old), "the first one writes, both read"
    await opens(database, held.vault, callers)
    await opens(database, Vault(RootKeys("", tmp_path / "second.key")), callers)
    assert (await kept.read(database)).wanted == (fresh,)
    again = await renewed(database, held.keys, Wanted(root=tmp_path / "second.key"))
    assert [step.count for step in again] == [0, 0, 0]
    await says(database, "update root_key set ended_at = ended_at - interval '2 hours'")
    assert (await expiry.keys(database)).gone == {"keys": 1}
    with pytest.raises(Invalid, match=fresh):
        await unlocked(database, RootKeys(base64.b64encode(held.keys.key(old)).decode(), tmp_path), may_make=False)


async def test_a_root_key_from_the_environment_must_be_there_for_every_process_first(
    database: Database, tmp_path: Path
) -> None:
    root = base64.b64encode(secrets.token_bytes(32)).decode()
    first = RootKeys(root, tmp_path)
    await unlocked(database, first, may_make=False)
    path = tmp_path / "second.key"
    with pytest.raises(Invalid, match="SOJOURN_ROOT_KEY"):
        await renewed(database, first, Wanted(root=path))
    both = RootKeys(f"{path.read_text().strip()},{root}", tmp_path)
    await renewed(database, both, Wanted(root=path))
    assert (await kept.read(database)).current == both.ids[0]


async def test_what_a_lost_root_key_has_sealed_is_given_up_and_all_else_goes_on(
    database: Database, held: Held, callers: list[Principal], tmp_path: Path
) -> None:
    async with database.scoped(callers[0].handle) as conn:
        issuer, _ = await held.vault.signing_key(conn)
    held.path.unlink()
    steps = await renewed(database, RootKeys("", held.path), Wanted(root=tmp_path / "second.key", lost=True))
    assert [step.what for step in steps] == ["lost", "root"]
    vault = await unlocked(database, RootKeys("", held.path), may_make=False)
    async with database.scoped(callers[0].handle) as conn:
        with pytest.raises(NotFound):
            await vault.get(conn, "hook")
        fresh, _ = await vault.signing_key(conn)
        assert {row.issuer: row.state for row in await issuers.own(conn)} == {issuer: "retired", fresh: "active"}
        assert await vault.put(conn, "hook", b"anew") == 1


async def test_the_audit_log_is_told_of_every_key(
    database: Database, held: Held, callers: list[Principal], tmp_path: Path
) -> None:
    done = await renewed(database, held.keys, replace(ALL, by="root@here"))
    done += await renewed(database, held.keys, Wanted(root=tmp_path / "second.key", by="root@here"))
    told = await says(database, "select action, subject from audit where tenant = '*' and user_id = $1", "root@here")
    nouns = {"scope": "scope_key", "hooks": "hook_key", "data": "data_key", "signing": "seal", "root": "root_key"}
    assert {tuple(row) for row in told} == {(f"{nouns[one.what]}.rotate", one.id) for one in done if one.what in nouns}
    ours = await says(
        database, "select action from audit where tenant = 'acme' and operator and action like '%.rotate'"
    )
    assert sorted(row["action"] for row in ours) == ["data_key.rotate", "seal.rotate"]
