"""What an engine for policies is asked, and what it says. `judging` asks one; `cedar` is one.

The rule: an engine answers for everything, and where it cannot, the answer is to refuse.
"""

from typing import Literal, NamedTuple, Protocol

INSTALL = "pip install 'sojourn[cedar]'"


class Origin(NamedTuple):
    """Who makes a call, and from where."""

    tenant: str = ""
    user: str = ""
    agent: str = ""
    depth: int = 0
    """Frames above the agent's: 0 for the agent that the run began with."""


NOWHERE = Origin()


class Asked(NamedTuple):
    """A call that is to be decided."""

    tool: str
    args: str
    """As JSON text that the tool would take."""
    effect: str
    """The class of effects that the tool declares: read, idempotent, ..."""
    origin: Origin


class Decision(NamedTuple):
    """What policies say of a call: permitted, forbidden, or not decided."""

    then: Literal["pass", "ask", "refuse"]
    why: str
    """Which policies decided, without a word of the arguments."""
    errors: tuple[str, ...] = ()
    """What could not be evaluated; this may hold words of the arguments."""


class Engine(Protocol):
    """Something that decides calls by policies."""

    def check(self, policies: str) -> None:
        """Raise ValueError, saying what is wrong and where, for policies that it would not decide by."""

    def decide(self, policies: str, asked: Asked) -> Decision:
        """Decide a call; broken policies refuse it."""


class Absent:
    """Where no engine is installed: it takes no policies, and refuses every call that they are about."""

    def check(self, policies: str) -> None:
        """Raise ValueError, saying what to install."""
        raise ValueError(f"policies are decided by cedarpy, which is not installed on this server: {INSTALL}")

    def decide(self, policies: str, asked: Asked) -> Decision:
        """Refuse it, saying what to install."""
        return Decision("refuse", f"cedarpy is not installed on this worker: {INSTALL}")
