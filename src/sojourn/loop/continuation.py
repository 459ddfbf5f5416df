"""What a run is, as data: a tree of frames round their transcripts, and nothing else.

The machine turns one into the next, the store keeps it, an export is one made self-contained. The rule: everything that
is pending can be read off it, and loading it runs no code.

    Continuation -> root: Frame -> calls: (Call, ...) -> child: Frame     <- the recursion

In memory a frame holds its messages. In the database it holds only how many there are: `detach` takes the bodies out,
`fresh` names those that a commit must write, `attach` puts them back. So a commit costs what is new, however long the
run is.
"""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Literal

from msgspec.structs import replace

from sojourn.loop.agent import AgentRef, EffectClass, Executor, Suspend, Taint
from sojourn.loop.budget import Bill, Held, Limits, Pin, Spent
from sojourn.loop.messages import Message, Plain
from sojourn.loop.policy import Asking, Gate, Verdict

FORMAT = "sojourn.continuation"
VERSION = 1

CallState = Literal[
    "proposed", "waiting", "authorized", "intent", "succeeded", "failed", "unknown",
    "denied", "rejected", "answered", "expired", "cancelled",
]  # fmt: skip
SETTLED: frozenset[CallState] = frozenset(
    ("succeeded", "failed", "denied", "rejected", "answered", "expired", "cancelled")
)
WaitKind = Literal[
    "approval", "answer", "client_tool", "auth", "timer", "event", "budget", "turns", "seconds",
    "outcome_unknown", "hold", "loop_guard", "day_budget",
]  # fmt: skip
Decision = Literal["approve", "reject", "edit", "answer", "retry", "mark_done", "cancel", "extend"]
Phase = Literal["running", "suspended", "completed", "failed", "cancelled"]


class Failure(Plain, frozen=True):
    """Why a frame or an attempt came to nothing: a code of the error tree and words for a person."""

    code: str
    detail: str = ""


class Principal(Plain, frozen=True):
    """Who a run acts for."""

    user: str
    key: str = ""


class Origin(Plain, frozen=True):
    """Where a frame got a taint first: a call of `tool`, or something that was said, or an earlier run."""

    taint: Taint
    source: str
    """The call's uid, the id of an earlier run, or "input", "message", "signal"."""
    tool: str = ""


class Flow(Plain, frozen=True, kw_only=True):
    """What a tool brings in, and whether it sends."""

    taints: tuple[Taint, ...] = ()
    outward: bool = False


class Floor(Plain, frozen=True, kw_only=True):
    """What the operator says of a run's server tools, beside what its agents say; it only grows."""

    outward: Verdict = "allow"
    """The mildest that may become of a call that sends what must not be sent unseen."""
    tools: dict[str, Flow] = {}


class Segment(Plain, frozen=True):
    """Messages `start` to `stop` of a session's conversation, said in the root frame of an earlier run."""

    run_id: str
    start: int
    stop: int


class Attempt(Plain, frozen=True, kw_only=True):
    """One try of a call."""

    n: int
    state: Literal["sent", "ok", "failed", "lost"]
    started_at: datetime
    ended_at: datetime | None = None


class Vote(Plain, frozen=True):
    """One person's yes to a question that needs more than one."""

    by: str
    at: datetime


class Wait(Plain, frozen=True, kw_only=True):
    """An open question to a person, a client, the world or the clock. `id` names it within the run, for ever."""

    id: str
    kind: WaitKind
    frame: str
    call: str | None = None
    title: str
    display: str = ""
    """What would run, rendered by us from the arguments that are bound; never the model's words about it."""
    allowed: tuple[Decision, ...]
    created_at: datetime
    expires_at: datetime | None = None
    ask: Asking = Asking()
    args_digest: str | None = None
    tool_digest: str | None = None
    about: str | None = None
    """The name of the event, the frame whose limits are to be raised, or whose day pool has no room."""
    votes: tuple[Vote, ...] = ()


class Grant(Plain, frozen=True, kw_only=True):
    """A yes that holds for further calls of the same tool in the same frame. `id` is the wait that it came from."""

    id: str
    by: str
    ask: Asking = Asking()
    """How it was asked for; a call that must be asked about in another way is not covered."""
    tool_digest: str
    args_digest: str | None = None
    """The only arguments that it is good for, None for any."""
    left: int
    expires_at: datetime | None = None
    sending: bool = False
    """It was given where a tainted frame sends outward, and covers those questions alone."""


class Signal(Plain, frozen=True, kw_only=True):
    """Something that happened in the world, kept until a call waits for it."""

    id: str
    name: str
    data: str = ""
    taints: tuple[Taint, ...] = ()


class Lineage(Plain, frozen=True, kw_only=True):
    """The run, and the place in its hash chain, that this one was made from."""

    how: Literal["import", "fork"]
    run_id: str
    rev: int
    head: str


class ToolRef(Plain, frozen=True):
    """The tool that a call is bound to, by name and content."""

    name: str
    digest: str
    effect: EffectClass
    executor: Executor


class Call(Plain, frozen=True, kw_only=True):
    """One tool request of one reply. `uid` is ours and identifies it; `provider_id` only pairs it with its result."""

    uid: str
    provider_id: str
    index: int
    tool: ToolRef
    args: str
    args_effective: str | None = None
    """What runs instead of `args` after an edit."""
    state: CallState = "proposed"
    gate: Gate | None = None
    judged: str = ""
    """The guardrails, as name@version, that this call was last asked about for."""
    wait: Wait | None = None
    waits: int = 0
    """How many questions this call has asked so far; it numbers the next one."""
    sending: Literal["asked", "approved"] | None = None
    """Whether it was asked about because it sends outward from a frame with both taints."""
    attempts: tuple[Attempt, ...] = ()
    key: str | None = None
    """The idempotency key, minted with the first intent and kept over every further attempt."""
    result: Message | None = None
    taints: tuple[Origin, ...] = ()
    """Those of its result."""
    child: "Frame | None" = None

    @property
    def attempt(self) -> int:
        """The number of the attempt that is running, or that comes next."""
        return len(self.attempts) if self.state == "intent" else len(self.attempts) + 1


class Turn(Plain, frozen=True, kw_only=True):
    """Where a frame stands with its next model reply. `model` is an index into the agent's failover chain."""

    model: int = 0
    attempt: int = 1
    sent: bool = False
    held: Held = Held()
    """What is set aside for the attempt that is in flight."""
    least: Bill | None = None
    """What its request alone costs: charged where nothing more becomes known of it."""
    failures: int = 0
    """Failed attempts in a row on this model."""
    not_before: datetime | None = None
    withheld: bool = False
    """A guardrail refused the reply before, and the model was told."""


class Marks(Plain, frozen=True, kw_only=True):
    """Where a frame's suspension rules count from."""

    turns: int = 0
    active_ms: int = 0
    past: bool = False
    """The wall time of its rule has come and was answered."""
    circle: int = 0
    """The step from which repetitions count."""
    warned: bool = False
    """The agent was told that it goes round in circles."""


class Compaction(Plain, frozen=True, kw_only=True):
    """How much of a long transcript its model is shown. Positions count from the first message."""

    upto: int = 0
    """The messages before this are told by `summary`."""
    summary: str = ""
    cleared: int = 0
    """Of the observations before this one line is shown."""
    spilled: int = 0
    """Of long observations before this the two ends are shown."""


class Frame(Plain, frozen=True, kw_only=True):
    """One agent's place in a run. `id` is "/" for the root, and the uid of the call that began it for the others."""

    id: str
    agent: AgentRef
    state: Literal["ready", "acting", "done", "failed", "cancelled"] = "ready"
    step: int = 0
    turn: Turn = Turn()
    messages: tuple[Message, ...] = ()
    stored: int = 0
    """How many messages come before those in `messages` and are kept elsewhere."""
    history: tuple[Segment, ...] = ()
    compaction: Compaction | None = None
    inbox: tuple[Message, ...] = ()
    """What a user said while calls were open; it is heard before the next model call."""
    calls: tuple[Call, ...] = ()
    wait: Wait | None = None
    waits: int = 0
    marks: Marks = Marks()
    grants: tuple[Grant, ...] = ()
    limits: Limits | None = None
    """A sub-agent's own limits, for itself and all below it; the root has those of the run."""
    spent: Spent = Spent()
    """What counts against them."""
    since: datetime | None = None
    """When it began, or was to begin, where that is not when the run was made."""
    taints: tuple[Origin, ...] = ()
    """What has entered its transcript, each with where it came from first; they only grow."""
    opinions: dict[str, bool] = {}
    """Whether texts break criteria, by the key of the question: the latest that judges said here."""
    result: str | None = None
    error: Failure | None = None

    @property
    def length(self) -> int:
        """How many messages the transcript has; it grows only between two steps."""
        return self.stored + len(self.messages)

    @property
    def ended(self) -> bool:
        return self.state in ("done", "failed", "cancelled")


class Continuation(Plain, frozen=True, kw_only=True):
    """A run. `rev` counts the events that made it, and `head` is the end of their hash chain."""

    format: str = FORMAT
    version: int = 1
    """Not written where it is 1, so the default stays 1 in every version."""
    run_id: str
    tenant: str
    session_id: str
    principal: Principal
    rev: int = 0
    head: str = ""
    created_at: datetime
    updated_at: datetime
    limits: Limits = Limits()
    spent: Spent = Spent()
    prices: tuple[Pin, ...] = ()
    """Those of the models that it asked so far."""
    suspend: Suspend = Suspend()
    """Rules of this run, for its root frame, beside those of the agent."""
    wait: Wait | None = None
    """A hold: nothing new begins anywhere in the tree until it is answered."""
    waits: int = 0
    signals: tuple[Signal, ...] = ()
    heard: tuple[str, ...] = ()
    """The ids of the latest signals, so that none is heard twice."""
    floor: Floor | None = None
    lineage: Lineage | None = None
    root: Frame


# ---- reading ---------------------------------------------------------------------------------


def frames(frame: Frame) -> Iterator[Frame]:
    """The frame and all below it, parents first."""
    yield frame
    for call in frame.calls:
        if call.child is not None:
            yield from frames(call.child)


def path(root: Frame, id: str) -> tuple[Frame, ...]:
    """The frames from the root to the one named `id`; empty where there is none."""
    if root.id == id:
        return (root,)
    for call in root.calls:
        if call.child is not None and (id == call.uid or id.startswith(f"{call.uid}/")):
            below = path(call.child, id)
            return (root, *below) if below else ()
    return ()


def pending(continuation: Continuation) -> tuple[Wait, ...]:
    """Every open question in the whole tree."""
    found: list[Wait] = [continuation.wait] if continuation.wait is not None else []
    for frame in frames(continuation.root):
        if frame.wait is not None:
            found.append(frame.wait)
        found.extend(call.wait for call in frame.calls if call.wait is not None)
    return tuple(found)


# ---- bodies ----------------------------------------------------------------------------------


def slots(frame: Frame) -> Iterator[tuple[int, Message]]:
    """The frame's messages by position; an open step's observations already have the positions that they will take."""
    yield from enumerate(frame.messages, frame.stored)
    for call in frame.calls:
        if call.result is not None:
            yield frame.length + call.index, call.result


def fresh(before: Continuation | None, after: Continuation) -> Iterator[tuple[str, int, Message]]:
    """The bodies (frame id, slot, message) that `after` has and `before` had not."""
    known = {frame.id: frame for frame in frames(before.root)} if before is not None else {}
    for frame in frames(after.root):
        old = known.get(frame.id)
        length = old.length if old is not None else frame.stored
        early = {length + call.index for call in old.calls if call.result is not None} if old is not None else set()
        for slot, message in slots(frame):
            if slot >= length and slot not in early:
                yield frame.id, slot, message


def detach(frame: Frame) -> Frame:
    """The frame and all below it without bodies: what a row holds."""
    return replace(
        frame,
        messages=(),
        stored=frame.length,
        calls=tuple(
            replace(call, result=None, child=detach(call.child) if call.child else None) for call in frame.calls
        ),
    )


def attach(frame: Frame, bodies: Mapping[tuple[str, int], Message]) -> Frame:
    """The reverse of `detach`. Raises KeyError where a message is missing; a call that was cut short has no result."""
    return replace(
        frame,
        messages=tuple(bodies[frame.id, slot] for slot in range(frame.stored)),
        stored=0,
        calls=tuple(
            replace(
                call,
                result=bodies.get((frame.id, frame.stored + call.index)) if call.state in SETTLED else None,
                child=attach(call.child, bodies) if call.child else None,
            )
            for call in frame.calls
        ),
    )
