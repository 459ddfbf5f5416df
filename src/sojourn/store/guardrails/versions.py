"""Writing and reading a tenant's guardrails, or the operator's. Called by the API in a tenant's scope, and by the
operator's command line.

The rules: a version is added and never changed; the same rules twice are one version.
"""

from datetime import datetime

from sojourn.errors import NotFound, OverLimit
from sojourn.loop.messages import Plain
from sojourn.store.db import Connection

EVERYBODY = "*"
"""The tenant of the operator's guardrails."""
GUARDRAILS_MAX = 10
"""Of one tenant, or of the operator; each text is gone through with all of them."""
LOCKS = 0x504A_0007
"""With the tenant: one at a time counts its guardrails and adds one."""

COLUMNS = "name, version, spec, made_by, made_at"
LAST = f"select {COLUMNS} from guardrail where tenant = $1 and name = $2 order by version desc limit 1"
ADD = f"""
insert into guardrail (tenant, name, version, spec, made_by) values ($1, $2, $3, $4, $5)
on conflict do nothing returning {COLUMNS}
"""
PAGE = f"""
select {COLUMNS} from (
    select distinct on (name) {COLUMNS} from guardrail where tenant = $1 order by name, version desc
) latest
where spec is not null order by name
"""
VERSIONS = f"select {COLUMNS} from guardrail where tenant = $1 and name = $2 order by version desc"


class Version(Plain, frozen=True, kw_only=True):
    """One version; without a `spec` it is an end."""

    name: str
    version: int
    spec: str | None
    made_by: str
    made_at: datetime


async def put(conn: Connection, tenant: str, name: str, *, spec: str, by: str) -> tuple[Version, bool]:
    """Bring rules into force, and say whether they are new. Raises OverLimit."""
    while True:
        last = await _last(conn, tenant, name)
        if last is not None and last.spec == spec:
            return last, False
        if last is None or last.spec is None:
            await conn.execute("select pg_advisory_xact_lock($1, hashtext($2))", LOCKS, tenant)
            if len(await page(conn, tenant)) >= GUARDRAILS_MAX:
                raise OverLimit(f"There may be {GUARDRAILS_MAX} guardrails: remove one.", code="limit.guardrails")
        if row := await conn.fetchrow(ADD, tenant, name, last.version + 1 if last else 1, spec, by):
            return Version(**row), True


async def end(conn: Connection, tenant: str, name: str, *, by: str) -> Version:
    """End a guardrail; its versions stay. Raises NotFound."""
    while True:
        last = await get(conn, tenant, name)
        if row := await conn.fetchrow(ADD, tenant, name, last.version + 1, None, by):
            return Version(**row)


async def get(conn: Connection, tenant: str, name: str) -> Version:
    """Read the version that is in force. Raises NotFound."""
    last = await _last(conn, tenant, name)
    if last is None or last.spec is None:
        raise NotFound(f"There is no guardrail {name}.")
    return last


async def page(conn: Connection, tenant: str) -> list[Version]:
    """Read what is in force, by name."""
    return [Version(**row) for row in await conn.fetch(PAGE, tenant)]


async def versions(conn: Connection, tenant: str, name: str) -> list[Version]:
    """Read all versions, newest first, ends among them. Raises NotFound."""
    found = [Version(**row) for row in await conn.fetch(VERSIONS, tenant, name)]
    if not found:
        raise NotFound(f"There is no guardrail {name}.")
    return found


async def _last(conn: Connection, tenant: str, name: str) -> Version | None:
    row = await conn.fetchrow(LAST, tenant, name)
    return Version(**row) if row else None
