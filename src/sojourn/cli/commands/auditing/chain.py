"""Verifies a chain of the audit log, row by row: docs/operate/audit.md. Called by `sojourn audit verify`.

The rule: it trusts nothing but SHA-256 and a head that you kept. It needs the rows alone: no server, no key.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

Json = dict[str, Any]

FORMAT = "sojourn-audit-1"
BEGINNING = "0" * 64
"""What row 1 has in place of the hash of a row before it."""
FIELDS = {
    "n", "tenant", "at", "action", "subject", "operator", "user_id", "key_id", "request_id", "address", "outcome",
    "detail", "hash",
}  # fmt: skip
HEAD = re.compile(r"([0-9]{1,18}):([0-9a-f]{64})")


class Head(NamedTuple):
    """A place in a chain."""

    n: int
    hash: str

    def __str__(self) -> str:
        return f"{self.n}:{self.hash}"


class Verdict(NamedTuple):
    """Up to where the chain is sound; `bad` is the first row that is not, with why."""

    sound: Head
    bad: int | None = None
    why: str = ""


def head(text: str) -> Head:
    """Read what `sojourn audit head` printed. Raises ValueError."""
    found = HEAD.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is no head; one looks like 42:9f86d0..., as `sojourn audit head` prints it.")
    return Head(int(found[1]), found[2])


def parsed(lines: Iterable[str | bytes]) -> Iterator[Json]:
    """Read the lines of an export. Raises ValueError for one that is not JSON, or says a name twice."""
    for number, line in enumerate(lines, 1):
        try:
            yield dict(json.loads(line, object_pairs_hook=_once))
        except (ValueError, TypeError, RecursionError):
            raise ValueError(f"Line {number} is no row of an export.") from None


def verify(lines: Iterable[Json], kept: Head | None = None) -> Verdict:
    """Check an export from its first row to the head in its last line, and against a head that was kept.

    Exports that go on after one another may stand in one file; each then ends with its own head.
    """
    at, tenant, ended = Head(0, BEGINNING), None, False
    for line in lines:
        if ended := line.keys() == {"head"}:
            if wrong := _unlike(line["head"], at):
                return wrong
            continue
        if at.n == 0 and kept is not None and line.get("n") == kept.n + 1:
            at = kept  # an export that goes on after the kept head
        tenant = tenant or line.get("tenant")
        if why := _wrong(line, at, tenant):
            return Verdict(at, at.n + 1, why)
        at = Head(at.n + 1, line["hash"])
        if kept is not None and at.n == kept.n and at != kept:
            return Verdict(at, at.n, "it is not the row that the head you kept names: the chain was written anew")
    if not ended:
        return Verdict(at, at.n + 1, "the end is missing: the last line of an export is its head")
    if kept is not None and at.n < kept.n:
        return Verdict(at, at.n + 1, f"it is missing: the head that you kept is row {kept.n}")
    return Verdict(at)


def _wrong(line: Json, at: Head, tenant: Any) -> str:
    """Say what is wrong with the row that stands after `at`; empty where nothing is."""
    number = line.get("n")
    if not isinstance(number, int):
        return "what stands in its place is no row"
    if number > at.n + 1:
        return "it is missing"
    if number != at.n + 1:
        return f"row {number} stands in its place"
    if line.get("tenant") != tenant:
        return "it is of another chain"
    try:
        fits = line.keys() == FIELDS and line["hash"] == digest(line, at.hash)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        fits = False
    if not fits:
        return "its hash does not fit: it was changed" + (f", or row {at.n} was" if at.n else "")
    return ""


def _unlike(end: Any, at: Head) -> Verdict | None:
    """Say what is wrong where a head does not name the row before it."""
    number, hash_ = (end.get("n"), end.get("hash")) if isinstance(end, dict) else (None, None)
    if (number, hash_) == at:
        return None
    if isinstance(number, int) and number > at.n:
        return Verdict(at, at.n + 1, "it is missing")
    return Verdict(at, at.n, "the head that stands after it names another row")


def digest(line: Json, before: str) -> str:
    """The hash of a row that stands after the one with the hash `before`."""
    at = datetime.fromisoformat(line["at"]).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    fields = [FORMAT, line["tenant"], str(line["n"]), at, line["action"], line["subject"]]
    fields += [{True: "true", False: "false"}[line["operator"]], line["user_id"], line["key_id"], line["request_id"]]
    fields += [line["address"], line["outcome"]]
    for name in sorted(line["detail"]):
        fields += [name, line["detail"][name]]
    data = b"".join(b"%d:%b," % (len(text), text) for text in (field.encode() for field in (*fields, before)))
    return hashlib.sha256(data).hexdigest()


def _once(pairs: list[tuple[str, Any]]) -> Json:
    """An object whose names are all different. Raises ValueError."""
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError
    return made
