"""What goes into the database and comes out of it, as plain data.

Every file of this room gives or takes these, and `api` and `worker` with them. The rule: nothing here knows SQL, and a
secret never shows in a repr.
"""

from datetime import datetime
from typing import Literal

from sojourn.loop.agent import Agent, AgentRef
from sojourn.loop.budget import Held, Limits
from sojourn.loop.continuation import Continuation, Failure, Wait
from sojourn.loop.events import Adopted, Began, Event
from sojourn.loop.messages import Message, Plain, Usage

PRIORITY_MAX = 9
"""The priorities of a run are 0 to 9; the highest is claimed first."""

Status = Literal["queued", "running", "suspended", "completed", "failed", "cancelled", "quarantined"]
Released = Literal["queued", "suspended", "completed", "failed", "cancelled"]


# ---- who calls -------------------------------------------------------------------------------


class Principal(Plain, frozen=True, kw_only=True):
    """Who calls, with the handle that the database minted for them. It runs out at `expires_at`: authenticate again."""

    tenant: str
    user: str
    key_id: str
    scopes: frozenset[str]
    handle: str
    expires_at: datetime
    issuer: str = ""
    """Who issued the caller's token, by its name in the settings; `key_id` then names the token. Empty with a key."""

    @property
    def confined(self) -> bool:
        """Whether it sees and touches what is its user's alone: the handle says so, and the database keeps it."""
        return self.handle.split("|")[5:6] == ["confined"]

    def __repr__(self) -> str:
        return f"Principal(tenant={self.tenant!r}, user={self.user!r}, key_id={self.key_id!r})"


class KeyRow(Plain, frozen=True, kw_only=True):
    """An API key, without what it is checked against."""

    id: str
    prefix: str
    user_id: str
    name: str
    scopes: tuple[str, ...]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    replaced_by: str | None
    confined: bool


# ---- runs ------------------------------------------------------------------------------------


class NewRun(Plain, frozen=True, kw_only=True):
    """A run to be created: `continuation` is what `machine.begin(event)` gave, `agents` what its tools may start."""

    event: Began
    continuation: Continuation
    agent: Agent
    agents: tuple[Agent, ...] = ()
    priority: int = 0
    input: str = ""
    """What lists show of the request."""
    labels: dict[str, str] = {}
    start_at: datetime | None = None
    """No worker takes it before."""
    schedule: str | None = None
    """What made it, and for which time."""
    fire_at: datetime | None = None


class AdoptedRun(Plain, frozen=True, kw_only=True):
    """A run that was made of another one: `continuation` holds every message, `agents` all that it is pinned to."""

    event: Adopted
    continuation: Continuation
    agents: dict[str, Agent]
    status: Literal["queued", "suspended"]
    due_at: datetime | None
    priority: int = 0
    input: str = ""
    labels: dict[str, str] = {}


class SourceRun(Plain, frozen=True, kw_only=True):
    """A run that another one is to be made of: `continuation` holds every message, those of its session included."""

    continuation: Continuation
    priority: int
    input: str
    labels: dict[str, str]


class IssuerRow(Plain, frozen=True, kw_only=True):
    """A public key that exports are verified with: one of the tenant's own, or somebody's that it trusts."""

    issuer: str
    state: Literal["active", "retired", "revoked", "trusted"]
    name: str = ""
    created_at: datetime
    ended_at: datetime | None = None


class DeadLetter(Plain, frozen=True, kw_only=True):
    """How a run came into quarantine: claimed so often in a row, and lost by these workers; oldest first."""

    at: datetime | None
    claims: int | None
    workers: tuple[str, ...] = ()


class RunRow(Plain, frozen=True, kw_only=True):
    """A run as callers see it; `seq` is the number of its last event. `usd_micros` is None where a price is unknown."""

    id: str
    session_id: str
    user_id: str
    agent: AgentRef
    status: Status
    priority: int
    seq: int
    created_at: datetime
    start_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    input: str
    result: str | None
    error: Failure | None
    steps: int
    usage: Usage
    usd_micros: int | None
    estimated_calls: int
    limits: Limits
    waits: tuple[Wait, ...]
    labels: dict[str, str]
    schedule: str | None
    fire_at: datetime | None
    tells_more: bool
    """Its snapshot may tell what the row does not: taints, and sub-agents that were begun."""
    dead_letter: DeadLetter | None = None
    """Only of a run in quarantine."""


class RunPage(Plain, frozen=True):
    """Runs, newest first; `next` is the cursor of the page that follows."""

    rows: tuple[RunRow, ...]
    next: str | None = None


class RunFilter(Plain, frozen=True, kw_only=True):
    """Which runs to list; None where anything will do."""

    status: str | None = None
    agent: str | None = None
    session_id: str | None = None
    user_id: str | None = None
    schedule: str | None = None


# ---- a worker's side -------------------------------------------------------------------------


class Claimed(Plain, frozen=True, kw_only=True):
    """A lease on a run: `fence` proves it. `claims` counts those in a row that ended without any progress."""

    run_id: str
    tenant: str
    fence: int
    snapshot: Continuation
    claims: int


class StopOrder(Plain, frozen=True, kw_only=True):
    """A stop that is in force for a claimed run."""

    id: str
    mode: Literal["cancel", "hold"]
    reason: str


class Opened(Plain, frozen=True, kw_only=True):
    """All that is needed to drive a claimed run. `inbox` holds (row id, event) in the order they were posted."""

    continuation: Continuation
    agents: dict[str, Agent]
    inbox: tuple[tuple[int, Event], ...] = ()
    stops: tuple[StopOrder, ...] = ()
    streamed: dict[tuple[str, int, int], int] = {}
    """What readers saw of replies that were in flight when the worker before died: bytes by frame, step and attempt."""


class LedgerRow(Plain, frozen=True, kw_only=True):
    """One paid model call; `seq` is the event that it belongs to."""

    seq: int
    at: datetime
    user_id: str
    agent_name: str
    provider: str
    model: str
    attempt: int
    usage: Usage
    usd_micros: int | None
    estimated: bool = False
    """The provider gave no whole count of it."""
    judge: bool = False
    """A guardrail's judge was asked."""


class Paid(Plain, frozen=True, kw_only=True):
    """What a commit says of one model call to the pools of the day; `open` while the call is in flight."""

    call: str
    usd_micros: int = 0
    tokens: int = 0
    open: bool = False


class Starved(Plain, frozen=True, kw_only=True):
    """A wait for room in a pool of the day, and what the call that was not made may cost at most."""

    wait: str
    held: Held


class Release(Plain, frozen=True, kw_only=True):
    """How a lease is given back; the run may be claimed again from `due_at` on."""

    status: Released
    due_at: datetime | None = None


class Commit(Plain, frozen=True, kw_only=True):
    """What a worker makes durable in one piece: `events` have the numbers before_seq + 1 to after.rev."""

    tenant: str
    run_id: str
    fence: int
    before_seq: int
    after: Continuation
    events: tuple[Event, ...] = ()
    bodies: tuple[tuple[str, int, Message], ...] = ()
    ledger: tuple[LedgerRow, ...] = ()
    paid: tuple[Paid, ...] = ()
    """Of tenants with pools of the day alone, as is `starved`."""
    starved: tuple[Starved, ...] = ()
    inbox_ids: tuple[int, ...] = ()
    release: Release | None = None


class DeltaRow(Plain, frozen=True, kw_only=True):
    """A batch of one attempt's deltas; `items` is a JSON array."""

    id: int
    frame: str
    step: int
    attempt: int
    items: bytes


# ---- what a tenant has -----------------------------------------------------------------------


class SessionRow(Plain, frozen=True, kw_only=True):
    """A session, where its sandbox is, and the digest of the last archive of its files."""

    id: str
    user_id: str
    created_at: datetime
    closed_at: datetime | None
    used_at: datetime
    host: str | None
    backend: str | None
    workspace: str | None
    enforced: bytes | None
    """What the sandbox enforces, as JSON."""


class SessionPage(Plain, frozen=True):
    """Sessions, newest first; `next` is the cursor of the page that follows."""

    rows: tuple[SessionRow, ...]
    next: str | None = None


class IdleSession(Plain, frozen=True):
    """A session whose sandbox nobody used for a while."""

    tenant: str
    id: str
    used_at: datetime


class AgentRow(Plain, frozen=True, kw_only=True):
    """An agent and its live version."""

    name: str
    live_version: int
    runs_max: int | None
    digest: str
    created_at: datetime
    archived_at: datetime | None


class VersionRow(Plain, frozen=True, kw_only=True):
    """One immutable version of an agent."""

    name: str
    version: int
    digest: str
    created_at: datetime
    created_by: str


class ScheduleRow(Plain, frozen=True, kw_only=True):
    """When to make a run, and which; `spec` is JSON. Every fire up to `since` is dealt with."""

    name: str
    user_id: str
    key_id: str
    spec: bytes
    created_at: datetime
    since: datetime
    next_at: datetime | None = None
    """The next fire; None while it is paused, and once it has ended."""
    due_at: datetime | None = None
    """When the schedule is looked at next."""
    paused_at: datetime | None = None
    tries: int = 0
    """How often the fire that is due was refused for the moment."""
    last_fire_at: datetime | None = None
    last_run_id: str | None = None
    error_code: str | None = None
    error_detail: str | None = None
    error_at: datetime | None = None
    fired: int = 0
    missed: int = 0
    skipped: int = 0
    refused: int = 0


class Due(Plain, frozen=True, kw_only=True):
    """A schedule that is due, whom it acts as, and the handle minted for it: None where its key has ended."""

    tenant: str
    name: str
    user_id: str
    key_id: str
    scopes: frozenset[str]
    handle: str | None
    now_at: datetime
    """The database's clock."""

    def __repr__(self) -> str:
        return f"Due(tenant={self.tenant!r}, name={self.name!r})"


class Stored(Plain, frozen=True):
    """The answer that a request with this Idempotency-Key got before."""

    status: int
    body: bytes


class Counts(Plain, frozen=True, kw_only=True):
    """How the whole server stands, over all tenants."""

    runs: dict[str, int]
    """Unfinished runs by status."""
    delayed: int
    """The queued ones among them that are to begin later."""
    workers: int
    oldest_due_at: datetime | None
    """Since when the oldest run in the queue is due."""
    claimable: int
    """Runs that a worker could take now."""
    held_back: int
    """Runs that are due, and that a limit of their tenant or agent keeps in the queue."""
