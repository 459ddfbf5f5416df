"""The handlers of /v1/usage and /v1/me/usage.

The rule: it sums up the ledger as it is now, and says how much of it is an estimate, unknown, or deleted.
"""

from urllib.parse import urlencode

from sojourn.api.route import Answer, Ask, Route, own
from sojourn.api.usage import shapes
from sojourn.api.usage.sheet import sheet
from sojourn.store.tenant import usage


async def get(ask: Ask[None, shapes.UsageQuery]) -> Answer:
    """Sum up what the tenant paid."""
    return await _summed(ask, own(ask))


async def mine(ask: Ask[None, shapes.UsageQuery]) -> Answer:
    """Sum up what the caller's user paid."""
    return await _summed(ask, ask.principal.user)


async def _summed(ask: Ask[None, shapes.UsageQuery], user: str | None) -> Answer:
    asked = shapes.question(ask.query, ask.parts.now())
    limit = ask.query.limit
    async with ask.transaction() as connection:
        span = usage.Span(asked.since, asked.until, user)
        whole, rows = await usage.totals(connection, span, by=asked.by, after=asked.after, limit=limit + 1)
        complete_since = await usage.complete_since(connection)
    more, rows = len(rows) > limit, rows[:limit]
    after = shapes.cursor(asked, rows[-1]) if more else None
    groups = tuple(shapes.group(row, asked.by) for row in rows)
    if ask.query.format == "csv" or (ask.query.format is None and "text/csv" in ask.http.headers.get("Accept", "")):
        headers = {"Content-Type": "text/csv; charset=utf-8; header=present"}
        if after is not None:
            query = urlencode({"by": ask.query.by, "limit": limit, "format": "csv", "after": after})
            headers["Link"] = f'<{ask.route.path}?{query}>; rel="next"'
        return Answer(body=sheet(groups, asked.by), headers=headers)
    page = shapes.UsagePage(
        since=asked.since,
        until=asked.until,
        by=asked.by,
        complete_since=complete_since,
        total=shapes.seen(whole),
        data=groups,
        has_more=more,
        next=after,
    )
    return Answer(body=page)


ROUTES = (
    Route(
        method="GET",
        path="/v1/usage",
        handler=get,
        summary="Sum up what was paid for models",
        detail="By user, agent, model and day (UTC), or any of these together; `total` is all of it. A call that was "
        "cut is in the sums by an estimate; one whose price is not known is counted, and adds no money. With `Accept: "
        "text/csv` or `format=csv` the groups come as a sheet, and `Link` leads to its next page.",
        tag="usage",
        scope="usage:read",
        query=shapes.UsageQuery,
        answers={200: (shapes.UsagePage, "The sums")},
        media=("application/json", "text/csv"),
    ),
    Route(
        method="GET",
        path="/v1/me/usage",
        handler=mine,
        summary="Sum up what you paid for models",
        detail="As /v1/usage, of your own user alone.",
        tag="usage",
        scope="runs:read",
        query=shapes.UsageQuery,
        answers={200: (shapes.UsagePage, "The sums")},
        media=("application/json", "text/csv"),
    ),
)
