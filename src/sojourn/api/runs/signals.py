"""Events of the world for a run that waits for them, or will: from a caller, or as a signed webhook.

Webhooks are Standard Webhooks (https://www.standardwebhooks.com, read 2026-11-21): webhook-id, webhook-timestamp and
webhook-signature. The rule: an id is heard once, and a signal that comes before its wait is kept for it.
"""

import base64
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from sojourn.api.agents.shapes import Taints
from sojourn.api.approvals import judge
from sojourn.api.approvals.shapes import Noted
from sojourn.api.guardrails.screen import screened
from sojourn.api.http.once import once
from sojourn.api.route import Answer, Ask, Route
from sojourn.errors import TooLarge, Unauthenticated
from sojourn.loop.continuation import Signal
from sojourn.loop.events import Signalled
from sojourn.store.db import Connection
from sojourn.store.runs import hooks

DATA_BYTES_MAX = 65_536
SIGNATURES_MAX = 5
"""A sender that rotates its secret signs with more than one."""

Name = Annotated[str, Meta(min_length=1, max_length=200, examples=["payment.settled"])]


class Happened(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Something happened in the world."""

    name: Name
    """What an agent waits for with wait_for_event."""
    data: Any = None
    """What the model reads."""
    id: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    """The same id twice is one event."""
    taints: Taints = ()
    """What the data is."""


class Delivered(msgspec.Struct, frozen=True, kw_only=True):
    """The body of a webhook."""

    type: Name
    """The name of the event."""
    data: Any = None


class Hook(msgspec.Struct, frozen=True, kw_only=True):
    """Where an outside system sends a run's events, and what it signs them with."""

    path: str
    secret: str
    """whsec_ and the key, as Standard Webhooks libraries take it. Whoever has it can signal this one run."""


async def signal(ask: Ask[Happened, None]) -> Answer:
    """Tell a run that something happened."""
    body = ask.body
    event = _event(ask, body.id or ask.parts.new_id("sig"), body.name, body.data)
    event = replace(event, signal=replace(event.signal, taints=body.taints))
    data = await screened(ask, "input", event.signal.data, pointer="/data")

    async def work(connection: Connection) -> Answer:
        return await judge.noted(connection, ask.names["run_id"], _with(event, data()))

    return await once(ask, work)


async def hook(ask: Ask[None, None]) -> Answer:
    """Show where a run's webhooks go."""
    run_id = ask.names["run_id"]
    async with ask.transaction() as connection:
        secret = await hooks.secret(connection, run_id)
    return Answer(body=Hook(path=f"/v1/hooks/{run_id}", secret=f"whsec_{base64.b64encode(secret).decode()}"))


async def deliver(ask: Ask[Delivered, None]) -> Answer:
    """Take a signed webhook."""
    run_id, message_id = ask.names["run_id"], ask.http.headers.get("webhook-id", "")
    event = _event(ask, f"hook:{message_id}", ask.body.type, ask.body.data)
    event = replace(event, signal=replace(event.signal, taints=("untrusted",)))  # whoever sends it, it is not of here
    handle = await _verified(ask, run_id, message_id)
    tenant = handle.partition("|")[0]
    data = (await screened(ask, "input", event.signal.data, pointer="/data", tenant=tenant))()
    async with ask.parts.database.scoped(handle) as connection:
        answer = await judge.noted(connection, run_id, _with(event, data))
    for channel, id_ in answer.rings:
        ask.parts.doorbell.ring(channel, (id_,))
    return answer


async def _verified(ask: Ask[Any, Any], run_id: str, message_id: str) -> str:
    """The scope that the webhook's signature opens. Raises Unauthenticated."""
    stamp = ask.http.headers.get("webhook-timestamp", "")
    given = ask.http.headers.get("webhook-signature", "").split(" ")[:SIGNATURES_MAX]
    readable = 0 < len(message_id) <= 200 and message_id.isprintable() and stamp.isdecimal() and len(stamp) <= 12
    for text in given if readable else ():
        signature = _signature(text)
        if signature is not None:
            signed = (ask.raw, signature)
            handle = await hooks.scope(ask.parts.database, run_id, message_id, sent_s=int(stamp), signed=signed)
            if handle is not None:
                return handle
    raise Unauthenticated(
        "Send webhook-id, webhook-timestamp (now, in seconds) and webhook-signature (v1,<base64>), made with the "
        "secret that GET /v1/runs/{id}/hook shows.",
        code="hook.signature",
    )


def _signature(text: str) -> bytes | None:
    version, _, coded = text.partition(",")
    if version != "v1" or len(coded) > 64:
        return None
    try:
        return base64.b64decode(coded, validate=True)
    except ValueError:
        return None


def _with(event: Signalled, data: str) -> Signalled:
    return replace(event, signal=replace(event.signal, data=data))


def _event(ask: Ask[Any, Any], id_: str, name: str, data: Any) -> Signalled:
    """Raises TooLarge."""
    text = data if isinstance(data, str) else msgspec.json.encode(data).decode()
    if len(text.encode(errors="replace")) > DATA_BYTES_MAX:
        raise TooLarge(f"An event's data is larger than {DATA_BYTES_MAX} bytes.", pointer="/data")
    return Signalled(at=ask.parts.now(), signal=Signal(id=id_, name=name, data=text))


ROUTES = (
    Route(
        method="POST",
        path="/v1/runs/{run_id}/signals",
        handler=signal,
        summary="Tell a run that something happened",
        detail="An agent waits for it with the tool wait_for_event; one that comes earlier is kept for it.",
        tag="runs",
        scope="runs:write",
        body=Happened,
        answers={202: (Noted, "The run hears it")},
        refusals=("request.not_found", "run.ended", "request.too_large", "guardrail.refused"),
        creates=True,
        example={"name": "payment.settled", "data": {"cents": 1200}},
    ),
    Route(
        method="GET",
        path="/v1/runs/{run_id}/hook",
        handler=hook,
        summary="Show where outside systems send a run's events",
        tag="runs",
        scope="runs:write",
        answers={200: (Hook, "The path and the secret")},
        refusals=("request.not_found",),
    ),
    Route(
        method="POST",
        path="/v1/hooks/{run_id}",
        handler=deliver,
        summary="Take a signed webhook for a run",
        detail="A Standard Webhook, signed with the run's own secret; no key of ours is needed.",
        tag="runs",
        public=True,
        body=Delivered,
        answers={202: (Noted, "The run hears it")},
        refusals=("hook.signature", "run.ended", "request.too_large", "guardrail.refused"),
        example={"type": "payment.settled", "data": {"cents": 1200}},
    ),
)
