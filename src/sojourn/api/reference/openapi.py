"""Routes into an OpenAPI 3.1 document. `app` serves it at /openapi.json and the page is made of it.

The rule: it is made from what the guard enforces (routes and their Structs), and from nothing else.
"""

import re
from collections.abc import Iterable
from typing import Any

import msgspec

from sojourn import __version__
from sojourn.api.events.kinds import Delta
from sojourn.api.http.codes import CODES
from sojourn.api.http.problems import Problem
from sojourn.api.patterns import whole
from sojourn.api.route import NAMES, Route
from sojourn.identity.scopes import SCOPES

Json = dict[str, Any]

NAMED = re.compile(r"\{(\w+)(?::[^}]*)?\}")
DESCRIPTION = """\
A managed agent runtime that you host yourself. Send `Authorization: Bearer <key>`. Every error is
`application/problem+json` with a `code` for programs and a `detail` for people. Every POST that creates takes an
`Idempotency-Key`: the same key and body answers what it answered before. Lists take `limit` and `after`, and give
`has_more` and `next`. What your key may not see is not found. Where a rate limit applies, the answer says so in
`RateLimit-Policy` and `RateLimit`, and a refusal in `Retry-After`."""
TAGS = {
    "runs": "One execution, from input to result, its events, transcript and trace.",
    "continuations": "Runs that move: exported, imported, forked; whose exports are let in.",
    "agents": "What runs: immutable versions and the live one, the server's tools and models.",
    "sessions": "A conversation with its sandbox and files.",
    "blobs": "Images and files that a message refers to, by digest.",
    "approvals": "What waits for a person.",
    "keys": "Who may call.",
    "audit": "Who did what.",
    "operations": "For operators.",
}
ALWAYS = ("auth.unauthenticated", "auth.forbidden", "limit.rate", "store.unavailable", "store.full", "sojourn.bug")
WITH_BODY = (
    "request.malformed", "request.too_deep", "request.timeout", "request.too_large", "request.media_type",
    "request.invalid",
)  # fmt: skip
ONCE = ("request.in_progress", "request.idempotency_reused")


def document(routes: Iterable[Route]) -> Json:
    """Write the whole document."""
    routes = tuple(routes)
    schemas, refs = _schemas(routes)
    paths: Json = {}
    for route in routes:
        paths.setdefault(NAMED.sub(r"{\1}", route.path), {})[route.method.lower()] = _operation(route, refs)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Sojourn",
            "version": __version__,
            "description": DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"key": []}],
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API key; `sojourn keys create` makes one.",
                }
            },
        },
        "x-scopes": dict(SCOPES),
        "x-codes": {code: {"status": status, "title": title} for code, (status, title) in CODES.items()},
    }


def codes(route: Route) -> tuple[str, ...]:
    """Every code that a route may answer with."""
    found = [code if isinstance(code, str) else code.code for code in route.refusals]
    found += [*ALWAYS] if not route.public else ["sojourn.bug"]
    found += [*WITH_BODY] if route.body else []
    found += ["request.timeout", "request.too_large"] if route.upload else []
    found += ["request.invalid"] if route.query or route.upload else []
    found += ["request.not_found"] if NAMED.search(route.path) else []
    found += [*ONCE] if route.creates else []
    return tuple(dict.fromkeys(found))


def _schemas(routes: Iterable[Route]) -> tuple[Json, dict[Any, Json]]:
    """The components, and for each type what refers to it."""
    types: list[Any] = [Problem, Delta]
    for route in routes:
        types += [kind for kind in (route.body, *(body for body, _ in route.answers.values())) if kind is not None]
    types = list(dict.fromkeys(types))
    refs, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    return components, dict(zip(types, refs, strict=True))


def _operation(route: Route, refs: dict[Any, Json]) -> Json:
    needs = f"Needs the scope `{route.scope}`." if route.scope else ""
    operation: Json = {
        "operationId": route.handler.__module__.removeprefix("sojourn.api.").replace(".", "_")
        + f"_{route.handler.__name__}",
        "summary": route.summary,
        "description": " ".join(part for part in (route.detail, needs) if part),
        "tags": [route.tag],
        "parameters": [*_path_parameters(route), *_query_parameters(route), *_header_parameters(route)],
        "responses": {**_answers(route, refs), **_problems(route)},
    }
    if route.public:
        operation["security"] = []
    if route.upload:
        operation["requestBody"] = {"required": True, "content": {"*/*": {}}}
    if route.body:
        content: Json = {"schema": refs[route.body]}
        if route.example is not None:
            content["example"] = route.example
        operation["requestBody"] = {"required": not route.body_optional, "content": {"application/json": content}}
    return operation


def _path_parameters(route: Route) -> Iterable[Json]:
    for name in NAMED.findall(route.path):
        schema = {"type": "string", "pattern": whole(NAMES[name])}
        yield {"name": name, "in": "path", "required": True, "schema": schema}


def _query_parameters(route: Route) -> Iterable[Json]:
    if route.query is None:
        return
    (top,), components = msgspec.json.schema_components([route.query], ref_template="{name}")
    for name, schema in components[top["$ref"]].get("properties", {}).items():
        text = _pop_description(schema)
        yield {"name": name, "in": "query", "required": False, "schema": schema, "description": text}


def _pop_description(schema: Json) -> str:
    """Take the description out, wherever an optional type has put it."""
    inner = [one.pop("description", "") for one in schema.get("anyOf", ())]
    return schema.pop("description", "") or "".join(inner)


def _header_parameters(route: Route) -> Iterable[Json]:
    named = []
    if route.creates:
        named.append(("Idempotency-Key", "Makes one request of this one and its repetitions, for a day.", 255))
    if "text/event-stream" in route.media:
        named.append(("Last-Event-ID", "The last `id` that was seen; the stream goes on after it.", 19))
    for name, text, chars in named:
        schema = {"type": "string", "maxLength": chars}
        yield {"name": name, "in": "header", "required": False, "schema": schema, "description": text}


def _answers(route: Route, refs: dict[Any, Json]) -> Json:
    answers: Json = {}
    for status, (body, text) in route.answers.items():
        answers[str(status)] = {"description": text}
        if body is not None:
            answers[str(status)]["content"] = {media: _media(media, refs[body]) for media in route.media}
        elif status == 200:
            answers[str(status)]["content"] = {media: {} for media in route.media}
    return answers


def _media(media: str, ref: Json) -> Json:
    return {"schema": {"type": "string"}} if media in ("text/event-stream", "text/csv") else {"schema": ref}


def _problems(route: Route) -> Json:
    by_status: dict[int, list[str]] = {}
    for code in codes(route):
        by_status.setdefault(CODES[code][0], []).append(code)
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {
        str(status): {"description": " ".join(f"`{code}`: {CODES[code][1]}" for code in found), "content": problem}
        for status, found in sorted(by_status.items())
    }
