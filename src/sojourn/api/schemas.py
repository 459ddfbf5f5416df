"""JSON Schemas that strangers wrote: checked when they come, and applied to arguments. Called by agents and approvals.

The rule: no schema keeps the server busy. What takes time without bound is left out (regular expressions, what is
unevaluated) or counted in processor time, and a reference leads nowhere but into the schema itself. A tool of the
caller's is checked by its own program, too.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match
from jsonschema.validators import extend
from msgspec.json import decode, encode
from referencing import Registry
from referencing.exceptions import Unresolvable

from sojourn.errors import Invalid

CHECK_S, FLAW_S = 2.0, 0.25
"""Processor time for the schemas of an agent, and for one value; ordinary ones take a hundredth of it."""
SLOW = ("pattern", "patternProperties", "unevaluatedItems", "unevaluatedProperties")

Keyword = Callable[[Any, Any, Any, Any], Iterator[ValidationError] | None]


class _TooMuch(Exception):
    """The processor time is used up."""


def checked(schemas: Iterable[dict[str, Any]]) -> Iterator[ValidationError | None]:
    """What is wrong with each as a JSON Schema of 2020-12: go through it in a thread. Raises Invalid."""
    kind = _bounded(CHECK_S, {})
    checker = kind(kind.META_SCHEMA, format_checker=Draft202012Validator.FORMAT_CHECKER)
    return (_found(checker, schema, "The schemas are nested too deep, or too long.") for schema in schemas)


def flaw(schema: str, value: Any) -> ValidationError | None:
    """Where a value does not fit a schema. Raises Invalid where nobody can tell."""
    # An empty registry: a reference to another document is an error, and never a request to somewhere.
    kind = _bounded(FLAW_S, {**dict.fromkeys(SLOW, _nothing), "additionalProperties": _additional})
    checker = kind(decode(schema), registry=Registry())
    return _found(checker, value, "The tool's schema cannot be checked here: reject the call, or approve it as it is.")


def _found(checker: Any, value: Any, otherwise: str) -> ValidationError | None:
    try:
        error: ValidationError | None = best_match(checker.iter_errors(value))
    except (RecursionError, ArithmeticError, Unresolvable, _TooMuch):
        raise Invalid(otherwise) from None
    except BaseException as panic:  # the stack may end inside of rpds, and pyo3 makes no Exception of that
        if type(panic).__name__ != "PanicException":
            raise
        raise Invalid(otherwise) from None
    return error


def _bounded(work_s: float, other: dict[str, Keyword]) -> Any:
    """A validator with so much time from now on, and with other keywords in the place of some."""
    until_s = time.thread_time() + work_s
    keywords = {**Draft202012Validator.VALIDATORS, "uniqueItems": _unique, **other}
    kind = extend(Draft202012Validator, {name: _counted(one, until_s) for name, one in keywords.items()})
    kind.evolve = _evolve
    return kind


def _counted(keyword: Keyword, until_s: float) -> Keyword:
    def counted(validator: Any, wanted: Any, value: Any, schema: Any) -> Iterator[ValidationError]:
        for error in keyword(validator, wanted, value, schema) or ():
            _in_time(until_s)
            yield error
        _in_time(until_s)

    return counted


def _in_time(until_s: float) -> None:
    if time.thread_time() > until_s:
        raise _TooMuch


def _evolve(validator: Any, **changes: Any) -> Any:
    """The same validator for a part of the schema; the library's own takes another one where `$schema` says so."""
    kept = {one.alias: getattr(validator, one.name) for one in validator.__attrs_attrs__ if one.init}
    return type(validator)(**{**kept, **changes})


def _nothing(validator: Any, wanted: Any, value: Any, schema: Any) -> None:
    return None


def _additional(validator: Any, wanted: Any, value: Any, schema: Any) -> Iterator[ValidationError] | None:
    """`additionalProperties`, where it needs no regular expression."""
    if "patternProperties" in schema:
        return None
    found: Iterator[ValidationError] = Draft202012Validator.VALIDATORS["additionalProperties"](
        validator, wanted, value, schema
    )
    return found


def _unique(validator: Any, wanted: Any, value: Any, schema: Any) -> Iterator[ValidationError]:
    """`uniqueItems` in linear time; 1 and 1.0 are two for it."""
    if wanted and isinstance(value, list) and len({encode(item, order="sorted") for item in value}) < len(value):
        yield ValidationError("An item is given twice")
