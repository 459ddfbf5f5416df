"""The guard round every handler: who asks, for what, within which limits; and what becomes of whatever goes wrong.

`app` puts `middleware` round everything and `guarded` round each route's handler. The rule: nothing is read of a
request before its key is known to allow it, and nothing leaves but an answer, a stream or a problem.
"""

import asyncio
import logging
import re
import shutil
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import msgspec
from aiohttp import HttpVersion11, web

from sojourn.api import resource
from sojourn.api.audit import acts
from sojourn.api.http import parse, problems
from sojourn.api.http.codes import Bug, TooSlow, WrongMedia, WrongMethod
from sojourn.api.http.once import digest_of, key_of
from sojourn.api.parts import Api
from sojourn.api.rates.limiter import Counted
from sojourn.api.rates.standing import Standing
from sojourn.api.route import NAMES, Answer, Ask, Live, Route
from sojourn.errors import (
    Forbidden,
    Invalid,
    NotFound,
    Refused,
    SojournError,
    StoreUnavailable,
    TooLarge,
    Unauthenticated,
)
from sojourn.identity import scopes
from sojourn.settings import Settings
from sojourn.store.rows import Principal

log = logging.getLogger("sojourn.api")

BODY_S = 30.0
"""How long a body may take to arrive."""
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{8,128}")
PATTERNS = {name: re.compile(pattern, re.DOTALL) for name, pattern in NAMES.items()}
SECURITY = {
    "Server": "sojourn",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
ANYBODY = Principal(
    tenant="", user="", key_id="", scopes=frozenset(), handle="", expires_at=datetime.max.replace(tzinfo=UTC)
)
REQUEST: web.RequestKey[str] = web.RequestKey("request_id", str)
ROUTE: web.RequestKey[Route] = web.RequestKey("route", Route)
CALLER: web.RequestKey[Principal] = web.RequestKey("caller", Principal)
RATES: web.RequestKey[dict[str, str]] = web.RequestKey("rates", dict)

Inner = Callable[[web.Request], Awaitable[web.StreamResponse]]


def middleware(parts: Api, live: Live) -> Any:
    """Make what surrounds every request: its id, its problem if it fails, its headers, its line in the log."""
    metadata_url = resource.location(parts.settings.public_url)

    @web.middleware
    async def guard(request: web.Request, handler: Inner) -> web.StreamResponse:
        began = time.perf_counter()
        given = request.headers.get("X-Request-Id", "")
        request_id = request[REQUEST] = given if REQUEST_ID.fullmatch(given) else parts.new_id("req")
        try:
            response = await handler(request)
        except SojournError as error:
            response = problems.answer(error, request_id)
            sent = "Authorization" in request.headers
            if wanted := problems.challenge(error, sent=sent, metadata_url=metadata_url):
                response.headers["WWW-Authenticate"] = wanted
        except web.HTTPException as error:
            response = problems.answer(_known(error), request_id)
        except ConnectionResetError:
            response = web.Response(status=499)  # the caller has gone; nobody reads this
        except Exception:
            log.exception("http.bug", extra={"request": request_id, "route": _template(request)})
            response = problems.answer(Bug(), request_id)
        _finish(request, response, live, began)
        return response

    return guard


async def prepare(request: web.Request, response: web.StreamResponse) -> None:
    """Put the headers on that every answer carries; a signal, so that streams have them too."""
    for name, value in SECURITY.items():
        response.headers.setdefault(name, value)
    response.headers.update(request.get(RATES, {}))
    response.headers["Server"] = SECURITY["Server"]
    response.headers["X-Request-Id"] = request.get(REQUEST, "")
    if request.version < HttpVersion11 and response.content_length is None:
        response.force_close()  # nothing else tells such a client where the answer ends


def guarded(route: Route, parts: Api, live: Live) -> Inner:
    """Make a route's handler as the server calls it."""
    decoder: msgspec.json.Decoder[Any] | None = msgspec.json.Decoder(route.body) if route.body else None

    async def handle(request: web.Request) -> web.StreamResponse:
        request[ROUTE] = route
        try:
            return await handled(request)
        except Forbidden:
            if route.audit and (caller := request.get(CALLER)):
                await acts.refused(parts, caller, route.audit, request=request, request_id=request[REQUEST])
            raise

    async def handled(request: web.Request) -> web.StreamResponse:
        token, principal = ("", ANYBODY) if route.public else await _permit(request, route, live)
        counted = _counted(request, route, principal, live)
        if counted and (known := live.limiter.refused(counted)):
            _tell(request, known, live)
        if route.fills:
            _need_room(parts.settings)
        raw = await _body(request, route, parts.settings.body_max_bytes)
        ask: Ask[Any, Any] = Ask(
            parts=parts,
            live=live,
            http=request,
            route=route,
            request_id=request[REQUEST],
            token=token,
            principal=principal,
            names=_names(request),
            body=parse.json_body(raw, decoder) if decoder and raw else route.body and route.body(),
            query=parse.query(request.query, route.query) if route.query else None,
            raw=raw,
        )
        if counted and route.counted_meanwhile:
            answer = await _counted_meanwhile(ask, counted)
        else:
            if counted:
                await _count(ask, counted)
            answer = await route.handler(ask)
        return answer if isinstance(answer, web.StreamResponse) else respond(answer)

    return handle


def respond(answer: Answer) -> web.Response:
    """Turn an Answer into bytes."""
    if answer.body is None:
        return web.Response(status=answer.status, headers=answer.headers)
    if isinstance(answer.body, bytes):
        body, headers = answer.body, answer.headers
    else:
        body, headers = msgspec.json.encode(answer.body), {}
    headers = {"Content-Type": "application/json", **headers, **answer.headers}
    return web.Response(status=answer.status, body=body, headers=headers)


# ---- in --------------------------------------------------------------------------------------


async def _permit(request: web.Request, route: Route, live: Live) -> tuple[str, Principal]:
    """Find out who asks and whether they may. Raises Unauthenticated and Forbidden."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthenticated
    token = token.strip()
    principal = request[CALLER] = await live.tokens.principal(token)
    if route.scope:
        scopes.require(principal.scopes, route.scope, confined=principal.confined)
    return token, principal


def _counted(request: web.Request, route: Route, principal: Principal, live: Live) -> Counted | None:
    """What a request counts as; None where nothing is limited. Raises Invalid for an Idempotency-Key that is none."""
    if route.public:
        return None
    class_ = route.counts_as(request.headers.get("Accept", ""))
    limits = live.limits.of(principal.tenant, class_)
    if limits is None:
        return None
    return Counted(principal=principal, class_=class_, limits=limits, key=key_of(request, route), route=route.name)


async def _counted_meanwhile(ask: Ask[Any, Any], counted: Counted) -> Answer | web.StreamResponse:
    """Count a request while its work is done, which `once` takes back where a limit refuses. Raises RateLimited."""
    counting = asyncio.create_task(_count(ask, counted), name="count")
    try:
        return await ask.route.handler(replace(ask, counting=counting))
    except SojournError:
        await counting  # a refusal by a limit comes before any other
        raise
    finally:
        counting.cancel()


async def _count(ask: Ask[Any, Any], counted: Counted) -> None:
    """Count a request whose body is known. Raises RateLimited."""
    route, limiter = ask.route, ask.live.limiter
    counted = replace(
        counted,
        agent=route.agent(ask.body, ask.names) if route.agent else None,
        digest=digest_of(ask.http, ask.raw) if counted.key and not route.upload else None,
    )
    _tell(ask.http, limiter.refused(counted) or await limiter.count(counted), ask.live)


def _tell(request: web.Request, standing: Standing, live: Live) -> None:
    """Put into the answer how the caller stands. Raises RateLimited."""
    request[RATES] = standing.headers()
    if standing.refused:
        live.meter.limited.update((standing.class_, subject) for subject, _, _ in standing.empty())
        raise standing.refusal()


def _need_room(settings: Settings) -> None:
    """Raise StoreUnavailable while an embedded database's disk is nearly full.

    A PostgreSQL without room for its log stops, and then nothing can be read either.
    """
    if settings.database_url or not settings.data_dir:
        return
    if shutil.disk_usage(settings.data_dir).free < settings.disk_reserve_bytes:
        raise StoreUnavailable(
            f"The disk of the data folder has less than {settings.disk_reserve_bytes >> 20} MiB left, so nothing new "
            "is accepted; what was accepted goes on and can be read. Free some space there: no restart is needed.",
            code="store.full",
        )


def _names(request: web.Request) -> dict[str, str]:
    """The parts of the path that have a name. Raises NotFound for what cannot be one."""
    for name, value in request.match_info.items():
        if "\0" in value or not PATTERNS[name].fullmatch(value):
            raise NotFound
    return dict(request.match_info)


async def _body(request: web.Request, route: Route, limit_bytes: int) -> bytes:
    """Read a JSON body whole. Raises TooLarge, TooSlow, WrongMedia and Invalid."""
    if route.upload or route.body is None:
        return b""
    if (request.content_length or 0) > limit_bytes:
        raise _too_large(limit_bytes)
    try:
        async with asyncio.timeout(BODY_S):
            data = await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise _too_large(limit_bytes) from None
    except TimeoutError:
        raise TooSlow(f"The body did not arrive within {BODY_S:g} s.") from None
    if data and not _is_json(request):
        raise WrongMedia("Send the body as JSON, with the header Content-Type: application/json.")
    if not data and not route.body_optional:
        raise Invalid("The request needs a JSON body.", pointer="")
    return data


def _is_json(request: web.Request) -> bool:
    kind = request.content_type
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


def _too_large(limit_bytes: int) -> TooLarge:
    return TooLarge(f"The body is larger than {limit_bytes} bytes. Put large inputs into the session's files.")


# ---- out -------------------------------------------------------------------------------------


def _known(error: web.HTTPException) -> SojournError:
    """Say in our words what the HTTP library refused."""
    match error.status:
        case 404:
            return NotFound("There is nothing at this path; /docs lists what there is.")
        case 405:
            allowed = ", ".join(sorted(getattr(error, "allowed_methods", ())))
            return WrongMethod(f"This path knows the methods {allowed}.")
        case 413:
            return TooLarge()
    return Refused(f"The request cannot be understood: {error.reason}.")


def _template(request: web.Request) -> str:
    route = request.get(ROUTE)
    return route.path if route else "none"


def _finish(request: web.Request, response: web.StreamResponse, live: Live, began: float) -> None:
    """Count the answer and write its line in the log."""
    seconds = time.perf_counter() - began
    streamed = response.content_type == "text/event-stream"
    method = request.method if request.get(ROUTE) else "other"
    live.meter.count(method, _template(request), response.status, seconds=None if streamed else seconds)
    caller = request.get(CALLER, ANYBODY)
    line = {
        "request": request[REQUEST],
        "method": method,
        "route": _template(request),
        "status": response.status,
        "ms": round(seconds * 1000, 2),
        "tenant": caller.tenant,
        "key": caller.key_id,
        "run": request.match_info.get("run_id", "")[:40],
    }
    log.info("http.request", extra=line)
