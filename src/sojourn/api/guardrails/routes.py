"""The handlers of /v1/guardrails.

The rule: a change is in force in this process when it is answered, and everywhere within a second.
"""

from contextlib import suppress
from typing import Any

from sojourn.api.guardrails import shapes
from sojourn.api.http.once import once
from sojourn.api.route import Answer, Ask, Audited, Route
from sojourn.errors import StoreUnavailable
from sojourn.guardrails import rules
from sojourn.guardrails.in_force import BELL
from sojourn.guardrails.policies.engine import Origin
from sojourn.store import guardrails as store
from sojourn.store.db import Connection


async def put(ask: Ask[rules.Guardrail, None]) -> Answer:
    """Bring rules into force."""
    rules.check(ask.body, ask.parts.guardrails.engine, providers=ask.parts.models.endpoints())

    async def work(connection: Connection) -> Answer:
        caller, name = ask.principal, ask.names["name"]
        row, new = await store.put(connection, caller.tenant, name, spec=rules.encode(ask.body), by=caller.user)
        return Answer(status=201 if new else 200, body=shapes.seen(row), rings=((BELL, caller.tenant),))

    return await _known(ask, await once(ask, work))


async def end(ask: Ask[None, None]) -> Answer:
    """Take a guardrail out of force."""

    async def work(connection: Connection) -> Answer:
        caller = ask.principal
        row = await store.end(connection, caller.tenant, ask.names["name"], by=caller.user)
        return Answer(body=shapes.seen(row), rings=((BELL, caller.tenant),))

    return await _known(ask, await once(ask, work))


async def _known(ask: Ask[Any, Any], answer: Answer) -> Answer:
    """Answer once this process judges by it; if it cannot read now, it does so within a second."""
    with suppress(StoreUnavailable):
        await ask.parts.guardrails.refresh()
    return answer


def _version(ask: Ask[Any, Any], answer: Answer) -> dict[str, str]:
    return {"version": str(answer.body.version)}


async def page(ask: Ask[None, None]) -> Answer:
    """List what is in force."""
    async with ask.transaction() as connection:
        rows = await store.page(connection, ask.principal.tenant)
    operators = (one for one in ask.parts.guardrails.of(ask.principal.tenant).guardrails if one.operator)
    shown = tuple(shapes.OperatorsGuardrail(name=one.name, version=one.version) for one in operators)
    return Answer(body=shapes.GuardrailsPage(data=tuple(map(shapes.seen, rows)), operator=shown))


async def get(ask: Ask[None, None]) -> Answer:
    """Show a guardrail."""
    async with ask.transaction() as connection:
        return Answer(body=shapes.seen(await store.get(connection, ask.principal.tenant, ask.names["name"])))


async def versions(ask: Ask[None, None]) -> Answer:
    """Show all versions of a guardrail."""
    async with ask.transaction() as connection:
        rows = await store.versions(connection, ask.principal.tenant, ask.names["name"])
    return Answer(body=shapes.VersionsPage(data=tuple(map(shapes.seen, rows))))


async def test(ask: Ask[shapes.TryText, None]) -> Answer:
    """Judge a text by what is in force."""
    body, tenant, guardrails = ask.body, ask.principal.tenant, ask.parts.guardrails
    if body.on == "tool_arguments":
        origin = Origin(tenant, body.user or ask.principal.user, body.agent, body.depth)
        judged = await guardrails.call(body.tool, body.text, effect=body.effect, origin=origin)
    else:
        judged = await guardrails.text(tenant, body.on, body.text)
    return Answer(body=shapes.verdict(judged, guardrails.of(tenant).judges(body.on)))


ROUTES = (
    Route(
        method="GET",
        path="/v1/guardrails",
        handler=page,
        summary="List the guardrails in force",
        detail="Yours with their rules, and the operator's by name.",
        tag="guardrails",
        scope="guardrails:read",
        answers={200: (shapes.GuardrailsPage, "The guardrails")},
    ),
    Route(
        method="PUT",
        path="/v1/guardrails/{name}",
        handler=put,
        summary="Bring a guardrail into force, for every run at once",
        detail="Each change is a version that stays; the same rules again are no change. Every process judges by it "
        "within a second, runs that go on included: a call that was approved before is judged again before it is made.",
        tag="guardrails",
        scope="guardrails:write",
        body=rules.Guardrail,
        answers={201: (shapes.GuardrailSeen, "A new version is in force"), 200: (shapes.GuardrailSeen, "It was so")},
        refusals=("limit.guardrails", "model.unknown"),
        audit=Audited(action="guardrail.set", detail=_version),
        example={"rules": [{"kind": "pii", "on": ["output"], "then": "redact"}]},
    ),
    Route(
        method="GET",
        path="/v1/guardrails/{name}",
        handler=get,
        summary="Show a guardrail that is in force",
        tag="guardrails",
        scope="guardrails:read",
        answers={200: (shapes.GuardrailSeen, "The guardrail")},
        refusals=("request.not_found",),
    ),
    Route(
        method="GET",
        path="/v1/guardrails/{name}/versions",
        handler=versions,
        summary="List all versions of a guardrail, newest first",
        detail="Those that ended it, too: what was in force at any time, and who made it so.",
        tag="guardrails",
        scope="guardrails:read",
        answers={200: (shapes.VersionsPage, "The versions")},
        refusals=("request.not_found",),
    ),
    Route(
        method="DELETE",
        path="/v1/guardrails/{name}",
        handler=end,
        summary="Take a guardrail out of force",
        detail="Its versions stay, and this one is added to them.",
        tag="guardrails",
        scope="guardrails:write",
        answers={200: (shapes.GuardrailSeen, "The version that ends it")},
        refusals=("request.not_found",),
        audit=Audited(action="guardrail.end", detail=_version),
    ),
    Route(
        method="POST",
        path="/v1/guardrails/test",
        handler=test,
        summary="Judge a text by the guardrails in force",
        detail="Nothing is kept of it, and no judge is asked: those that would be are named.",
        tag="guardrails",
        scope="guardrails:read",
        body=shapes.TryText,
        answers={200: (shapes.Verdict, "What they say")},
        example={"text": "Write to ann@example.com.", "on": "output"},
    ),
)
