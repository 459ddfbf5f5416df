"""Users of one tenant are apart in the database: any SQL under the API's role, with a confined handle, sees its own."""

import re

import asyncpg
import pytest
from scripted_runs import AT, confined, enter, furnish, submit
from test_isolation import TABLES, WRITES, edited, forgeries, visible

from sojourn.errors import Forbidden, NotFound
from sojourn.store.db import Database
from sojourn.store.rows import Principal
from sojourn.store.tenant import keys, schedules

TENANTS_OWN = {
    "tenant": "its limits, which its runs keep",
    "agent": "runs are made of it; nobody who is confined changes one",
    "agent_version": "as agent",
    "agent_spec": "as agent; a run brings along what it was asked for",
    "blob_tally": "sums of bytes, by which uploads are bounded",
    "seal_key": "public halves, by which imports are checked",
    "trusted_issuer": "as seal_key",
    "data_key": "wrapped by a root key; exports sign with what is under it",
}
"""What a confined caller sees beside what is its user's, and why."""
OWN = {
    "session", "run", "journal", "message", "ledger", "delta", "blob", "blob_use", "idempotency", "imported_run",
    "fire", "stopped_run", "schedule", "reservation", "day_account", "day_limit",
}  # fmt: skip
"""Of which a user has rows."""
CLOSED = {
    "api_key", "stop", "audit", "audit_head", "secret", "webhook", "webhook_delivery", "alert", "guardrail",
}  # fmt: skip
"""What is no concern of somebody who is confined."""


@pytest.fixture
async def ann(database: Database) -> Principal:
    """The user who has everything, and a handle that sees it all."""
    return await furnish(database, "acme")


@pytest.fixture
async def bob(database: Database, ann: Principal) -> Principal:
    """Another user, who is confined."""
    return await confined(database, ann, "bob")


# ---- what is seen ----------------------------------------------------------------------------------


async def test_every_table_is_walled_by_user_or_has_a_reason(database: Database) -> None:
    async with database.migrator() as conn:
        found = await conn.fetch(
            "select polrelid::regclass::text as name, pg_get_expr(polqual, polrelid) as rule from pg_policy"
            " where polpermissive and 'sojourn_api'::regrole = any(polroles)"
        )
    open_ = {row["name"] for row in found if not re.match(r"\(+(\w+ = \( SELECT scope_whole\()", row["rule"])}
    assert open_ == TENANTS_OWN.keys()
    assert OWN | CLOSED | TENANTS_OWN.keys() | {"inbox"} == {row["name"] for row in found}


async def test_a_confined_handle_shows_nothing_of_another_user(
    database: Database, ann: Principal, bob: Principal
) -> None:
    assert bob.confined and not ann.confined
    async with database.scoped(bob.handle) as conn:
        seen = {name for name, rows in (await visible(conn)).items() if rows}
        assert seen == TENANTS_OWN.keys() | {"day_limit"}
        assert await conn.fetch("select 1 from day_limit where whose = 'user'") == []
        assert await conn.fetch("select event from inbox") == []


async def test_and_all_that_is_its_own_users(database: Database, ann: Principal) -> None:
    own = await confined(database, ann, "ann")
    async with database.scoped(own.handle) as conn:
        seen = {name for name, rows in (await visible(conn)).items() if rows}
        assert seen == TENANTS_OWN.keys() | OWN - {"imported_run"}
    async with database.scoped(ann.handle) as conn:
        assert {name for name, rows in (await visible(conn)).items() if rows} == set(TABLES)


async def test_another_tenants_user_of_that_name_is_somebody_else(database: Database, ann: Principal) -> None:
    rival = await furnish(database, "rival")
    own = await confined(database, rival, "ann")
    async with database.scoped(own.handle) as conn:
        assert {row[0] for row in await conn.fetch("select tenant from run union all select tenant from session")} == {
            "rival"
        }


async def test_no_edit_of_a_handle_frees_it(database: Database, ann: Principal, bob: Principal) -> None:
    tried = forgeries(ann, await enter(database, "rival"))
    tenant, user, key, expiry, kid, _, signature = bob.handle.split("|")
    tried |= {
        "freed": "|".join((tenant, user, key, expiry, kid, signature)),
        "otherwise": edited(bob.handle, 5, "whole"),
        "empty": edited(bob.handle, 5, ""),
        "another's signature": edited(bob.handle, 6, ann.handle.split("|")[5]),
        "another user": edited(bob.handle, 1, "ann"),
        "confined by hand": f"{ann.handle.rpartition('|')[0]}|confined|{ann.handle.rpartition('|')[2]}",
    }
    for name, handle in tried.items():
        async with database.scoped(handle) as conn:
            assert set((await visible(conn)).values()) == {0}, name


FLIP = """
select r.id from (
    select n, case n when 2 then set_config('app.scope', $1, true) end as handle, ($2::text[])[n] as id
    from generate_series(1, 2) as n offset 0
) as o cross join lateral (
    select run.id from run where run.id = o.id and o.handle is distinct from 'x' offset 0
) as r
"""


async def test_a_handle_that_is_changed_halfway_through_a_statement_opens_no_more_than_either(
    database: Database, ann: Principal, bob: Principal
) -> None:
    """Who is whole in one tenant and confined in another mixes the two."""
    rival = await enter(database, "rival", user="ann")
    async with database.scoped(ann.handle) as conn:
        theirs = await conn.fetchval("select id from run")
    for handle in ("", rival.handle, edited(bob.handle, 5, "x")):
        async with database.scoped(bob.handle) as conn:
            assert await conn.fetch(FLIP, handle, ["run_none", theirs]) == []
    async with database.scoped(ann.handle) as conn:
        assert len(await conn.fetch(FLIP, ann.handle, ["run_none", theirs])) == 1, "the attack is one"


# ---- what is written -------------------------------------------------------------------------------


OF_ANYBODY = {"run", "blob_use", "blob", "inbox", "agent_spec", "data_key"}
"""What is said otherwise below; and what a run and an export bring along."""


async def test_nothing_is_written_for_another_user(database: Database, ann: Principal, bob: Principal) -> None:
    async with database.scoped(ann.handle) as conn:
        run, session, digest = await conn.fetchrow("select r.id, r.session_id, b.digest from run r, blob b limit 1")
    mine = await submit(database, bob)
    refused = {
        **{table: statement for table, statement in WRITES.items() if table not in OF_ANYBODY},
        "their run": f"insert into inbox (tenant, run_id, event) values ($1, '{run}', '')",
        "their journal": "insert into journal (tenant, run_id, seq, at, kind, event)"
        f" values ($1, '{run}', 1, now(), 'k', '')",
        "their words": f"insert into message (tenant, run_id, frame_id, slot, body) values ($1, '{run}', '/', 99, '')",
        "their session": "insert into run (tenant, id, session_id, user_id, agent_name, agent_version, agent_digest,"
        " seq, limits, labels, snapshot)"
        f" values ($1, 'run_new', '{session}', 'bob', 'a', 1, 'd', 1, '{{}}', '{{}}', '')",
        "their blob": f"insert into blob_use (tenant, run_id, digest) values ($1, '{mine}', '{digest}')",
        "their files": f"update session set workspace = '{digest}' where tenant = $1",
        "a blob without its bytes": f"insert into blob (tenant, digest, bytes, data) values ($1, '{digest}', 0, '')",
        "the agent": "update agent set live_version = 1 where tenant = $1",
        "a version": "insert into agent_version (tenant, name, version, digest, created_by)"
        " select $1, 'clerk', 2, digest, 'bob' from agent_version",
        "bounds": "update day_limit set tokens = null where tenant = $1",
        "in another's name": "insert into session (tenant, id, user_id) values ($1, 'ses_y', 'ann')",
    }
    for name, statement in refused.items():
        with pytest.raises((asyncpg.InsufficientPrivilegeError, asyncpg.CheckViolationError)):
            async with database.scoped(bob.handle) as conn:
                await conn.execute(statement, "acme")
                pytest.fail(f"this was allowed: {name}")


CHANGES = [
    "update run set status = 'queued', due_at = now()",
    "update session set closed_at = now(), workspace = 'sha256:x'",
    "update idempotency set status = 200, body = 'x'",
    "delete from idempotency",
    "update imported_run set rev = 0, became = 'run_x'",
    "update blob set kept_until = now(), look_at = now()",
    "update schedule set due_at = now(), spec = '{}'",
    "delete from schedule",
    "delete from secret",
    "update stop set lifted_by = 'bob', lifted_at = now()",
    "update webhook set url = 'https://example.com'",
    "update webhook_delivery set due_at = now(), delivered_at = null, dead_at = null",
    "update alert set acked_at = now(), acked_by = 'bob'",
    "delete from webhook",
]


async def test_nothing_of_another_user_is_changed(database: Database, bob: Principal) -> None:
    async with database.scoped(bob.handle) as conn:
        for statement in CHANGES:
            assert (await conn.execute(statement)).endswith(" 0"), statement


async def test_a_schedule_of_ones_own_is_seen_and_not_changed(database: Database, ann: Principal) -> None:
    own = await confined(database, ann, "ann")
    async with database.scoped(own.handle) as conn:
        assert await schedules.get(conn, "nightly")
        assert await conn.execute("delete from schedule") == "DELETE 0"
        with pytest.raises(NotFound):
            await schedules.take(conn, "nightly")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with database.scoped(own.handle) as conn:
            await schedules.change(conn, "nightly", spec=b"{}")


# ---- doors -----------------------------------------------------------------------------------------

NOT_FOR_ONE_USER = {
    "authenticate": "asks for the key itself",
    "admit": "asks for a broker's word",
    "sealing_key": "a tenant signs with one key; what it signs is read through the wall",
    "signing_key": "as sealing_key",
    "offer_signing_key": "as sealing_key",
    "hook_scope": "asks for the run's own signature",
    "due_schedule": "asks for nothing: it lends what a schedule may, and none acts as a confined key",
    "next_schedule_at": "says a time",
    "audit_act": "says who did it by the handle",
    "queue_is_full": "says whether, and nothing of whom",
    "run_owned": "is the wall",
    "run_seen": "is the wall",
    "blob_seen": "is the wall",
    "scope": "reads the handle",
}


async def test_every_door_asks_whose_it_is(database: Database, ann: Principal, bob: Principal) -> None:
    async with database.scoped(ann.handle) as conn:
        run, session = await conn.fetchrow("select id, session_id from run")
        await conn.execute("update session set closed_at = now()")
    closed = {
        "create_key": "create_key('key_x', sha256('x'), 'p', 'bob', 'n', '{*}', null, true)",
        "revoke_key": f"revoke_key('{ann.key_id}')",
        "replace_key": f"replace_key('{bob.key_id}', 'key_y', sha256('y'), 'p', '1 hour')",
        "rotate_seal_key": "rotate_seal_key('ed25519:x', '')",
        "rotate_signing_key": "rotate_signing_key('ed25519:x', '', 'dk_1')",
        "revoke_seal_key": "revoke_seal_key('ed25519:x')",
        "trust_issuer": "trust_issuer('ed25519:x', 'eve')",
        "distrust_issuer": "distrust_issuer('ed25519:x')",
    }
    empty = {
        "hook_secret": f"hook_secret('{run}')",
        "lease_heard_at": f"lease_heard_at('{run}')",
        "delete_run": f"delete_run('{run}')",
        "delete_session": f"delete_session('{session}')",
    }
    async with database.migrator() as owner:
        doors = await owner.fetch(
            "select proname from pg_proc where prosecdef and has_function_privilege('sojourn_api', oid, 'execute')"
            " and pronamespace = 'public'::regnamespace"
        )
    assert {row[0] for row in doors} == closed.keys() | empty.keys() | NOT_FOR_ONE_USER.keys() | {"take_schedule"}
    for call in closed.values():
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="no confined caller"):
            async with database.scoped(bob.handle) as conn:
                await conn.fetchval(f"select {call}")
    async with database.scoped(bob.handle) as conn:
        for call in empty.values():
            assert await conn.fetchval(f"select {call}") is None, call
        assert await conn.fetchval("select take_schedule('nightly')") is False
    async with database.scoped(ann.handle) as conn:
        assert await conn.fetchval(f"select hook_secret('{run}')")


async def test_a_successor_of_a_confined_key_is_confined(database: Database, ann: Principal, bob: Principal) -> None:
    async with database.scoped(ann.handle) as conn:
        row, token = await keys.replace(conn, bob.key_id, AT - AT)
        assert row.confined
    assert (await keys.authenticate(database, token)).confined
    async with database.scoped(bob.handle) as conn:
        with pytest.raises(Forbidden):
            await keys.create(conn, user="bob", name="free", scopes=["*"])
