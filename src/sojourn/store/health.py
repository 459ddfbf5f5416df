"""Whether the database answers, how the server stands, and whether its walls do. Called by the API and the doctor.

The rule: what the API asks is cheap enough to be asked every second; nothing here names a tenant.
"""

import asyncpg  # type: ignore[import-untyped]
import msgspec

from sojourn.store.db import Database
from sojourn.store.roles import API, ENGINE, KEYRING, OWNER
from sojourn.store.rows import Counts

# Of each tenant as much can be claimed as its limits leave room for, and of each of its agents.
QUEUE = """
with counted as (
    select tenant, agent_name, count(*) as ready, 0 as held, min(due_at) as oldest_at from run
    where ready and due_at is not null group by tenant, agent_name
    union all
    select tenant, agent_name, 0, count(*), null from run where lease_worker is not null group by tenant, agent_name
), by_agent as (
    select tenant, agent_name, sum(ready) as ready, sum(held) as held, min(oldest_at) as oldest_at
    from counted group by tenant, agent_name
), by_tenant as (
    select b.tenant, sum(ready) as ready, sum(held) as held, min(oldest_at) as oldest_at,
        sum(least(ready, greatest(0, coalesce(a.runs_max, 1000000) - held))) as claimable
    from by_agent b left join agent a on a.tenant = b.tenant and a.name = b.agent_name
    group by b.tenant
)
select coalesce(sum(ready), 0)::bigint as ready, min(oldest_at) as oldest_at,
    coalesce(sum(least(claimable, greatest(0, coalesce(t.runs_max, $1, 1000000) - held))), 0)::bigint as claimable
from by_tenant b join tenant t on t.id = b.tenant
"""
RUNS = """
select status, count(*) as runs, count(*) filter (where status = 'queued' and start_at > now()) as delayed
from run where finished_at is null group by status
"""
POWERS = """
select rolname as name, rolsuper as is_super, rolbypassrls as bypasses, rolcreaterole as makes_roles from pg_roles
where rolname = any($1::text[])
"""
OPEN_TABLES = """
select c.relname from pg_class c
where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p')
  and (c.relname = 'tenant' or exists (
      select from pg_attribute a where a.attrelid = c.oid and a.attname = 'tenant' and not a.attisdropped
  ))
  and not (c.relrowsecurity and c.relforcerowsecurity)
order by 1
"""
WORKERS = "select count(*) from worker where seen_at > now() - interval '15 seconds'"


async def ping(db: Database) -> None:
    """See that the database answers and can be written to. Raises StoreUnavailable."""
    async with db.api() as connection:
        if await connection.fetchval("select current_setting('transaction_read_only')::boolean"):
            raise asyncpg.ReadOnlySQLTransactionError  # as the next write would, and with all that follows from it


async def counts(db: Database, *, tenant_runs_max: int | None = None) -> Counts:
    """Count unfinished runs and living workers, over all tenants; the limit is that of tenants without their own."""
    async with db.engine() as engine:
        found = await engine.fetch(RUNS)
        workers = await engine.fetchval(WORKERS)
        queue = await engine.fetchrow(QUEUE, tenant_runs_max)
    return Counts(
        runs={row["status"]: row["runs"] for row in found},
        delayed=sum(row["delayed"] for row in found),
        workers=workers,
        oldest_due_at=queue["oldest_at"],
        claimable=queue["claimable"],
        held_back=queue["ready"] - queue["claimable"],
    )


class Walls(msgspec.Struct, frozen=True, kw_only=True):
    """What stands between tenants, as the catalogue has it."""

    missing: tuple[str, ...]
    """Roles of ours that are not there."""
    strong: tuple[str, ...]
    """Roles of ours that may do more than they should: pass row level security, or make roles."""
    logins: tuple[str, ...]
    """Logins that the API and the workers use and that could pass row level security, if they took off their role."""
    open_tables: tuple[str, ...]
    """Tables of tenants without forced row level security."""

    @property
    def mend_roles(self) -> str:
        """What an administrator runs to take from our roles what they should not have."""
        return " ".join(f"alter role {name} nosuperuser nobypassrls nocreaterole;" for name in self.strong)

    @property
    def mend_tables(self) -> str:
        """What the owner runs to close the tables."""
        return " ".join(
            f"alter table {name} enable row level security, force row level security;" for name in self.open_tables
        )


async def walls(db: Database) -> Walls:
    """Look at the roles and tables of the database."""
    ours = (OWNER, KEYRING, API, ENGINE)
    async with db.migrator() as owner:
        found = {row["name"]: row for row in await owner.fetch(POWERS, ours)}
        open_tables = tuple(row["relname"] for row in await owner.fetch(OPEN_TABLES))
    strong = {row["name"] for row in found.values() if row["is_super"] or row["bypasses"] or row["makes_roles"]}
    logins = set()
    for lend in (db.api, db.engine):
        async with lend() as connection:
            (row,) = await connection.fetch(POWERS, [await connection.fetchval("select session_user::text")])
        if row["name"] not in ours and (row["is_super"] or row["bypasses"]):
            logins.add(row["name"])
    return Walls(
        missing=tuple(sorted(set(ours) - found.keys())),
        strong=tuple(sorted(strong)),
        logins=tuple(sorted(logins)),
        open_tables=open_tables,
    )
