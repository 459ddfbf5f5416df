"""A database into a file and back: all of one moment, into an empty one, whole or not at all."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from scripted_runs import blocked, enter, furnish, hired, submit
from test_catalogue import violations

from sojourn.errors import Conflict, Invalid
from sojourn.identity.secrets.roots import RootKeys
from sojourn.identity.secrets.vault import unlocked
from sojourn.store import migrate
from sojourn.store.backup import container
from sojourn.store.backup.container import Checked, Files, Footer, Header, Writer
from sojourn.store.backup.dump import Dumped, dump
from sojourn.store.backup.load import AHEAD, load
from sojourn.store.db import Connection, Database, connect
from sojourn.store.migrate import Migration
from sojourn.store.roles import Dsns
from sojourn.store.tenant import keys

AT = datetime(2026, 1, 2, tzinfo=UTC)
NOT_KEPT = {"schema_migration", "scope_key", "delta", "worker_lock"}


def silent(_what: str) -> None:
    pass


async def dumped(database: Database, path: Path, *files: tuple[Files, bytes]) -> Checked:
    """Write a database into a file."""
    with path.open("wb") as out:
        writer = Writer(out)
        found: Dumped = await dump(database, writer, Header(release="1", host="here", made_at=AT), told=silent)
        for section, data in files:
            writer.begin(section)
            writer.add(data)
        footer = Footer(sequences=found.sequences, size_bytes=writer.sizes, sessions=len(files), elsewhere={})
        writer.end(footer, root=None, vouch=lambda root, digest: b"")
    return container.check(path, None)


async def content(database: Database) -> dict[str, set[Any]]:
    """All rows of all tables, as the owner of each sees them with the walls down."""
    found = {}
    async with database.migrator() as owner:
        transaction = owner.transaction()
        await transaction.start()
        for name, role in await owner.fetch(
            "select relname, pg_get_userbyid(relowner)::text from pg_class"
            " where relnamespace = 'public'::regnamespace and relkind = 'r'"
        ):
            await owner.execute(f'set local role "{role}"')
            await owner.execute(f'alter table "{name}" no force row level security')
            found[name] = {tuple(map(repr, row.values())) for row in await owner.fetch(f'select * from "{name}"')}
            await owner.execute("set local role sojourn_owner")
        await transaction.rollback()
    return found


async def rules(conn: Connection) -> list[Any]:
    """What holds for the tables: constraints, triggers, policies, walls."""
    return [
        [tuple(row.values()) for row in await conn.fetch(query)]
        for query in (
            "select conrelid::regclass::text, conname, pg_get_constraintdef(oid), convalidated from pg_constraint"
            " where connamespace = 'public'::regnamespace order by 1, 2",
            "select tgrelid::regclass::text, tgname, tgenabled::text from pg_trigger"
            " where not tgisinternal order by 1, 2",
            "select relname, relrowsecurity, relforcerowsecurity, relacl::text from pg_class"
            " where relnamespace = 'public'::regnamespace and relkind = 'r' order by 1",
        )
    ]


@asynccontextmanager
async def opened(dsns: Dsns) -> AsyncIterator[Database]:
    async with await connect(dsns) as database:
        yield database


async def test_everything_that_is_kept_comes_back_as_it_was(database: Database, blank: Dsns, tmp_path: Path) -> None:
    vault = await unlocked(database, RootKeys("", tmp_path / "root.key"), may_make=True)
    for name in ("acme", "rival"):
        await furnish(database, name)
    caller = await enter(database, "third")
    async with database.scoped(caller.handle) as conn:
        await vault.put(conn, "hook", b"value")
    path = tmp_path / "backup"
    before = await content(database)
    checked = await dumped(database, path)
    async with opened(blank) as restored:
        await load(restored, path, checked, silent)
        after = await content(restored)
        for name in before.keys() - NOT_KEPT - {"audit", "audit_head"}:
            assert after[name] == before[name], name
        (told,) = after["audit"] - before["audit"]
        assert "'database.restore'" in told and before["audit"] < after["audit"]
        assert after["delta"] == after["worker_lock"] == set() and after["scope_key"].isdisjoint(before["scope_key"])
        assert sum(map(len, after.values())) > 60
        async with database.migrator() as old, restored.migrator() as new:
            assert await rules(new) == await rules(old)
            assert await violations(new) == set()
            for name in ("delta_id_seq", "blob_tally_id_seq"):
                last = await old.fetchval(f"select last_value from {name}")
                assert await new.fetchval(f"select last_value from {name}") == last + AHEAD
        async with restored.scoped(caller.handle) as conn:
            assert await conn.fetchval("select count(*) from tenant") == 0, "handles are minted anew"
        token = await keys.recover(restored, tenant="third")
        again = await keys.authenticate(restored, token)
        async with restored.scoped(again.handle) as conn:
            assert await vault.get(conn, "hook") == b"value"
            await submit(restored, again)
        async with hired(restored, "fresh") as worker:
            await worker.take_one()


async def test_a_backup_is_of_one_moment_whatever_is_committed_meanwhile(
    database: Database, blank: Dsns, tmp_path: Path
) -> None:
    caller = await enter(database)
    await dumped(database, tmp_path / "first")
    async with database.migrator() as owner:
        transaction = owner.transaction()
        await transaction.start()
        await owner.execute("lock table trusted_issuer in access exclusive mode")
        writing = asyncio.ensure_future(dumped(database, tmp_path / "backup"))
        await blocked(database)
        await submit(database, caller)
        async with hired(database) as worker:
            await worker.take_one()
            await transaction.rollback()
            checked = await writing
    async with opened(blank) as restored:
        await load(restored, tmp_path / "backup", checked, silent)
        found = await content(restored)
        assert (len(found["run"]), len(found["worker"]), len(found["api_key"])) == (0, 0, 1)


async def test_a_database_that_is_not_empty_takes_no_backup(database: Database, blank: Dsns, tmp_path: Path) -> None:
    checked = await dumped(database, tmp_path / "backup")
    with pytest.raises(Conflict) as refused:
        await load(database, tmp_path / "backup", checked, silent)
    assert refused.value.code == "backup.not_empty"
    async with opened(blank) as other:
        async with other.migrator() as owner:
            await owner.execute("create table theirs (id int)")
        with pytest.raises(Conflict):
            await load(other, tmp_path / "backup", checked, silent)


async def test_a_restore_that_fails_half_way_leaves_the_database_empty_and_can_be_tried_again(
    database: Database, blank: Dsns, tmp_path: Path
) -> None:
    caller = await furnish(database, "acme")
    path = tmp_path / "backup"
    files = Files(caller.tenant, "ses_none", f"sha256:{hashlib.sha256(b'x').hexdigest()}", 1)
    lost = await dumped(database, tmp_path / "lost", (files, b"y"))
    checked = await dumped(database, path)
    async with opened(blank) as restored:

        def dies(name: str) -> None:
            if name == "tenant":
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            await load(restored, path, checked, dies)
        with pytest.raises(Invalid, match="damaged"):
            await load(restored, tmp_path / "lost", lost, silent)
        async with restored.migrator() as owner:
            assert (
                await owner.fetchval(
                    "select count(*) from pg_class where relnamespace = 'public'::regnamespace and relkind = 'r'"
                )
                == 0
            )
        await load(restored, path, checked, silent)
        assert (await content(restored))["run"] == (await content(database))["run"]


async def test_files_of_open_sessions_come_back_as_an_archive(database: Database, blank: Dsns, tmp_path: Path) -> None:
    caller = await enter(database)
    await submit(database, caller)
    async with database.scoped(caller.handle) as conn:
        session = await conn.fetchval("update session set host = 'here' returning id")
    data = b"an archive"
    files = Files(caller.tenant, session, f"sha256:{hashlib.sha256(data).hexdigest()}", len(data))
    checked = await dumped(database, tmp_path / "backup", (files, data))
    async with opened(blank) as restored:
        await load(restored, tmp_path / "backup", checked, silent)
        again = await keys.authenticate(restored, await keys.recover(restored, tenant="acme"))
        async with restored.scoped(again.handle) as conn:
            row = await conn.fetchrow("select s.host, b.data from session s join blob b on b.digest = s.workspace")
            assert tuple(row) == (None, data)
            assert await conn.fetchval("select sum(bytes) from blob_tally") == len(data)


async def test_a_backup_of_an_older_release_is_brought_up_to_this_one_and_one_of_a_newer_is_refused(
    database: Database, blank: Dsns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await furnish(database, "acme")
    checked = await dumped(database, tmp_path / "backup")
    known = migrate.load()
    more = Migration(len(known) + 1, "more", b"1", "alter table run add column more integer not null default 7")

    async with opened(blank) as restored:
        monkeypatch.setattr(migrate, "load", lambda: [*known[:-1], more])
        with pytest.raises(Invalid) as refused:
            await load(restored, tmp_path / "backup", checked, silent)
        assert refused.value.code == "backup.other_schema"
        monkeypatch.setattr(migrate, "load", lambda: known[:-1])
        with pytest.raises(Invalid) as refused:
            await load(restored, tmp_path / "backup", checked, silent)
        assert refused.value.code == "backup.newer"
        monkeypatch.setattr(migrate, "load", lambda: [*known, more])
        await load(restored, tmp_path / "backup", checked, silent)
        assert await migrate.pending(restored) == []
        async with restored.migrator() as owner:
            await owner.execute("alter table run no force row level security")
            assert await owner.fetch("select more from run") == [(7,)]


async def test_the_owner_sees_tenants_rows_only_to_back_them_up(database: Database, tmp_path: Path) -> None:
    await furnish(database, "acme")
    await dumped(database, tmp_path / "backup")
    async with database.migrator() as owner:
        assert await owner.fetchval("select count(*) from run") == 1
        assert await owner.execute("update run set result = 'x'") == "UPDATE 0"
    async with database.api() as api, database.engine() as engine:
        assert await api.fetchval("select count(*) from run") == await engine.fetchval("select count(*) from blob") == 0
