"""Callers that an API process vouches for: it verified their tokens, and the database takes its word.

`identity` calls it. The rule: a broker's secret is made in the database, lives in this process's memory alone, and is
never an argument of a statement; what is sent is a signature, which is worth one handle for five minutes.
"""

import asyncio
import hashlib
import hmac
from typing import NamedTuple

import asyncpg  # type: ignore[import-untyped]

from sojourn.loop.messages import Plain
from sojourn.store.db import Database
from sojourn.store.rows import Principal

OPEN = "select id, secret from open_broker()"
ADMIT = "select handle, until from admit($1, $2, $3, $4, $5, $6, $7, $8)"


class Vouched(Plain, frozen=True, kw_only=True):
    """Who sends a token that was found good."""

    tenant: str
    user: str
    token_id: str
    """`<issuer>:<16 hex digits>`: for logs, and the same for the same token."""
    issuer: str
    """Its name in the settings."""
    scopes: frozenset[str]
    until_s: int
    """When the token ends, in seconds since 1970; at most five minutes ahead."""
    confined: bool = False
    """It sees and touches what is its user's alone."""


class _Word(NamedTuple):
    """What the database gave us to sign with."""

    broker_id: object
    secret: bytes


class Broker:
    """The word of one API process. It is opened when first needed, and again when the database knows it no longer."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._word: _Word | None = None
        self._opening = asyncio.Lock()

    async def admit(self, caller: Vouched) -> Principal | None:
        """Trade a verified caller for a principal; None where there is no such tenant."""
        word = self._word or await self._open(None)
        try:
            row = await self._asked(word, caller)
        except asyncpg.InsufficientPrivilegeError:  # it ended, or the database was restored from before it
            row = await self._asked(await self._open(word), caller)
        if row is None:
            return None
        return Principal(
            tenant=caller.tenant,
            user=caller.user,
            key_id=caller.token_id,
            scopes=caller.scopes,
            handle=row["handle"],
            expires_at=row["until"],
            issuer=caller.issuer,
        )

    async def _open(self, spent: _Word | None) -> _Word:
        """Open a broker in place of the spent one, once for all who wait."""
        async with self._opening:
            if self._word is None or self._word is spent:
                async with self._database.migrator() as connection:
                    self._word = _Word(*await connection.fetchrow(OPEN))
            return self._word

    async def _asked(self, word: _Word, caller: Vouched) -> asyncpg.Record | None:
        scopes = " ".join(sorted(caller.scopes))
        said = (caller.tenant, caller.user, caller.token_id, scopes, caller.until_s)
        signed = "|".join(map(str, (*said, "confined") if caller.confined else said))
        signature = hmac.digest(word.secret, signed.encode(), hashlib.sha256)
        async with self._database.api() as connection:
            return await connection.fetchrow(ADMIT, word.broker_id, *said, signature, caller.confined)
