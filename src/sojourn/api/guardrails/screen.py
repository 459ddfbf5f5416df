"""What callers say to runs, judged by the guardrails in force. Called by every handler that takes words.

The rule: it is judged before a connection is taken, because that may take long, and refused inside the transaction, so
that a request that was answered before is answered in the same way again.
"""

import logging
from collections.abc import Callable

from sojourn.api.parts import Acting
from sojourn.api.runs.shapes import Input, TextPart
from sojourn.errors import Invalid
from sojourn.guardrails.judging import Judged
from sojourn.guardrails.rules import On

log = logging.getLogger("sojourn.api")


async def screened(ask: Acting, on: On, text: str, *, pointer: str, tenant: str = "") -> Callable[[], str]:
    """Judge a text; what comes back gives it, redacted where it must be, or raises Invalid."""
    tenant = tenant or ask.principal.tenant
    judged = await ask.parts.guardrails.text(tenant, on, text)

    def let_in() -> str:
        if judged.verdict == "refuse":
            _refuse(judged, tenant, pointer)
        return judged.text

    return let_in


def _refuse(judged: Judged, tenant: str, pointer: str) -> None:
    rule = judged.strictest
    log.info("guardrail.refused", extra={"tenant": tenant, "guardrail": rule.guardrail.label, "rule": rule.rule})
    raise Invalid(f"{rule.words} refuses this.", code="guardrail.refused", pointer=pointer)


async def screened_input(ask: Acting, given: Input) -> Callable[[], Input]:
    """The same for what a user says; its parts are judged as one text, and become one where they are redacted."""
    if isinstance(given, str):
        return await screened(ask, "input", given, pointer="/input")
    whole = "".join(part.text for part in given if isinstance(part, TextPart))
    judged = await screened(ask, "input", whole, pointer="/input")

    def let_in() -> Input:
        text = judged()
        return given if text == whole else [TextPart(text), *(one for one in given if not isinstance(one, TextPart))]

    return let_in
