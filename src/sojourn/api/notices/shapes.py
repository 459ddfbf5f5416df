"""What the routes of webhooks and alerts take and give. The reference is made of it."""

from datetime import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from sojourn.api.http.pages import Page
from sojourn.api.patterns import ID, whole
from sojourn.store.notices.webhooks import State

Url = Annotated[str, Meta(min_length=8, max_length=2048, examples=["https://example.org/sojourn"])]
EventType = Literal[
    "run.completed",
    "run.failed",
    "run.cancelled",
    "run.suspended",
    "run.quarantined",
    "alert.spend",
    "alert.budget",
    "alert.errors",
    "alert.queue",
    "alert.webhook",
    "alert.backlog",
    "run.*",
    "alert.*",
    "*",
]
EventTypes = Annotated[tuple[EventType, ...], Meta(min_length=1, max_length=32)]
Description = Annotated[str, Meta(max_length=200)]
DeliveryId = Annotated[str, Meta(pattern=whole(f"msg_{ID}"))]


class CreateWebhook(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where events are to be sent, and which."""

    url: Url
    events: EventTypes = ("run.completed", "run.failed", "run.suspended", "alert.*")
    description: Description = ""


class ChangeWebhook(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is to be different."""

    url: Url | UnsetType = UNSET
    events: EventTypes | UnsetType = UNSET
    description: Description | UnsetType = UNSET
    disabled: bool | UnsetType = UNSET
    """A disabled webhook is sent nothing, and what waited for it is dead; false enables it."""


class WebhookSeen(msgspec.Struct, frozen=True, kw_only=True):
    """A webhook, without its secret."""

    object: Literal["webhook"] = "webhook"
    id: str
    url: str
    events: tuple[str, ...]
    description: str
    made_by: str
    created_at: datetime
    disabled_at: datetime | None
    disabled_code: str | None
    """`caller`; or by the server: `gone` (it answered 410), `failing` (it took nothing for three days)."""
    failures: int
    """Attempts that failed since it last took something."""
    failing_since: datetime | None
    former_until: datetime | None
    """Until then messages are signed with the secret before this one too."""


class ReplaceSecret(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How long both secrets are good."""

    overlap_s: Annotated[int, Meta(ge=0, le=90 * 86400)] = 86400


class NewWebhook(WebhookSeen, frozen=True, kw_only=True):
    """A webhook that has a new secret."""

    secret: str
    """What its messages are signed with. Keep it now: it is not shown again."""


class WebhooksPage(msgspec.Struct, frozen=True, kw_only=True):
    """All webhooks of the tenant."""

    data: tuple[WebhookSeen, ...]
    has_more: bool = False
    next: str | None = None


class DeliveriesQuery(Page, frozen=True, forbid_unknown_fields=True, kw_only=True):
    state: Annotated[State | None, Meta(description="Only those that wait, were delivered, or are dead.")] = None


class DeliverySeen(msgspec.Struct, frozen=True, kw_only=True):
    """One message, and how it went. Its id is the header `webhook-id`."""

    id: str
    webhook_id: str
    type: str
    state: State
    created_at: datetime
    next_at: datetime | None
    """When it is sent next."""
    attempts: int
    attempted_at: datetime | None
    delivered_at: datetime | None
    status: int | None
    """What the last attempt was answered."""
    error: str | None
    """Why the last attempt was not taken."""


class DeliveriesPage(msgspec.Struct, frozen=True, kw_only=True):
    """Deliveries, the newest first."""

    data: tuple[DeliverySeen, ...]
    has_more: bool
    next: str | None


class Retry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is to be sent once more."""

    deliveries: Annotated[tuple[DeliveryId, ...], Meta(min_length=1, max_length=200)] | None = None
    """These, delivered or dead; all dead ones where nothing is said."""


class Retried(msgspec.Struct, frozen=True, kw_only=True):
    """What is sent once more."""

    retried: int


class AlertsQuery(Page, frozen=True, forbid_unknown_fields=True, kw_only=True):
    all: Annotated[bool, Meta(description="Those that are over, too.")] = False


class AlertSeen(msgspec.Struct, frozen=True, kw_only=True):
    """Something that somebody should look at."""

    object: Literal["alert"] = "alert"
    id: str
    kind: str
    """`spend`, `budget`, `errors`, `queue`, `webhook` or `backlog`; more may be added."""
    what: str
    """`tenant`, `user`, `agent` or `webhook`."""
    subject: str
    """The user, the agent's name or the webhook's id; empty for the tenant."""
    value: int
    bound: int
    """What the value is compared with: micro-USD, tokens, runs, seconds or deliveries, as the kind has it."""
    detail: str
    opened_at: datetime
    closed_at: datetime | None
    acked_at: datetime | None
    acked_by: str | None


class AlertsPage(msgspec.Struct, frozen=True, kw_only=True):
    """Alerts, the newest first."""

    data: tuple[AlertSeen, ...]
    has_more: bool
    next: str | None
