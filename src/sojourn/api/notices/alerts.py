"""The handlers of /v1/alerts.

The rule: an alert closes when what it is about is over, and not because somebody has seen it.
"""

from msgspec.structs import asdict

from sojourn.api.notices import shapes
from sojourn.api.route import Answer, Ask, Route
from sojourn.store.notices import alerts


async def page(ask: Ask[None, shapes.AlertsQuery]) -> Answer:
    """List alerts."""
    asked = ask.query
    async with ask.transaction() as connection:
        found = await alerts.page(connection, closed=asked.all, after=asked.after, limit=asked.limit + 1)
    data, more = tuple(shapes.AlertSeen(**asdict(row)) for row in found[: asked.limit]), len(found) > asked.limit
    return Answer(body=shapes.AlertsPage(data=data, has_more=more, next=data[-1].id if more else None))


async def ack(ask: Ask[None, None]) -> Answer:
    """Write down that an alert was seen."""
    async with ask.transaction() as connection:
        return Answer(body=shapes.AlertSeen(**asdict(await alerts.ack(connection, ask.names["alert_id"]))))


ROUTES = (
    Route(
        method="GET",
        path="/v1/alerts",
        handler=page,
        summary="List the alerts that are open",
        tag="alerts",
        scope="alerts:read",
        query=shapes.AlertsQuery,
        answers={200: (shapes.AlertsPage, "Alerts, the newest first")},
    ),
    Route(
        method="POST",
        path="/v1/alerts/{alert_id}/ack",
        handler=ack,
        summary="Say that you have seen an alert",
        detail="The first one who says so is written down. The alert stays open until what it is about is over.",
        tag="alerts",
        scope="alerts:write",
        answers={200: (shapes.AlertSeen, "The alert")},
        refusals=("request.not_found",),
    ),
)
