"""The audit log: an act and its row are one, the chain has no gap, and nobody below the owner can change it."""

import ast
import asyncio
import re
from pathlib import Path

import asyncpg
import msgspec
import pytest
from scripted_runs import blocked, cut_off, enter, furnish

import sojourn
from sojourn.cli.commands.auditing import chain
from sojourn.errors import StoreUnavailable, Unauthenticated
from sojourn.store.audit import reading, writing
from sojourn.store.audit.operator import operator
from sojourn.store.audit.writing import Act, Origin
from sojourn.store.db import Connection, Database
from sojourn.store.rows import Principal
from sojourn.store.sharing.limits import set_limits
from sojourn.store.tenant import keys, sessions

ORIGIN = Origin(request_id="req_1", address="192.0.2.1")
SOURCE = Path(sojourn.__file__).parent
LENDS = re.compile(r"\.migrator\(\)|\b(operator|operating)\((db|database|conn)\)|\bowning\(args, shell\)")
TELLS = re.compile(r"audit\.operated\(|\b(_noted|told)\(conn, ")
NOT_TOLD = {
    "identity.secrets.rotation._signers": "it only reads",
    "store.health.walls": "it only reads",
    "store.migrate.migrate": "it changes the schema, and schema_migration says what and when",
    "store.migrate.pending": "it only reads",
    "store.audit.operator.operator": "it lends a transaction; who writes in it tells it",
    "store.tenant.admission._open": "a server opens its broker, by itself",
    "store.vault.roots.register": "a server's first start names its root key, and makes none current later",
    "store.vault.rotation.alone": "it lends a connection, for one transaction after the other",
    "store.vault.rotation.sweep": "it takes away keys that nothing can use any more",
}
"""What works with the owner's login and tells the audit log nothing, and why."""


async def note(conn: Connection, action: str = "thing.make", **more: str) -> None:
    outcome = more.pop("outcome", "done")
    await writing.note(conn, Act(action=action, subject="x", detail=more), origin=ORIGIN, outcome=outcome)  # type: ignore[arg-type]


async def entries(database: Database, tenant: str = "acme") -> list[reading.Entry]:
    """The whole chain of a tenant, or of the operator, oldest first."""
    async with operator(database, readonly=True) as conn:
        return await reading.chain(conn, await reading.head(conn, tenant), after=0, limit=1000)


async def verdict(database: Database, tenant: str = "acme", kept: chain.Head | None = None) -> chain.Verdict:
    async with operator(database, readonly=True) as conn:
        end = await reading.head(conn, tenant)
        rows = await reading.chain(conn, end, after=0, limit=1000)
    return chain.verify([*msgspec.to_builtins(rows), {"head": msgspec.to_builtins(end)}], kept)


async def test_a_row_says_who_did_what_to_what_and_from_where(database: Database) -> None:
    caller = await enter(database)
    async with database.scoped(caller.handle) as conn:
        await note(conn, "thing.make", colour="blue", Größe="5 µm")
    first, second = await entries(database)
    assert (first.n, first.action, first.subject, first.operator) == (1, "tenant.create", "acme", True)
    assert (second.n, second.tenant, second.action, second.subject) == (2, "acme", "thing.make", "x")
    assert (second.user_id, second.key_id, second.operator) == ("ann", caller.key_id, False)
    assert (second.request_id, second.address, second.outcome) == ("req_1", "192.0.2.1", "done")
    assert second.detail == {"colour": "blue", "Größe": "5 µm"}
    assert first.at <= second.at


async def test_the_hashes_are_those_that_the_verifier_makes_of_the_rows(database: Database) -> None:
    caller = await enter(database)
    async with database.scoped(caller.handle) as conn:
        for n in range(3):
            await note(conn, detail_of='"quoted"\n', empty="", z="1:a,", Z=str(n), ä="😀")
    assert (await verdict(database)).bad is None
    before, rows = chain.BEGINNING, msgspec.to_builtins(await entries(database))
    assert len(rows) == 4
    for row in rows:
        assert row["hash"] == chain.digest(row, before)
        before = row["hash"]


async def test_acts_at_the_same_moment_are_one_chain(database: Database) -> None:
    caller, other = await enter(database), await enter(database, "rival")

    async def act(principal: Principal, n: int) -> None:
        async with database.scoped(principal.handle) as conn:
            await note(conn, n=str(n))

    await asyncio.gather(*(act(one, n) for n in range(15) for one in (caller, other)))
    for tenant in ("acme", "rival"):
        assert [row.n for row in await entries(database, tenant)] == list(range(1, 17))
        assert (await verdict(database, tenant)).bad is None


# ---- an act and its row are one ------------------------------------------------------------------


async def test_a_crash_between_the_act_and_its_row_leaves_neither(database: Database) -> None:
    caller = await enter(database)
    async with database.migrator() as owner, owner.transaction():
        await owner.execute("alter table audit_head no force row level security")
        await owner.execute("select from audit_head for update")
        act = asyncio.create_task(_session_noted(database, caller))
        await blocked(database)
        await cut_off(database)
        with pytest.raises(StoreUnavailable):
            await act
    assert await _left(database, caller) == (0, 1)


async def test_a_crash_after_the_row_and_before_the_commit_leaves_neither(database: Database) -> None:
    caller = await enter(database)
    with pytest.raises(StoreUnavailable):
        async with database.scoped(caller.handle) as conn:
            await sessions.create(conn, "ses_1")
            await note(conn)
            await cut_off(database)
    assert await _left(database, caller) == (0, 1)
    await _session_noted(database, caller)
    assert await _left(database, caller) == (1, 2)
    assert (await verdict(database)).bad is None


async def _session_noted(database: Database, caller: Principal) -> None:
    async with database.scoped(caller.handle) as conn:
        await sessions.create(conn, "ses_1")
        await note(conn)


async def _left(database: Database, caller: Principal) -> tuple[int, int]:
    """How many sessions and how many rows of the log there are."""
    async with database.scoped(caller.handle) as conn:
        return await conn.fetchval("select count(*) from session"), await conn.fetchval("select count(*) from audit")


# ---- who may append, and that nobody may do more ---------------------------------------------------


async def test_nobody_appends_without_a_scope_that_is_signed(database: Database) -> None:
    caller = await enter(database)
    for handle in ("", "x", caller.handle.replace("acme", "rival"), caller.handle.replace("|ann|", "|bob|")):
        with pytest.raises(Unauthenticated):
            async with database.scoped(handle) as conn:
                await note(conn)


REFUSED = [
    "insert into audit select * from audit",
    "update audit set user_id = 'bob'",
    "delete from audit",
    "truncate audit",
    "update audit_head set n = 0",
    "insert into audit_head (tenant) values ('acme')",
    "delete from audit_head",
    "select audit_append(null)",
    "select audit_operator('acme', 'root', 'a.b', '', '{}')",
    "select audit_digest(null, '')",
    "alter table audit disable trigger append_only",
]


async def test_no_role_of_ours_changes_a_row(database: Database) -> None:
    caller = await furnish(database, "acme")
    for statement in REFUSED:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            async with database.scoped(caller.handle) as conn:
                await conn.execute(statement)
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            async with database.engine() as engine:
                await engine.execute(statement)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with database.engine() as engine:
            await engine.execute("select 1 from audit")
    for statement in (
        "update audit set user_id = 'bob'",
        "delete from audit",
        "truncate audit",
        "delete from audit_head",
    ):
        with pytest.raises((asyncpg.InsufficientPrivilegeError, asyncpg.RestrictViolationError)):
            async with database.migrator() as owner, owner.transaction():
                await owner.execute("set local role sojourn_keyring")
                await owner.execute(statement)
    for statement in ("update audit set user_id = 'bob'", "delete from audit", "truncate audit"):
        with pytest.raises(asyncpg.RestrictViolationError, match="audit is append-only"):
            async with database.migrator() as owner:
                await owner.execute(statement)


async def test_what_is_too_large_or_no_text_is_not_taken(database: Database) -> None:
    caller = await enter(database)
    for act in (
        Act(action="Thing.make"),
        Act(action="thing"),
        Act(action="thing.make", subject="x" * 1001),
        Act(action="thing.make", detail={"a": "x" * 8000}),
        Act(action="thing.make", detail={"a": 1}),  # type: ignore[dict-item]
    ):
        with pytest.raises(asyncpg.CheckViolationError):
            async with database.scoped(caller.handle) as conn:
                await writing.note(conn, act, origin=ORIGIN)


async def test_a_refusal_is_written_once_an_hour_of_each_key_and_action(database: Database) -> None:
    caller = await enter(database)

    async def refuse(action: str) -> None:
        async with database.scoped(caller.handle) as conn:
            await note(conn, action, outcome="refused")

    await asyncio.gather(*(refuse("key.create") for _ in range(8)))
    await refuse("stop.create")
    async with database.scoped(caller.handle) as conn:
        await note(conn, "key.create")
    told = [(row.action, row.outcome) for row in await entries(database)][1:]
    assert told == [("key.create", "refused"), ("stop.create", "refused"), ("key.create", "done")]
    async with database.migrator() as owner, owner.transaction():
        await owner.execute("alter table audit no force row level security, disable trigger user")
        await owner.execute("update audit set at = at - interval '61 minutes'")
    await refuse("key.create")
    assert len(await entries(database)) == 5


# ---- the operator ----------------------------------------------------------------------------------


async def test_what_the_operator_does_stands_in_his_chain_and_in_the_tenants(database: Database) -> None:
    await enter(database)
    await enter(database, "rival")
    await set_limits(database, "acme", {"runs_max": 3, "queued_max": None}, by="root@here")
    await keys.recover(database, tenant="acme", by="root@here")
    ours = [(row.n, row.action, row.user_id, row.operator, dict(row.detail)) for row in await entries(database)]
    assert ours[1] == (2, "tenant.set", "root@here", True, {"runs_max": "3", "queued_max": "none"})
    assert ours[2][1:4] == ("key.recover", "root@here", True)
    his = [(row.action, row.detail.get("tenant")) for row in await entries(database, "*")]
    assert his == [
        ("tenant.create", "acme"), ("tenant.create", "rival"), ("tenant.set", "acme"), ("key.recover", "acme")
    ]  # fmt: skip
    for tenant in ("acme", "rival", "*"):
        assert (await verdict(database, tenant)).bad is None
    assert [row.action for row in await entries(database, "rival")] == ["tenant.create"]


def test_whatever_works_with_the_owners_login_tells_the_log_or_says_why_not() -> None:
    silent = set()
    for path in SOURCE.rglob("*.py"):
        module = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.AsyncFunctionDef) and LENDS.search(text := ast.unparse(function)):
                silent |= set() if TELLS.search(text) else {f"{module}.{function.name}"}
    assert silent == NOT_TOLD.keys()
