"""Errors as application/problem+json (RFC 9457). The guard calls it, and nothing else answers with an error.

The rule: a caller reads what happened and what to do, and never a traceback, a statement or somebody's data.
"""

import math

import msgspec
from aiohttp import web

from sojourn.api.http.codes import CODES
from sojourn.errors import Forbidden, RateLimited, SojournError, Unauthenticated, Unavailable

RETRY_S = 1.0
"""How long to wait where nobody knows better."""


class Fault(msgspec.Struct, frozen=True):
    """One field that is wrong."""

    pointer: str
    """A JSON pointer into the body."""
    detail: str


class Problem(msgspec.Struct, frozen=True, omit_defaults=True, rename={"violated_policies": "violated-policies"}):
    """What went wrong and what to do about it."""

    type: str
    """Where the code is explained."""
    title: str
    status: int
    detail: str
    code: str
    """For programs: it never changes its meaning."""
    request_id: str
    """To find the request in the server's log."""
    retryable: bool | None = None
    """Whether the very same request may succeed later."""
    retry_after_s: float | None = None
    errors: tuple[Fault, ...] = ()
    violated_policies: tuple[str, ...] = ()
    """The rate limits that are used up, as RateLimit-Policy names them."""


def answer(error: SojournError, request_id: str) -> web.Response:
    """Say an error."""
    retry_after_s = error.retry_after_s
    if retry_after_s is None and (error.retry or isinstance(error, Unavailable)):
        retry_after_s = RETRY_S
    problem = Problem(
        type=f"/docs#{error.code}",
        title=CODES.get(error.code, (error.http_status, type(error).__doc__ or ""))[1],
        status=error.http_status,
        detail=str(error),
        code=error.code,
        request_id=request_id,
        retryable=error.retry,
        retry_after_s=retry_after_s,
        errors=(Fault(error.pointer, str(error)),) if error.pointer is not None else (),
        violated_policies=error.policies if isinstance(error, RateLimited) else (),
    )
    headers = {"Content-Type": "application/problem+json"}
    if retry_after_s is not None:
        headers["Retry-After"] = str(math.ceil(retry_after_s))
    return web.Response(status=error.http_status, body=msgspec.json.encode(problem), headers=headers)


def challenge(error: SojournError, *, sent: bool, metadata_url: str | None) -> str | None:
    """Say in a header what a client must send instead; None where no other token would help.

    `sent` tells whether there was a token. Source: RFC 6750, section 3, and RFC 9728, section 5.1.
    """
    said = ['realm="sojourn"']
    match error:
        case Unauthenticated():
            said += ['error="invalid_token"'] * sent
        case Forbidden(scope=str(scope)):
            said += ['error="insufficient_scope"', f'scope="{scope}"']
        case _:
            return None
    if metadata_url:
        said.append(f'resource_metadata="{metadata_url}"')
    return f"Bearer {', '.join(said)}"
