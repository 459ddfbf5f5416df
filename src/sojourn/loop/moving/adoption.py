"""A new run made of an exported or a living one: an import, a fork, or another try from an earlier step.

The API calls it and the store writes what it gives. The rules: nothing that a person allowed comes along (approvals,
votes, grants: what was allowed and has no result yet is asked again), what was in flight is taken for lost, and the
questions that are open keep their ids.
"""

from datetime import datetime
from typing import Literal, NamedTuple

from msgspec.structs import replace

from sojourn.errors import Invalid
from sojourn.loop.agent import digest
from sojourn.loop.budget import Spent
from sojourn.loop.continuation import (
    SETTLED,
    Call,
    Continuation,
    Frame,
    Lineage,
    Marks,
    Principal,
    Wait,
    detach,
    frames,
    slots,
)
from sojourn.loop.events import Adopted, ModelLost
from sojourn.loop.machine import apply, begin, in_flight
from sojourn.loop.messages import Message, Plain
from sojourn.loop.policy import gate
from sojourn.loop.step.calls import Agents, stop_sending
from sojourn.loop.step.ending import settle
from sojourn.loop.step.taints import below
from sojourn.loop.step.waits import arguments, ask, bind, may_run, parsed, visible


class Home(Plain, frozen=True, kw_only=True):
    """Where a run will live from now on, since when, and for whom."""

    at: datetime
    run_id: str
    tenant: str
    session_id: str
    principal: Principal


class Adoption(NamedTuple):
    """A new run, and the event that it begins with."""

    event: Adopted
    continuation: Continuation
    """With every message in its place."""


def imported(agents: Agents, source: Continuation, home: Home) -> Adoption:
    """Go on elsewhere with all that a run is. `source` holds every message."""
    return _adopted(_carried(agents, source, home.at), home, "import", source)


def forked(
    agents: Agents, source: Continuation, home: Home, *, step: int | None = None, message: Message | None = None
) -> Adoption:
    """Go on in a branch: from where the run stands, or before the reply of a step, and then with nothing spent.

    Of a run that has ended the branch begins at its last step. Raises Invalid where there is nothing to go on with.
    """
    root = source.root
    if step is None and root.state == "done" and message is None:
        raise Invalid("The run has ended with an answer: say `input`, or the `step` to try again.", code="fork.ended")
    if step is None and root.ended:
        step = root.step if root.state == "done" else root.step - _answered(root)
    base = _carried(agents, source, home.at) if step is None else _cut(source, step, more=message is not None)
    if message is not None:
        base = replace(base, root=settle(replace(base.root, inbox=(*base.root.inbox, message))))
    return _adopted(base, home, "fork", source)


def bodies(root: Frame) -> str:
    """Name all messages of a tree, each with its place, by their content."""
    return digest([(frame.id, slot, message) for frame in frames(root) for slot, message in slots(frame)])


def _adopted(base: Continuation, home: Home, how: Literal["import", "fork"], source: Continuation) -> Adoption:
    event = Adopted(
        at=home.at,
        run_id=home.run_id,
        tenant=home.tenant,
        session_id=home.session_id,
        principal=home.principal,
        limits=base.limits,
        spent=base.spent,
        suspend=base.suspend,
        wait=base.wait,
        waits=base.waits,
        signals=base.signals,
        heard=base.heard,
        lineage=Lineage(how=how, run_id=source.run_id, rev=source.rev, head=source.head),
        root=detach(base.root),
        bodies=bodies(base.root),
    )
    return Adoption(event, replace(begin(event), root=base.root))


# ---- the whole tree --------------------------------------------------------------------------


def _carried(agents: Agents, source: Continuation, at: datetime) -> Continuation:
    """The run without what was in flight, and without what anybody allowed."""
    for lost in in_flight(source, source.updated_at):  # then, not now: on its way no time was spent
        unpaid = replace(lost, bill=None) if isinstance(lost, ModelLost) else lost  # the run that asked pays
        source = apply(agents, source, unpaid)
    wait = _unvoted(source.wait)
    root = source.root if source.root.ended else _unallowed(agents, source.root, at)
    return stop_sending(agents, replace(source, wait=wait, root=root), at)


def _unallowed(agents: Agents, frame: Frame, at: datetime) -> Frame:
    calls = tuple(_asked(agents, frame, call, at) for call in frame.calls)
    return replace(frame, calls=calls, grants=(), wait=_unvoted(frame.wait))


def _asked(agents: Agents, frame: Frame, call: Call, at: datetime) -> Call:
    """The call as it is, or asked about again where somebody's yes let it run and it has no result."""
    if call.state in SETTLED:
        return call
    if call.child is not None:
        return replace(call, judged="", child=_unallowed(agents, call.child, at))
    still = call.wait is not None and call.wait.kind == "approval" and call.sending == "asked"
    call = replace(call, judged="", sending="asked" if still else None)
    title = may_run(frame, call)
    if call.wait is not None:
        asked = call.wait.kind in ("approval", "outcome_unknown")
        call = replace(call, wait=_rendered(call, call.wait, title))
        if asked:
            return call
    policy = agents[frame.agent.digest].policy
    now = gate(policy, call.tool.name, parsed(arguments(call)))
    before = call.gate or now
    if (before.verdict, now.verdict) == ("allow", "allow"):
        return call
    asking = replace(before if before.verdict == "ask" else now, verdict="ask")
    call = replace(call, gate=replace(asking, ask=asking.ask or policy.ask))
    return ask(call, "approval", frame=frame.id, at=at, title=title)


def _rendered(call: Call, wait: Wait, title: str) -> Wait:
    """The question without votes, as we put it: whoever exported it may have shown something else than would run."""
    title = visible(title if wait.kind == "approval" else wait.title)
    return replace(bind(wait, call), title=title, votes=())


def _unvoted(wait: Wait | None) -> Wait | None:
    return wait and replace(wait, title=visible(wait.title), votes=())


# ---- another try -----------------------------------------------------------------------------


def _cut(source: Continuation, step: int, *, more: bool) -> Continuation:
    """The run before the reply of a step of its root, with nothing open and nothing spent. Raises Invalid."""
    root = source.root
    replies = [place for place, message in enumerate(root.messages) if message.role == "assistant"]
    own = replies[len(replies) - root.step :] if len(replies) >= root.step else []
    stops = [*own, *([len(root.messages)] if not root.calls and (more or not _answered(root)) else [])]
    if not 0 <= step < len(stops):
        steps = f"the steps 0 to {len(stops) - 1}" if stops else "no step to go back to"
        raise Invalid(f"The run has {steps}.", code="fork.no_such_step", pointer="/step")
    fresh = Frame(
        id=root.id,
        agent=root.agent,
        step=step,
        messages=root.messages[: stops[step]],
        waits=root.waits,
        marks=Marks(turns=step, circle=step),
        taints=below(root),
        opinions=root.opinions,
    )
    return replace(source, root=fresh, spent=Spent(), wait=None, signals=(), heard=())


def _answered(root: Frame) -> bool:
    """Whether the last word is the model's."""
    return bool(root.messages) and root.messages[-1].role == "assistant"
