"""The routes of /v1/budgets.

The rule: whoever may read runs sees what they spend; to set bounds takes a scope that no agent needs.
"""

from collections.abc import Mapping
from typing import Any

from sojourn.api.budgets import shapes
from sojourn.api.http.once import once
from sojourn.api.route import Answer, Ask, Audited, Route
from sojourn.store.budgets import pools
from sojourn.store.db import Connection


async def page(ask: Ask[None, shapes.ListQuery]) -> Answer:
    """List the pools."""
    asked, defaults = ask.query, ask.parts.settings.day_defaults
    async with ask.transaction() as connection:
        if asked.user is not None:
            named = [asked.user]
        else:
            named = await pools.users(connection, after=asked.after or "", limit=asked.limit + 1)
        shown = named[: asked.limit]
        both = await pools.pools(connection, shown or [ask.principal.user], defaults)
        each = await pools.bounds(connection, "users")
    whole = () if asked.after or asked.user is not None or ask.principal.confined else (shapes.seen(both[0][0]),)
    more = len(named) > asked.limit
    return Answer(
        body=shapes.BudgetsPage(
            data=(*whole, *(shapes.seen(own) for _, own in both[: len(shown)])),
            users=shapes.own("users", "", each),
            has_more=more,
            next=shown[-1] if more else None,
        )
    )


async def set_tenant(ask: Ask[shapes.SetBudget, None]) -> Answer:
    """Bound the tenant's day."""
    return await _set(ask, "tenant")


async def set_users(ask: Ask[shapes.SetBudget, None]) -> Answer:
    """Bound the day of each user."""
    return await _set(ask, "users")


async def set_user(ask: Ask[shapes.SetBudget, None]) -> Answer:
    """Bound the day of one user."""
    return await _set(ask, "user", ask.names["user"])


async def _set(ask: Ask[shapes.SetBudget, None], whose: pools.Whose, user: str = "") -> Answer:
    wanted, defaults = shapes.bounds(ask.body), ask.parts.settings.day_defaults

    async def work(connection: Connection) -> Answer:
        await pools.set_bounds(connection, whose, user, wanted=wanted, defaults=defaults)
        return Answer(body=shapes.own(whose, user, wanted))

    return await once(ask, work)


def _all(ask: Ask[Any, Any], answer: Answer) -> str:
    """The act is about nobody in particular."""
    return ""


def _told(ask: Ask[Any, Any], answer: Answer) -> Mapping[str, str]:
    """What the audit log says of bounds."""
    own = answer.body
    return {"usd": own.usd or "none", "tokens": "none" if own.tokens is None else str(own.tokens)}


SCOPE = "admin:budgets"
EXAMPLE = {"usd": "20.00"}

ROUTES = (
    Route(
        method="GET",
        path="/v1/budgets",
        handler=page,
        summary="See what is spent, held and left today",
        detail="Of the tenant, and of each user who spent something today or has a bound. A day is one of UTC.",
        tag="budgets",
        scope="runs:read",
        query=shapes.ListQuery,
        answers={200: (shapes.BudgetsPage, "Pools")},
    ),
    Route(
        method="PUT",
        path="/v1/budgets/tenant",
        handler=set_tenant,
        summary="Bound what the tenant spends in a day",
        detail="It replaces your bounds from before. The operator's hold beside them: yours may be tighter, not wider. "
        "Model calls that are on their way go on; none begins for which there is no room.",
        tag="budgets",
        scope=SCOPE,
        body=shapes.SetBudget,
        answers={200: (shapes.Own, "Your bounds")},
        audit=Audited(action="budget.set_tenant", subject=_all, detail=_told),
        example=EXAMPLE,
    ),
    Route(
        method="PUT",
        path="/v1/budgets/users",
        handler=set_users,
        summary="Bound what each user spends in a day",
        detail="It holds for every user without bounds of their own, known or not.",
        tag="budgets",
        scope=SCOPE,
        body=shapes.SetBudget,
        answers={200: (shapes.Own, "Your bounds")},
        audit=Audited(action="budget.set_users", subject=_all, detail=_told),
        example=EXAMPLE,
    ),
    Route(
        method="PUT",
        path="/v1/budgets/users/{user}",
        handler=set_user,
        summary="Bound what one user spends in a day",
        detail="In place of what holds for each user; without any bound, that holds again.",
        tag="budgets",
        scope=SCOPE,
        body=shapes.SetBudget,
        answers={200: (shapes.Own, "Your bounds")},
        audit=Audited(action="budget.set_user", detail=_told),
        example=EXAMPLE,
    ),
)
