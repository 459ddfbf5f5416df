"""The bounds of a tenant's pools, and what is spent, held and left of them today. Called by the API.

The rule: the tenant's own bounds only tighten those of the operator, and the lesser one holds.
"""

import math
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Literal

from sojourn.errors import Invalid, OverLimit
from sojourn.loop.messages import Plain
from sojourn.store.db import Connection

Whose = Literal["tenant", "users", "user"]

BOUND = "day_limited or coalesce(usd_day_micros, tokens_day, user_usd_day_micros, user_tokens_day) is not null"
"""Of a row of `tenant`: whether it has a pool of its own with a bound."""
POOLS = """
select pool, until, usd_max, tokens_max, usd, tokens, held_usd, held_tokens
from unnest($1::text[]) with ordinality as asked (name, n)
cross join lateral day_pools((select scope_tenant()), asked.name, $2)
order by n, pool
"""
USERS = """
select user_id from (
    select user_id from day_account
    where tenant = (select scope_tenant()) and day = (now() at time zone 'UTC')::date and user_id <> ''
    union select user_id from reservation where tenant = (select scope_tenant())
    union select user_id from day_limit where tenant = (select scope_tenant()) and whose = 'user'
) as known
where user_id > $1 order by user_id limit $2
"""
OPERATORS = """
select case $1 when 'tenant' then coalesce(usd_day_micros, ($2::bigint[])[1])
        else coalesce(user_usd_day_micros, ($2::bigint[])[3]) end as usd_micros,
    case $1 when 'tenant' then coalesce(tokens_day, ($2::bigint[])[2])
        else coalesce(user_tokens_day, ($2::bigint[])[4]) end as tokens
from tenant where id = (select scope_tenant())
"""
SET = """
insert into day_limit (tenant, whose, user_id, usd_micros, tokens, set_by)
values ((select scope_tenant()), $1, $2, $3, $4, (select scope_user()))
on conflict (tenant, whose, user_id) do update
    set usd_micros = excluded.usd_micros, tokens = excluded.tokens, set_by = excluded.set_by, set_at = now()
"""
GET = """
select usd_micros, tokens from day_limit
where tenant = (select scope_tenant()) and whose = $1 and user_id = $2
"""


class Defaults(Plain, frozen=True, kw_only=True):
    """The bounds of a day where the operator set none for a tenant; None is no bound."""

    usd_micros: int | None = None
    tokens: int | None = None
    user_usd_micros: int | None = None
    user_tokens: int | None = None

    @property
    def bind(self) -> bool:
        """Whether there is any."""
        return any(bound is not None for bound in self.row)

    @property
    def row(self) -> list[int | None]:
        """As the functions of the database take them."""
        return [self.usd_micros, self.tokens, self.user_usd_micros, self.user_tokens]


class Bounds(Plain, frozen=True, kw_only=True):
    """What may be spent in a day; None is no bound."""

    usd_micros: int | None = None
    tokens: int | None = None


class Pool(Plain, frozen=True, kw_only=True):
    """A pool today."""

    pool: Literal["tenant", "user"]
    user: str
    """Empty for that of the tenant."""
    until: datetime
    usd_max: int | None
    tokens_max: int | None
    usd: int
    tokens: int
    held_usd: int
    held_tokens: int

    @property
    def spent(self) -> bool:
        """Whether nothing is left, whatever is held."""
        return (self.usd_max is not None and self.usd >= self.usd_max) or (
            self.tokens_max is not None and self.tokens >= self.tokens_max
        )


def amount(measure: str, most: int) -> str:
    """Say a bound in words; one of `usd` is in micro-USD."""
    return f"{Decimal(most) / 10**6:f} US dollars" if measure == "usd" else f"{most} tokens"


async def pools(conn: Connection, users: Sequence[str], defaults: Defaults) -> list[tuple[Pool, Pool]]:
    """Read the pool of the caller's tenant and that of a user, for each of these users, who need not exist."""
    rows = await conn.fetch(POOLS, users, defaults.row)
    whole, own = rows[::2], rows[1::2]
    return [
        (Pool(user="", **of_tenant), Pool(user=user, **of_user))
        for user, of_tenant, of_user in zip(users, whole, own, strict=True)
    ]


async def admit(conn: Connection, user: str, defaults: Defaults) -> bool:
    """Say whether a pool bounds money for this user's runs. Raises OverLimit where one of them is empty."""
    (both,) = await pools(conn, [user], defaults)
    for pool in both:
        if pool.spent:
            now_at = await conn.fetchval("select clock_timestamp()")
            whose = "this tenant" if pool.pool == "tenant" else f"user {user}"
            raise OverLimit(
                f"The day's budget of {whose} is spent. Raise it, or try again after {pool.until:%Y-%m-%d %H:%M} UTC.",
                code="budget.day_exhausted",
                retry_after_s=math.ceil((pool.until - now_at).total_seconds()),
            )
    return any(pool.usd_max is not None for pool in both)


async def users(conn: Connection, *, after: str, limit: int) -> list[str]:
    """Name the users who spent something today or have bounds of their own, in order."""
    return [row["user_id"] for row in await conn.fetch(USERS, after, limit)]


async def bounds(conn: Connection, whose: Whose, user: str = "") -> Bounds:
    """Read what the tenant's own admin set: for the tenant, for each user, or for one of them."""
    row = await conn.fetchrow(GET, whose, user)
    return Bounds(**row) if row else Bounds()


async def set_bounds(conn: Connection, whose: Whose, user: str, *, wanted: Bounds, defaults: Defaults) -> None:
    """Set the tenant's own bounds in place of those before. Raises Invalid where the operator's are tighter."""
    row = await conn.fetchrow(OPERATORS, whose, defaults.row)
    for name, field in (("usd_micros", "usd"), ("tokens", "tokens")):
        most, asked = row[name], getattr(wanted, name)
        if most is not None and asked is not None and asked > most:
            told = f"The operator allows {amount(field, most)} a day here: less can be set, and not more."
            raise Invalid(told, pointer=f"/{field}")
    await conn.execute(SET, whose, user, wanted.usd_micros, wanted.tokens)
