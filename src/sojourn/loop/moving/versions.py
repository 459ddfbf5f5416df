"""Older forms of a continuation into the present one, as small steps on plain data.

The store reads snapshots with it and `reading` exports. The rules: every older version has a step, a step never changes
once it is released, and what a newer release wrote is not touched.
"""

from collections.abc import Callable, Mapping
from typing import Any

from sojourn.errors import UnknownFormat, Unreadable
from sojourn.loop.continuation import FORMAT, VERSION

Json = dict[str, Any]
Step = Callable[[Json], Json]
"""A continuation as plain data, into the form of the next version."""

STEPS: Mapping[int, Step] = {}
"""By the version that is read."""

assert sorted(STEPS) == list(range(1, VERSION)), "every version before the present one needs its step"


def upgraded(plain: Json, *, steps: Mapping[int, Step] = STEPS, to: int = VERSION) -> Json:
    """The continuation in the present form. Raises UnknownFormat for a newer one, Unreadable for something else."""
    version = plain.get("version", 1)
    if plain.get("format", FORMAT) != FORMAT or type(version) is not int or version < 1:
        raise Unreadable("This is no continuation of a run.")
    if version > to:
        raise UnknownFormat(f"A newer release wrote it (format version {version}); this one reads up to {to}.")
    for number in range(version, to):
        plain = {**steps[number](plain), "version": number + 1}
    return plain
