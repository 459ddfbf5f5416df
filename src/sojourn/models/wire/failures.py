"""What a provider's refusal means to us: a status, an error body or an error event becomes one ModelFailed.

Used by the adapter and the dialects. The rule: of what the provider wrote, only short identifiers and the names of
request parameters go on. Its prose may quote the prompt, so it is read and never repeated.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec

from sojourn.models.model import Failure, ModelFailed

RETRY_AFTER_S_MAX = 300.0

_IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}\Z")
_TOO_LONG = re.compile(
    r"context.{0,12}(length|window|size)|prompt is too long|too many (input )?tokens|maximum.{0,20}tokens|"
    r"input.{0,20}too (long|large)|exceed.{0,30}(context|token)",
    re.IGNORECASE,
)
_MEDIA = re.compile(
    r"(image|vision|multimodal|pdf|file).{0,30}\b(not|only) supported|support (image|vision|pdf)|not a multimodal|"
    r"at most 0 image|unsupported image|could not process image|image exceeds|\b(image|document)\.source\.|"
    r"invalid file data|pdf.{0,20}(not valid|invalid)",
    re.IGNORECASE,
)
_PARAMETERS = re.compile(
    r"\b(max_tokens|max_completion_tokens|temperature|top_p|tools|tool_choice|response_format|reasoning_effort|"
    r"stream_options|thinking|budget_tokens|output_config|cache_control|image_url|tool_call_id|tool_use_id|"
    r"signature|credit balance|billing)\b"
)
_KINDS: tuple[tuple[tuple[str, ...], Failure, bool], ...] = (
    (("context_length", "request_too_large", "exceed_context_size"), "too_long", False),
    (("overloaded", "unavailable"), "overloaded", True),
    (("rate_limit", "too_many_requests", "insufficient_quota"), "rate_limited", True),
    (("authentication", "permission", "invalid_api_key"), "no_key", False),
    (("not_found",), "not_found", False),
    (("invalid_request", "billing"), "refused_request", False),
)


class Problem(msgspec.Struct):
    """An error as the dialects and the servers around them write it; every field is foreign and may hold anything."""

    type: Any = None
    code: Any = None
    param: Any = None
    message: Any = None


class _Body(Problem):
    error: Any = None
    detail: Any = None


def problem(body: bytes) -> Problem:
    """Read an error body; one that is not JSON, or of no known shape, is an empty problem."""
    try:
        outer = msgspec.json.decode(body, type=_Body)
        if isinstance(outer.error, str):
            return Problem(message=outer.error, type=outer.type, code=outer.code)
        return msgspec.convert(outer.error, Problem) if outer.error else outer
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return Problem()


def refused(provider: str, status: int, *, body: bytes) -> ModelFailed:
    """Translate an answer whose status is not 200."""
    found = problem(body)
    kind, retry = _of_status(status, found)
    return ModelFailed(kind, f"'{provider}' answered HTTP {status}{_named(found)}. {_ADVICE[kind]}", retry=retry)


def interrupted_by(provider: str, found: Problem) -> ModelFailed:
    """Translate an error that came inside the stream."""
    status = found.code if isinstance(found.code, int) and 400 <= found.code < 600 else 500
    kind, retry = _of_status(status, found)
    return ModelFailed(kind, f"'{provider}' broke off with an error{_named(found)}. {_ADVICE[kind]}", retry=retry)


def _of_status(status: int, found: Problem) -> tuple[Failure, bool]:
    """Decide the kind, and whether the same request may succeed later."""
    if status in (400, 404, 415, 422, 500) and _MEDIA.search(str(found.message)):
        return "media_type", False
    match status:
        case 401 | 403:
            return "no_key", False
        case 404:
            return "not_found", False
        case 413:
            return "too_long", False
        case 429:
            return "rate_limited", True
        case 503 | 529:
            return "overloaded", True
        case _ if 300 <= status < 400:
            return "protocol", False
    words = f"{found.type} {found.code}".lower()
    for names, kind, retry in _KINDS:
        if any(name in words for name in names):
            if kind == "refused_request" and _TOO_LONG.search(str(found.message)):
                return "too_long", False
            return kind, retry
    if _TOO_LONG.search(str(found.message)) and status < 501:
        return "too_long", False
    if status >= 500 or status in (408, 409, 425):
        return "server", True
    return "refused_request", False


_ADVICE: dict[Failure, str] = {
    "no_key": "Check the key.",
    "not_found": "Check the model's name and the base URL.",
    "too_long": "The request is too long for the model; shorten it or use a model with a larger window.",
    "media_type": "The model or its provider does not take an image or file of the transcript; use another model.",
    "rate_limited": "Wait, or add a key.",
    "overloaded": "Try again later.",
    "server": "Try again later.",
    "protocol": "Set the base URL to the address that it redirects to.",
    "refused_request": "The same request will be refused again.",
}


def _named(found: Problem) -> str:
    """Name the provider's own identifiers, and the parameters that its prose speaks of."""
    names = [str(word) for word in (found.type, found.code, found.param) if _IDENTIFIER.match(str(word)) and word]
    names += _PARAMETERS.findall(str(found.message)) if found.message else []
    return f" ({', '.join(dict.fromkeys(names))})" if names else ""


def retry_after_s(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Read how long the provider wants us to wait, between 0 and RETRY_AFTER_S_MAX seconds; None if it does not say.

    Source: RFC 9110, 10.2.3: a number of seconds or an HTTP date.
    """
    value = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value, re.ASCII):
        seconds = float(value)
    else:
        try:
            at = parsedate_to_datetime(value)
        except (ValueError, TypeError, IndexError, OverflowError):
            return None
        seconds = (at.replace(tzinfo=at.tzinfo or UTC) - (now or datetime.now(UTC))).total_seconds()
    return min(max(seconds, 0.0), RETRY_AFTER_S_MAX)
