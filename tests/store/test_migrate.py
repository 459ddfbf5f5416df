"""Migrations against a real database."""

import asyncio
from pathlib import Path

import asyncpg
import pytest

from sojourn.errors import StoreUnavailable
from sojourn.loop.moving.levels import LEVEL
from sojourn.store import migrate as migrations
from sojourn.store.db import Database, connect
from sojourn.store.migrate import Migration, load, migrate, pending
from sojourn.store.roles import Dsns

FILES = {
    "0001_first.sql": "create table first (id int); insert into first values (1);",
    "0002_second.sql": "create table second as select id + 1 as id from first",
}


@pytest.fixture
async def fresh(blank: Dsns):
    """Give a database without migrations."""
    async with await connect(blank) as database:
        yield database


def written(folder: Path, **changed: str) -> list[Migration]:
    """Write the files, with changes, and load them."""
    for name, sql in FILES.items():
        (folder / name).write_text(changed.get(name.removesuffix(".sql"), sql))
    (folder / "README.md").write_text("not a migration")
    return load(folder)


async def test_the_files_of_the_package_are_numbered_and_apply(database: Database) -> None:
    assert await pending(database) == []
    assert await migrate(database) == []


async def test_files_apply_once_and_in_order(fresh: Database, tmp_path: Path) -> None:
    files = written(tmp_path)
    assert await pending(fresh, files) == ["first", "second"]
    assert await migrate(fresh, files) == ["first", "second"]
    assert await migrate(fresh, files) == await pending(fresh, files) == []
    async with fresh.migrator() as connection:
        assert await connection.fetchval("select id from second") == 2
        assert (
            await connection.fetchval("select tableowner from pg_tables where tablename = 'second'") == "sojourn_owner"
        )


async def test_many_processes_that_migrate_at_once_apply_each_file_once(fresh: Database, tmp_path: Path) -> None:
    files = written(tmp_path)
    applied = await asyncio.gather(*(migrate(fresh, files) for _ in range(8)))
    assert sorted(name for names in applied for name in names) == ["first", "second"]
    async with fresh.migrator() as connection:
        assert await connection.fetchval("select count(*) from first") == 1


async def test_an_applied_file_that_changed_is_refused(fresh: Database, tmp_path: Path) -> None:
    await migrate(fresh, written(tmp_path))
    files = written(tmp_path, **{"0001_first": FILES["0001_first.sql"] + " -- edited"})
    for ask in (migrate, pending):
        with pytest.raises(
            StoreUnavailable, match=r"Migration 0001 \(first\) is not the file that was applied"
        ) as refused:
            await ask(fresh, files)
        assert refused.value.code == "store.changed_migration"


async def test_a_release_goes_on_beside_the_next_ones_migrations(fresh: Database, tmp_path: Path) -> None:
    files = written(tmp_path)
    await migrate(fresh, files)
    for older in (files[:1], []):
        assert await migrate(fresh, older) == await pending(fresh, older) == []


async def test_a_migration_that_says_so_stops_older_releases(fresh: Database, tmp_path: Path) -> None:
    stops = f"-- older releases stop: below level {LEVEL + 1}\n{FILES['0002_second.sql']}"
    files = written(tmp_path, **{"0002_second": stops})
    await migrate(fresh, files)
    assert await migrate(fresh, files) == [], "who knows it is no older release"
    for ask in (migrate, pending):
        with pytest.raises(StoreUnavailable, match="at migration 2, and second is not for this release") as refused:
            await ask(fresh, files[:1])
        assert refused.value.code == "store.newer"


async def test_a_list_of_migrations_from_before_levels_is_read_and_goes_on(fresh: Database, tmp_path: Path) -> None:
    files = written(tmp_path)
    await migrate(fresh, files[:1])
    async with fresh.migrator() as connection:
        await connection.execute("alter table schema_migration drop column serves")
    assert await pending(fresh, files) == ["second"]
    assert await migrate(fresh, files) == ["second"]
    assert await pending(fresh, files) == []


async def test_a_migration_waits_for_a_long_transaction_and_nobody_waits_behind_it(
    fresh: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrations, "LOCK_WAIT_S", 0.1)
    monkeypatch.setattr(migrations, "LOCK_REST_S", 0.3)
    files = written(tmp_path, **{"0002_second": "alter table first add column more int"})
    await migrate(fresh, files[:1])
    async with fresh.migrator() as long, fresh.migrator() as other:
        async with long.transaction():
            await long.execute("select from first")
            task = asyncio.create_task(migrate(fresh, files))
            tries = asyncio.get_running_loop().time() + 2
            while asyncio.get_running_loop().time() < tries:
                await asyncio.wait_for(other.execute("select from first"), 1.0)
                await asyncio.sleep(0.02)
            assert not task.done()
        assert await task == ["second"]


async def test_a_migration_gives_up_in_the_end_and_says_why(
    fresh: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("LOCK_WAIT_S", 0.02), ("LOCK_REST_S", 0.0), ("LOCK_TRIES", 3)):
        monkeypatch.setattr(migrations, name, value)
    files = written(tmp_path, **{"0002_second": "alter table first add column more int"})
    await migrate(fresh, files[:1])
    async with fresh.migrator() as long, long.transaction():
        await long.execute("select from first")
        with pytest.raises(StoreUnavailable, match="a transaction holds it") as refused:
            await migrate(fresh, files)
        assert refused.value.code == "store.locked"
    assert await migrate(fresh, files) == ["second"]


async def test_a_file_that_fails_leaves_nothing_and_may_be_mended(fresh: Database, tmp_path: Path) -> None:
    broken = written(tmp_path, **{"0002_second": "create table second (id int); select 1 / 0;"})
    with pytest.raises(asyncpg.DivisionByZeroError):
        await migrate(fresh, broken)
    async with fresh.migrator() as connection:
        assert await connection.fetchval("select to_regclass('second')") is None
    assert await migrate(fresh, written(tmp_path)) == ["second"]


@pytest.mark.parametrize("names", [["0002_first"], ["0001_first", "0003_third"], ["0001_first", "0001_again"]])
async def test_numbers_must_run_without_gap_or_double(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / f"{name}.sql").touch()
    with pytest.raises(ValueError, match="without a gap"):
        load(tmp_path)


async def test_the_other_roles_cannot_touch_the_list_of_migrations(database: Database) -> None:
    for pool in (database.api, database.engine):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            async with pool() as connection:
                await connection.execute("delete from schema_migration")
