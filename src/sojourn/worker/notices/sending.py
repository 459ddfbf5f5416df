"""Sends what webhooks are owed, and looks for what alerts are about. The worker has a loop for each.

    send    claim, send, settle; many webhooks at once, one message of each at a time
    look    a round of the alerts, if no other process has just made one

The rule: while a request is on its way no connection to the database is held, so a slow webhook holds up nobody.
"""

import asyncio
import logging

from sojourn.errors import StoreUnavailable
from sojourn.identity.addresses import listed
from sojourn.settings import Settings
from sojourn.store.notices import alerts, deliveries
from sojourn.store.notices.deliveries import Delivery
from sojourn.store.notices.rules import Thresholds
from sojourn.worker.notices.outgoing import Outgoing
from sojourn.worker.parts import Parts
from sojourn.worker.shutdown import ended

log = logging.getLogger("sojourn.worker")

SENDING_MAX = 64
"""Requests of one worker that are on their way at once."""
POLL_S, LOOK_S = 1.0, 5.0
"""How often a worker asks whether anything is to be sent, and whether a round is due."""


class Sender:
    """What one worker does for those who want to be told."""

    def __init__(self, parts: Parts) -> None:
        self._database, self._settings, self._now = parts.database, parts.settings, parts.now

    async def send(self, _: object) -> None:
        """Send until cancelled. Raises StoreUnavailable."""
        settings = self._settings
        outgoing = Outgoing(http_allowed=settings.webhooks_http_allowed, hosts=listed(settings.webhook_hosts_allowed))
        flying: set[asyncio.Task[None]] = set()
        try:
            while True:
                room = SENDING_MAX - len(flying)
                for one in await deliveries.claim(self._database, room) if room else ():
                    flying.add(asyncio.create_task(self._send(outgoing, one), name=f"webhook {one.webhook_id}"))
                if flying:
                    _, flying = await asyncio.wait(flying, timeout=POLL_S, return_when=asyncio.FIRST_COMPLETED)
                else:
                    await asyncio.sleep(POLL_S)
        finally:
            await ended(flying)
            outgoing.close()

    async def _send(self, outgoing: Outgoing, one: Delivery) -> None:
        """Send one delivery and write down what came of it; never raises."""
        about = {"tenant": one.tenant, "webhook": one.webhook_id, "delivery": one.id, "type": one.type}
        try:
            outcome = await outgoing.send(one)
            disabled = await deliveries.settle(self._database, one, outcome)
        except StoreUnavailable:
            log.warning("webhook.not_settled", extra=about)  # it is sent once more, with the same id
        except Exception:
            log.exception("webhook.bug", extra=about)
        else:
            told = {**about, "attempt": one.attempts, "status": outcome.status, "error": outcome.error}
            log.info("webhook.delivered" if outcome.taken else "webhook.failed", extra=told)
            if disabled:
                log.warning("webhook.disabled", extra={**about, "code": disabled})

    async def look(self, _: object) -> None:
        """Open and close alerts, where it is time and no other process does, and wait a moment."""
        every_s = self._settings.alerts_every_s
        await alerts.round(self._database, self._now(), thresholds(self._settings), every_s=every_s)
        await asyncio.sleep(min(LOOK_S, every_s))


def thresholds(settings: Settings) -> Thresholds:
    """From when on something is told, as the operator has set it."""
    return Thresholds(
        spend_times=settings.alert_spend_times,
        spend_floor=settings.alert_spend_floor_usd_micros,
        budget_share=settings.alert_budget_share,
        day_defaults=settings.day_defaults.row,
        errors_share=settings.alert_errors_share,
        errors_min=settings.alert_errors_min,
        queue_s=settings.alert_queue_s,
    )
