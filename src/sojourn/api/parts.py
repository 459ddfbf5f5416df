"""What the API is built from. `wiring` makes one for a process; handlers reach it through what they are asked with."""

import asyncio
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from sojourn.guardrails.in_force import InForce
from sojourn.identity.secrets.vault import Vault
from sojourn.loop.agent import Tool
from sojourn.loop.messages import Usage
from sojourn.models.model import Models
from sojourn.sandboxes.sandbox import Provider
from sojourn.settings import Settings
from sojourn.store.db import Database
from sojourn.store.doorbell import Doorbell
from sojourn.store.rows import Principal

RUN_BELL, DELTA_BELL, WORK_BELL, INBOX_BELL = "sojourn_run", "sojourn_delta", "sojourn_work", "sojourn_inbox"
WANTED_BELL, SCHEDULE_BELL, STOP_BELL = "sojourn_wanted", "sojourn_schedule", "sojourn_stop"
"""The doorbells: new events of a run, new deltas of it, a run that may be claimed, mail for one that is held, a session
whose files are to be put away, a schedule that was changed, and a stop that was made or lifted."""


@dataclass(frozen=True, kw_only=True)
class Api:
    """The adapters and settings of one API process."""

    database: Database
    doorbell: Doorbell
    """It hears RUN_BELL, DELTA_BELL and SCHEDULE_BELL at least."""
    settings: Settings
    tools: Mapping[str, Tool]
    """The server tools that an agent may name."""
    vault: Vault
    models: Models
    price: Callable[[str, Usage], int | None]
    """The cost of one call in micro-USD; None where the price of a model is not known."""
    guardrails: InForce
    """What everything that is said to a run is judged by."""
    sandboxes: Provider | None
    """None where sessions' files cannot be reached from this process."""
    host: str = field(default_factory=socket.gethostname)
    """The name under which workers of this machine place sandboxes."""
    now: Callable[[], datetime]
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the process was told to stop: what it still answers, it answers soon."""
    new_id: Callable[[str], str]
    """A fresh, time-ordered id with a prefix: `new_id("run")` is `run_` and 26 characters."""


class Acting(Protocol):
    """On whose behalf something is done: a request's caller, or whom a schedule acts as."""

    @property
    def parts(self) -> Api: ...

    @property
    def principal(self) -> Principal: ...
