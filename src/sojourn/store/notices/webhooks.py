"""Webhooks of a tenant, through its scope. Called by the API.

    create, get, page, change, delete    where events are sent
    replace_secret                       sign with another one, and with the former for a while
    post                                 one more message for it, outside all events
    history, retry                       what was sent, and what is to be sent once more

The rule: the secret goes in and never comes out; the database signs with it.
"""

from datetime import datetime, timedelta
from typing import Any, Literal

import msgspec

from sojourn.errors import NotFound, OverLimit
from sojourn.store.db import Connection

WEBHOOKS_MAX = 20
"""Webhooks of one tenant."""
WAITING_MAX = 5000
"""Deliveries of one webhook that wait; the database has the same number in announce()."""
LOCKS = 0x504A_0006
"""The space of the locks under which a tenant's webhooks are counted."""

State = Literal["waiting", "delivered", "dead"]


class WebhookRow(msgspec.Struct, frozen=True, kw_only=True):
    """A webhook, without its secret."""

    id: str
    url: str
    events: tuple[str, ...]
    description: str
    made_by: str
    created_at: datetime
    disabled_at: datetime | None = None
    disabled_code: str | None = None
    failures: int = 0
    failing_since: datetime | None = None
    former_until: datetime | None = None
    """Until then messages are signed with the former secret too."""


class DeliveryRow(msgspec.Struct, frozen=True, kw_only=True):
    """One message, and how it went."""

    id: str
    webhook_id: str
    type: str
    created_at: datetime
    due_at: datetime | None
    attempts: int
    attempted_at: datetime | None
    delivered_at: datetime | None
    dead_at: datetime | None
    status: int | None
    error: str | None


COLUMNS = f"""
select {", ".join(WebhookRow.__struct_fields__)} from webhook where tenant = (select scope_tenant())
"""
CREATE = """
insert into webhook (tenant, id, url, events, description, secret, made_by)
values (scope_tenant(), $1, $2, $3, $4, $5, scope_user())
"""
CHANGE = "update webhook set {} where tenant = (select scope_tenant()) and id = $1"
REPLACE_SECRET = CHANGE.format("secret = $2, former_until = now() + $3")
GIVE_UP = """
update webhook_delivery set due_at = null, dead_at = now(), error = coalesce(error, 'disabled')
where tenant = (select scope_tenant()) and webhook_id = $1 and due_at is not null
"""
POST = """
insert into webhook_delivery (tenant, id, webhook_id, type, body, due_at)
values (scope_tenant(), $1, $2, $3, $4, now())
"""
HISTORY = f"""
select {", ".join(DeliveryRow.__struct_fields__)} from webhook_delivery
where tenant = (select scope_tenant()) and webhook_id = $1 and ($2::text is null or id < $2)
    and case $3::text when 'waiting' then due_at is not null when 'delivered' then delivered_at is not null
        when 'dead' then dead_at is not null else true end
order by id desc limit $4
"""
ONE = f"""
select {", ".join(DeliveryRow.__struct_fields__)} from webhook_delivery
where tenant = (select scope_tenant()) and id = $1
"""
WAITING = """
select count(*) from webhook_delivery
where tenant = (select scope_tenant()) and webhook_id = $1 and due_at is not null
"""
RETRY = f"""
update webhook_delivery set due_at = now(), tries = 0, delivered_at = null, dead_at = null
where tenant = (select scope_tenant()) and id in (
    select id from webhook_delivery
    where tenant = (select scope_tenant()) and webhook_id = $1 and due_at is null
        and case when $2::text[] is null then dead_at is not null else id = any($2) end
    order by id limit greatest(0, {WAITING_MAX} - ({WAITING}))
)
"""
AT_ONCE = "update webhook set rest_until = now() where tenant = (select scope_tenant()) and id = $1 and failures > 0"


async def create(conn: Connection, new: WebhookRow, *, secret: bytes) -> WebhookRow:
    """Make a webhook of the caller's; id, url, events and description are taken. Raises OverLimit."""
    await conn.execute("select pg_advisory_xact_lock($1, hashtext(scope_tenant()))", LOCKS)
    if await conn.fetchval("select count(*) from webhook where tenant = (select scope_tenant())") >= WEBHOOKS_MAX:
        raise OverLimit(f"There are {WEBHOOKS_MAX} webhooks already. Delete one first.", code="limit.webhooks")
    await conn.execute(CREATE, new.id, new.url, new.events, new.description, secret)
    return await get(conn, new.id)


async def get(conn: Connection, webhook_id: str, *, lock: bool = False) -> WebhookRow:
    """Read one webhook, and with `lock` hold its row until the transaction ends. Raises NotFound."""
    row = await conn.fetchrow(f"{COLUMNS} and id = $1{' for no key update' if lock else ''}", webhook_id)
    if row is None:
        raise _missing(webhook_id)
    return _read(row)


async def page(conn: Connection) -> list[WebhookRow]:
    """Read all webhooks, the oldest first."""
    return [_read(row) for row in await conn.fetch(f"{COLUMNS} order by id")]


async def change(conn: Connection, webhook_id: str, **columns: Any) -> WebhookRow:
    """Write columns; one that is disabled by it gives up what waits. Raises NotFound."""
    await get(conn, webhook_id, lock=True)
    if "disabled_code" in columns:
        columns |= {"failures": 0, "failing_since": None}
    given = ", ".join(f"{column} = ${n}" for n, column in enumerate(columns, 2))
    if columns:
        await conn.execute(CHANGE.format(given), webhook_id, *columns.values())
    if columns.get("disabled_code"):
        await conn.execute(GIVE_UP, webhook_id)
    return await get(conn, webhook_id)


async def replace_secret(conn: Connection, webhook_id: str, secret: bytes, overlap: timedelta) -> WebhookRow:
    """Sign with this secret from now on, and for a while with the one before it too. Raises NotFound."""
    await conn.execute(REPLACE_SECRET, webhook_id, secret, overlap)
    return await get(conn, webhook_id)


async def delete(conn: Connection, webhook_id: str) -> None:
    """Delete a webhook with its deliveries. Raises NotFound."""
    gone = await conn.execute("delete from webhook where tenant = (select scope_tenant()) and id = $1", webhook_id)
    if gone == "DELETE 0":
        raise _missing(webhook_id)


async def post(conn: Connection, webhook_id: str, type_: str, body: bytes) -> DeliveryRow:
    """Send one message outside all events, at once. Raises NotFound, and OverLimit where too many wait."""
    await get(conn, webhook_id, lock=True)
    if await conn.fetchval(WAITING, webhook_id) >= WAITING_MAX:
        raise OverLimit(
            f"{WAITING_MAX} deliveries wait for this webhook already. Test it once it has taken some.",
            code="limit.webhooks",
        )
    delivery_id = await conn.fetchval("select fresh_id('msg')")
    await conn.execute(POST, delivery_id, webhook_id, type_, body.decode())
    await conn.execute(AT_ONCE, webhook_id)
    return DeliveryRow(**await conn.fetchrow(ONE, delivery_id))


async def history(
    conn: Connection, webhook_id: str, *, state: State | None = None, after: str | None = None, limit: int = 50
) -> list[DeliveryRow]:
    """Read the deliveries of a webhook, the newest first."""
    return [DeliveryRow(**row) for row in await conn.fetch(HISTORY, webhook_id, after, state, limit)]


async def retry(conn: Connection, webhook_id: str, ids: tuple[str, ...] | None) -> int:
    """Send deliveries once more, all dead ones where none is named; how many. Raises NotFound."""
    await get(conn, webhook_id, lock=True)
    done = await conn.execute(RETRY, webhook_id, ids)
    await conn.execute(AT_ONCE, webhook_id)
    return int(done.split()[1])


def _read(row: Any) -> WebhookRow:
    return WebhookRow(**{**row, "events": tuple(row["events"])})


def _missing(webhook_id: str) -> NotFound:
    return NotFound(f"There is no webhook {webhook_id}.")
