"""The permissions that a key or a token may hold, and the one question about them. Called by the API's guard.

The rule: a scope is granted by its own name, by `<area>:*` or by `*`, and by nothing else.
"""

from collections.abc import Collection, Mapping

from sojourn.errors import Forbidden

SCOPES: Mapping[str, str] = {
    "runs:read": "See runs, their events, transcripts and traces.",
    "runs:write": "Start, cancel and talk to runs.",
    "sessions:read": "See sessions and read their files.",
    "sessions:write": "Make and close sessions, write and delete their files.",
    "agents:read": "See agents and their versions, the tools and the models.",
    "agents:write": "Make agents and versions, and say which version is live.",
    "schedules:read": "See schedules.",
    "schedules:write": "Make, change, pause and delete schedules; what they run takes runs:write, too.",
    "approvals:read": "See what waits for a person.",
    "approvals:decide": "Answer what waits for a person.",
    "budgets:raise": "Raise the limits of a run that has used them up.",
    "guardrails:read": "See guardrails and their versions, and try texts on them.",
    "guardrails:write": "Make, change and end guardrails.",
    "usage:read": "See what all users of the tenant paid for models.",
    "webhooks:read": "See webhooks and what was sent to them.",
    "webhooks:write": "Say where events of all the tenant's runs are sent, and send them again.",
    "alerts:read": "See alerts.",
    "alerts:write": "Say that an alert was seen.",
    "admin:keys": "See, make and revoke the tenant's API keys and signing keys, and say whose exports are let in.",
    "admin:runs": "See dead letters, and let them out of quarantine.",
    "admin:stop": "Stop runs, sessions, agents, users and the tenant, and lift such stops.",
    "admin:budgets": "Bound what the tenant and its users spend in a day, within what the operator allows.",
    "admin:audit": "Read the audit log: who did what in the tenant.",
    "admin:metrics": "Read the server's metrics, which count all tenants.",
}
"""Every scope, and what it allows."""
CONFINED = frozenset({
    "runs:read", "runs:write", "sessions:read", "sessions:write", "agents:read", "schedules:read", "approvals:read",
    "approvals:decide", "budgets:raise", "usage:read",
})  # fmt: skip
"""Those that a confined caller may have; the others are about the whole tenant."""


def allows(held: Collection[str], wanted: str) -> bool:
    """Say whether the scopes held include the one wanted; a wanted `area:*` or `*` needs at least as much."""
    area = wanted.partition(":")[0]
    return wanted in held or f"{area}:*" in held or "*" in held


def within(held: Collection[str]) -> frozenset[str]:
    """What is left of scopes for a confined caller."""
    return frozenset(scope for scope in CONFINED if allows(held, scope))


def require(held: Collection[str], wanted: str, *, confined: bool = False) -> None:
    """Raise Forbidden, naming the scope, where it is not held."""
    if not allows(held, wanted):
        error = Forbidden(f"This needs a key with the scope {wanted}; yours has {_listed(held)}.")
        if confined and wanted not in CONFINED:
            error = Forbidden(f"This needs the scope {wanted}, and you are confined to what is your user's.")
        error.scope = wanted
        raise error


def known(scope: str) -> bool:
    """Say whether this is a scope, or a pattern over some."""
    areas = {name.partition(":")[0] for name in SCOPES}
    return scope in SCOPES or scope == "*" or (scope.endswith(":*") and scope[:-2] in areas)


def _listed(held: Collection[str]) -> str:
    return ", ".join(sorted(held)) or "none"
