"""Connections, roles and outages against real servers."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
from tests.conftest import until

from sojourn.errors import Invalid, StoreUnavailable
from sojourn.store import db
from sojourn.store.db import Database, Options, connect
from sojourn.store.embedded import programs
from sojourn.store.embedded.home import give, home_in, prepare
from sojourn.store.migrate import Migration, migrate
from sojourn.store.roles import Dsns

TABLE = """
create table note (tenant text, body text);
alter table note enable row level security;
alter table note force row level security;
create policy tenant on note using (tenant = current_setting('app.scope', true));
grant select, insert on note to sojourn_api, sojourn_engine;
"""
ESCAPES = (
    "set row_security = off; select * from note",
    "alter table note disable row level security",
    "alter table note no force row level security",
    "drop policy tenant on note",
    "create table other ()",
    "create temporary table other ()",
    "set role sojourn_owner",
    "set role sojourn_keyring",
    "set session authorization postgres",
    "alter role current_user bypassrls",
    "alter system set row_security = off",
    "create role other",
    "create database other",
    "copy note to program 'cat'",
    "select pg_read_file('PG_VERSION')",
    "select passwd from pg_shadow",
)


@pytest.fixture
async def notes(database: Database) -> Database:
    """Give a database with a table of two tenants' rows."""
    async with database.migrator() as connection:
        await connection.execute(TABLE)
        await connection.execute("alter table note no force row level security")
        await connection.execute("insert into note values ('a', 'of a'), ('b', 'of b')")
        await connection.execute("alter table note force row level security")
    return database


async def test_each_pool_acts_as_its_role(database: Database) -> None:
    for lend, role in ((database.api, "sojourn_api"), (database.engine, "sojourn_engine")):
        async with lend() as connection:
            row = await connection.fetchrow("select current_user, current_setting('is_superuser')")
            assert tuple(row) == (role, "off")
    async with database.migrator() as connection:
        assert await connection.fetchval("select current_user") == "sojourn_owner"


async def test_a_scope_shows_its_rows_and_is_gone_with_its_transaction(notes: Database) -> None:
    async with notes.scoped("a") as connection:
        assert await connection.fetch("select body from note") == [("of a",)]
    async with notes.api() as connection:
        assert await connection.fetch("select body from note") == []
        assert not await connection.fetchval("select current_setting('app.scope', true)")


async def test_a_scope_that_was_left_behind_opens_nothing_to_the_next_one(notes: Database) -> None:
    async with notes.api() as connection:
        await connection.execute("set app.scope = 'a'")
        process = connection.get_server_pid()
    async with notes.scoped("b") as connection:
        assert connection.get_server_pid() == process, "connections are not reset in between"
        assert await connection.fetch("select body from note") == [("of b",)]


async def test_a_failed_scope_writes_nothing(notes: Database) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with notes.scoped("a") as connection:
            await connection.execute("insert into note values ('a', 'new')")
            await connection.execute("insert into note values ('b', 'smuggled')")
    async with notes.scoped("a") as connection:
        assert await connection.fetchval("select count(*) from note") == 1


@pytest.mark.parametrize("statement", ESCAPES)
@pytest.mark.parametrize("pool", [Database.api, Database.engine])
async def test_no_statement_gets_past_row_level_security(notes: Database, pool, statement: str) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with pool(notes) as connection:
            await connection.execute(statement)
    async with pool(notes) as connection:
        assert await connection.fetch("select * from note") == []


async def test_even_the_owner_sees_no_tenants_rows(notes: Database) -> None:
    async with notes.migrator() as connection:
        assert await connection.fetch("select * from note") == []


async def test_json_travels_as_bytes(database: Database) -> None:
    async with database.engine() as connection:
        assert await connection.fetchval("select $1::jsonb", b'{"a": [1, "\xc3\xa9"]}') == b'{"a": [1, "\xc3\xa9"]}'
        assert await connection.fetchval("select $1::json", b'{ "a":1}') == b'{ "a":1}'
        assert await connection.fetch("select unnest($1::jsonb[])", [b"1", b"{}"]) == [(b"1",), (b"{}",)]


async def test_a_busy_pool_says_so_in_time(server: Dsns) -> None:
    options = Options(connections_max=1, acquire_timeout_s=2)
    async with await connect(server, options) as database, database.engine():
        with pytest.raises(StoreUnavailable, match="all connections are busy"):
            async with database.engine():
                pass


async def test_a_connection_in_use_does_not_hold_up_the_end(server: Dsns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(db, "CLOSE_S", 0.05)
    database = await connect(server)
    with pytest.raises(StoreUnavailable):
        async with database.engine() as connection:
            await database.close()
            await connection.execute("select 1")


async def test_a_statement_that_takes_too_long_is_ended(server: Dsns) -> None:
    async with await connect(server, Options(statement_timeout_s=0.05)) as database:
        with pytest.raises(StoreUnavailable, match="57014"):
            async with database.api() as connection:
                await connection.execute("select pg_sleep(60)")
        async with database.api() as connection:
            assert await connection.fetchval("select 1") == 1


@pytest.mark.parametrize("url", ["http://localhost/x", "postgresql://h:port/x", "sojourn"])
async def test_a_malformed_url_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(Invalid, match="SOJOURN_DATABASE_URL must look like"):
        await connect(url)


async def test_a_database_that_is_down_is_unavailable(unused_tcp_port: int) -> None:
    with pytest.raises(StoreUnavailable, match="does not answer"):
        await connect(f"postgresql://someone:secret@127.0.0.1:{unused_tcp_port}/sojourn")


async def test_passwords_do_not_show(server: Dsns) -> None:
    assert repr(server) == str(server) == "Dsns(...)"


async def test_an_old_server_is_refused(blank: Dsns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(db, "MAJOR_MIN", 99)
    with pytest.raises(StoreUnavailable, match="Sojourn needs 99 or newer") as refused:
        await connect(blank)
    assert refused.value.code == "store.version"


@pytest.fixture
async def theirs(data_dir: Path) -> AsyncIterator[str]:
    """Give an operator's own server with nothing of ours: a URL with places for `user` and `database`."""
    home = home_in(data_dir)
    owner = prepare(home)
    folder, maker, data = programs.find(home, owner), programs.named(owner), home.root / "theirs"
    data.mkdir()
    give(data, maker)
    made = programs.run(maker, folder / "initdb", "-D", data, "-U", "postgres", "--auth=trust", "--no-sync")
    assert made.returncode == 0, made.stdout
    give(data, owner)
    process = await asyncio.create_subprocess_exec(
        *(folder / "postgres", "-D", data, "-F", "-k", home.run, "-c", "listen_addresses="),
        stderr=asyncio.subprocess.DEVNULL,
        user=owner.uid,
        group=owner.gid,
        extra_groups=[] if owner.is_other else None,
    )
    url = f"postgresql://{{user}}@/{{database}}?host={home.run}&port=5432"
    await until(
        lambda: "ready" in (data / "postmaster.pid").read_text() if (data / "postmaster.pid").exists() else False
    )
    superuser = await asyncpg.connect(url.format(user="postgres", database="postgres"))
    await superuser.execute("create role boss login createrole")
    await superuser.execute("create role clerk login")
    await superuser.execute("create database theirs owner boss")
    await superuser.close()
    yield url
    process.send_signal(signal.SIGINT)
    await process.wait()


async def test_a_login_that_may_make_roles_makes_ours(theirs: str) -> None:
    url = theirs.format(user="boss", database="theirs")
    for _ in range(2):
        async with await connect(url) as database:
            await migrate(database, [Migration(1, "first", b"", TABLE)])
            async with database.scoped("a") as connection:
                assert await connection.fetchval("select current_user") == "sojourn_api"


async def test_a_login_that_may_not_is_told_what_an_administrator_must_run(theirs: str) -> None:
    url = theirs.format(user="clerk", database="theirs")
    with pytest.raises(StoreUnavailable, match="Ask an administrator to run this there") as refused:
        await connect(url)
    assert refused.value.code == "store.roles"
    superuser = await asyncpg.connect(theirs.format(user="postgres", database="theirs"))
    await superuser.execute(str(refused.value).split(":", 1)[1])
    await superuser.close()
    async with await connect(url) as database:
        await migrate(database, [Migration(1, "first", b"", TABLE)])


async def test_three_logins_keep_the_roles_apart(theirs: str) -> None:
    boss = theirs.format(user="boss", database="theirs")
    await (await connect(boss)).close()
    superuser = await asyncpg.connect(theirs.format(user="postgres", database="theirs"))
    await superuser.execute("create role front login; create role back login")
    await superuser.execute("grant sojourn_api to front; grant sojourn_engine to back")
    front, back = (theirs.format(user=user, database="theirs") for user in ("front", "back"))
    async with await connect(Dsns(boss, front, back)) as database, database.api() as connection:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("set role sojourn_engine")
    await superuser.execute("revoke sojourn_api from front")
    await superuser.close()
    with pytest.raises(StoreUnavailable, match="may not act as sojourn_api"):
        await connect(Dsns(boss, front, back))


@pytest.mark.parametrize(
    "state", ["40001", "40P01", "53300", "55P03", "25P03", "25P04", "25006", "57P03", "57014", "26000"]
)
async def test_what_the_server_cannot_do_now_is_unavailable(database: Database, state: str) -> None:
    with pytest.raises(StoreUnavailable, match=state):
        async with database.engine() as connection:
            await connection.execute(f"do $$ begin raise exception using errcode = '{state}'; end $$")
    async with database.engine() as connection:
        assert await connection.fetchval("select 1") == 1
