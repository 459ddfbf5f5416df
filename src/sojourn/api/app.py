"""The application: every route behind the guard, and what lives as long as it does. `wiring` builds and serves it.

The rule: what is listed in `routes` is all there is, and the reference is made from the same list.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from functools import cache, partial
from typing import Any

import msgspec
from aiohttp import web

from sojourn.api import blobs, keys, offers, resource
from sojourn.api.agents import routes as agents
from sojourn.api.approvals import results
from sojourn.api.approvals import routes as approvals
from sojourn.api.audit import routes as audit
from sojourn.api.budgets import routes as budgets
from sojourn.api.continuations import issuers
from sojourn.api.continuations import routes as continuations
from sojourn.api.events import routes as events
from sojourn.api.events.hub import Hub
from sojourn.api.guardrails import routes as guardrails
from sojourn.api.http import guard
from sojourn.api.http.gate import Gate
from sojourn.api.http.meter import Meter
from sojourn.api.notices import alerts, webhooks
from sojourn.api.operations import health, metrics
from sojourn.api.parts import Api
from sojourn.api.rates.known import Known
from sojourn.api.rates.limiter import Limiter
from sojourn.api.reference import openapi, page
from sojourn.api.route import Answer, Ask, Live, Route
from sojourn.api.runs import dead_letters, holds, signals
from sojourn.api.runs import routes as runs
from sojourn.api.schedules import clock
from sojourn.api.schedules import routes as schedules
from sojourn.api.sessions import files
from sojourn.api.sessions import routes as sessions
from sojourn.api.stops import routes as stops
from sojourn.api.usage import routes as usage
from sojourn.identity.callers import Callers
from sojourn.identity.tokens import Tokens

OPENING_MAX = 3
"""Sandboxes that are opened at once: each may wait with one of the ten connections of the API's pool."""
MOVING_MAX, MOVING_WAITING_MAX = 2, 16
"""Exports and imports that are in memory at once, and those that wait for it."""


def build(parts: Api) -> web.Application:
    """Make the application; it starts and stops with its runner."""
    callers = Callers(parts.database, parts.settings.issuers, parts.now)
    live = Live(
        tokens=Tokens(callers.principal, parts.now),
        hub=Hub(
            parts.database,
            parts.doorbell,
            followers_max=parts.settings.stream_clients_max,
            tenant_max=parts.settings.stream_clients_tenant_max,
        ),
        meter=Meter(),
        limits=Known(parts.database, parts.settings.rates),
        limiter=Limiter(parts.database),
        opening=Gate(
            "a sandbox to open",
            at_once=OPENING_MAX,
            waiting_max=parts.settings.file_requests_waiting_max,
            code="sandbox.busy",
        ),
        moving=Gate("another run that moves", at_once=MOVING_MAX, waiting_max=MOVING_WAITING_MAX),
    )
    # Uploads are bounded by the file handlers, JSON bodies by the guard and by this.
    app = web.Application(client_max_size=parts.settings.body_max_bytes, middlewares=[guard.middleware(parts, live)])
    for route in served():
        path = route.path.replace("{path}", "{path:.+}")
        app.router.add_route(route.method, path, guard.guarded(route, parts, live))
    app.on_response_prepare.append(guard.prepare)
    fires = [("schedules", partial(clock.run, parts))] * clock.LANES
    for name, work in (("hub", live.hub.run), ("rates", live.limits.run), *fires):
        app.cleanup_ctx.append(partial(_task, name, work))
    app.on_startup.append(lambda _: live.limits.look())
    app.on_shutdown.append(partial(_close, live.hub))
    app.on_cleanup.append(lambda _: callers.close())
    return app


def served() -> tuple[Route, ...]:
    """Every route, with the reference that is made from them."""
    routes = (
        *runs.ROUTES,
        *holds.ROUTES,
        *signals.ROUTES,
        *dead_letters.ROUTES,
        *events.ROUTES,
        *continuations.ROUTES,
        *issuers.ROUTES,
        *agents.ROUTES,
        *schedules.ROUTES,
        *budgets.ROUTES,
        *offers.ROUTES,
        *sessions.ROUTES,
        *files.ROUTES,
        *blobs.ROUTES,
        *approvals.ROUTES,
        *results.ROUTES,
        *keys.ROUTES,
        *resource.ROUTES,
        *stops.ROUTES,
        *guardrails.ROUTES,
        *audit.ROUTES,
        *usage.ROUTES,
        *webhooks.ROUTES,
        *alerts.ROUTES,
        *health.routes(),
        *metrics.ROUTES,
    )
    return (*routes, *reference(routes))


def reference(routes: tuple[Route, ...]) -> tuple[Route, ...]:
    """The routes that serve the document of all routes; it is made when it is first asked for, in some 30 ms."""

    @cache
    def document() -> openapi.Json:
        return openapi.document((*routes, *own))

    @cache
    def text() -> bytes:
        return msgspec.json.encode(document())

    @cache
    def shown() -> bytes:
        return page.html(document()).encode()

    async def as_json(ask: Ask[None, None]) -> Answer:
        return Answer(body=text())

    async def as_page(ask: Ask[None, None]) -> Answer:
        headers = {"Content-Type": "text/html; charset=utf-8", "Content-Security-Policy": page.policy()}
        return Answer(body=shown(), headers=headers)

    own = (
        Route(
            method="GET",
            path="/openapi.json",
            handler=as_json,
            summary="This API as an OpenAPI 3.1 document",
            tag="operations",
            public=True,
            answers={200: (None, "The document")},
        ),
        Route(
            method="GET",
            path="/docs",
            handler=as_page,
            summary="This API as a page",
            tag="operations",
            public=True,
            answers={200: (None, "The page")},
            media=("text/html",),
        ),
    )
    return own


async def _task(name: str, work: Callable[[], Coroutine[Any, Any, None]], app: web.Application) -> AsyncIterator[None]:
    """Do something beside the requests while the application runs: read for followers, fire schedules."""
    task = asyncio.create_task(work(), name=name)
    yield
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def _close(hub: Hub, app: web.Application) -> None:
    """End the streams before the server waits for its connections."""
    hub.close()
