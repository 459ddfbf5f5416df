"""Deliveries on their way: claimed, sent by the caller, and what came of it. Called by every worker.

    claim    at most one delivery of each webhook that may be sent to now, with its signature
    settle   write down what came of one
    tidy     delete what is old

The rules: a worker sends without a transaction and without a connection; a webhook rests while one sends to it, so a
worker that dies holds it up for RESERVED_S; and a late answer counts only for the attempt that it belongs to.
"""

import msgspec

from sojourn.store.db import Connection, Database

RESERVED_S = 15.0
"""How long a webhook is one worker's: longer than an attempt may take."""
WAITS_S = (5, 300, 1800, 7200, 18000, 28800, 28800)
"""How long a delivery waits after each attempt that failed, and up to a fifth more: about a day. Then it is dead."""
REST_MAX_S = 300.0
"""How long a webhook that fails is left alone at most, whatever else waits for it."""
FAILING_DAYS = 3
"""After so many days without an answer of 2xx a webhook is disabled."""
KEPT_DAYS = 7
"""How long deliveries are kept, whatever became of them."""
GONE = 410

# Along the webhooks that have deliveries waiting, one step in the index each.
TAKE = """
with recursive line (tenant, webhook_id) as (
    (select tenant, webhook_id from webhook_delivery where due_at is not null order by tenant, webhook_id limit 1)
    union all
    select next.tenant, next.webhook_id from line cross join lateral (
        select d.tenant, d.webhook_id from webhook_delivery d
        where d.due_at is not null and (d.tenant, d.webhook_id) > (line.tenant, line.webhook_id)
        order by d.tenant, d.webhook_id limit 1
    ) as next
), free as (
    select w.tenant, w.id from line join webhook w on w.tenant = line.tenant and w.id = line.webhook_id
    where w.disabled_at is null and w.rest_until <= now() and exists (
        select from webhook_delivery d where d.tenant = w.tenant and d.webhook_id = w.id and d.due_at <= now()
    )
    order by w.rest_until limit $1 for no key update of w skip locked
)
update webhook w set rest_until = now() + make_interval(secs => $2) from free
where w.tenant = free.tenant and w.id = free.id returning w.tenant, w.id
"""
# A statement of its own, so that it sees what was settled until the webhooks were locked.
PICK = """
update webhook_delivery d set attempts = d.attempts + 1, tries = d.tries + 1, attempted_at = now()
from (
    select w.tenant, w.url, first.id
    from unnest($1::text[], $2::text[]) as mine (tenant, id)
    join webhook w on w.tenant = mine.tenant and w.id = mine.id
    cross join lateral (
        select d.id from webhook_delivery d
        where d.tenant = w.tenant and d.webhook_id = w.id and d.due_at <= now() order by d.due_at limit 1
    ) as first
) as picked
where d.tenant = picked.tenant and d.id = picked.id
returning d.tenant, d.id, d.webhook_id, picked.url, d.type, d.body, d.attempts, d.tries,
    extract(epoch from now())::bigint as sent_s,
    sign_delivery(d.tenant, d.id, extract(epoch from now())::bigint) as signature
"""
WAKE = """
update webhook w set rest_until = now() from unnest($1::text[], $2::text[]) as mine (tenant, id)
where w.tenant = mine.tenant and w.id = mine.id
"""
TOOK = """
update webhook set rest_until = now(), failures = 0, failing_since = null where tenant = $1 and id = $2
"""
DELIVERED = """
update webhook_delivery set delivered_at = now(), due_at = null, status = $4, error = null
where tenant = $1 and id = $2 and attempts = $3 and due_at is not null
"""
FAILED = """
update webhook set
    failures = failures + 1, failing_since = coalesce(failing_since, now()),
    rest_until = now() + make_interval(secs => least($3, power(2, least(failures, 10))) * (0.5 + random() / 2)),
    disabled_at = case when disabled_at is null and code is not null then now() else disabled_at end,
    disabled_code = coalesce(disabled_code, code)
from (
    select case when $4 then 'gone' when failing_since < now() - make_interval(days => $5) then 'failing' end as code
    from webhook where tenant = $1 and id = $2
) as found
where tenant = $1 and id = $2 returning disabled_code
"""
UNDELIVERED = """
update webhook_delivery set status = $4, error = $5,
    due_at = case when $6::float8 is not null then now() + make_interval(secs => $6 * (1 + random() / 5)) end,
    dead_at = case when $6::float8 is null then now() end
where tenant = $1 and id = $2 and attempts = $3 and due_at is not null
"""
GIVE_UP = """
update webhook_delivery set due_at = null, dead_at = now(), error = coalesce(error, 'disabled')
where tenant = $1 and webhook_id = $2 and due_at is not null
"""
TIDY = """
delete from webhook_delivery where (tenant, id) in (
    select tenant, id from webhook_delivery where created_at < now() - make_interval(days => $1) limit 5000
    for update skip locked
)
"""


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """One message to be sent now."""

    tenant: str
    id: str
    webhook_id: str
    url: str
    type: str
    body: str
    attempts: int
    """The number of this attempt."""
    tries: int
    """How many this is, since somebody last asked for it."""
    sent_s: int
    signature: str


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of an attempt: the status that was answered, or why there is none."""

    status: int | None = None
    error: str | None = None

    @property
    def taken(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


async def claim(db: Database, most: int) -> list[Delivery]:
    """Take deliveries that are due, at most one of each webhook and `most` in all."""
    async with db.engine() as engine, engine.transaction():
        free = [tuple(row) for row in await engine.fetch(TAKE, most, RESERVED_S)]
        if not free:
            return []
        found = [Delivery(**row) for row in await engine.fetch(PICK, *zip(*free, strict=True))]
        if idle := set(free) - {(one.tenant, one.webhook_id) for one in found}:
            await engine.execute(WAKE, *zip(*idle, strict=True))
    return found


async def settle(db: Database, sent: Delivery, outcome: Outcome) -> str | None:
    """Write down what came of an attempt; why its webhook is disabled by it, if it is."""
    async with db.engine() as engine, engine.transaction():
        if outcome.taken:
            await engine.execute(TOOK, sent.tenant, sent.webhook_id)
            await engine.execute(DELIVERED, sent.tenant, sent.id, sent.attempts, outcome.status)
            return None
        return await _failed(engine, sent, outcome)


async def _failed(engine: Connection, sent: Delivery, outcome: Outcome) -> str | None:
    """Let webhook and delivery wait, or give them up."""
    place = (sent.tenant, sent.webhook_id)
    gone = outcome.status == GONE
    code: str | None = await engine.fetchval(FAILED, *place, REST_MAX_S, gone, FAILING_DAYS)
    wait_s = WAITS_S[sent.tries - 1] if sent.tries <= len(WAITS_S) else None
    told = outcome.error or f"answered {outcome.status}"
    await engine.execute(UNDELIVERED, sent.tenant, sent.id, sent.attempts, outcome.status, told, wait_s)
    if code is not None:
        await engine.execute(GIVE_UP, *place)
    return code


async def tidy(conn: Connection) -> None:
    """Delete some deliveries that are old."""
    await conn.execute(TIDY, KEPT_DAYS)
