"""Connections: a pool for each role, and the one edge where the driver's errors become ours. Called by all of `store`.

The rule: a connection acts as one role from its first statement on, and what a transaction sets is gone with it.
JSON and JSONB columns travel as bytes, both ways: callers encode and decode with msgspec.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from operator import itemgetter
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias
from weakref import WeakSet

import asyncpg  # type: ignore[import-untyped]
import msgspec

from sojourn.errors import Invalid, StoreUnavailable
from sojourn.store.embedded import Cluster
from sojourn.store.hosts import WRITABLE, Hosts
from sojourn.store.roles import API, ENGINE, OWNER, READY, Dsns, administrator_sql

MAJOR_MIN = 16
CLOSE_S = 10.0
ANSWER_S = 10.0
"""How long a worker waits for a statement that is quick wherever the database can be reached."""
ROLES_LOCK = 0x504A_0001
OUTAGE_STATES = ("08", "26000", "42P05", "25006", "25P03", "25P04", "28", "3D", "40", "53", "55P03", "57", "58", "XX")
"""SQLSTATE beginnings. Source: PostgreSQL 18, appendix A: connection, read-only (a demoted server), idle too long,
login, no such database, rollback by conflict, resources, lock time-out, operator, system, internal. And statements that
are not prepared, or prepared twice, which are the pooler's doing."""
CUT = {
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "2",
    "tcp_user_timeout": "20000",
}
"""The server lets go of a client that was cut off, with its locks, after 20 s and not after two hours."""
LOGIN_STATES = ("28", "3D")
NOT_PREPARED = ("26000", "42P05")
DISK_FULL, CONNECTIONS_FULL, READ_ONLY = "53100", "53300", "25006"
Connection: TypeAlias = asyncpg.Connection

Pooler: TypeAlias = Literal["none", "transaction", "prepared"]
"""A pooler such as pgbouncer that gives each transaction another connection, and whether it keeps what is prepared."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How connections are made and bounded."""

    connections_max: int = 10
    """Of each role's pool."""
    acquire_timeout_s: float = 10.0
    connect_timeout_s: float = 10.0
    statement_timeout_s: float = 30.0
    pooler: Pooler = "none"
    """What stands before `api` and `engine`. Nothing can be set at connect through a pooler, so their URLs must log in
    as the role itself."""


class Database:
    """The connections of one process. Made by `connect`.

    While one is lent, an OSError or a time-out counts as the database's: do nothing but SQL with it.
    """

    def __init__(self, dsns: Dsns, options: Options, heal: Callable[[], Awaitable[None]] | None) -> None:
        self._options, self._heal = options, heal
        bell, life = dsns.session or dsns.api, dsns.session or dsns.engine
        at = {dsn: Hosts(dsn) for dsn in (dsns.migrate, dsns.api, dsns.engine, bell, life)}
        self._migrate, self._bell, self._life = at[dsns.migrate], at[bell], at[life]
        self._alone: WeakSet[Connection] = WeakSet()
        """The connections of no pool."""
        self._api, self._engine = self._pool(at[dsns.api], API), self._pool(at[dsns.engine], ENGINE)

    def api(self) -> AbstractAsyncContextManager[Connection]:
        """Lend a connection of `sojourn_api`, which sees no tenant's rows without a scope."""
        return self._lend(self._api)

    def engine(self) -> AbstractAsyncContextManager[Connection]:
        """Lend a connection of `sojourn_engine`, for workers."""
        return self._lend(self._engine)

    @asynccontextmanager
    async def scoped(self, handle: str) -> AsyncIterator[Connection]:
        """Lend a transaction that sees what a signed handle allows; it commits at the end."""
        async with self._lend(self._api) as connection, connection.transaction():
            await connection.execute("select set_config('app.scope', $1, true)", handle)
            yield connection

    @asynccontextmanager
    async def migrator(self) -> AsyncIterator[Connection]:
        """Lend a new connection of `sojourn_owner`, which may take as long as it likes."""
        with edge():
            connection = await self._open(self._migrate, role=OWNER, statement_timeout_s=0)
            try:
                yield connection
            finally:
                await connection.close(timeout=CLOSE_S)

    async def listener(self) -> Connection:
        """Open a session for LISTEN and NOTIFY, which no pooler shares out and the caller closes."""
        return await self._held(self._bell, API)

    async def life(self) -> Connection:
        """Open such a session of `sojourn_engine` for a worker to live by."""
        return await self._held(self._life, ENGINE)

    async def _held(self, hosts: Hosts, role: str) -> Connection:
        with edge():
            timeout_s = self._options.statement_timeout_s
            connection = await self._open(hosts, role=role, statement_timeout_s=timeout_s)
            async with closed_on_error(connection):
                await _see_role(connection, role)
        self._alone.add(connection)
        return connection

    async def open(self) -> None:
        """Make the first connection, so that what is wrong shows now."""
        for pool, role in ((self._api, API), (self._engine, ENGINE)):
            await pool
            async with self._lend(pool) as connection:
                await _see_role(connection, role)
        if self._options.pooler != "none":
            for session in (await self.listener(), await self.life()):
                session.terminate()

    async def close(self) -> None:
        """Wait a moment for the connections in use, then close all; an open transaction is rolled back."""
        for pool in (self._api, self._engine):
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    await pool.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @asynccontextmanager
    async def _lend(self, pool: asyncpg.Pool) -> AsyncIterator[Connection]:
        """Lend a connection of a pool."""
        with edge():
            async with pool.acquire(timeout=self._options.acquire_timeout_s) as connection:
                try:
                    yield connection
                except asyncpg.ReadOnlySQLTransactionError:
                    await self._leave_server()
                    raise
                except TimeoutError:
                    connection.terminate()  # the driver would wait for its answer before it lets it go
                    raise

    async def _leave_server(self) -> None:
        """Connect anew from now on: who was the primary only reads, so another one writes, or soon will."""
        for pool in (self._api, self._engine):
            await pool.expire_connections()
        for connection in tuple(self._alone):
            connection.terminate()

    def _pool(self, hosts: Hosts, role: str) -> asyncpg.Pool:
        """Make a pool that opens connections when they are needed."""

        async def opened(_dsn: None, **ours: Any) -> Connection:
            pooled = self._options.pooler != "none"
            return await self._open(hosts, role=role, pooled=pooled, **ours)

        size, timeout_s = self._options.connections_max, self._options.statement_timeout_s
        return asyncpg.create_pool(
            connect=opened, min_size=0, max_size=size, statement_timeout_s=timeout_s, reset=_leave
        )

    async def _open(
        self, hosts: Hosts, *, role: str, statement_timeout_s: float, pooled: bool = False, **pool_arguments: Any
    ) -> Connection:
        """Open a connection that acts as a role; a dead embedded server is started again first."""
        arguments: dict[str, Any] = pool_arguments | {
            "timeout_s": self._options.connect_timeout_s,
            "command_timeout": statement_timeout_s + 5 if statement_timeout_s else None,
            "statement_cache_size": 0 if pooled and self._options.pooler == "transaction" else 256,
        }
        if not pooled:
            arguments["target_session_attrs"] = WRITABLE
            arguments["server_settings"] = {
                "role": role,
                "application_name": role.replace("_", "-"),
                "statement_timeout": str(int(statement_timeout_s * 1000)),
                **CUT,
            }
        try:
            connection = await hosts.connect(**arguments)
        except (OSError, asyncpg.PostgresConnectionError, asyncpg.CannotConnectNowError) as error:
            if isinstance(error, asyncpg.ProtocolViolationError):
                raise _pooler_in_the_way(error) from error
            if self._heal is None:
                raise
            await self._heal()
            connection = await hosts.connect(**arguments)
        except (asyncpg.InsufficientPrivilegeError, asyncpg.InvalidParameterValueError) as error:
            raise StoreUnavailable(
                f"A database login may not act as {role}. Ask an administrator to grant it that role.",
                code="store.roles",
            ) from error
        async with closed_on_error(connection):
            await _json_as_bytes(connection)
        return connection


async def connect(server: str | Dsns | Cluster, options: Options | None = None) -> Database:
    """Open the database and see that it answers, is new enough and has our roles.

    One URL stands for all three roles. Raises Invalid or StoreUnavailable with what to do.
    """
    options = options or Options()
    if isinstance(server, Cluster):
        database = Database(server.dsns, options, server.ensure)
    else:
        dsns = Dsns(server, server, server) if isinstance(server, str) else server
        dsns = dsns if options.pooler == "none" else _past_the_pooler(dsns)
        try:
            with edge():
                await _make_ready(dsns, options)
        except ValueError as error:
            raise Invalid(
                "SOJOURN_DATABASE_URL must look like postgresql://user:password@host:5432/database."
            ) from error
        database = Database(dsns, options, None)
    await database.open()
    return database


@contextmanager
def edge() -> Iterator[None]:
    """Turn the driver's ways to say "not now" into StoreUnavailable; other errors are answers or bugs, and pass."""
    try:
        yield
    except TimeoutError as error:
        raise StoreUnavailable("The database did not answer in time, or all connections are busy.") from error
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        if not _is_outage(error):
            raise
        raise _outage(error) from error


def _is_outage(error: Exception) -> bool:
    """Say whether an error comes from the connection or the server's state, and not from the statement."""
    if isinstance(error, asyncpg.PostgresError):
        return (error.sqlstate or "").startswith(OUTAGE_STATES)
    if isinstance(error, asyncpg.InterfaceError):
        return any(words in str(error) for words in ("clos", "released back"))  # the driver has no class for these
    return True  # the driver's internal errors too: they come when a connection is lost between two messages


def _outage(error: Exception) -> StoreUnavailable:
    """Name an outage and what to do, without the words of a statement."""
    state = getattr(error, "sqlstate", None) or ""
    name = f"{type(error).__name__} {state}".strip()
    if state == DISK_FULL:
        return StoreUnavailable(
            "The database's disk is full, so nothing new is accepted; what was accepted can be read. Free some space "
            "there: no restart is needed.",
            code="store.full",
        )
    if state == CONNECTIONS_FULL:
        return StoreUnavailable(
            f"The database has no connection left for us ({name}). Raise its max_connections, or lower "
            "SOJOURN_DATABASE_CONNECTIONS_MAX; nothing that was accepted is lost."
        )
    if state == READ_ONLY or isinstance(error, asyncpg.TargetServerAttributeNotMatched):
        return StoreUnavailable(
            f"The database can only be read ({name}): it is a replica, or no longer the primary. Name every host in "
            "SOJOURN_DATABASE_URL, or promote one; nothing that was accepted is lost."
        )
    if state in NOT_PREPARED:
        return StoreUnavailable(
            f"The pooler before the database does not keep what is prepared ({name}). Set "
            "SOJOURN_DATABASE_POOLER=transaction: docs/operate/database.md.",
            code="store.pooler",
        )
    if state.startswith(LOGIN_STATES):
        return StoreUnavailable(
            f"The database refuses the login ({name}). Check user, password and database in SOJOURN_DATABASE_URL."
        )
    return StoreUnavailable(
        f"The database does not answer ({name}). See that it runs and has room; what was accepted is not lost."
    )


def _pooler_in_the_way(error: Exception) -> StoreUnavailable:
    """Say that something between us and the server does not let us through; what it says names no secret."""
    return StoreUnavailable(
        f"What stands before the database refuses how we connect ({type(error).__name__}: {error}). Behind a pooler, "
        "set SOJOURN_DATABASE_POOLER and let SOJOURN_DATABASE_URL go straight to the server: docs/operate/database.md.",
        code="store.pooler",
    )


async def _see_role(connection: Connection, role: str) -> None:
    """Raise StoreUnavailable where a login is not the role that it should be, which a pooler does not let us say."""
    if (acts_as := await connection.fetchval("select current_user::text")) != role:
        raise StoreUnavailable(
            f"A login that must act as {role} acts as {acts_as}. Behind a pooler log in as {role} itself, or let an "
            f"administrator run: alter role {acts_as} set role = '{role}'",
            code="store.roles",
        )


@asynccontextmanager
async def closed_on_error(connection: Connection) -> AsyncIterator[None]:
    """Close a new connection at once when its preparation fails or is cancelled."""
    try:
        yield
    except BaseException:
        connection.terminate()
        raise


async def _leave(_connection: Connection) -> None:
    """Skip the reset of session settings between two users, a round trip: what we set ends with its transaction."""


async def _json_as_bytes(connection: Connection) -> None:
    """Pass JSON through as the bytes that it is on the wire; JSONB has a version byte in front."""
    for name, head in (("json", b""), ("jsonb", b"\1")):
        await connection.set_type_codec(
            name, schema="pg_catalog", format="binary", encoder=head.__add__, decoder=itemgetter(slice(len(head), None))
        )


def _past_the_pooler(dsns: Dsns) -> Dsns:
    """Let sessions go straight to the server, as migrations do. Raises Invalid where nothing does."""
    if dsns.migrate in (dsns.api, dsns.engine):
        raise Invalid(
            "SOJOURN_DATABASE_POOLER says that SOJOURN_DATABASE_URL_API and SOJOURN_DATABASE_URL_ENGINE go through a "
            "pooler: set both, and let SOJOURN_DATABASE_URL go straight to the server.",
            code="settings.invalid",
        )
    return dsns if dsns.session else msgspec.structs.replace(dsns, session=dsns.migrate)


async def _make_ready(dsns: Dsns, options: Options) -> None:
    """See that an operator's server is new enough and has our roles, and make them if the login may."""
    ours = ((API, dsns.api), (ENGINE, dsns.engine), (API, dsns.session), (ENGINE, dsns.session))
    roles = [OWNER, *(role for role, dsn in ours if dsn == dsns.migrate)]
    hosts = Hosts(dsns.migrate)
    connection = await hosts.connect(
        timeout_s=options.connect_timeout_s, statement_cache_size=0, target_session_attrs=WRITABLE
    )
    try:
        version = connection.get_server_version()
        if version.major < MAJOR_MIN:
            raise StoreUnavailable(
                f"The database is PostgreSQL {version.major}; Sojourn needs {MAJOR_MIN} or newer.", code="store.version"
            )
        login, database = await connection.fetchrow("select session_user, current_database()")
        async with connection.transaction():
            await connection.execute("select pg_advisory_xact_lock($1)", ROLES_LOCK)
            if not await _is_ready(connection, roles):
                await _make_roles(connection, administrator_sql(database, login))
    finally:
        await connection.close()


async def _is_ready(connection: Connection, roles: list[str]) -> bool:
    """Ask whether our roles exist, and whether this login may take them on."""
    try:
        async with connection.transaction():
            return bool(await connection.fetchval(READY, roles))
    except asyncpg.UndefinedObjectError:
        return False


async def _make_roles(connection: Connection, statements: list[str]) -> None:
    """Make the roles, or raise StoreUnavailable with the statements for somebody who may."""
    try:
        async with connection.transaction():
            for statement in statements:
                await connection.execute(statement)
    except asyncpg.InsufficientPrivilegeError as error:
        script = "\n".join(f"    {statement};" for statement in statements)
        raise StoreUnavailable(
            f"The database login may not make Sojourn's roles. Ask an administrator to run this there:\n{script}",
            code="store.roles",
        ) from error
