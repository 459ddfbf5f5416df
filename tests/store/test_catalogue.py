"""A walk through the catalogue: nothing in the database may stand outside the rules of migration 0003."""

import re

from sojourn.store.db import Connection, Database

WITHOUT_TENANT = {
    "worker", "worker_lock", "call_share", "scope_key", "hook_key", "schema_migration", "tidying", "broker", "root_key",
    "alert_round",
}  # fmt: skip
ENGINE_SEES_ALL = {
    "tenant", "agent", "run", "inbox", "journal", "message", "ledger", "delta", "agent_spec", "session", "purge",
    "stop", "stopped_run", "webhook", "webhook_delivery", "alert", "spend_day", "day_limit", "reservation",
    "day_account", "day_wait", "guardrail",
}  # fmt: skip
TIDIED = {
    "session", "run", "inbox", "journal", "message", "ledger", "delta", "blob", "blob_use", "blob_tally", "purge",
    "stopped_run",
}  # fmt: skip
"""What the doors of retention delete from."""
KEYRING_SEES_ALL = {
    "tenant", "api_key", "seal_key", "trusted_issuer", "schedule", "stop", "rate", "idempotency", "agent", "audit",
    "audit_head", "data_key", "secret", "webhook", "webhook_delivery", "day_limit", "guardrail", "upload", *TIDIED,
}  # fmt: skip
NOTHING_SAID = {"purge", "blob_use", "blob_tally"}
SECRET_TO_DOORS = {"event", "body", "data", "items", "snapshot", "result", "input", "spec"}
"""What was said and done: doors delete it unseen."""
FROM_DOORS_ALONE = {"api_key", "seal_key", "trusted_issuer", "audit", "audit_head"}
"""What the API may read, and write through a door alone."""
SERVERS_OWN = {
    ("worker", "sojourn_engine"), ("worker", "sojourn_keyring"), ("call_share", "sojourn_engine"),
    ("worker_lock", "sojourn_engine"), ("root_key", "sojourn_api"), ("root_key", "sojourn_keyring"),
    ("alert_round", "sojourn_engine"), ("tidying", "sojourn_engine"), ("tidying", "sojourn_keyring"),
}  # fmt: skip
API_DELETES = {"idempotency", "schedule", "secret", "webhook"}
DEFINERS = {
    "scope": {"sojourn_api", "sojourn_engine"},
    "authenticate": {"sojourn_api"},
    "create_key": {"sojourn_api"},
    "revoke_key": {"sojourn_api"},
    "found_tenant": {"sojourn_owner"},
    "sealing_key": {"sojourn_api"},
    "rotate_seal_key": {"sojourn_api"},
    "signing_key": {"sojourn_api"},
    "offer_signing_key": {"sojourn_api"},
    "rotate_signing_key": {"sojourn_api"},
    "end_keys": {"sojourn_engine"},
    "revoke_seal_key": {"sojourn_api"},
    "trust_issuer": {"sojourn_api"},
    "distrust_issuer": {"sojourn_api"},
    "engine_scope": {"sojourn_engine"},
    "hook_secret": {"sojourn_api"},
    "hook_scope": {"sojourn_api"},
    "session_scope": {"sojourn_engine"},
    "expire_sessions": {"sojourn_engine"},
    "purge_runs": {"sojourn_engine"},
    "expire_ledger": {"sojourn_engine"},
    "sweep_blobs": {"sojourn_engine"},
    "tally_blobs": set(),
    "delete_run": {"sojourn_api"},
    "delete_session": {"sojourn_api"},
    "due_schedule": {"sojourn_api"},
    "next_schedule_at": {"sojourn_api"},
    "take_schedule": {"sojourn_api"},
    "refuse_stopped": set(),
    "note_day_limits": set(),
    "lease_heard_at": {"sojourn_api"},
    "open_broker": {"sojourn_owner"},
    "admit": {"sojourn_api"},
    "replace_key": {"sojourn_api"},
    "take_rates": {"sojourn_engine"},
    "expire_rates": {"sojourn_engine"},
    "audit_act": {"sojourn_api"},
    "announce_run": set(),
    "announce_alert": set(),
    "sign_delivery": {"sojourn_engine"},
    "run_owned": {"sojourn_api"},
    "run_seen": {"sojourn_api"},
    "blob_seen": {"sojourn_api"},
    "note_upload": set(),
    "queue_is_full": {"sojourn_api"},
}
OURS = {"sojourn_owner", "sojourn_keyring", "sojourn_api", "sojourn_engine"}
NOT_EXTENSION = "not exists (select from pg_depend d where d.objid = {}.oid and d.deptype = 'e')"


async def violations(conn: Connection) -> set[str]:
    """Name everything in the database that the rules of migration 0003 do not allow."""
    return {
        *await _schemas(conn),
        *await _tables(conn),
        *await _policies(conn),
        *await _grants(conn),
        *await _functions(conn),
        *await _roles(conn),
    }


async def _schemas(conn: Connection) -> set[str]:
    found = await conn.fetch("select nspname from pg_namespace where nspname !~ '^pg_' and nspname <> 'public'")
    return {f"schema {row[0]}" for row in found if row[0] != "information_schema"}


async def _tables(conn: Connection) -> set[str]:
    found = await conn.fetch(
        f"""
        select c.relname, c.relkind::text as kind, c.relrowsecurity as on_, c.relforcerowsecurity as forced,
            pg_get_userbyid(c.relowner) as owner,
            (select a.attname from pg_index i join pg_attribute a on a.attrelid = c.oid and a.attnum = i.indkey[0]
             where i.indrelid = c.oid and i.indisprimary) as first_of_key,
            exists (select from pg_policy p where p.polrelid = c.oid) as has_policy
        from pg_class c
        where c.relnamespace = 'public'::regnamespace and c.relkind not in ('i', 'S') and {NOT_EXTENSION.format("c")}
        """
    )
    wrong = {f"{row['relname']} is no table" for row in found if row["kind"] != "r"}
    for row in found:
        name = row["relname"]
        if row["owner"] != ("sojourn_keyring" if name in ("scope_key", "hook_key", "broker") else "sojourn_owner"):
            wrong.add(f"{name} is owned by {row['owner']}")
        if name not in WITHOUT_TENANT and not (row["on_"] and row["forced"] and row["has_policy"]):
            wrong.add(f"{name} has no wall")
        if name not in WITHOUT_TENANT and row["first_of_key"] != ("id" if name == "tenant" else "tenant"):
            wrong.add(f"{name} has no tenant in front of its key")
    return wrong


async def _policies(conn: Connection) -> set[str]:
    found = await conn.fetch(
        """
        select c.relname as name, p.polpermissive as permissive, p.polname as policy, p.polcmd::text as what,
            coalesce(pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid)) as rule,
            array(select pg_get_userbyid(r) from unnest(p.polroles) as r) as roles
        from pg_policy p join pg_class c on c.oid = p.polrelid
        """
    )
    wrong = set()
    for row in found:
        guarded = re.search(r"\( SELECT scope_(tenant|whole)\(\)", row["rule"]) or not row["permissive"]
        all_of = {"sojourn_engine": ENGINE_SEES_ALL, "sojourn_keyring": KEYRING_SEES_ALL}
        if row["policy"] == "backup" and row["roles"] == ["sojourn_owner"] and row["what"] == "r":
            continue  # it owns the tables, and may take the walls down
        for role in row["roles"]:
            expired = (row["name"], role, row["rule"]) == ("idempotency", "sojourn_engine", "(expires_at < now())")
            if not (guarded or expired or row["name"] in all_of.get(role, set())):
                wrong.add(f"policy {row['policy']} opens {row['name']} to {role}")
    return wrong


async def _grants(conn: Connection) -> set[str]:
    found = await conn.fetch(
        f"""
        select c.relname as name, c.relkind::text as kind, x.grantee::regrole::text as role, x.privilege_type as what,
            x.attname as column
        from pg_class c cross join lateral (
            select *, null from aclexplode(c.relacl)
            union all
            select (aclexplode(a.attacl)).*, a.attname from pg_attribute a where a.attrelid = c.oid
        ) as x (grantor, grantee, privilege_type, is_grantable, attname)
        where c.relnamespace = 'public'::regnamespace and {NOT_EXTENSION.format("c")}
            and x.grantee <> c.relowner
        """
    )
    wrong = set()
    for row in found:
        name, role, what = row["name"], row["role"], row["what"]
        allowed = role in OURS and what in ("SELECT", "INSERT", "UPDATE", "DELETE", "USAGE")
        if name in WITHOUT_TENANT:
            allowed = allowed and (name, role) in SERVERS_OWN
        if role == "sojourn_api" and what == "DELETE":
            allowed = name in API_DELETES
        if name in ("journal", "message", "ledger") and what in ("UPDATE", "DELETE"):
            allowed = (role, what) == ("sojourn_keyring", "DELETE")
        if role == "sojourn_keyring" and name in TIDIED and what == "SELECT":
            allowed = row["column"] not in SECRET_TO_DOORS and (row["column"] or name in NOTHING_SAID)
        if name in ("audit", "audit_head") and what in ("UPDATE", "DELETE"):
            allowed = (name, role, what) == ("audit_head", "sojourn_keyring", "UPDATE")
        if name in FROM_DOORS_ALONE and role != "sojourn_keyring":
            allowed = role == "sojourn_api" and what == "SELECT"
        if row["kind"] == "S":
            allowed = (name, role) == ("worker_key", "sojourn_engine")
        if not allowed:
            wrong.add(f"{role} may {what} {name}")
    return wrong


async def _functions(conn: Connection) -> set[str]:
    found = await conn.fetch(
        f"""
        select p.proname as name, p.prosecdef as definer, p.proconfig as settings, pg_get_userbyid(p.proowner) as owner,
            array(
                select case x.grantee when 0 then 'public' else x.grantee::regrole::text end
                from aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) as x
                where x.grantee <> p.proowner
            ) as callers
        from pg_proc p where p.pronamespace = 'public'::regnamespace and {NOT_EXTENSION.format("p")}
        """
    )
    wrong = set()
    for row in found:
        name, callers = row["name"], set(row["callers"])
        if "public" in callers or callers - OURS:
            wrong.add(f"{name} may be called by {callers}")
        if row["definer"] and row["settings"] != ["search_path=pg_catalog, public, pg_temp"]:
            wrong.add(f"{name} looks names up in {row['settings']}")
        if row["definer"] and (callers != DEFINERS.get(name) or row["owner"] != "sojourn_keyring"):
            wrong.add(f"{name} is a door that nobody knows")
    return wrong


async def _roles(conn: Connection) -> set[str]:
    found = await conn.fetch(
        "select rolname from pg_roles where rolname = any($1)"
        " and (rolsuper or rolbypassrls or rolcreaterole or rolreplication)",
        [*OURS],
    )
    return {f"{row[0]} may too much" for row in found}


HOLES = {
    "table": "create table extra (tenant text primary key)",
    "table without force": "create table extra (tenant text primary key);"
    " alter table extra enable row level security;"
    " create policy p on extra to sojourn_api using (tenant = (select scope_tenant()))",
    "key": "create table extra (id text primary key, tenant text);"
    " alter table extra enable row level security, force row level security;"
    " create policy p on extra to sojourn_api using (tenant = (select scope_tenant()))",
    "view": "create view extra as select * from run",
    "materialized view": "create materialized view extra as select 1 as one",
    "schema": "create schema extra",
    "open policy": "create policy extra on blob to sojourn_api using (true)",
    "engine policy": "create policy extra on blob to sojourn_engine using (true)",
    "unwalled": "alter table run disable row level security",
    "unforced": "alter table run no force row level security",
    "public grant": "grant select on run to public",
    "truncate": "grant truncate on run to sojourn_engine",
    "column grant": "grant select (hash) on api_key to sojourn_engine",
    "journal": "grant update (event) on journal to sojourn_engine",
    "delete": "grant delete on run to sojourn_api",
    "deleted history": "grant delete on journal to sojourn_engine",
    "audit log": "grant update (user_id) on audit to sojourn_keyring",
    "words": "grant select (body) on message to sojourn_keyring",
    "all words": "grant select on journal to sojourn_keyring",
    "workers": "grant select on worker to sojourn_api",
    "function": "create function extra() returns int language sql as 'select 1';"
    " grant execute on function extra to public",
    "definer": "create function extra() returns int language sql security definer as 'select 1'",
    "definer for all": "set local role sojourn_keyring; grant execute on function scope_mint to sojourn_engine;"
    " alter function scope_mint security definer; set local role sojourn_owner",
    "search path": "set local role sojourn_keyring; alter function scope reset search_path;"
    " set local role sojourn_owner",
}


async def test_the_catalogue_holds_nothing_outside_the_rules(database: Database) -> None:
    async with database.migrator() as conn:
        assert await violations(conn) == set()


async def test_the_walk_sees_every_kind_of_hole(database: Database) -> None:
    async with database.migrator() as conn:
        for name, statement in HOLES.items():
            transaction = conn.transaction()
            await transaction.start()
            await conn.execute(statement)
            assert await violations(conn), name
            await transaction.rollback()
