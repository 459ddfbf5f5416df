"""Alerts: what is open, and the round that opens and closes them. Called by the API, and by every worker.

    round        look at every rule, where the time has come and no other process does
    page, ack    through a caller's scope
    open_now     how many are open over all tenants, for the metrics

The rule: a kind is one statement, and what it opens is unique in the database, so any number of processes may race and
die: an alert opens once, its deliveries are written with it, and what a dead one left out the next round finds.
"""

import logging
from datetime import datetime

import msgspec

from sojourn.errors import NotFound, StoreUnavailable
from sojourn.store.db import Connection, Database
from sojourn.store.notices import deliveries
from sojourn.store.notices.rules import RULES, Thresholds, given

log = logging.getLogger("sojourn.store")

KEPT_DAYS = 90
"""How long closed alerts are kept."""


class AlertRow(msgspec.Struct, frozen=True, kw_only=True):
    """Something that somebody should look at."""

    id: str
    kind: str
    what: str
    subject: str
    value: int
    bound: int
    detail: str
    opened_at: datetime
    closed_at: datetime | None
    acked_at: datetime | None
    acked_by: str | None


TAKE = """
update alert_round set due_at = now() + make_interval(secs => $1) where due_at <= now() returning true
"""
# The first part says what the parameters are, for rules that do not ask.
LOOK = """
with given as (select $1::timestamptz as at, $2::json as thresholds), found as materialized ({rule}), opened as (
    insert into alert (tenant, id, kind, what, subject, day, value, bound, detail, opened_at)
    select tenant, fresh_id('alr'), '{kind}', what, subject, day, value, bound, detail, $1 from found where breached
    on conflict do nothing
    returning tenant, id, what
), closed as (
    update alert a set closed_at = $1
    where a.kind = '{kind}' and a.closed_at is null and not exists (
        select from found f where f.tenant = a.tenant and f.what = a.what and f.subject = a.subject
            and f.day is not distinct from a.day
    )
    returning a.tenant, a.id, a.what
)
select *, true as is_open from opened union all select *, false from closed
"""
TIDY = (
    f"delete from alert where opened_at < $1::timestamptz - interval '{KEPT_DAYS} days' and closed_at is not null",
    "delete from spend_day where day < ($1::timestamptz at time zone 'UTC')::date - 10",
)
COLUMNS = f"select {', '.join(AlertRow.__struct_fields__)} from alert where tenant = (select scope_tenant())"
PAGE = f"""
{COLUMNS} and ($1::text is null or id < $1) and ($2 or closed_at is null) order by id desc limit $3
"""
ACK = """
update alert set acked_at = now(), acked_by = scope_user()
where tenant = (select scope_tenant()) and id = $1 and acked_at is null
"""
OPEN = "select kind, count(*) as alerts from alert where closed_at is null group by kind"


async def round(db: Database, at: datetime, thresholds: Thresholds, *, every_s: float) -> bool:
    """Look at every rule; false where it is not yet time, or another process is at it."""
    changed: list[tuple[str, str, str, bool]] = []
    async with db.engine() as engine:
        if not await engine.fetchval(TAKE, every_s):
            return False
        for kind in RULES:
            changed += await _look(engine, kind, at, thresholds)
        await deliveries.tidy(engine)
        for statement in TIDY:
            await engine.execute(statement, at)
    for kind, tenant, id_, opened in changed:
        event = "alert.opened" if opened else "alert.closed"
        log.warning(event, extra={"tenant": tenant, "kind": kind, "alert": id_})
    return True


async def _look(
    engine: Connection, kind: str, at: datetime, thresholds: Thresholds
) -> list[tuple[str, str, str, bool]]:
    """Open and close the alerts of one kind: kind, tenant, id, and whether it is open. A broken rule stops no other."""
    try:
        values = await given(engine, kind, at, thresholds)
        rows = await engine.fetch(LOOK.format(rule=RULES[kind], kind=kind), *values)
    except StoreUnavailable:
        raise
    except Exception:
        log.exception("alert.bug", extra={"kind": kind})
        return []
    return [(kind, row["tenant"], row["id"], row["is_open"]) for row in rows]


async def page(conn: Connection, *, closed: bool, after: str | None = None, limit: int = 50) -> list[AlertRow]:
    """Read the open alerts, and with `closed` those that are over too, the newest first."""
    return [AlertRow(**row) for row in await conn.fetch(PAGE, after, closed, limit)]


async def ack(conn: Connection, alert_id: str) -> AlertRow:
    """Write down that the caller has seen an alert; the first one counts. Raises NotFound."""
    await conn.execute(ACK, alert_id)
    row = await conn.fetchrow(f"{COLUMNS} and id = $1", alert_id)
    if row is None:
        raise NotFound(f"There is no alert {alert_id}.")
    return AlertRow(**row)


async def open_now(db: Database) -> dict[str, int]:
    """Count the open alerts of all tenants, by kind."""
    async with db.engine() as engine:
        return {row["kind"]: row["alerts"] for row in await engine.fetch(OPEN)}
