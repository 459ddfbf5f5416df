"""What the routes of budgets take and give. The reference is made of it."""

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from sojourn.api.agents.shapes import dollars
from sojourn.api.http.pages import Page
from sojourn.api.keys import USER
from sojourn.errors import Invalid
from sojourn.store.budgets.pools import Bounds, Pool


class ListQuery(Page, frozen=True, forbid_unknown_fields=True, kw_only=True):
    user: Annotated[str, Meta(pattern=USER, description="Only the pool of this user.")] | None = None


class SetBudget(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What may be spent in a day; null, or nothing, is no bound of yours."""

    usd: Annotated[Decimal, Meta(description="US dollars, with at most six decimals.")] | None = None
    tokens: Annotated[int, Meta(ge=0, le=10**15, description="Of input and output together.")] | None = None


class Money(msgspec.Struct, frozen=True, kw_only=True):
    """One measure of a pool in US dollars, as decimals."""

    limit: str | None
    """What holds today: the lesser one of the operator's bound and yours; null where there is none."""
    spent: str
    held: str
    """What the model calls in flight may cost at most."""
    left: str | None


class Tokens(msgspec.Struct, frozen=True, kw_only=True):
    """The same in tokens."""

    limit: int | None
    spent: int
    held: int
    left: int | None


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """A pool today."""

    object: Literal["budget"] = "budget"
    pool: Literal["tenant", "user"]
    user: str | None
    resets_at: datetime
    """When the day ends, in UTC."""
    usd: Money
    tokens: Tokens


class Own(msgspec.Struct, frozen=True, kw_only=True):
    """The bounds that the tenant's admin set."""

    whose: Literal["tenant", "users", "user"]
    user: str | None
    usd: str | None
    tokens: int | None


class BudgetsPage(msgspec.Struct, frozen=True, kw_only=True):
    """The tenant's pool first, on the first page, then those of users who spent something today or have a bound."""

    data: tuple[Budget, ...]
    users: Own
    """What each user may spend for whom nothing else is said."""
    has_more: bool
    next: str | None


def bounds(asked: SetBudget) -> Bounds:
    """Read bounds. Raises Invalid for an amount that none can be."""
    usd = asked.usd
    if usd is not None and (not usd.is_finite() or not 0 <= usd <= 10**9 or usd * 10**6 % 1):
        raise Invalid("A day's budget is 0 US dollars or more, with at most six decimals.", pointer="/usd")
    return Bounds(usd_micros=None if usd is None else int(usd * 10**6), tokens=asked.tokens)


def own(whose: Literal["tenant", "users", "user"], user: str, found: Bounds) -> Own:
    """Show the bounds of the tenant's admin."""
    return Own(whose=whose, user=user or None, usd=dollars(found.usd_micros), tokens=found.tokens)


def seen(pool: Pool) -> Budget:
    """Show a pool."""
    usd_left = None if pool.usd_max is None else max(0, pool.usd_max - pool.usd - pool.held_usd)
    left = None if pool.tokens_max is None else max(0, pool.tokens_max - pool.tokens - pool.held_tokens)
    return Budget(
        pool=pool.pool,
        user=pool.user or None,
        resets_at=pool.until,
        usd=Money(
            limit=dollars(pool.usd_max),
            spent=dollars(pool.usd) or "",
            held=dollars(pool.held_usd) or "",
            left=dollars(usd_left),
        ),
        tokens=Tokens(limit=pool.tokens_max, spent=pool.tokens, held=pool.held_tokens, left=left),
    )
