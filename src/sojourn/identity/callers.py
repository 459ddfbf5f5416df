"""Who sends a token: the database knows an API key, an issuer signs a JWT. Called by `tokens`.

The rule: a token is one or the other by its shape; both end in a handle that the database mints.
"""

from collections.abc import Callable, Mapping
from datetime import datetime

from msgspec.structs import replace

from sojourn.identity import scopes
from sojourn.identity.issuers import Issuer, Issuers, refusal
from sojourn.store.db import Database
from sojourn.store.rows import Principal
from sojourn.store.tenant import keys
from sojourn.store.tenant.admission import Broker


class Callers:
    """The callers of one API process."""

    def __init__(self, database: Database, issuers: Mapping[str, Issuer], now: Callable[[], datetime]) -> None:
        self._database, self._broker, self._issuers = database, Broker(database), Issuers(issuers, now)

    async def principal(self, token: str) -> Principal:
        """Say who sends a token. Raises Unauthenticated, IssuerUnavailable and StoreUnavailable."""
        found = await self._known(token)
        return replace(found, scopes=scopes.within(found.scopes)) if found.confined else found

    async def _known(self, token: str) -> Principal:
        if self._issuers and token.count(".") == 2:
            caller = await self._issuers.vouch(token)
            if (principal := await self._broker.admit(caller)) is None:
                raise refusal(caller.issuer, "there is no such tenant")
            return principal
        return await keys.authenticate(self._database, token)

    async def close(self) -> None:
        """Stop reading the issuers' keys."""
        await self._issuers.close()
