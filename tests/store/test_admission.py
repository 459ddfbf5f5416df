"""The word of an API process: what the database believes of callers whose tokens it cannot verify itself."""

import asyncio
import hashlib
import hmac
import time
from typing import Any

import asyncpg
import pytest
from msgspec.structs import replace
from scripted_runs import enter, furnish

from sojourn.errors import Forbidden
from sojourn.identity import seal
from sojourn.store.db import Database
from sojourn.store.rows import Principal
from sojourn.store.tenant import issuers, keys
from sojourn.store.tenant.admission import ADMIT, OPEN, Broker, Vouched

ACTIVITY = "select query from pg_stat_activity where datname = current_database() and usename = current_user"


def vouched(**fields: Any) -> Vouched:
    good = Vouched(
        tenant="acme",
        user="ann",
        token_id="corp:0123456789abcdef",
        issuer="corp",
        scopes=frozenset({"runs:read"}),
        until_s=int(time.time()) + 200,
    )
    return replace(good, **fields)


async def admitted(database: Database, *scopes: str, **fields: Any) -> Principal:
    caller = await Broker(database).admit(vouched(scopes=frozenset(scopes), **fields))
    assert caller is not None
    return caller


async def opened(database: Database) -> tuple[Any, bytes]:
    """What a broker is given."""
    async with database.migrator() as owner:
        return tuple(await owner.fetchrow(OPEN))


def signed(secret: bytes, *fields: Any) -> bytes:
    return hmac.digest(secret, "|".join(map(str, fields)).encode(), hashlib.sha256)


# ---- what it gives ---------------------------------------------------------------------------


async def test_a_caller_sees_its_tenant_and_no_other(database: Database) -> None:
    mine, other = await furnish(database, "acme"), await furnish(database, "rival")
    caller = await admitted(database, "runs:read")
    assert (caller.tenant, caller.user, caller.key_id, caller.issuer) == (
        "acme", "ann", "corp:0123456789abcdef", "corp"
    )  # fmt: skip
    async with database.scoped(caller.handle) as conn:
        assert {row[0] for row in await conn.fetch("select tenant from run")} == {mine.tenant}
        assert await conn.fetchrow("select scope_tenant(), scope_user()") == ("acme", "ann")
    async with database.scoped(caller.handle.replace("acme", other.tenant)) as conn:
        assert await conn.fetch("select tenant from run") == []


async def test_nobody_is_admitted_to_a_tenant_that_is_not_there(database: Database) -> None:
    await enter(database)
    assert await Broker(database).admit(vouched(tenant="none")) is None


async def test_a_handle_lives_for_five_minutes_at_most_and_no_longer_than_its_token(database: Database) -> None:
    await enter(database)
    soon = int(time.time()) + 60
    assert (await admitted(database, until_s=soon)).expires_at.timestamp() == soon
    assert (await admitted(database, until_s=soon + 10**6)).expires_at.timestamp() <= time.time() + 301
    assert await Broker(database).admit(vouched(until_s=soon - 120)) is None


async def test_a_token_that_may_manage_keys_does_and_others_do_not(database: Database) -> None:
    await enter(database)
    for scopes in (["*"], ["admin:*"], ["runs:read", "admin:keys"]):
        manager = await admitted(database, *scopes)
        async with database.scoped(manager.handle) as conn:
            row, _ = await keys.create(conn, user="bob", name="laptop", scopes=["runs:read"])
            await keys.revoke(conn, row.id)
    for scopes in ([], ["admin:stop"], ["runs:*", "runs:read"]):
        other = await admitted(database, *scopes)
        with pytest.raises(Forbidden):
            async with database.scoped(other.handle) as conn:
                await keys.create(conn, user="bob", name="laptop", scopes=["*"])


async def test_a_token_that_may_read_runs_has_their_exports_signed(database: Database) -> None:
    await enter(database)
    async with database.scoped((await admitted(database, "runs:read")).handle) as conn:
        assert await issuers.sealing(conn, seal.new())
    with pytest.raises(Forbidden):
        async with database.scoped((await admitted(database, "runs:write")).handle) as conn:
            await issuers.sealing(conn, seal.new())


async def test_a_user_named_like_a_scope_has_it_not(database: Database) -> None:
    await enter(database)
    caller = await admitted(database, user="ann admin:keys *")
    with pytest.raises(Forbidden):
        async with database.scoped(caller.handle) as conn:
            await keys.create(conn, user="bob", name="laptop", scopes=["*"])


# ---- brokers that end --------------------------------------------------------------------------


async def test_a_broker_that_the_database_does_not_know_opens_again_once_for_all(database: Database) -> None:
    await enter(database)
    broker = Broker(database)
    assert await broker.admit(vouched())
    for ends in ("delete from broker", "update broker set until = now()"):
        async with database.migrator() as owner:
            await owner.execute("set role sojourn_keyring")
            await owner.execute(ends)
        assert all(await asyncio.gather(*(broker.admit(vouched()) for _ in range(20))))
        async with database.migrator() as owner:
            await owner.execute("set role sojourn_keyring")
            assert await owner.fetchval("select count(*) from broker") == 1, "those that ended are gone"


async def test_many_processes_each_have_a_word_of_their_own(database: Database) -> None:
    await enter(database)
    one, two = Broker(database), Broker(database)
    for broker in (one, two, one, two):
        assert await broker.admit(vouched())


# ---- SQL under the API's role ------------------------------------------------------------------


async def test_no_role_of_a_process_opens_a_broker_or_reads_one(database: Database) -> None:
    await opened(database)
    for role in (database.api, database.engine):
        for statement in (OPEN, "select * from broker", "insert into broker default values", "delete from broker"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                async with role() as conn:
                    await conn.execute(statement)
    async with database.migrator() as owner:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await owner.fetch("select secret from broker")


async def test_the_engine_admits_nobody(database: Database) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with database.engine() as conn:
            await conn.execute("select admit(gen_random_uuid(), '', '', '', '', 0, '')")


async def test_a_word_is_worth_what_it_says_and_nothing_else(database: Database) -> None:
    await enter(database, "acme")
    await enter(database, "rival")
    broker_id, secret = await opened(database)
    other_id, other_secret = await opened(database)
    until_s = int(time.time()) + 200
    said = ["acme", "ann", "corp:0123456789abcdef", "runs:read", until_s]
    signature = signed(secret, *said)

    async def ask(*arguments: Any, confined: bool = False) -> Any:
        async with database.api() as conn:
            return await conn.fetchrow(ADMIT, *arguments, confined)

    assert await ask(broker_id, *said, signature)
    assert (await ask(broker_id, *said, signature))["until"].timestamp() == until_s, "said twice, it ends no later"
    edits = [(0, "rival"), (1, "root"), (2, "corp:0000000000000000"), (3, "*"), (3, ""), (4, until_s + 1)]
    for place, value in edits:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await ask(broker_id, *said[:place], value, *said[place + 1 :], signature)
    narrower = signed(secret, *said, "confined")
    assert await ask(broker_id, *said, narrower, confined=True)
    for mark, confined in ((narrower, False), (signature, True)):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await ask(broker_id, *said, mark, confined=confined)
    unknown = "00000000-0000-0000-0000-000000000000"
    for broker, mark in (
        (other_id, signature), (unknown, signature), (broker_id, signed(other_secret, *said)), (broker_id, b""),
        (broker_id, signature + b"x"), (broker_id, hashlib.sha256(secret).digest()),
    ):  # fmt: skip
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await ask(broker, *said, mark)
    for place in range(5):
        assert await ask(broker_id, *said[:place], None, *said[place + 1 :], signature) is None


async def test_even_a_broker_cannot_say_what_would_read_as_something_else(database: Database) -> None:
    await enter(database, "acme")
    broker_id, secret = await opened(database)
    until_s = int(time.time()) + 200
    for user, token_id, scopes in (
        ("ann|root", "corp:0123456789abcdef", ""),
        ("ann\n", "corp:0123456789abcdef", ""),
        ("", "corp:0123456789abcdef", ""),
        ("ann", "key_0123456789abcdef", ""),
        ("ann", "corp:0123456789abcdef *", ""),
        ("ann", "corp:0123456789abcdef", "runs:read|x"),
        ("ann", "corp:0123456789abcdef", "runs"),
    ):
        said = ("acme", user, token_id, scopes, until_s)
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            async with database.api() as conn:
                await conn.fetchrow(ADMIT, broker_id, *said, signed(secret, *said), False)


async def test_no_secret_is_in_what_a_statement_shows(database: Database) -> None:
    await enter(database)
    async with database.migrator() as owner, owner.transaction():
        await owner.execute("lock table tenant in access exclusive mode")
        asking = asyncio.create_task(Broker(database).admit(vouched()))
        async with database.api() as conn, asyncio.timeout(30):
            shown: list[str] = []
            while ADMIT not in shown:
                shown = [row[0] for row in await conn.fetch(f"{ACTIVITY} and state = 'active'")]
        assert "acme" not in "".join(shown)
    assert await asking
