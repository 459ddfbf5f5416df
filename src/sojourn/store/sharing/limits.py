"""What the operator allows each tenant, and what a queued run waits for. Called by the command line and the API.

The rule: a tenant's limits are changed by whoever owns the database, and by no API key.
"""

from collections.abc import Mapping
from typing import Literal, TypeAlias

import msgspec

from sojourn.errors import NotFound
from sojourn.store.audit import writing as audit
from sojourn.store.audit.operator import operator
from sojourn.store.audit.writing import Act
from sojourn.store.db import Connection, Database
from sojourn.store.sharing.rates import Limit, Own

LIMITS = (
    "runs_max", "queued_max", "runs_kept_days", "ledger_kept_days",
    "usd_day_micros", "tokens_day", "user_usd_day_micros", "user_tokens_day",
)  # fmt: skip
"""The columns of a tenant that an operator sets; null means what the settings say."""
TENANTS = f"""
select t.id, {", ".join(f"t.{name}" for name in LIMITS)}, coalesce(t.rates, '{{}}') as rates,
    coalesce(q.runs, 0) as queued, coalesce(h.runs, 0) as running
from tenant t
left join (select tenant, count(*) as runs from run where status = 'queued' group by tenant) q on q.tenant = t.id
left join (select tenant, count(*) as runs from run where lease_worker is not null group by tenant) h on h.tenant = t.id
order by t.id
"""
SET_RATES = """
update tenant set rates = coalesce(rates, '{}') - $3::text[] || $2::jsonb, rates_at = clock_timestamp() where id = $1
"""
HELD_BACK = """
select case
    when coalesce(t.runs_max, $2) <= (
        select count(*) from run h where h.tenant = r.tenant and h.lease_worker is not null
    ) then 'tenant_runs_max'
    when a.runs_max <= (
        select count(*) from run h
        where h.tenant = r.tenant and h.agent_name = r.agent_name and h.lease_worker is not null
    ) then 'agent_runs_max'
end
from run r join tenant t on t.id = r.tenant
left join agent a on a.tenant = r.tenant and a.name = r.agent_name
where r.tenant = (select scope_tenant()) and r.id = $1 and r.ready
"""

HeldBack: TypeAlias = Literal["tenant_runs_max", "agent_runs_max"]


class TenantRow(msgspec.Struct, frozen=True, kw_only=True):
    """A tenant, its own limits, and how many of its runs wait and are held."""

    id: str
    queued: int
    running: int
    limits: dict[str, int | None]
    rates: Own = {}
    """Its rate limits, where they are not those of the settings."""


async def tenants(db: Database) -> list[TenantRow]:
    """Read all tenants, by id. Raises NotFound where there is no installation."""
    async with operator(db, readonly=True) as conn:
        found = await conn.fetch(TENANTS)
    return [
        TenantRow(
            id=row["id"],
            queued=row["queued"],
            running=row["running"],
            limits={name: row[name] for name in LIMITS},
            rates=msgspec.json.decode(row["rates"], type=Own),
        )
        for row in found
    ]


async def set_limits(db: Database, tenant: str, limits: Mapping[str, int | None], *, by: str = "setup") -> None:
    """Change a tenant's limits, by the names in LIMITS; workers and API keep them at once. Raises NotFound."""
    names = [name for name in LIMITS if name in limits]
    changes = ", ".join(f"{name} = ${n}" for n, name in enumerate(names, 2))
    async with operator(db) as conn:
        done = await conn.execute(f"update tenant set {changes} where id = $1", tenant, *(limits[n] for n in names))
        await _noted(conn, done, tenant, limits, by=by)


async def set_rates(db: Database, tenant: str, rates: Mapping[str, Limit | None], *, by: str = "setup") -> None:
    """Change a tenant's rate limits, by CLASS.SUBJECT; None takes its own away. The API keeps them within a second.

    Raises NotFound.
    """
    given = {name: limit for name, limit in rates.items() if limit is not None}
    async with operator(db) as conn:
        done = await conn.execute(SET_RATES, tenant, msgspec.json.encode(given), list(rates))
        await _noted(conn, done, tenant, rates, by=by)


async def _noted(conn: Connection, done: str, tenant: str, changes: Mapping[str, object], *, by: str) -> None:
    """Tell the audit log of a change that was made. Raises NotFound where there is no such tenant."""
    if done == "UPDATE 0":
        raise NotFound(f"There is no tenant {tenant}. `sojourn tenants list` lists them.")
    detail = {name: "none" if value is None else str(value) for name, value in changes.items()}
    await audit.operated(conn, Act(action="tenant.set", subject=tenant, detail=detail), tenant=tenant, by=by)


async def held_back(conn: Connection, run_id: str, *, tenant_runs_max: int | None) -> HeldBack | None:
    """Name the limit that keeps a run in the queue, if one does."""
    found: HeldBack | None = await conn.fetchval(HELD_BACK, run_id, tenant_runs_max)
    return found
