"""The error tree. An exception crosses a room only as one of these; anything else is a bug and says so.

    SojournError
    |- Refused            the caller must change something
    |  |- Unauthenticated 401 . Forbidden 403 . NotFound 404 . Invalid 422 . TooLarge 413
    |  |- Conflict 409    NotWaiting, AlreadyDecided, StaleVersion, IdempotencyReused
    |  '- OverLimit 429   RateLimited, BudgetSpent, QueueFull
    |- Unavailable 503    ModelUnavailable, ToolUnavailable, SandboxUnavailable, StoreUnavailable,
    |                     IssuerUnavailable
    |- LeaseLost          this worker stops at once and writes nothing; never leaves worker/
    '- Unreadable         a continuation that we refuse: UnknownFormat, BadSeal, MissingPin

Each class carries its wire code ("area.reason"), HTTP status and whether the same request may be tried again.
The message says what happened and what to do about it; it never holds a prompt, an argument or a secret.
"""


class SojournError(Exception):
    """Something went wrong that Sojourn knows by name."""

    code = "sojourn.error"
    http_status = 500
    retry = False

    def __init__(
        self,
        message: str = "",
        *,
        code: str | None = None,
        pointer: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message or type(self).__doc__ or "")
        self.code = code or type(self).code
        self.pointer = pointer  # a JSON pointer to the field that is wrong, where there is one
        self.retry_after_s = retry_after_s


class Refused(SojournError):
    """The request cannot be carried out as it is; change it."""

    code, http_status = "request.refused", 400


class Unauthenticated(Refused):
    """Send `Authorization: Bearer <key>`; `sojourn keys create` makes one."""

    code, http_status = "auth.unauthenticated", 401


class Forbidden(Refused):
    """The key lacks a scope that this request needs."""

    code, http_status = "auth.forbidden", 403
    scope: str | None = None
    """The scope that is missing, where it is one."""


class NotFound(Refused):
    """There is nothing here by that name that you may see."""

    code, http_status = "request.not_found", 404


class Invalid(Refused):
    """A field has a value that cannot be accepted."""

    code, http_status = "request.invalid", 422


class TooLarge(Refused):
    """The request is larger than the limit."""

    code, http_status = "request.too_large", 413


class Conflict(Refused):
    """The request does not fit the present state."""

    code, http_status = "request.conflict", 409


class NotWaiting(Conflict):
    """The run is not waiting for this."""

    code = "run.not_waiting"


class AlreadyDecided(Conflict):
    """Somebody decided this before, in another way."""

    code = "approval.already_decided"


class StaleVersion(Conflict):
    """The object changed since you read it; read it again."""

    code = "request.stale_version"


class IdempotencyReused(Conflict):
    """This Idempotency-Key was used before with another body; use a new key."""

    code, http_status = "request.idempotency_reused", 422


class OverLimit(Refused):
    """A limit is reached; try again later."""

    code, http_status, retry = "limit.reached", 429, True


class RateLimited(OverLimit):
    """Too many requests in the window."""

    code = "limit.rate"

    def __init__(
        self, message: str = "", *, retry_after_s: float | None = None, policies: tuple[str, ...] = ()
    ) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.policies = policies  # the names of the limits that are used up


class BudgetSpent(OverLimit):
    """The budget is spent; raise it or wait for the next window."""

    code, retry = "limit.budget", False


class QueueFull(OverLimit):
    """Too many runs are queued; try again when some have finished."""

    code = "limit.queue"


class Unavailable(SojournError):
    """A part that Sojourn needs does not answer now; try again."""

    code, http_status, retry = "service.unavailable", 503, True


class ModelUnavailable(Unavailable):
    """The model endpoint does not answer as it should."""

    code = "model.unavailable"


class ToolUnavailable(Unavailable):
    """A tool cannot be reached."""

    code = "tool.unavailable"


class SandboxUnavailable(Unavailable):
    """No sandbox can be made here with the isolation and limits that were asked for; `sojourn doctor` says why."""

    code = "sandbox.unavailable"


class StoreUnavailable(Unavailable):
    """The database does not answer; nothing that was accepted is lost."""

    code = "store.unavailable"


class IssuerUnavailable(Unavailable):
    """The keys of the token's issuer cannot be read now; `sojourn doctor` says why."""

    code = "auth.issuer_unavailable"


class TooNew(Unavailable):
    """A newer release of Sojourn wrote this, and this process cannot read it; another one may. Ask again."""

    code = "release.older"


class LeaseLost(SojournError):
    """Another worker holds this run now."""

    code = "lease.lost"


class Unreadable(SojournError):
    """This continuation cannot be read."""

    code, http_status = "continuation.unreadable", 422


class UnknownFormat(Unreadable):
    """The continuation was written by a newer version; it is left untouched."""

    code = "continuation.unknown_format"


class BadSeal(Unreadable):
    """The continuation's digest or signature does not fit its content."""

    code = "continuation.bad_seal"


class MissingPin(Unreadable):
    """An agent, tool or price that the continuation is pinned to is not here."""

    code = "continuation.missing_pin"
