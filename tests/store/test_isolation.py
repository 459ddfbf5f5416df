"""The wall between tenants stands in the database: any SQL under our roles, with any handle, stays on its side."""

import itertools
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from scripted_runs import enter, furnish, new_id

from sojourn.errors import Unauthenticated
from sojourn.store.db import Connection, Database, Options, connect
from sojourn.store.roles import Dsns
from sojourn.store.rows import Principal
from sojourn.store.tenant import keys, sessions

TABLES = [
    "tenant", "api_key", "agent", "agent_version", "agent_spec", "session", "run", "journal", "message", "ledger",
    "delta", "blob", "blob_use", "blob_tally", "idempotency", "seal_key", "trusted_issuer", "imported_run", "schedule",
    "fire", "stop", "stopped_run", "audit", "audit_head", "data_key", "secret", "webhook", "webhook_delivery", "alert",
    "day_limit", "reservation", "day_account", "guardrail",
]  # fmt: skip


@pytest.fixture
async def two(database: Database) -> tuple[Principal, Principal]:
    return await furnish(database, "acme"), await furnish(database, "rival")


def edited(handle: str, position: int, value: str) -> str:
    parts = handle.split("|")
    parts[position] = value
    return "|".join(parts)


def forgeries(mine: Principal, other: Principal) -> dict[str, str]:
    """Handles that must open nothing."""
    later = str(int(datetime.now(UTC).timestamp()) + 10**6)
    tenant, user, key, expiry, kid, signature = mine.handle.split("|")
    return {
        "none": "",
        "noise": "x",
        "bars": "|||||",
        "another tenant": edited(mine.handle, 0, other.tenant),
        "another user": edited(mine.handle, 1, "root"),
        "another key": edited(mine.handle, 2, other.key_id),
        "longer life": edited(mine.handle, 3, later),
        "no number": edited(mine.handle, 3, "soon"),
        "another kid": edited(mine.handle, 4, "00000000-0000-0000-0000-000000000000"),
        "no signature": edited(mine.handle, 5, ""),
        "mixed": "|".join((tenant, user, key, expiry, kid, other.handle.split("|")[5])),
        "moved bar": f"{tenant}|{user}{key}||{expiry}|{kid}|{signature}",
        "short": "|".join((tenant, user, key, expiry, kid)),
        "long": mine.handle + "|",
        "space": mine.handle + " ",
        "quotes": edited(mine.handle, 0, "acme' or true --"),
    }


async def visible(conn: Connection) -> dict[str, int]:
    """Count what each table shows."""
    return {name: await conn.fetchval(f"select count(tenant) from {name}") for name in TABLES if name != "tenant"} | {
        "tenant": await conn.fetchval("select count(*) from tenant")
    }


async def test_a_handle_shows_all_of_its_tenant_and_nothing_else(
    database: Database, two: tuple[Principal, Principal]
) -> None:
    for caller in two:
        async with database.scoped(caller.handle) as conn:
            assert min((await visible(conn)).values()) > 0, await visible(conn)
            for name in TABLES:
                column = "id" if name == "tenant" else "tenant"
                found = await conn.fetch(f"select distinct {column} from {name}")
                assert [row[0] for row in found] == [caller.tenant], name


async def test_no_other_handle_shows_anything(database: Database, two: tuple[Principal, Principal]) -> None:
    async with database.api() as conn:
        assert set((await visible(conn)).values()) == {0}
    for name, handle in forgeries(*two).items():
        async with database.scoped(handle) as conn:
            assert set((await visible(conn)).values()) == {0}, name


async def test_an_expired_handle_shows_nothing(database: Database) -> None:
    caller = await enter(database)
    async with database.scoped(caller.handle) as conn:
        soon = datetime.now(UTC) + timedelta(seconds=1.5)
        _, token = await keys.create(conn, user="ann", name="brief", scopes=["*"], expires_at=soon)
    brief = await keys.authenticate(database, token)
    assert brief.expires_at == soon
    async with database.scoped(brief.handle) as conn:
        assert await conn.fetchval("select count(*) from api_key") == 2
        async with conn.transaction():
            while await conn.fetchval("select clock_timestamp() < $1", soon):
                pass
        assert await conn.fetchval("select count(*) from api_key") == 0
    with pytest.raises(Unauthenticated):
        await keys.authenticate(database, token)


WRITES = {
    "session": "insert into session (tenant, id, user_id) values ($1, 'ses_new', 'ann')",
    "run": "insert into run (tenant, id, session_id, user_id, agent_name, agent_version, agent_digest, seq, limits,"
    " labels, snapshot) select $1, 'run_new', session_id, 'ann', 'a', 1, 'd', 1, '{}', '{}', '' from run limit 1",
    "inbox": "insert into inbox (tenant, run_id, event) values ($1, 'run_x', '')",
    "journal": "insert into journal (tenant, run_id, seq, at, kind, event) values ($1, 'run_x', 1, now(), 'k', '')",
    "message": "insert into message (tenant, run_id, frame_id, slot, body) values ($1, 'run_x', '/', 0, '')",
    "agent_spec": "insert into agent_spec (tenant, digest, subs, spec) values ($1, 'd', '{}', '{}')",
    "agent": "insert into agent (tenant, name, live_version) values ($1, 'new', 1)",
    "blob": "insert into blob (tenant, digest, bytes, data) values ($1, 'sha256:' || encode(sha256(''), 'hex'), 0, '')",
    "idempotency": "insert into idempotency (tenant, user_id, key, route, request_digest, expires_at)"
    " values ($1, 'ann', 'new', 'r', 'd', now())",
    "blob_use": "insert into blob_use (tenant, run_id, digest) select $1, 'run_x', digest from blob limit 1",
    "stop": "insert into stop (tenant, id, what, target, mode, made_by)"
    " values ($1, 'stp_0123456789abcdef', 'user', 'x', 'cancel', 'ann')",
    "guardrail": "insert into guardrail (tenant, name, version, spec, made_by) values ($1, 'new', 1, '{}', 'ann')",
    "imported_run": "insert into imported_run (tenant, run_id, rev, became) values ($1, 'run_x', 1, 'run_y')",
    "schedule": "insert into schedule (tenant, name, user_id, key_id, spec, since)"
    " select $1, 'new', scope_user(), (scope())[3], '{}', now()",
    "day_limit": "insert into day_limit (tenant, whose, set_by) values ($1, 'users', scope_user())",
    "data_key": "insert into data_key (tenant, id, root_key, wrapped) select $1, 'dk', id, ''::bytea from root_key",
    "secret": "insert into secret (tenant, name, version, data_key, sealed) values ($1, 'new', 1, 'dk_1', '')",
    "fire": "insert into fire (tenant, id, schedule) values ($1, 'run_x', 'nightly')",
    "webhook": "insert into webhook (tenant, id, url, events, secret, made_by) select $1, 'whk_0123456789abcdef',"
    " 'https://example.org', '{*}', sha256('x'), scope_user()",
    "webhook_delivery": "insert into webhook_delivery (tenant, id, webhook_id, type, body, due_at)"
    " values ($1, 'msg_0123456789abcdef', 'whk_0123456789abcdef', 'run.failed', '{}', now())",
}


async def test_nothing_is_written_beyond_the_wall(database: Database, two: tuple[Principal, Principal]) -> None:
    mine, other = two
    handles = (mine.handle, "", *forgeries(mine, other).values())
    for handle, (table, statement) in itertools.product(handles, WRITES.items()):
        try:
            async with database.scoped(handle) as conn:
                status = await conn.execute(statement, other.tenant)
        except asyncpg.InsufficientPrivilegeError as refused:
            assert "row-level security" in str(refused), table
        else:
            assert (table in ("run", "blob_use"), status) == (True, "INSERT 0 0"), "there was nothing to copy from"


CHANGES = [
    "update run set status = 'queued', due_at = now()",
    "update session set closed_at = now(), workspace = 'sha256:x', begun = 'x'",
    "update agent set archived_at = now()",
    "update idempotency set status = 200, body = 'x'",
    "delete from idempotency",
    "update imported_run set rev = 0, became = 'run_x'",
    "update blob set kept_until = now(), look_at = now()",
    "update schedule set due_at = now(), spec = '{}'",
    "delete from schedule",
    "update day_limit set usd_micros = null",
    "delete from secret",
    "update stop set lifted_by = 'ann', lifted_at = now()",
    "update webhook set url = 'https://example.com', disabled_at = null, disabled_code = null",
    "update webhook_delivery set due_at = now(), delivered_at = null, dead_at = null",
    "update alert set acked_at = now(), acked_by = 'ann'",
    "delete from webhook",
]


async def test_nothing_is_changed_beyond_the_wall(database: Database, two: tuple[Principal, Principal]) -> None:
    mine, other = two
    for handle in ("", *forgeries(mine, other).values()):
        for statement in CHANGES:
            async with database.scoped(handle) as conn:
                assert (await conn.execute(statement)).endswith(" 0"), statement
    async with database.scoped(mine.handle) as conn:
        assert await conn.execute("update session set closed_at = now()") == "UPDATE 1"
    async with database.scoped(other.handle) as conn:
        assert await conn.fetchval("select closed_at from session") is None


REFUSED = [
    "select hash from api_key",
    "select * from api_key",
    "select * from scope_key",
    "select secret from seal_key",
    "select * from seal_key",
    "update seal_key set state = 'revoked'",
    "insert into seal_key (tenant, issuer) values ('acme', 'ed25519:x')",
    "insert into trusted_issuer (tenant, issuer, name, added_by) values ('acme', 'ed25519:x', 'eve', 'eve')",
    "delete from trusted_issuer",
    "delete from imported_run",
    "update schedule set key_id = 'key_x'",
    "update schedule set user_id = 'root'",
    "insert into schedule (tenant, name, user_id, key_id, spec, since)"
    " values ('acme', 'new', scope_user(), 'key_x', '{}', now())",
    "insert into schedule (tenant, name, user_id, key_id, spec, since)"
    " values ('acme', 'new', 'root', (scope())[3], '{}', now())",
    "delete from day_limit",
    "update day_limit set whose = 'users'",
    "insert into day_limit (tenant, whose, set_by) values ('acme', 'users', 'somebody else')",
    "update tenant set usd_day_micros = null",
    "update tenant set day_limited = false",
    "delete from reservation",
    "update reservation set held_usd_micros = 0",
    "insert into reservation (tenant, run_id, call, user_id, day) values ('acme', 'run_x', '/', 'ann', now())",
    "update day_account set usd_micros = 0",
    "delete from day_account",
    "select * from day_wait",
    "select reserve_day('w1', 'rival', 'run_1', 1, '/', 1, 1, '{}', 0, 0, '{}')",
    "select day_opened('rival', 'ann')",
    "select day_fed('rival', '{}')",
    "update fire set schedule = 'x'",
    "select secret from webhook",
    "select * from webhook",
    "update webhook set former_secret = sha256('x')",
    "insert into webhook (tenant, id, url, events, secret, made_by)"
    " values ('acme', 'whk_0123456789abcdef', 'https://example.org', '{*}', sha256('x'), 'root')",
    "select sign_delivery('rival', 'msg_1', 1)",
    "select announce('rival', 'run.failed', '{}')",
    "update webhook_delivery set body = '{}'",
    "delete from webhook_delivery",
    "update alert set closed_at = now()",
    "delete from alert",
    "select * from spend_day",
    "select * from alert_round",
    "delete from fire",
    "insert into run (tenant, id, session_id, user_id, agent_name, agent_version, agent_digest, seq, limits, labels,"
    " snapshot, status) values ('acme', 'run_x', 'ses_x', 'local', 'a', 1, 'd', 1, '{}', '{}', '', 'running')",
    "insert into message (tenant, run_id, frame_id, slot, body) values ('acme', 'run_x', '/0.0', 0, '')",
    "select scope_mint('rival', 'ann', '', now() + interval '1 day')",
    "select engine_scope('w1', 'rival', 'run_1', 1)",
    "select session_scope('w1', 'rival', 'ses_1')",
    "select found_tenant('third', 'k', sha256('x'), 'p', 'u', '{*}')",
    "select key_manager()",
    "select need_scope('', '{runs:read}')",
    "select open_broker()",
    "select * from broker",
    "insert into broker default values",
    "select random_block()",
    "select * from worker",
    "select * from worker_lock",
    "select * from schema_migration",
    "select created_at from inbox",
    "select * from hook_key",
    "select sealed from seal_key",
    "select renew_scope_key()",
    "select renew_hook_key('0')",
    "select hook_fits('rival', 'run_1', '', '')",
    "select end_keys()",
    "insert into root_key (id) values ('0123456789abcdef')",
    "update data_key set wrapped = wrapped",
    "update secret set sealed = sealed",
    "delete from data_key",
    "select hook_sign('rival', 'run_1')",
    "insert into api_key (tenant, id, hash, prefix, user_id, name, scopes) values ('acme', 'k', '', '', '', '', '{}')",
    "update api_key set revoked_at = null",
    "update run set snapshot = ''",
    "insert into guardrail (tenant, name, version, spec, made_by) values ('*', 'g', 9, null, 'ann')",
    "insert into guardrail (tenant, name, version, spec, made_by) values ('acme', 'h', 1, '{}', 'somebody else')",
    "update guardrail set spec = '{}'",
    "delete from guardrail",
    "update run set fence = 9",
    "update journal set event = ''",
    "delete from journal",
    "delete from message",
    "delete from run",
    "delete from session",
    "delete from blob",
    "delete from blob_use",
    "insert into blob_tally (tenant, bytes) values ('acme', -1000)",
    "delete from blob_tally",
    "select add_up()",
    "select * from rate",
    "insert into rate values ('acme', 'runs', 'tenant', '', now())",
    "update rate set full_at = now()",
    "delete from rate",
    "select expire_rates(1)",
    "select take_rates('[]')",
    "update tenant set rates = null",
    "select * from purge",
    "insert into purge (tenant, run_id) values ('acme', 'run_1')",
    "update tenant set runs_kept_days = 1",
    "select drop_runs('rival', '{run_1}')",
    "select purge_run('rival', 'run_1', 1)",
    "select drop_session('rival', 'ses_1')",
    "select expire_session('rival', 'ses_1', now(), 1)",
    "select expire_sessions(1, 1)",
    "select purge_runs(1)",
    "select expire_ledger(1, 1)",
    "select sweep_blobs(1, 1)",
    "insert into audit select * from audit",
    "update audit set user_id = 'bob'",
    "delete from audit",
    "update audit_head set n = 0",
    "select audit_operator('rival', 'root', 'a.b', '', '{}')",
    "truncate run",
    "insert into ledger select * from ledger",
    "insert into tenant values ('third')",
    "update tenant set id = 'x'",
    "insert into run (tenant, id, status) values ('acme', 'x', 'completed')",
    "create function f() returns int language sql as 'select 1'",
    "alter table run disable row level security",
    "drop policy tenant on run",
    "set local role sojourn_keyring",
    "set local session authorization sojourn_engine",
    "insert into journal (tenant, run_id, seq, at, kind, event) values ('acme', 'run_x', 2, now(), 'k', '')",
    "insert into session (tenant, id, user_id) values ('acme', 'ses_new', 'somebody else')",
    "insert into idempotency (tenant, user_id, key, route, request_digest, expires_at)"
    " values ('acme', 'somebody else', 'new', 'r', 'd', now())",
]


async def test_a_good_handle_does_not_allow_more_than_its_role(database: Database) -> None:
    caller = await enter(database)
    for statement in REFUSED:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            async with database.scoped(caller.handle) as conn:
                await conn.execute(statement)
                pytest.fail(f"this was allowed: {statement}")


async def test_a_scope_does_not_leak_through_the_pool(server: Dsns, database: Database, dsns: Dsns) -> None:
    caller = await enter(database)
    async with await connect(dsns, Options(connections_max=1)) as narrow:
        async with narrow.scoped(caller.handle) as conn:
            assert await conn.fetchval("select count(*) from api_key") == 1
        with pytest.raises(RuntimeError):
            async with narrow.scoped(caller.handle):
                raise RuntimeError
        async with narrow.api() as conn:
            assert await conn.fetchval("select count(*) from api_key") == 0
            assert not await conn.fetchval("select current_setting('app.scope', true)")


# ---- append-only -----------------------------------------------------------------------------


async def test_history_is_only_added_to(database: Database, two: tuple[Principal, Principal]) -> None:
    verbs = ("update {} set tenant = tenant", "delete from {}", "truncate {}")
    for table, verb in itertools.product(("journal", "message", "ledger"), verbs):
        statement = verb.format(table)
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            async with database.scoped(two[0].handle) as conn:
                await conn.execute(statement)
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            async with database.engine() as engine:
                await engine.execute(statement)
        with pytest.raises(asyncpg.RestrictViolationError, match=f"{table} is append-only"):
            async with database.migrator() as owner:
                await owner.execute(statement)


async def test_a_blob_is_what_its_name_says(database: Database) -> None:
    caller = await enter(database)
    with pytest.raises(asyncpg.CheckViolationError):
        async with database.scoped(caller.handle) as conn:
            digest = "sha256:" + "0" * 64
            await conn.execute("insert into blob (tenant, digest, bytes, data) values ('acme', $1, 1, 'x')", digest)


async def test_ids_cannot_be_anything(database: Database) -> None:
    caller = await enter(database)
    for name in ("a b", "a|b", "", "x" * 65, "ä", "a\n"):
        with pytest.raises(asyncpg.CheckViolationError):
            async with database.scoped(caller.handle) as conn:
                await sessions.create(conn, name)
    async with database.scoped(caller.handle) as conn:
        await sessions.create(conn, new_id("ses"))
