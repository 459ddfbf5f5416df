"""Bytes that somebody sent into a run that may go on here, or a refusal with a code of its own.

    opened   what the signature is to be verified over; whoever calls verifies it and only then goes on
    whole    the export as types, with its tree, its agents and its blobs checked

The rules: nothing recursive sees JSON that is nested too deep, nothing of the content is used before the signature was
verified, and what is not exactly as a run leaves the machine is refused, whoever signed it.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from itertools import accumulate
from typing import Any, NamedTuple, NoReturn

import msgspec

from sojourn.errors import MissingPin, UnknownFormat, Unreadable
from sojourn.loop.agent import Agent, digest, ref
from sojourn.loop.budget import DEPTH_MAX
from sojourn.loop.continuation import FORMAT, SETTLED, VERSION, Call, Continuation, Frame, ToolRef, Wait
from sojourn.loop.moving import values
from sojourn.loop.moving.document import ISSUER, Export, canonical, pinned, referred
from sojourn.loop.moving.versions import Json, upgraded
from sojourn.loop.step.waits import ALLOWED, arguments, parsed

JSON_DEPTH_MAX = 80
"""Sixteen frames below the root take 52 levels, and what stands in a frame no more than ten."""
TEXTS_MAX = MARKS_MAX = 1_000_000
"""Texts, and brackets and commas; more would keep whoever reads it busy, before anybody knows who wrote it."""
BLOBS_MAX = 4096
RUN_ID = "[A-Za-z0-9_-]{1,64}"
STRINGS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
NOT_MARKS = bytes(set(range(256)) - set(b"[]{},"))
NESTING = bytes.maketrans(b"[{]},", b"\x01\x01\xff\xff\x00")


class Opened(NamedTuple):
    """An export as plain data, whose signature nobody has looked at yet."""

    plain: Json
    issuer: str
    sig: str
    signed: bytes
    """What the signature is over."""


class Whole(NamedTuple):
    """An export that may be adopted, and its blobs as bytes."""

    export: Export
    blobs: dict[str, bytes]


# ---- before the signature --------------------------------------------------------------------


def opened(data: bytes) -> Opened:
    """Parse an export. Raises UnknownFormat for one of a newer release, and Unreadable."""
    plain = _parsed(data)
    if not isinstance(plain, dict) or plain.get("format") != FORMAT:
        raise Unreadable(f"This is no exported run: its `format` is not {FORMAT!r}.")
    version, issuer, sig = plain.get("version"), plain.get("issuer"), plain.get("sig")
    if type(version) is int and version > VERSION:
        raise UnknownFormat(f"A newer release wrote it (format version {version}); this one reads up to {VERSION}.")
    if not isinstance(issuer, str) or not re.fullmatch(ISSUER, issuer) or not isinstance(sig, str):
        raise Unreadable("This is no exported run: it is not signed.")
    try:
        return Opened(plain, issuer, sig, canonical(plain))
    except ValueError:
        raise Unreadable("A text or a number of it is none that JSON can hold.") from None


def _parsed(data: bytes) -> Any:
    if (data.count(b'"') - data.count(b'\\"')) // 2 > TEXTS_MAX:
        raise Unreadable(f"It holds more than {TEXTS_MAX} texts.")
    marks = STRINGS.sub(b"", data).translate(NESTING, NOT_MARKS)
    if max(accumulate(memoryview(marks[:MARKS_MAX]).cast("b")), default=0) > JSON_DEPTH_MAX:
        raise Unreadable(f"It is nested deeper than {JSON_DEPTH_MAX} levels.", code="continuation.too_deep")
    if len(marks) > MARKS_MAX:
        raise Unreadable(f"It holds more than {MARKS_MAX} values.")
    try:
        return json.loads(data.decode(), object_pairs_hook=_distinct, parse_constant=_no_number)
    except UnicodeDecodeError:
        raise Unreadable("It is not UTF-8.") from None
    except ValueError as error:
        raise Unreadable(f"It is not JSON, or not all of it: {error}.") from None


def _distinct(pairs: list[tuple[str, Any]]) -> Json:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise Unreadable("A name is given twice in one object.", code="continuation.duplicate_name")
    return value


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


# ---- after it --------------------------------------------------------------------------------


def whole(plain: Json) -> Whole:
    """The export as types. Raises Unreadable, and MissingPin where an agent is not in it or not what its name says."""
    try:
        continuation = plain.get("continuation")
        present = upgraded(continuation) if isinstance(continuation, dict) else continuation
        export = msgspec.convert({**plain, "version": VERSION, "continuation": present}, Export)
    except msgspec.ValidationError as error:
        raise Unreadable(f"This is no exported run: {error}.") from None
    _check_tree(export.continuation, export.agents)
    unsound = values.wrong(export)
    _check(unsound is None, str(unsound))
    return Whole(export, _blobs(export))


def _blobs(export: Export) -> dict[str, bytes]:
    """The blobs by digest: those that are named, all of them, and each what its name says."""
    needed = referred(export.continuation, export.workspace).keys()
    if len(needed) > BLOBS_MAX:
        raise Unreadable(f"It has more than {BLOBS_MAX} blobs.", code="continuation.bad_blob")
    if wrong := needed ^ export.blobs.keys():
        what = "lacks" if needed - export.blobs.keys() else "names nowhere"
        raise Unreadable(f"It {what} the blob {min(wrong)}.", code="continuation.bad_blob")
    found: dict[str, bytes] = {}
    for name, text in export.blobs.items():
        try:
            found[name] = base64.b64decode(text, validate=True)
        except ValueError:
            raise Unreadable(f"The blob {name} is not in base64.", code="continuation.bad_blob") from None
        if name != "sha256:" + hashlib.sha256(found[name]).hexdigest():
            raise Unreadable(f"The blob {name} is not what its digest says.", code="continuation.bad_blob")
    return found


def _check_tree(continuation: Continuation, agents: dict[str, Agent]) -> None:
    """See that every frame and call stands as the machine leaves it, and is bound to what is pinned."""
    for name, agent in agents.items():
        if digest(agent) != name:
            raise MissingPin(f"The agent version {name} is not what its digest says.")
    if wrong := pinned(continuation, agents) ^ agents.keys():
        raise MissingPin(f"The agent version {min(wrong)} is named and not there, or there and not named.")
    _check(re.fullmatch(RUN_ID, continuation.run_id) is not None, "its id")
    _check(continuation.root.id == "/" and not continuation.root.history, "its root frame")
    _check(_asks(continuation.wait, "/", None), "its hold")
    for frame, depth in _frames(continuation.root):
        if depth > DEPTH_MAX:
            raise Unreadable(f"Its frames are nested deeper than {DEPTH_MAX}.", code="continuation.too_deep")
        agent = agents[frame.agent.digest]
        _check(frame.agent == ref(agent) and frame.stored == 0, f"the frame {frame.id}")
        begun = depth == 0 or frame.since is None or frame.since <= continuation.updated_at
        _check(begun, f"the frame {frame.id}")
        _check(0 <= frame.turn.model < len(agent.models) and _asks(frame.wait, frame.id, None), f"the frame {frame.id}")
        for index, call in enumerate(frame.calls):
            _check(_stands(agent, frame, call, index), f"the call {call.uid}")


def _frames(root: Frame) -> Iterator[tuple[Frame, int]]:
    """Every frame with its depth, without recursion."""
    left = [(root, 0)]
    while left:
        frame, depth = left.pop()
        yield frame, depth
        left.extend((call.child, depth + 1) for call in frame.calls if call.child is not None)


def _stands(agent: Agent, frame: Frame, call: Call, index: int) -> bool:
    """Whether a call is one that the machine could have left at this place of this frame."""
    uid, child, tool = f"{frame.id.rstrip('/')}/{frame.step - 1}.{index}", call.child, agent.tool(call.tool.name)
    if (call.uid, call.index) != (uid, index) or not _asks(call.wait, frame.id, uid):
        return False
    if child is not None and (child.id != uid or tool is None or tool.agent != child.agent.digest):
        return False
    if call.state in SETTLED:
        cut_short = frame.ended and call.state == "cancelled"
        return call.wait is None and (cut_short or (child is None and call.result is not None))
    return (
        tool is not None
        and call.tool == ToolRef(tool.name, digest(tool), tool.effect, tool.executor)
        and _is_object(arguments(call))
        and call.state in ("waiting", "unknown", "authorized", "intent")
        and (call.wait is not None) == (call.state in ("waiting", "unknown"))
        and (call.state != "intent" or bool(call.attempts))
        and (child is None or call.state == "authorized")
    )


def _is_object(args: str) -> bool:
    try:
        parsed(args)
    except (ValueError, RecursionError):
        return False
    return True


def _asks(wait: Wait | None, frame: str, call: str | None) -> bool:
    """Whether a question, if there is one, is about the place where it stands, and takes the answers that it can."""
    if wait is None:
        return True
    pool = wait.about.rstrip("/") if wait.kind == "budget" and wait.about else ""
    return (
        (wait.frame, wait.call) == (frame, call)
        and {*ALLOWED[wait.kind], "extend"}.issuperset(wait.allowed)
        and f"{frame}/".startswith(f"{pool}/")
    )


def _check(holds: bool, what: str) -> None:
    if not holds:
        raise Unreadable(f"This is no run as the machine leaves it: see {what}.")
