"""Every code that an answer may carry, and the refusals that only HTTP knows. Problems and the reference read them.

The rule: a code is listed here before anything answers with it, and never changes its meaning.
"""

from collections.abc import Mapping

from sojourn.errors import OverLimit, Refused, SojournError, Unavailable


class Malformed(Refused):
    """The body is not JSON."""

    code = "request.malformed"


class WrongMethod(Refused):
    """This path does not know this method."""

    code, http_status = "request.method", 405


class TooSlow(Refused):
    """The body did not arrive in time."""

    code, http_status, retry = "request.timeout", 408, True


class WrongMedia(Refused):
    """The body is of a type that is not read here."""

    code, http_status = "request.media_type", 415


class StreamsFull(OverLimit):
    """This server holds as many event streams as it may; try again later, or read the events as pages."""

    code = "limit.streams"


class Stopping(Unavailable):
    """This server was told to stop; ask another one."""

    code = "server.stopping"


class Bug(SojournError):
    """This is a bug in Sojourn. The server's log has the cause under the request id."""

    code, http_status = "sojourn.bug", 500


CODES: Mapping[str, tuple[int, str]] = {
    "request.refused": (400, "The request cannot be carried out as it is."),
    "request.malformed": (400, "The body is not JSON."),
    "request.too_deep": (400, "The JSON is nested too deep."),
    "auth.unauthenticated": (401, "There is no key or token, or one that is unknown, expired or revoked."),
    "auth.forbidden": (403, "The key lacks a scope."),
    "schedule.needs_key": (403, "A schedule acts as an API key, and the caller has none."),
    "request.not_found": (404, "There is nothing here by that name that you may see."),
    "request.method": (405, "This path does not know this method."),
    "request.timeout": (408, "The body did not arrive in time."),
    "request.conflict": (409, "The request does not fit the present state."),
    "request.in_progress": (409, "The first request with this Idempotency-Key is still being answered."),
    "request.stale_version": (409, "The object changed since you read it."),
    "run.ended": (409, "The run has ended."),
    "run.not_waiting": (409, "The run is not waiting for this."),
    "approval.already_decided": (409, "Somebody decided this before, in another way."),
    "approval.expired": (409, "The time to answer is over."),
    "approval.voted": (409, "You approved it already; somebody else must, too."),
    "approval.other_arguments": (409, "The arguments are not those that you saw."),
    "approval.other_tool": (409, "The tool is not the one that was asked about."),
    "approval.not_yours": (403, "The question is for somebody else."),
    "approval.initiator": (403, "The user that the run acts for may not answer."),
    "approval.edit_denied": (403, "The policy does not allow these arguments."),
    "approval.edit_widens": (403, "These arguments need an approval of another kind."),
    "approval.edit_invalid": (422, "The arguments do not fit the tool."),
    "approval.not_allowed": (422, "The question cannot be answered in this way."),
    "approval.no_limits": (422, "The new limits of a budget are missing, or it is no budget."),
    "approval.no_end": (422, "The new end of a wait is missing, or has passed."),
    "hook.signature": (401, "The webhook's signature is not that of this run, or it is too old."),
    "run.unfinished": (409, "The run has not ended."),
    "run.continued": (409, "A later run of the session goes on from this one."),
    "run.running": (409, "A worker is driving the run, or is about to."),
    "run.not_quarantined": (409, "The run is not in quarantine."),
    "import.original_here": (409, "The exported run is here itself."),
    "import.replayed": (409, "The export was imported before."),
    "import.stale": (409, "A newer export of that run was imported before."),
    "key.ended": (409, "The key was revoked, has expired or has a successor."),
    "stop.in_force": (409, "A stop is in force."),
    "session.busy": (409, "The session has a run that has not ended."),
    "session.open": (409, "The session is not closed."),
    "session.closed": (409, "The session is closed."),
    "webhook.disabled": (409, "The webhook is disabled."),
    "schedule.exists": (409, "There is a schedule of that name."),
    "agent.exists": (409, "There is an agent of that name."),
    "agent.archived": (409, "The agent is archived."),
    "request.too_large": (413, "The request is larger than the limit."),
    "continuation.too_large": (413, "The export is larger than the limit."),
    "request.media_type": (415, "The body is of a type that is not read here."),
    "request.invalid": (422, "A field has a value that cannot be accepted."),
    "request.idempotency_reused": (422, "This Idempotency-Key was used before with another body."),
    "agent.unknown": (422, "There is no agent of that name."),
    "model.unknown": (422, "No configured provider fits the model reference."),
    "budget.price_unknown": (422, "A day's budget of money is set, and the price of a model is not known."),
    "budget.no_price": (422, "A limit of money is set, and the price of a model is not known."),
    "model.no_key": (422, "No model of the agent has a key on this server."),
    "tool.unknown": (422, "The server has no tool of that name."),
    "tool.changed": (422, "A tool of the server is not the one that the run is pinned to."),
    "fork.ended": (422, "The run has ended, and there is nothing to go on with."),
    "fork.no_such_step": (422, "The run has no such step to go back to."),
    "continuation.unreadable": (422, "This is no run that was exported, or not all of it."),
    "continuation.unknown_format": (422, "A newer release wrote the run."),
    "continuation.too_deep": (422, "The export is nested too deep."),
    "continuation.duplicate_name": (422, "A name is given twice in one object of the export."),
    "continuation.bad_seal": (422, "The signature or a digest does not fit: it was changed."),
    "continuation.unknown_issuer": (422, "The export is signed by a key that nobody here trusts."),
    "continuation.revoked_issuer": (422, "The export is signed with a key that was revoked."),
    "continuation.missing_pin": (422, "The agent versions are not those that the run is pinned to."),
    "continuation.bad_blob": (422, "The blobs are not those that the run refers to."),
    "guardrail.refused": (422, "A guardrail refuses what was said."),
    "tool.schema": (422, "A tool's schema is not a JSON Schema of an object."),
    "blob.unknown": (422, "There is no blob of that digest."),
    "stream.beyond_end": (422, "The stream is asked to begin after its end."),
    "limit.reached": (429, "A limit is reached."),
    "limit.rate": (429, "Too many requests in the window."),
    "limit.queue": (429, "Too many runs are queued."),
    "limit.schedules": (429, "The tenant has as many schedules as it may."),
    "limit.webhooks": (429, "The tenant has as many webhooks as it may, or one has too much waiting."),
    "limit.streams": (429, "This server holds as many event streams as it may."),
    "limit.guardrails": (429, "There are as many guardrails as there may be."),
    "limit.blobs": (429, "The tenant keeps as many bytes of blobs as it may."),
    "limit.budget": (429, "The budget is spent."),
    "budget.day_exhausted": (429, "The day's budget of the tenant or the user is spent."),
    "sojourn.bug": (500, "This is a bug in Sojourn."),
    "service.unavailable": (503, "A part that Sojourn needs does not answer now."),
    "auth.issuer_unavailable": (503, "The keys of the token's issuer cannot be read."),
    "sandbox.unavailable": (503, "The session's files cannot be reached."),
    "sandbox.busy": (503, "Too many requests wait for a sandbox to open."),
    "release.older": (503, "A newer release of Sojourn wrote this, and this server cannot read it."),
    "server.stopping": (503, "This server was told to stop."),
    "vault.root_key": (503, "This server lacks the root key that a secret is under."),
    "vault.damaged": (503, "A sealed secret does not open."),
    "store.unavailable": (503, "The database does not answer."),
    "store.pooler": (503, "The pooler before the database is not set up as Sojourn was told."),
    "store.full": (503, "The database's disk is full: what is there can be read, and nothing new is accepted."),
}
"""Code -> HTTP status and title."""
