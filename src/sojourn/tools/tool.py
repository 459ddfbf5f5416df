"""The tool port: one thing that an agent can do.

The worker runs tools through it; the API lists them. Two kinds stand beside this file: tools that act in the session's
sandbox, and operators' Python functions. The rule: a tool that fails is an observation, so `run` raises only for what
nobody but the operator can mend.
"""

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

import msgspec

from sojourn.loop import agent
from sojourn.sandboxes.sandbox import Sandbox


class Outcome(msgspec.Struct, frozen=True):
    """What the model reads of a call."""

    text: str
    failed: bool = False


class Context(Protocol):
    """What a tool is told about the call that it runs, and what it may reach."""

    tenant: str
    user: str
    session_id: str
    run_id: str
    call: str
    attempt: int
    """From the second on, an earlier attempt may have had its effect."""
    key: str
    """The idempotency key: the same for every attempt of this call, and for no other call."""
    timeout_s: float

    async def sandbox(self) -> Sandbox:
        """The session's sandbox, made or brought back now if need be. Raises SandboxUnavailable."""
        ...

    def show(self, text: str) -> None:
        """Stream a piece of output to whoever looks on."""
        ...


class Tool(Protocol):
    """A tool that a worker can run."""

    definition: agent.Tool

    async def run(self, args: str, context: Context) -> Outcome:
        """Do it. `args` is a JSON object as raw text."""
        ...

    async def stop(self, context: Context) -> None:
        """End what an attempt began, after its run was cancelled."""
        ...


Toolbox = Mapping[str, Tool]
"""The tools of this process by name."""


class Arguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The base of a tool's typed arguments; the JSON Schema that the model sees is made from it."""


A = TypeVar("A", bound=msgspec.Struct)


class Misused(Exception):
    """The arguments do not fit the tool; the text tells the model why."""


def parse(kind: type[A], args: str) -> A:
    """The typed arguments. Raises Misused."""
    try:
        return msgspec.json.decode(args, type=kind)
    except (msgspec.ValidationError, msgspec.DecodeError, UnicodeEncodeError) as error:
        raise Misused(f"The arguments do not fit: {error}. Nothing was run.") from None


def schema(kind: type[msgspec.Struct]) -> str:
    """The JSON Schema of typed arguments, as raw text in one piece."""
    (top,), definitions = msgspec.json.schema_components([kind], ref_template="#/$defs/{name}")
    name = top["$ref"].removeprefix("#/$defs/")
    own = {key: value for key, value in definitions.pop(name).items() if key != "title"}
    whole: dict[str, Any] = {**own, "$defs": definitions} if definitions else own
    return msgspec.json.encode(whole).decode()
