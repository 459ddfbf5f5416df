"""When there is something to be alert to: one rule a kind. Called by the round in `alerts`.

    RULES   kind -> the statement that finds it

A statement gives a row for each tenant and subject: `what`, `subject`, `day` (of what is told once a day, else null),
`value`, `bound`, `detail` in words, and `breached`. A breach opens an alert; an open one stays while its row is there
and closes when it is not, so that a value that swings about its bound does not open one again and again. It is given
the time ($1) and the thresholds as JSON ($2).

A kind is added here: a statement, and where it counts, a threshold.
The rule: a statement reads an index, over all tenants, and costs as much as today and the last hour have rows.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import msgspec

from sojourn.store.db import Connection
from sojourn.store.notices.webhooks import WAITING_MAX

DAYS = 7
"""The days before today that are the measure of spending."""
USD = "to_char({} / 1000000.0, 'FM$999999999990.00')"

TODAY = """
select t.id as tenant, its.what, its.subject, its.spent
from tenant t cross join lateral (
    select case grouping(l.user_id, l.agent_name) when 1 then 'user' when 2 then 'agent' else 'tenant' end as what,
        coalesce(l.user_id, l.agent_name, '') as subject, sum(l.usd_micros)::bigint as spent
    from ledger l where l.tenant = t.id and l.at >= $1 and l.at < $2
    group by grouping sets ((l.user_id), (l.agent_name), ())
    having sum(l.usd_micros) > $3
) as its
"""
# A day is summed once, when somebody's spending is first compared with it; even a day of nothing has a row.
SUM_DAYS = """
insert into spend_day (tenant, day, what, subject, usd_micros)
select t.id, days.day, its.what, its.subject, its.spent
from unnest($1::text[]) as t (id) cross join unnest($2::date[]) as days (day) cross join lateral (
    select case grouping(l.user_id, l.agent_name) when 1 then 'user' when 2 then 'agent' else 'tenant' end as what,
        coalesce(l.user_id, l.agent_name, '') as subject, coalesce(sum(l.usd_micros), 0)::bigint as spent
    from ledger l
    where l.tenant = t.id and l.at >= days.day::timestamp at time zone 'UTC'
        and l.at < (days.day + 1)::timestamp at time zone 'UTC'
    group by grouping sets ((l.user_id), (l.agent_name), ())
) as its
where not exists (
    select from spend_day s where s.tenant = t.id and s.day = days.day and s.what = 'tenant' and s.subject = ''
)
on conflict do nothing
"""
SPEND = f"""
select spent.tenant, spent.what, spent.subject, (($1 at time zone 'UTC')::date) as day, spent.value,
    usual.bound, format('%s were spent today, and %s a day in the {DAYS} days before',
        {USD.format("spent.value")}, {USD.format("usual.mean")}) as detail,
    spent.value > usual.bound as breached
from unnest($3::text[], $4::text[], $5::text[], $6::bigint[]) as spent (tenant, what, subject, value)
cross join lateral (
    select coalesce(sum(s.usd_micros), 0) / {DAYS} as mean,
        greatest(coalesce(sum(s.usd_micros), 0) / {DAYS} * ($2::json ->> 'spend_times')::numeric,
            ($2::json ->> 'spend_floor')::numeric)::bigint as bound
    from spend_day s
    where s.tenant = spent.tenant and s.what = spent.what and s.subject = spent.subject
        and s.day < ($1 at time zone 'UTC')::date and s.day >= ($1 at time zone 'UTC')::date - {DAYS}
) as usual
"""
ERRORS = """
select r.tenant, 'agent' as what, r.agent_name as subject, null::date as day, r.failed as value, r.ended as bound,
    format('%s of %s runs of the last hour failed', r.failed, r.ended) as detail,
    r.failed >= least_failed and r.failed > r.ended * share as breached
from (
    select tenant, agent_name, count(*) filter (where status = 'failed') as failed, count(*) as ended
    from run where finished_at > $1 - interval '1 hour' and status in ('completed', 'failed')
    group by tenant, agent_name
) as r, (
    select ($2::json ->> 'errors_min')::bigint as least_failed, ($2::json ->> 'errors_share')::float8 as share
) as bounds
where r.failed * 2 >= least_failed and r.failed * 2 > r.ended * share
"""
QUEUE = """
select q.tenant, 'tenant' as what, '' as subject, null::date as day, waits_s as value, bound_s as bound,
    format('the run that waits longest for a worker has waited for %s s', waits_s) as detail, true as breached
from (
    select tenant, extract(epoch from $1 - min(due_at))::bigint as waits_s
    from run where ready and due_at is not null group by tenant
) as q, (select ($2::json ->> 'queue_s')::float8::bigint as bound_s) as bounds
where waits_s > bound_s
"""
WEBHOOK = """
select tenant, 'webhook' as what, id as subject, null::date as day, failures::bigint as value, 0::bigint as bound,
    case disabled_code when 'gone' then 'it answered 410 and is disabled'
        else 'it did not take anything for days and is disabled' end as detail, true as breached
from webhook where disabled_code in ('gone', 'failing')
"""
BACKLOG = f"""
select tenant, 'webhook' as what, webhook_id as subject, null::date as day,
    count(*) as value, {WAITING_MAX}::bigint as bound,
    'so many deliveries wait that events are left out' as detail, count(*) >= {WAITING_MAX} as breached
from webhook_delivery where due_at is not null
group by tenant, webhook_id having count(*) >= {WAITING_MAX} / 2
"""
# What calls came to that ended a moment ago is still in their reservations.
BUDGET = f"""
select used.tenant, pool.pool as what, used.user_id as subject, used.day, fullest.value, fullest.bound, fullest.detail,
    true as breached
from (
    select tenant, user_id, day, sum(usd_micros)::bigint as usd, sum(tokens)::bigint as tokens
    from (
        select tenant, user_id, day, usd_micros, tokens from day_account
        union all
        select r.tenant, who.id, r.day, r.usd_micros, r.tokens
        from reservation r cross join lateral (values (''), (r.user_id)) as who (id)
    ) as part
    where day = ($1 at time zone 'UTC')::date
    group by tenant, user_id, day
) as used
cross join (
    select ($2::json ->> 'budget_share')::float8 as share,
        array(select json_array_elements_text($2::json -> 'day_defaults')::bigint) as defaults
) as given
cross join lateral day_bounds(used.tenant, used.user_id, given.defaults) as pool
cross join lateral (
    select m.value, m.bound, m.said || ' of the day''s budget are spent' as detail
    from (values
        (used.usd, pool.usd_max, format('%s of %s', {USD.format("used.usd")}, {USD.format("pool.usd_max")})),
        (used.tokens, pool.tokens_max, format('%s of %s tokens', used.tokens, pool.tokens_max))
    ) as m (value, bound, said)
    where m.bound > 0 and m.value >= m.bound * given.share
    order by m.value / m.bound::float8 desc limit 1
) as fullest
where (pool.pool = 'tenant') = (used.user_id = '')
"""
RULES: Mapping[str, str] = {
    "spend": SPEND,
    "budget": BUDGET,
    "errors": ERRORS,
    "queue": QUEUE,
    "webhook": WEBHOOK,
    "backlog": BACKLOG,
}


class Thresholds(msgspec.Struct, frozen=True, kw_only=True):
    """From when on something is told."""

    spend_times: float
    spend_floor: int
    """Micro-USD; less spent in a day is never told."""
    budget_share: float
    day_defaults: list[int | None]
    """The bounds of pools where nobody set any, as `day_bounds` takes them."""
    errors_share: float
    errors_min: int
    queue_s: float


async def given(conn: Connection, kind: str, at: datetime, thresholds: Thresholds) -> list[object]:
    """What a rule's statement is given; for spending it is gathered first."""
    common: list[object] = [at, msgspec.json.encode(thresholds)]
    if kind != "spend":
        return common
    midnight = at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    found = await conn.fetch(TODAY, midnight, midnight + timedelta(days=1), thresholds.spend_floor)
    days = [midnight.date() - timedelta(days=n) for n in range(1, DAYS + 1)]
    await conn.execute(SUM_DAYS, list({row["tenant"] for row in found}), days)
    columns = ("tenant", "what", "subject", "spent")
    return [*common, *([row[name] for row in found] for name in columns)]
