"""A call as Cedar reads it: docs/guardrails.md describes it as a schema.

`cedar` asks with it. The rule: a text or number that Cedar has no value for is an entity of type JSON, which is equal
to itself, has no attribute and fails every other operator; an object that it has none for is not told, and refused.
"""

import hashlib
import json
from decimal import Decimal
from typing import Any

from sojourn.guardrails.policies.engine import Asked
from sojourn.loop.step.waits import parsed

CONTEXT_CHARS_MAX = 32_768
"""Of the context as JSON: reading it takes Cedar some milliseconds, and every guardrail reads it again."""
STRING_CHARS_MAX = 8_192
"""What `like` may have to look through."""
NESTED_MAX = 16
LONG = range(-(2**63), 2**63)
ESCAPES = {"__entity", "__extn", "__expr"}
"""Names by which Cedar's JSON says that an object is none."""


def request(asked: Asked) -> dict[str, Any]:
    """The request, with its context as JSON text.

    Raises ValueError, with no word of the arguments, for a call that cannot be told.
    """
    origin = asked.origin
    arguments = told(parsed(asked.args), NESTED_MAX)
    context = json.dumps({"arguments": arguments, "effect": asked.effect, "depth": origin.depth}, ensure_ascii=False)
    if len(context) > CONTEXT_CHARS_MAX:
        raise ValueError(f"the arguments come to more than {CONTEXT_CHARS_MAX} characters")
    return {
        "principal": _uid("User", f"{origin.tenant}/{origin.user}"),
        "action": _uid("Action", asked.tool),
        "resource": _uid("Agent", origin.agent),
        "context": context,
    }


def entities(asked: Asked) -> str:
    """The principal and the resource, both in their tenant."""
    origin = asked.origin
    tenant = [_uid("Tenant", origin.tenant)]
    named = (_uid("User", f"{origin.tenant}/{origin.user}"), _uid("Agent", origin.agent))
    return json.dumps([{"uid": uid, "attrs": {}, "parents": tenant} for uid in named])


def told(value: Any, levels: int) -> Any:
    """A value of the arguments, so many levels deep, as Cedar's JSON."""
    match value:
        case bool():
            return value
        case None:
            return _opaque("null")
        case int():
            return value if value in LONG else _opaque(str(value))
        case float():
            return _number(value)
        case str() if len(value) > STRING_CHARS_MAX:
            return _opaque("sha256:" + hashlib.sha256(value.encode()).hexdigest())
        case str():
            return value
        case _ if not levels:
            raise ValueError(f"the arguments are nested more than {NESTED_MAX} deep")
        case list():
            return [told(one, levels - 1) for one in value]
    if ESCAPES & value.keys():
        raise ValueError(f"the arguments use a name that is reserved: {', '.join(sorted(ESCAPES))}")
    return {name: told(one, levels - 1) for name, one in value.items()}


def _number(value: float) -> Any:
    """A Long where it is whole, a decimal where four places hold it. Source: Cedar's decimal, 64 bits of 1/10,000."""
    if value.is_integer() and abs(value) < 2**63:
        return int(value)
    exact = Decimal(repr(value))
    if abs(value) < 2**63 / 10_000 and exact == round(exact, 4):
        return {"__extn": {"fn": "decimal", "arg": f"{exact:f}"}}
    return _opaque(repr(value))


def _uid(kind: str, name: str) -> dict[str, str]:
    return {"type": kind, "id": name}


def _opaque(name: str) -> dict[str, Any]:
    return {"__entity": _uid("JSON", name)}
