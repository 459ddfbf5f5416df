"""/v1/seals and /v1/trust: the keys that exports of yours are signed with, and those of others that you trust.

The rule: a key is named by its public half, which every export has as its `issuer`; nobody is told the secret half.
"""

from datetime import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from sojourn.api.http.once import once
from sojourn.api.patterns import ISSUER, whole
from sojourn.api.route import Answer, Ask, Audited, Route
from sojourn.store.db import Connection
from sojourn.store.rows import IssuerRow
from sojourn.store.tenant import issuers


class SealSeen(msgspec.Struct, frozen=True, kw_only=True):
    """A key that exports are verified with."""

    issuer: str
    """Its public half: `ed25519:` and 32 bytes in base64url."""
    state: Literal["active", "retired", "revoked", "trusted"]
    """Yours: `active` signs, `retired` is still good, `revoked` is not. Somebody else's: `trusted`."""
    name: str
    created_at: datetime
    ended_at: datetime | None


class SealsPage(msgspec.Struct, frozen=True, kw_only=True):
    """Keys, the newest first."""

    data: tuple[SealSeen, ...]
    has_more: bool = False
    next: str | None = None


class Trust(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Whose exports are let in."""

    issuer: Annotated[str, Meta(pattern=whole(ISSUER))]
    name: Annotated[str, Meta(min_length=1, max_length=200)]
    """Whose key it is, for people."""


async def own(ask: Ask[None, None]) -> Answer:
    """List the keys that sign."""
    async with ask.transaction() as connection:
        return _page(await issuers.own(connection))


async def rotate(ask: Ask[None, None]) -> Answer:
    """Sign with a new key."""

    async def work(connection: Connection) -> Answer:
        await ask.parts.vault.rotate_signing_key(connection)
        return _page(await issuers.own(connection), status=201)

    return await once(ask, work)


async def revoke(ask: Ask[None, None]) -> Answer:
    """Take a key's signatures for nothing."""

    async def work(connection: Connection) -> Answer:
        await issuers.revoke(connection, ask.names["issuer"])
        return Answer(status=204)

    return await once(ask, work)


async def trusted(ask: Ask[None, None]) -> Answer:
    """List the keys of others."""
    async with ask.transaction() as connection:
        return _page(await issuers.trusted(connection))


async def trust(ask: Ask[Trust, None]) -> Answer:
    """Trust a key."""

    async def work(connection: Connection) -> Answer:
        await issuers.trust(connection, ask.body.issuer, ask.body.name)
        return _page(await issuers.trusted(connection), status=201)

    return await once(ask, work)


async def distrust(ask: Ask[None, None]) -> Answer:
    """Trust a key no longer."""

    async def work(connection: Connection) -> Answer:
        await issuers.distrust(connection, ask.names["issuer"])
        return Answer(status=204)

    return await once(ask, work)


def _newest(ask: Ask[None, None], answer: Answer) -> str:
    """The key that signs from now on."""
    signing: str = answer.body.data[0].issuer
    return signing


def _trusted(ask: Ask[Trust, None], answer: Answer) -> str:
    return ask.body.issuer


def _called(ask: Ask[Trust, None], answer: Answer) -> dict[str, str]:
    return {"name": ask.body.name}


def _page(rows: list[IssuerRow], *, status: int = 200) -> Answer:
    data = tuple(SealSeen(**msgspec.structs.asdict(row)) for row in rows)
    return Answer(status=status, body=SealsPage(data=data))


VAULT = ("vault.root_key", "vault.damaged")

ROUTES = (
    Route(
        method="GET",
        path="/v1/seals",
        handler=own,
        summary="List the keys that sign your exports",
        detail="The first export makes the first one.",
        tag="continuations",
        scope="admin:keys",
        answers={200: (SealsPage, "Keys, never their secrets")},
    ),
    Route(
        method="POST",
        path="/v1/seals/rotate",
        handler=rotate,
        summary="Sign exports with a new key",
        detail="What the old one has signed stays good, here and wherever it is trusted.",
        tag="continuations",
        scope="admin:keys",
        audit=Audited(action="seal.rotate", subject=_newest),
        answers={201: (SealsPage, "All keys")},
        refusals=VAULT,
        creates=True,
    ),
    Route(
        method="DELETE",
        path="/v1/seals/{issuer}",
        handler=revoke,
        summary="Revoke a key that signs",
        detail="What it has signed is not let in here any more. Others that trust it must be told.",
        tag="continuations",
        scope="admin:keys",
        audit=Audited(action="seal.revoke"),
        answers={204: (None, "It is good for nothing from now on")},
        refusals=("request.not_found",),
    ),
    Route(
        method="GET",
        path="/v1/trust",
        handler=trusted,
        summary="List whose exports are let in",
        tag="continuations",
        scope="admin:keys",
        answers={200: (SealsPage, "Keys of others")},
    ),
    Route(
        method="POST",
        path="/v1/trust",
        handler=trust,
        summary="Let in the exports of another installation",
        detail="The key is the `issuer` of its exports; ask whoever runs it which one is theirs. What they export can "
        "do here whatever you can when you import it.",
        tag="continuations",
        scope="admin:keys",
        body=Trust,
        audit=Audited(action="issuer.trust", subject=_trusted, detail=_called),
        answers={201: (SealsPage, "All that are trusted")},
        creates=True,
        example={"issuer": "ed25519:" + "A" * 43, "name": "staging"},
    ),
    Route(
        method="DELETE",
        path="/v1/trust/{issuer}",
        handler=distrust,
        summary="Let in the exports of another installation no longer",
        tag="continuations",
        scope="admin:keys",
        audit=Audited(action="issuer.distrust"),
        answers={204: (None, "What it exports is refused from now on")},
        refusals=("request.not_found",),
    ),
)
