"""Bytes into typed values, and whatever does not fit into an error that points at the field. Called by the guard.

The rule: nothing that PostgreSQL or JSON cannot hold (NUL, lone surrogates, NaN) and no unknown field gets past here.
"""

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, NoReturn, TypeVar

import msgspec

from sojourn.api.http.codes import Malformed
from sojourn.errors import Invalid

T = TypeVar("T")

NUL_ESCAPE = b"\\u0000"
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
PLACE = re.compile(r"^(?P<what>.*?)(?: - at `\$(?P<path>.*)`)?$", re.DOTALL)
STEP = re.compile(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]")
FIELD = re.compile(r"(?:unknown|required) field `(.*)`$")


def json_body(data: bytes, decoder: "msgspec.json.Decoder[T]") -> T:
    """Decode a request body. Raises Malformed, and Invalid with a JSON pointer."""
    try:
        value = decoder.decode(data)
        if NUL_ESCAPE in data:
            _refuse_nul(msgspec.json.decode(data))
    except msgspec.ValidationError as error:
        raise invalid(error) from None
    except RecursionError:
        raise Malformed("The JSON is nested too deep.", code="request.too_deep") from None
    except UnicodeDecodeError:
        raise Malformed("The body is not UTF-8.") from None
    except msgspec.DecodeError as error:
        if SURROGATE.search(data):
            raise Malformed(r"A string holds half of a surrogate pair (\ud800 to \udfff), which is no text.") from None
        raise Malformed(f"The body is not JSON: {error}.") from None
    return value


def query(values: Mapping[str, str], kind: type[T]) -> T:
    """Convert a query's parameters. Raises Invalid."""
    given = dict(values.items())
    if len(given) != len(values):
        raise Invalid("A query parameter is given twice.")
    if any("\0" in value for value in given.values()):
        raise Invalid("A query parameter holds a NUL character.")
    try:
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        raise invalid(error) from None


def in_utc(at: datetime, pointer: str) -> datetime:
    """Give a caller's time as the database holds it. Raises Invalid where its zone takes it out of all years."""
    try:
        return at.astimezone(UTC)
    except OverflowError:
        raise Invalid("A time lies in the years 1 to 9999, in UTC too.", pointer=pointer) from None


def invalid(error: msgspec.ValidationError) -> Invalid:
    """Put what msgspec says into a refusal that points at the field."""
    match = PLACE.match(str(error))
    what, path = (match["what"], match["path"] or "") if match else (str(error), "")
    pointer = "".join(f"/{_escape(step)}" for step in _steps(path))
    if found := FIELD.search(what):
        pointer += f"/{_escape(found[1])}"
    return Invalid(f"{what}.", pointer=pointer)


def _steps(path: str) -> Iterator[str]:
    """The steps of msgspec's path; a key of a free object is not told, so the pointer ends before it."""
    for name, index in STEP.findall(path):
        if index == "...":
            return
        yield name or index


def _escape(step: str) -> str:
    return step.replace("~", "~0").replace("/", "~1")


def _refuse_nul(value: Any, pointer: str = "") -> None:
    match value:
        case str() if "\0" in value:
            _nul(pointer)
        case list():
            for i, item in enumerate(value):
                _refuse_nul(item, f"{pointer}/{i}")
        case dict():
            for key, item in value.items():
                if "\0" in key:
                    _nul(pointer)
                _refuse_nul(item, f"{pointer}/{_escape(key)}")


def _nul(pointer: str) -> NoReturn:
    raise Invalid("The text holds a NUL character, which cannot be kept.", pointer=pointer)
