"""What a worker works with, and whose run it works on: `wiring` makes the Parts once, `drive.py` a Place a run."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple, TypeVar

from sojourn.errors import StoreUnavailable
from sojourn.guardrails.in_force import InForce
from sojourn.guardrails.judging import Found
from sojourn.guardrails.rules import On
from sojourn.loop.effects import CallModel
from sojourn.loop.events import Compacted, Consulted, ModelLost, Noted
from sojourn.models.model import Models
from sojourn.models.prices import Prices
from sojourn.sandboxes.placing import Opened
from sojourn.sandboxes.sandbox import Provider, Spec
from sojourn.settings import Settings
from sojourn.store.commits import Committer
from sojourn.store.db import Database
from sojourn.store.deltas import DeltaWriter
from sojourn.store.doorbell import Doorbell
from sojourn.store.rows import Claimed
from sojourn.tools.tool import Toolbox
from sojourn.worker.budgets.pools import DayPools
from sojourn.worker.meter import Asked, Meter
from sojourn.worker.slots import CallSlots
from sojourn.worker.tenure import Tenure

log = logging.getLogger("sojourn.worker")

STORE_RETRY_S = 0.5

T = TypeVar("T")


def asked_by(named: CallModel | ModelLost | Compacted) -> Asked:
    """The attempt at a model call that an effect or event is of."""
    return named.frame, named.step, named.attempt


class Subject(NamedTuple):
    """A text that judges are asked about, and where in a run it stands."""

    on: On
    frame: str
    step: int
    text: str
    call: str = ""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The adapters and settings of one worker process."""

    worker_id: str
    host: str
    settings: Settings
    database: Database
    doorbell: Doorbell
    committer: Committer
    deltas: DeltaWriter
    models: Models
    tools: Toolbox
    sandboxes: Provider
    guardrails: InForce
    sandbox_spec: Spec
    prices: Prices
    now: Callable[[], datetime]
    calls: CallSlots
    pools: DayPools
    tenure: Tenure
    moving: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(4))
    """So many sandboxes are opened or put away at once: each may hold an archive in memory meanwhile."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Whose run an effect belongs to. `note` puts a fact into its journal, `consult` asks its judges about a text."""

    tenant: str
    user: str
    session_id: str
    claimed: Claimed
    note: Callable[[Noted | Compacted | Consulted], None]
    consult: Callable[[Subject], Coroutine[None, None, tuple[Found, ...]]]
    opening: asyncio.Lock = field(default_factory=asyncio.Lock)
    opened: list[Opened] = field(default_factory=list)
    """Holds the session's sandbox, once its files are known to be here."""
    meters: dict[Asked, Meter] = field(default_factory=dict)
    """What attempts at model calls have used that are not over for good."""

    def meter(self, call: CallModel) -> Meter:
        """The meter of an attempt at a model call."""
        return self.meters.setdefault(asked_by(call), Meter(call))

    @property
    def run_id(self) -> str:
        return self.claimed.run_id

    async def patiently(self, ask: Callable[..., Awaitable[T]], *given: object) -> T:
        """Ask the database, however long it is away: an outage is neither a run's fault nor for its model to read."""
        while True:
            try:
                return await ask(*given)
            except StoreUnavailable:
                log.warning("run.store_away", extra={"run": self.run_id})
                await asyncio.sleep(STORE_RETRY_S)
