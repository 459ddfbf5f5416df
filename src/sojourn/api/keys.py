"""/v1/keys and /v1/me: API keys, and who calls.

The rule: a key is shown once, when it is made, and never allows more than the key that made it.
"""

from datetime import datetime, timedelta
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from sojourn.api.audit.acts import made
from sojourn.api.http.once import once
from sojourn.api.http.pages import Page
from sojourn.api.patterns import whole
from sojourn.api.route import Answer, Ask, Audited, Route
from sojourn.errors import Invalid
from sojourn.identity import scopes, users
from sojourn.store.db import Connection
from sojourn.store.rows import KeyRow
from sojourn.store.tenant import keys

USER = whole(users.PATTERN)


class CreateKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A key for a user or a program."""

    name: Annotated[str, Meta(min_length=1, max_length=100)]
    user: Annotated[str, Meta(pattern=USER)] | None = None
    """Whom it acts for; yourself where it is not said."""
    scopes: Annotated[list[Annotated[str, Meta(max_length=64)]], Meta(max_length=64)] | None = None
    """What it allows; as much as your own where it is not said."""
    confined: bool = False
    """Its callers see and touch what is its user's alone. Scopes that are about the whole tenant then allow nothing."""
    expires_in_s: Annotated[int, Meta(ge=60, le=10 * 366 * 86400)] | None = None


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """A key, without its secret."""

    id: str
    name: str
    prefix: str
    """How the secret begins."""
    user_id: str
    scopes: tuple[str, ...]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    replaced_by: str | None
    """Its successor. The key itself ends at `expires_at`."""
    confined: bool
    """Its callers see and touch what is its user's alone."""


class ReplaceKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How long both keys are good."""

    overlap_s: Annotated[int, Meta(ge=0, le=90 * 86400)] = 86400


class NewKey(Key, frozen=True, kw_only=True):
    """A key that was made now."""

    key: str
    """The secret. Keep it now: it is not shown again."""


class KeysPage(msgspec.Struct, frozen=True, kw_only=True):
    """Keys of the tenant, the newest first."""

    data: tuple[Key, ...]
    has_more: bool
    next: str | None


class Me(msgspec.Struct, frozen=True, kw_only=True):
    """Who calls, by what, and what that allows."""

    tenant: str
    user_id: str
    key_id: str | None
    """The API key, where it is one."""
    issuer: str | None
    """The issuer of the token, by its name in the server's settings, where it is one."""
    scopes: tuple[str, ...]
    confined: bool
    """You see and touch what is your user's, and nothing else of the tenant."""


async def make(ask: Ask[CreateKey, None]) -> Answer:
    """Make a key."""
    body, caller = ask.body, ask.principal
    if body.user is not None and not users.is_user(body.user):
        raise Invalid("A user's name is of printable characters only.", pointer="/user")
    wanted = tuple(dict.fromkeys(body.scopes if body.scopes is not None else sorted(caller.scopes)))
    for i, scope in enumerate(wanted):
        if not scopes.known(scope):
            raise Invalid(
                f"There is no scope {scope!r}; there are: {', '.join(scopes.SCOPES)}.", pointer=f"/scopes/{i}"
            )
        scopes.require(caller.scopes, scope)
    lives = timedelta(seconds=body.expires_in_s) if body.expires_in_s else None

    async def work(connection: Connection) -> Answer:
        row, token = await keys.create(
            connection,
            user=body.user or caller.user,
            name=body.name,
            scopes=wanted,
            expires_at=ask.parts.now() + lives if lives else None,
            confined=body.confined,
        )
        return Answer(status=201, body=NewKey(**msgspec.structs.asdict(_seen(row)), key=token))

    return await once(ask, work)


async def page(ask: Ask[None, Page]) -> Answer:
    """List keys."""
    async with ask.transaction() as connection:
        rows, after = await keys.page(connection, after=ask.query.after, limit=ask.query.limit)
    return Answer(body=KeysPage(data=tuple(_seen(row) for row in rows), has_more=after is not None, next=after))


async def replace(ask: Ask[ReplaceKey, None]) -> Answer:
    """Make a key's successor, which allows as much; the key itself ends after the overlap."""
    key_id = ask.names["key_id"]

    async def work(connection: Connection) -> Answer:
        for scope in (await keys.get(connection, key_id)).scopes:
            scopes.require(ask.principal.scopes, scope)
        row, token = await keys.replace(connection, key_id, timedelta(seconds=ask.body.overlap_s))
        return Answer(status=201, body=NewKey(**msgspec.structs.asdict(_seen(row)), key=token))

    answer = await once(ask, work)
    ask.live.tokens.forget(key_id)
    return answer


async def revoke(ask: Ask[None, None]) -> Answer:
    """End a key: here at once, in other processes within half a minute."""

    async def work(connection: Connection) -> Answer:
        await keys.revoke(connection, ask.names["key_id"])
        return Answer(status=204)

    answer = await once(ask, work)
    ask.live.tokens.forget(ask.names["key_id"])
    return answer


async def me(ask: Ask[None, None]) -> Answer:
    """Show who calls."""
    caller = ask.principal
    return Answer(
        body=Me(
            tenant=caller.tenant,
            user_id=caller.user,
            key_id=None if caller.issuer else caller.key_id,
            issuer=caller.issuer or None,
            scopes=tuple(sorted(caller.scopes)),
            confined=caller.confined,
        )
    )


def _successor(ask: Ask[ReplaceKey, None], answer: Answer) -> dict[str, str]:
    """What the audit log says of a key that was replaced."""
    return {"successor": answer.body.id, **_told(ask, answer)}


def _told(ask: Ask[Any, None], answer: Answer) -> dict[str, str]:
    """What the audit log says of a new key."""
    until = answer.body.expires_at
    made = {"name": answer.body.name, "user": answer.body.user_id, "scopes": " ".join(answer.body.scopes)}
    made |= {"confined": "yes"} if answer.body.confined else {}
    return {**made, "expires_at": until.isoformat()} if until else made


def _seen(row: KeyRow) -> Key:
    return Key(**msgspec.structs.asdict(row))


ROUTES = (
    Route(
        method="POST",
        path="/v1/keys",
        handler=make,
        summary="Make an API key",
        detail="The answer holds the secret, once. No Idempotency-Key is taken, so that the secret is stored nowhere.",
        tag="keys",
        scope="admin:keys",
        body=CreateKey,
        audit=Audited(action="key.create", subject=made("id"), detail=_told),
        answers={201: (NewKey, "The key, with its secret")},
        example={"name": "ci", "scopes": ["runs:read", "runs:write"], "expires_in_s": 2592000},
    ),
    Route(
        method="GET",
        path="/v1/keys",
        handler=page,
        summary="List API keys, newest first",
        tag="keys",
        scope="admin:keys",
        query=Page,
        answers={200: (KeysPage, "Keys, never their secrets")},
    ),
    Route(
        method="POST",
        path="/v1/keys/{key_id}/replace",
        handler=replace,
        summary="Replace an API key",
        detail="Its successor has the same name, user, scopes and length of life, and its schedules act as that one."
        " The key itself ends after the overlap, or when it would have anyway. No Idempotency-Key is taken: where the"
        " answer was lost, replace the successor.",
        tag="keys",
        scope="admin:keys",
        body=ReplaceKey,
        body_optional=True,
        audit=Audited(action="key.replace", detail=_successor),
        answers={201: (NewKey, "The successor, with its secret")},
        refusals=("request.not_found", "key.ended"),
        example={"overlap_s": 86400},
    ),
    Route(
        method="DELETE",
        path="/v1/keys/{key_id}",
        handler=revoke,
        summary="Revoke an API key",
        tag="keys",
        scope="admin:keys",
        audit=Audited(action="key.revoke"),
        answers={204: (None, "It is refused from now on, by other processes within 30 s")},
        refusals=("request.not_found",),
    ),
    Route(
        method="GET",
        path="/v1/me",
        handler=me,
        summary="See who calls",
        tag="keys",
        answers={200: (Me, "Tenant, user, key or issuer, and scopes")},
    ),
)
