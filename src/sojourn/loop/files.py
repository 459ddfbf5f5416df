"""A run as the text of one file, for programs that keep their runs without a database.

It is an export without what moving to strangers needs: in the place of blobs, issuer and signature stands a digest. The
rule: a text is read as it was written or refused, and reading it runs no code. The digest finds damage. It is no seal:
whoever may write the file may decide for the run.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from sojourn.errors import BadSeal, MissingPin, UnknownFormat, Unreadable
from sojourn.loop.agent import Agent, digest
from sojourn.loop.continuation import FORMAT, VERSION, Continuation
from sojourn.loop.moving.document import canonical, pinned
from sojourn.loop.moving.versions import upgraded


class Kept(NamedTuple):
    """A run, and the agent versions that it is pinned to, by digest."""

    run: Continuation
    agents: dict[str, Agent]


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The members of the file."""

    format: str
    version: int
    digest: str
    agents: dict[str, Agent]
    continuation: dict[str, Any]


def dumps(run: Continuation, agents: Mapping[str, Agent]) -> bytes:
    """Write a run, and those of the agents that it needs, as JSON. Raises MissingPin."""
    members = {
        "format": FORMAT,
        "version": VERSION,
        "digest": "",
        "agents": {name: agents[name] for name in sorted(_needed(run, agents))},
        "continuation": run,
    }
    plain = msgspec.json.decode(msgspec.json.encode(members))
    return msgspec.json.encode({**plain, "digest": _digest(plain)})


def loads(text: bytes) -> Kept:
    """Read what `dumps` wrote; it may have been laid out anew.

    Raises UnknownFormat for what a newer release wrote, BadSeal for what was changed, MissingPin where an agent is
    missing, and Unreadable for anything else.
    """
    try:
        plain = msgspec.json.decode(text, type=dict[str, Any])
        _look(plain)
        document = msgspec.convert(plain, _Document)
        state = upgraded({**document.continuation, "version": document.version})
        kept = Kept(msgspec.convert(state, Continuation), {digest(one): one for one in document.agents.values()})
        _needed(*kept)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise Unreadable(f"This is no run that was kept in a file: {error}.") from error
    return kept


def _look(plain: dict[str, Any]) -> None:
    """Refuse what is of another format, of a newer release, or changed."""
    if plain.get("format") != FORMAT or type(plain.get("version")) is not int:
        raise Unreadable(f"This is no {FORMAT}.")
    if plain["version"] > VERSION:
        raise UnknownFormat(f"A newer release wrote it (format version {plain['version']}).")
    if plain.get("digest") != _digest(plain):
        raise BadSeal("It was changed after it was written.")


def _needed(run: Continuation, agents: Mapping[str, Agent]) -> set[str]:
    needed = pinned(run, agents)
    if missing := needed - agents.keys():
        raise MissingPin(f"The run needs agent version {min(missing)}, which is not here.")
    return needed


def _digest(plain: dict[str, Any]) -> str:
    return "sha256:" + hashlib.sha256(canonical({**plain, "digest": None})).hexdigest()
