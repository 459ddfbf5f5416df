"""The rate limits of every tenant as this process knows them: the settings', and what an operator set. `app` keeps it.

The rule: what an operator sets holds here within POLL_S, and asking what holds costs no query.
"""

import asyncio
import logging
from datetime import UTC, datetime

from sojourn.errors import StoreUnavailable
from sojourn.store.db import Database
from sojourn.store.sharing import rates
from sojourn.store.sharing.rates import Class, Limits, Rates

log = logging.getLogger("sojourn.api")

POLL_S = 1.0
BEGINNING = datetime(2000, 1, 1, tzinfo=UTC)


class Known:
    """The limits that hold now."""

    def __init__(self, database: Database, settings: Rates) -> None:
        self._database, self._settings = database, settings
        self._own: dict[str, Rates] = {}
        self._since = BEGINNING

    def of(self, tenant: str, class_: Class) -> Limits | None:
        """The limits of a tenant in a class; None where there are none."""
        limits = self._own.get(tenant, self._settings).of(class_)
        return limits if any(limits.by_subject()) else None

    async def look(self) -> None:
        """Read what operators have set since the last look; while the database is away, what was known holds."""
        try:
            found, self._since = await rates.changed(self._database, self._since)
        except StoreUnavailable as error:
            log.warning("rates.store_away", extra={"detail": str(error)})
            self._since = BEGINNING  # who answers next may have another clock
            return
        self._own |= {tenant: self._settings.under(own) for tenant, own in found.items()}

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await asyncio.sleep(POLL_S)
            try:
                await self.look()
            except Exception:
                log.exception("rates.bug")
