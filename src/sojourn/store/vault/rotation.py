"""Changing the keys of an installation while it is used, by the owner of the database. Called by `identity`'s rotation.

The rules: one rotation at a time, and who comes second waits; each step is a transaction of its own and leaves all in
order, so whoever is killed between two runs it again. What is ended stays for those who chose it before.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from sojourn.errors import NotFound
from sojourn.store.audit import writing as audit
from sojourn.store.audit.operator import operating
from sojourn.store.db import Connection, Database
from sojourn.store.vault.sealed import Secret, Signing, Wrapped, as_signing, under

LOCK = 0x504A_0004
TENANTS = """
select id from tenant t where exists (select from data_key d where d.tenant = t.id)
    or exists (select from seal_key s where s.tenant = t.id and s.state = 'active')
order by id
"""
KEYS = "select tenant, id, root_key, wrapped from data_key where tenant = $1 and root_key <> $2 for update"
SECRETS = """
select s.name, s.version, s.sealed, d.tenant, d.id, d.root_key, d.wrapped
from secret s join data_key d on d.tenant = s.tenant and d.id = s.data_key
where s.tenant = $1 and s.data_key <> $2 for update of s
"""
SIGNING = """
select s.tenant, s.issuer, s.secret, s.sealed, s.data_key, d.root_key, d.wrapped
from seal_key s left join data_key d on d.tenant = s.tenant and d.id = s.data_key
where s.tenant = $1 and s.state = 'active' for update of s
"""
CURRENT = "select tenant, id, root_key, wrapped from data_key where tenant = $1 and ended_at is null"
ADD_KEY = "insert into data_key (tenant, id, root_key, wrapped) values ($1, $2, $3, $4)"
END_KEY = "update data_key set ended_at = now() where tenant = $1 and ended_at is null"
REWRAP = "update data_key set root_key = $3, wrapped = $4 where tenant = $1 and id = $2"
RESEAL = "update secret set sealed = $4, data_key = $5 where tenant = $1 and name = $2 and version = $3"
RESEAL_SIGNING = "update seal_key set secret = null, sealed = $3, data_key = $4 where tenant = $1 and issuer = $2"
RETIRE = """
update seal_key set state = 'retired', secret = null, sealed = null, data_key = null, ended_at = now()
where tenant = $1 and state = 'active'
"""
SIGN_WITH = "insert into seal_key (tenant, issuer, secret, sealed, data_key) values ($1, $2, $3, $4, $5)"
END_ROOT = "update root_key set ended_at = now() where ended_at is null and id <> $1"
BEGIN_ROOT = "insert into root_key (id) values ($1) on conflict (id) do update set ended_at = null"
GIVE_UP = """
with signing as (
    update seal_key set state = 'retired', sealed = null, data_key = null, ended_at = now() where sealed is not null
), secrets as (
    delete from secret
)
update root_key set ended_at = now() where ended_at is null
"""
DROP_KEYS = "delete from data_key"


@asynccontextmanager
async def alone(db: Database) -> AsyncIterator[Connection]:
    """Lend a connection of the owner while nobody else rotates; it is waited for."""
    async with db.migrator() as conn:
        await conn.execute("select pg_advisory_lock($1)", LOCK)
        yield conn


async def scope(conn: Connection, *, by: str) -> str:
    """Sign scopes with another key; give its id."""
    async with operating(conn):
        kid: str = await conn.fetchval("select renew_scope_key()")
        await told(conn, "scope_key.rotate", kid, by=by)
    return kid


async def hooks(conn: Connection, overlap: timedelta, *, by: str) -> str:
    """Make webhooks' secrets of another key; the one before is good for so long. Give its id."""
    async with operating(conn):
        kid: str = await conn.fetchval("select renew_hook_key($1)", overlap)
        await told(conn, "hook_key.rotate", kid, by=by)
    return kid


async def sweep(conn: Connection) -> int:
    """Take away what nothing can use any more."""
    async with operating(conn):
        gone: int = await conn.fetchval("select end_keys()")
    return gone


async def tenants(conn: Connection) -> list[str]:
    """The tenants that have a data key or a signing key."""
    async with operating(conn, readonly=True):
        return [row["id"] for row in await conn.fetch(TENANTS)]


# ---- within a step ----------------------------------------------------------------------------


async def told(conn: Connection, action: str, key: str, *, tenant: str = audit.EVERYBODY, by: str) -> None:
    """Tell the audit log what the step did, as the last of it."""
    await audit.operated(conn, audit.Act(action=action, subject=key), tenant=tenant, by=by)


async def older_keys(conn: Connection, tenant: str, root: str) -> list[Wrapped]:
    """A tenant's data keys that are under another root key."""
    return [under(row, row["id"]) for row in await conn.fetch(KEYS, tenant, root)]


async def exists(conn: Connection, tenant: str) -> None:
    """Raise NotFound where there is no such tenant."""
    if not await conn.fetchval("select exists (select from tenant where id = $1)", tenant):
        raise NotFound(f"There is no tenant {tenant}. `sojourn tenants list` has them all.")


async def data_key(conn: Connection, tenant: str) -> Wrapped | None:
    """A tenant's current data key."""
    row = await conn.fetchrow(CURRENT, tenant)
    return under(row, row["id"]) if row else None


async def rewrap(conn: Connection, key: Wrapped) -> None:
    """Keep a data key under another root key."""
    await conn.execute(REWRAP, key.tenant, key.id, key.root_key, key.wrapped)


async def renew(conn: Connection, key: Wrapped) -> None:
    """Make a data key the tenant's current one, and end the one before."""
    await conn.execute(END_KEY, key.tenant)
    await conn.execute(ADD_KEY, key.tenant, key.id, key.root_key, key.wrapped)


async def secrets(conn: Connection, key: Wrapped) -> AsyncIterator[Secret]:
    """A tenant's secrets that are not under its key yet, some at a time."""
    async for row in conn.cursor(SECRETS, key.tenant, key.id, prefetch=100):
        yield Secret(row["name"], row["version"], row["sealed"], under(row, row["id"]))


async def signing(conn: Connection, tenant: str) -> Signing | None:
    """The key that a tenant signs with."""
    row = await conn.fetchrow(SIGNING, tenant)
    return as_signing(row) if row else None


async def reseal(conn: Connection, secret: Secret) -> None:
    """Keep a version of a secret under another data key."""
    key = secret.under
    await conn.execute(RESEAL, key.tenant, secret.name, secret.version, secret.sealed, key.id)


async def reseal_signing(conn: Connection, issuer: str, sealed: bytes, key: Wrapped) -> None:
    """Keep a signing key under another data key, sealed from now on."""
    await conn.execute(RESEAL_SIGNING, key.tenant, issuer, sealed, key.id)


async def sign_with(conn: Connection, new: Signing) -> None:
    """Let a tenant sign with another key; what the one before has signed stays good."""
    await conn.execute(RETIRE, new.tenant)
    await conn.execute(SIGN_WITH, new.tenant, new.issuer, new.plain, new.sealed, new.under and new.under.id)


async def begin_root(conn: Connection, root: str) -> None:
    """Let a root key wrap what is new; the one before still unwraps."""
    await conn.execute(END_ROOT, root)
    await conn.execute(BEGIN_ROOT, root)


async def give_up(conn: Connection) -> None:
    """Forget what is sealed: its root key is lost. Tenants sign with new keys; what they signed stays good."""
    await conn.execute(GIVE_UP)
    await conn.execute(DROP_KEYS)
