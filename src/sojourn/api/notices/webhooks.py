"""The handlers of /v1/webhooks.

The rule: a secret is made here, shown once, and kept by the database alone.
"""

import base64
import secrets
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import msgspec
from msgspec import UNSET
from msgspec.structs import asdict

from sojourn.api.audit.acts import made
from sojourn.api.http.once import once
from sojourn.api.notices import shapes
from sojourn.api.route import Answer, Ask, Audited, Route
from sojourn.errors import Conflict
from sojourn.identity import addresses
from sojourn.store.db import Connection
from sojourn.store.notices import webhooks
from sojourn.store.notices.webhooks import DeliveryRow, State, WebhookRow


async def create(ask: Ask[shapes.CreateWebhook, None]) -> Answer:
    """Make a webhook."""
    body, (secret, shown) = ask.body, _secret()
    addresses.checked(body.url, http_allowed=ask.parts.settings.webhooks_http_allowed)
    new = WebhookRow(
        id=ask.parts.new_id("whk"),
        url=body.url,
        events=tuple(dict.fromkeys(body.events)),
        description=body.description,
        made_by=ask.principal.user,
        created_at=ask.parts.now(),
    )

    async def work(connection: Connection) -> Answer:
        row = await webhooks.create(connection, new, secret=secret)
        headers = {"Location": f"/v1/webhooks/{row.id}"}
        return Answer(status=201, body=_new(row, shown), headers=headers)

    return await once(ask, work)


async def page(ask: Ask[None, None]) -> Answer:
    """List webhooks."""
    async with ask.transaction() as connection:
        rows = await webhooks.page(connection)
    return Answer(body=shapes.WebhooksPage(data=tuple(map(_seen, rows))))


async def get(ask: Ask[None, None]) -> Answer:
    """Show a webhook."""
    async with ask.transaction() as connection:
        return Answer(body=_seen(await webhooks.get(connection, ask.names["webhook_id"])))


async def change(ask: Ask[shapes.ChangeWebhook, None]) -> Answer:
    """Change a webhook."""
    given = {name: value for name, value in asdict(ask.body).items() if value is not UNSET}
    if "url" in given:
        addresses.checked(given["url"], http_allowed=ask.parts.settings.webhooks_http_allowed)
    if "disabled" in given:
        off = given.pop("disabled")
        given |= {"disabled_code": "caller" if off else None, "disabled_at": ask.parts.now() if off else None}
    if "events" in given:
        given["events"] = tuple(dict.fromkeys(given["events"]))

    async def work(connection: Connection) -> Answer:
        return Answer(body=_seen(await webhooks.change(connection, ask.names["webhook_id"], **given)))

    return await once(ask, work)


async def replace_secret(ask: Ask[shapes.ReplaceSecret, None]) -> Answer:
    """Give a webhook another secret."""
    secret, shown = _secret()
    overlap = timedelta(seconds=ask.body.overlap_s)

    async def work(connection: Connection) -> Answer:
        row = await webhooks.replace_secret(connection, ask.names["webhook_id"], secret, overlap)
        return Answer(body=_new(row, shown))

    return await once(ask, work)


async def delete(ask: Ask[None, None]) -> Answer:
    """Delete a webhook."""

    async def work(connection: Connection) -> Answer:
        await webhooks.delete(connection, ask.names["webhook_id"])
        return Answer(status=204)

    return await once(ask, work)


async def test(ask: Ask[None, None]) -> Answer:
    """Send a message that means nothing."""
    now = ask.parts.now().isoformat().replace("+00:00", "Z")
    body = {"type": "webhook.test", "timestamp": now, "data": {"webhook_id": ask.names["webhook_id"]}}
    async with ask.transaction() as connection:
        await _enabled(connection, ask.names["webhook_id"])
        row = await webhooks.post(connection, ask.names["webhook_id"], body["type"], msgspec.json.encode(body))
    return Answer(status=202, body=_sent(row))


async def deliveries(ask: Ask[None, shapes.DeliveriesQuery]) -> Answer:
    """List what was sent, or is to be."""
    asked, webhook_id = ask.query, ask.names["webhook_id"]
    async with ask.transaction() as connection:
        await webhooks.get(connection, webhook_id)
        found = await webhooks.history(
            connection, webhook_id, state=asked.state, after=asked.after, limit=asked.limit + 1
        )
    data, more = tuple(map(_sent, found[: asked.limit])), len(found) > asked.limit
    return Answer(body=shapes.DeliveriesPage(data=data, has_more=more, next=data[-1].id if more else None))


async def retry(ask: Ask[shapes.Retry, None]) -> Answer:
    """Send deliveries once more."""
    async with ask.transaction() as connection:
        await _enabled(connection, ask.names["webhook_id"])
        retried = await webhooks.retry(connection, ask.names["webhook_id"], ask.body.deliveries)
    return Answer(status=202, body=shapes.Retried(retried=retried))


async def _enabled(connection: Connection, webhook_id: str) -> None:
    """Raise Conflict where a webhook is sent nothing."""
    if (await webhooks.get(connection, webhook_id)).disabled_at is not None:
        raise Conflict("The webhook is disabled. Enable it first.", code="webhook.disabled")


def _told(ask: Ask[Any, Any], answer: Answer) -> dict[str, str]:
    """What the audit log says of a webhook: the host alone, for the rest of a URL may be a secret."""
    seen = answer.body
    state = "disabled" if seen.disabled_at else "enabled"
    return {"host": urlsplit(seen.url).hostname or "", "events": " ".join(seen.events), "state": state}


def _secret() -> tuple[bytes, str]:
    """A fresh secret, and how it is shown."""
    secret = secrets.token_bytes(32)
    return secret, f"whsec_{base64.b64encode(secret).decode()}"


def _new(row: WebhookRow, secret: str) -> shapes.NewWebhook:
    return shapes.NewWebhook(**asdict(_seen(row)), secret=secret)


def _seen(row: WebhookRow) -> shapes.WebhookSeen:
    return shapes.WebhookSeen(**asdict(row))


def _sent(row: DeliveryRow) -> shapes.DeliverySeen:
    state: State = "waiting" if row.due_at else "delivered" if row.delivered_at else "dead"
    given = {name: value for name, value in asdict(row).items() if name not in ("due_at", "dead_at")}
    return shapes.DeliverySeen(**given, state=state, next_at=row.due_at)


def _route(method: str, path: str, handler: Any, summary: str, **more: Any) -> Route:
    reads = method == "GET"
    named = ("request.not_found",) if path else ()
    return Route(
        method=method,
        path=f"/v1/webhooks{path}",
        handler=handler,
        summary=summary,
        tag="webhooks",
        scope="webhooks:read" if reads else "webhooks:write",
        refusals=(*named, *more.pop("refusals", ())),
        **more,
    )


ONCE = "The answer holds the secret, once. No Idempotency-Key is taken, so that the secret is stored nowhere else."
EXAMPLE = {"url": "https://example.org/sojourn", "events": ["run.completed", "run.suspended", "alert.*"]}

ROUTES = (
    _route("POST", "", create, "Make a webhook", detail=ONCE, body=shapes.CreateWebhook, example=EXAMPLE,
           audit=Audited(action="webhook.create", subject=made("id"), detail=_told),
           refusals=("limit.webhooks",), answers={201: (shapes.NewWebhook, "The webhook, with its secret")}),
    _route("GET", "", page, "List webhooks", answers={200: (shapes.WebhooksPage, "Webhooks, never their secrets")}),
    _route("GET", "/{webhook_id}", get, "Get a webhook", answers={200: (shapes.WebhookSeen, "The webhook")}),
    _route("PATCH", "/{webhook_id}", change, "Change, disable or enable a webhook", body=shapes.ChangeWebhook,
           audit=Audited(action="webhook.change", detail=_told),
           example={"disabled": False}, answers={200: (shapes.WebhookSeen, "The webhook")}),
    _route("DELETE", "/{webhook_id}", delete, "Delete a webhook and what waits for it",
           audit=Audited(action="webhook.delete"),
           answers={204: (None, "It is gone; a message that is on its way may still arrive")}),
    _route("POST", "/{webhook_id}/secret", replace_secret, "Give a webhook another secret", body=shapes.ReplaceSecret,
           audit=Audited(action="webhook.replace_secret", detail=_told), body_optional=True, example={"overlap_s": 60},
           detail=f"Messages are signed with both until the overlap ends, with a blank between. {ONCE}",
           answers={200: (shapes.NewWebhook, "The webhook, with its new secret")}),
    _route("POST", "/{webhook_id}/test", test, "Send a message of the type webhook.test",
           refusals=("webhook.disabled", "limit.webhooks"),
           answers={202: (shapes.DeliverySeen, "It is sent next; the deliveries say how it went")}),
    _route("GET", "/{webhook_id}/deliveries", deliveries, "List what was sent, or is to be",
           query=shapes.DeliveriesQuery, detail="Kept for seven days.",
           answers={200: (shapes.DeliveriesPage, "Deliveries, the newest first")}),
    _route("POST", "/{webhook_id}/retry", retry, "Send deliveries once more", body=shapes.Retry, body_optional=True,
           example={"deliveries": ["msg_019bd1c5f0a07c2f41e0a9b3d5e7f601"]}, refusals=("webhook.disabled",),
           detail="They keep their ids.",
           answers={202: (shapes.Retried, "How many are sent once more")}),
)  # fmt: skip
