"""What has changed among the guardrails of all tenants. Called by every process that judges.

The rule: it reads no tenant's history, only the latest version of what was changed since.
"""

from datetime import UTC, datetime
from typing import NamedTuple

from sojourn.store.db import Database

CHANGES = """
select clock.at, latest.* from (select clock_timestamp() as at) clock left join (
    select distinct on (tenant, name) tenant, name, version, spec from guardrail
    where made_at > $1 order by tenant, name, version desc
) latest on true
"""
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


class Latest(NamedTuple):
    """The latest version of a guardrail; without a `spec` it has ended."""

    tenant: str
    name: str
    version: int
    spec: str | None


async def changes(db: Database, since: datetime | None) -> tuple[datetime, list[Latest]]:
    """The database's time, and what was made after `since`; None is ever. Raises StoreUnavailable."""
    async with db.engine() as engine:
        rows = await engine.fetch(CHANGES, since or LONG_AGO)
    return rows[0]["at"], [Latest(*row[1:]) for row in rows if row["tenant"] is not None]
