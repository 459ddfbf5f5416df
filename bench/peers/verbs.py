"""What the harness says to an adapter and hears from it, one JSON object a line. `adapter` and `peer` speak it.

The rule: times are perf_counter seconds, which is one clock for all processes of a machine.
"""

from typing import Literal

import msgspec

Kind = Literal["ten", "one", "ask", "held", "slow", "ticks"]
"""The agents, each named like its model: `ten` replies with nine calls of a tool that does nothing; `one` reply; `ask`
has a call that a person must allow; `held` has three replies, the second of which stands still until it is let go;
`slow` is one reply of two seconds; `ticks` is one whose pieces say when they were sent."""


class Verb(msgspec.Struct, frozen=True, tag_field="do", forbid_unknown_fields=True, kw_only=True):
    """Something that an adapter is told to do."""


class Begin(Verb, frozen=True, tag="begin"):
    """Ask for runs, so many at a time. Answered with Times when all were accepted."""

    runs: tuple[str, ...]
    kind: Kind
    tenant: Literal["big", "small"] = "big"
    lanes: int = 32


class Settle(Verb, frozen=True, tag="settle"):
    """Wait until the product says that runs have a state. Answered with Settled."""

    runs: tuple[str, ...]
    state: Literal["completed", "waiting"] = "completed"
    within_s: float = 60.0


class Decide(Verb, frozen=True, tag="decide"):
    """Allow the call that a run waits with. Answered with Times."""

    run: str


class Follow(Verb, frozen=True, tag="follow"):
    """Ask for a run of `ticks` and read its deltas to the end. Answered with Heard."""

    run: str


class AddWorker(Verb, frozen=True, tag="add_worker"):
    """Start one more worker and wait until it is ready. Answered with Done."""

    again: bool = False
    """Start the one that was killed, under its own name."""


class KillWorker(Verb, frozen=True, tag="kill_worker"):
    """Kill the oldest worker with -9. Answered with Done."""


class Look(Verb, frozen=True, tag="look"):
    """Tell the processes. Answered with Processes."""


class Stop(Verb, frozen=True, tag="stop"):
    """End everything. Answered with Done."""


class Answer(msgspec.Struct, frozen=True, tag_field="is", forbid_unknown_fields=True, kw_only=True):
    """What an adapter says."""


class Ready(Answer, frozen=True, tag="ready"):
    """The product is up."""

    product: str
    versions: dict[str, str]
    setup: str
    """How it was set up, in a sentence or two."""
    notes: str = ""
    """What is not comparable, as a list in Markdown."""
    lacks: dict[str, str] = {}
    """Rows that cannot be measured, and why."""


class Done(Answer, frozen=True, tag="done"):
    at: float


class Times(Answer, frozen=True, tag="times"):
    """When each run was asked for, or decided."""

    at: dict[str, float]


class Settled(Answer, frozen=True, tag="settled"):
    at: float
    others: dict[str, str] = {}
    """Runs that did not come to the state in time, and the state that they have."""


class Heard(Answer, frozen=True, tag="heard"):
    """How late each piece of a stream was."""

    late_ms: tuple[float, ...]


class Processes(Answer, frozen=True, tag="processes"):
    workers: tuple[int, ...]
    everything: tuple[int, ...]
    """All processes of the product, workers among them; their children are found by the kernel."""


class Trouble(Answer, frozen=True, tag="trouble"):
    """It did not work."""

    why: str


class Place(msgspec.Struct, frozen=True):
    """What an adapter is started with: its one argument, as JSON."""

    folder: str
    model_url: str
    """What OPENAI_BASE_URL wants."""
    database_url: str
    """A database of its own, whose login owns it and may make roles."""


AnyVerb = Begin | Settle | Decide | Follow | AddWorker | KillWorker | Look | Stop
AnyAnswer = Ready | Done | Times | Settled | Heard | Processes | Trouble
