"""The agent loop, as two pure functions over plain data.

    apply(agents, continuation, event) -> Continuation   what has happened
    due(agents, continuation)          -> effects        what the world must do next

The worker drives it, and after a crash, a deploy or three days of waiting it is driven in the same way. The rules:

- An event that answers no open wait and no running attempt changes nothing: the very same object comes back.
- Every effect is announced (ModelAsked, Intended) before it is performed; what was announced and not answered when a
  worker dies is lost. A lost model call is made again. A lost tool call is made again with the same idempotency key,
  but for `at_most_once`, which asks a person.
- A step is over when each of its calls has an observation; they enter the transcript together, in order of the calls.
- Nothing due and nothing in flight: the run has ended, or it waits, and then it holds nothing.

    frame:  ready --Replied, calls--> acting --all settled--> ready ... --Replied, no calls--> done
    call:   proposed -> authorized -> intent -> succeeded | failed | unknown
            proposed -> waiting -> authorized | rejected | answered | expired,  proposed -> denied
            authorized -> waiting, or a frame of its own: where no worker runs it
"""

import hashlib
from collections.abc import Callable
from datetime import datetime

from msgspec.structs import replace

from sojourn.loop import events as ev
from sojourn.loop.budget import Room
from sojourn.loop.continuation import (
    VERSION,
    Call,
    CallState,
    Compaction,
    Continuation,
    Frame,
    Phase,
    frames,
    path,
    pending,
)
from sojourn.loop.effects import CallModel, CallTool, Effect
from sojourn.loop.step import budgets, calls, days, ending, pauses, replies, taints, tree, waits
from sojourn.loop.step.calls import Agents
from sojourn.loop.step.decisions import decide, expire

SIGNALS_MAX = 256
"""So many signals that nobody waits for are kept, and so many ids are known again."""


def begin(event: ev.Began | ev.Adopted) -> Continuation:
    """The continuation that a caller's request begins with; that of an adopted run is without bodies."""
    blank = Continuation(
        version=VERSION,
        run_id=event.run_id,
        tenant=event.tenant,
        session_id=event.session_id,
        principal=event.principal,
        created_at=event.at,
        updated_at=event.at,
        limits=event.limits,
        suspend=event.suspend,
        root=_root(event) if isinstance(event, ev.Began) else event.root,
    )
    if isinstance(event, ev.Adopted):
        blank = replace(
            blank,
            spent=event.spent,
            wait=event.wait,
            waits=event.waits,
            signals=event.signals,
            heard=event.heard,
            lineage=event.lineage,
        )
    return _seal(blank, blank, event)


def _root(event: ev.Began) -> Frame:
    return Frame(
        id="/",
        agent=event.agent,
        messages=(event.message,) if event.message is not None else (),
        stored=event.history[-1].stop if event.history else 0,
        history=event.history,
        taints=event.taints,
        since=event.start_at,
    )


def apply(agents: Agents, continuation: Continuation, event: ev.Event) -> Continuation:
    """Say what is true after `event`. Returns `continuation` itself where the event answers nothing that is open."""
    if continuation.root.ended and not isinstance(event, ev.Turned | ev.Noted):
        return continuation
    after = _change(agents, budgets.aged(continuation, event.at), event)
    if after is None:
        return continuation
    after = budgets.charge(after, event)
    if isinstance(event, ev.ModelLost) and event.given_up:
        return _seal(continuation, after, event)  # what gives it up comes next, and is not to be forestalled
    after = calls.stop_sending(agents, after, event.at)
    if after.wait is None:
        after = budgets.launch(agents, after, event.at)
    if after.signals:
        after = _match(agents, after, event.at)
    after = budgets.bound(after, event.at)
    while (stopped := calls.stop_sending(agents, after, event.at)) is not after:
        after = budgets.bound(stopped, event.at)
    after = replace(after, root=pauses.rest(agents, after, event.at), wait=None if after.root.ended else after.wait)
    return _seal(continuation, after, event)


def due(agents: Agents, continuation: Continuation) -> tuple[Effect, ...]:
    """Say what the world must do next and does not do yet."""
    effects: list[Effect] = []
    if continuation.wait is not None or continuation.root.ended:
        return ()
    for frame, pools in budgets.walk(continuation):
        if frame.ended or frame.wait is not None:
            continue
        if pauses.asks(frame) and (room := budgets.take_step(pools)) is not None:
            effects.append(_call_model(agents, continuation, frame, room))
        if frame.calls and not calls.barred(agents, frame):
            taken = (call for call in frame.calls if budgets.runs(call) and budgets.take_call(pools, call))
            effects.extend(_call_tool(continuation, frame, call) for call in taken)
    return tuple(effects)


def in_flight(continuation: Continuation, at: datetime) -> tuple[ev.ModelLost | ev.CallLost, ...]:
    """What was announced and not answered, each as the event that says so if its worker is dead."""
    lost: list[ev.ModelLost | ev.CallLost] = []
    for frame in frames(continuation.root):
        if not frame.ended and frame.turn.sent:
            lost.append(_lost(frame, at))
        lost.extend(
            ev.CallLost(at=at, call=call.uid, attempt=call.attempt) for call in frame.calls if call.state == "intent"
        )
    return tuple(lost)


def given_up(before: Continuation, after: Continuation, event: ev.Event) -> tuple[ev.ModelLost, ...]:
    """The model calls in flight that an event ends and does not answer, each as the event to be applied before it.

    Each says what its request alone costs; whoever knows more of the call says that.
    """
    if isinstance(event, ev.ModelLost) or not (asked := _asked(before)):
        return ()
    for place in _asked(after):
        asked.pop(place, None)
    if isinstance(event, ev.Replied | ev.ModelErred):
        asked.pop((event.frame, event.step, event.attempt), None)
    return tuple(replace(_lost(frame, event.at), given_up=True) for frame in asked.values())


def _asked(continuation: Continuation) -> dict[tuple[str, int, int], Frame]:
    """The frames whose model call is in flight, by what names the attempt."""
    sent = (frame for frame in frames(continuation.root) if frame.turn.sent and not frame.ended)
    return {(frame.id, frame.step, frame.turn.attempt): frame for frame in sent}


def _lost(frame: Frame, at: datetime) -> ev.ModelLost:
    turn = frame.turn
    return ev.ModelLost(at=at, frame=frame.id, step=frame.step, attempt=turn.attempt, bill=turn.least)


def wake_at(continuation: Continuation) -> datetime | None:
    """When `Ticked` must be applied at the latest, if nothing else happens."""
    if continuation.root.ended:
        return None
    times = [wait.expires_at for wait in pending(continuation) if wait.expires_at and wait.ask.on_expire != "keep"]
    if continuation.wait is None:
        times += [frame.turn.not_before for frame in frames(continuation.root) if frame.turn.not_before is not None]
    if (deadline := budgets.deadline(continuation)) is not None:
        times.append(deadline)
    return min(times, default=None)


def phase(agents: Agents, continuation: Continuation) -> Phase:
    """Where the run as a whole stands."""
    match continuation.root.state:
        case "done":
            return "completed"
        case "failed" | "cancelled" as ended:
            return ended
    pauses = continuation.wait is None and any(frame.turn.not_before for frame in frames(continuation.root))
    return "running" if pauses or budgets.busy(continuation.root) or due(agents, continuation) else "suspended"


def link(head: str, event: ev.Event) -> str:
    """The end of the hash chain once `event` is in it."""
    return hashlib.sha256(head.encode() + ev.encode(event)).hexdigest()


# ---- one event -------------------------------------------------------------------------------


def _change(agents: Agents, continuation: Continuation, event: ev.Event) -> Continuation | None:
    """The run with the event in it, before steps are settled; None where the event answers nothing."""
    match event:
        case ev.Decided():
            return decide(agents, continuation, event)
        case ev.ModelAsked():
            return _announce(continuation, event)
        case ev.Unfunded():
            frame = _asking(continuation, event)
            return days.unfunded(agents, continuation, frame, event) if frame is not None else None
        case ev.Intended():
            return _intend(agents, continuation, event)
        case ev.Ticked():
            return expire(continuation, event.at) or (continuation if budgets.overdue(continuation, event.at) else None)
        case ev.Paused() if continuation.wait is None:
            return _hold(continuation, event)
        case ev.Signalled(signal=signal) if signal.id not in continuation.heard:
            heard = (*continuation.heard, signal.id)[-SIGNALS_MAX:]
            signals = (*continuation.signals, signal)[-SIGNALS_MAX:]
            return replace(continuation, heard=heard, signals=signals)
        case ev.FloorRaised(floor=more):
            floor = taints.raised(continuation.floor, more)
            return replace(continuation, floor=floor) if floor is not None else None
        case ev.Returned():
            return _return(agents, continuation, event)
        case ev.Judged(call=uid):
            root = tree.at_call(continuation.root, uid, lambda frame, call: calls.judge(agents, frame, call, event))
            return budgets.judged(continuation, root, uid) if root is not None else None
        case ev.Consulted():
            root = tree.at_frame(continuation.root, event.frame, lambda frame: replies.consulted(frame, event))
            return replace(continuation, root=root or continuation.root)
        case ev.Turned() | ev.Noted() | ev.Asked():
            return continuation
    root = _change_root(agents, continuation.root, event)
    return replace(continuation, root=root) if root is not None else None


def _change_root(agents: Agents, root: Frame, event: ev.Event) -> Frame | None:
    match event:
        case ev.Replied():
            return _turn(root, event, lambda frame: replies.reply(agents, frame, event))
        case ev.ModelErred():
            return _turn(root, event, lambda frame: replies.retry(agents, frame, event))
        case ev.ModelLost():
            return _turn(root, event, replies.again)
        case ev.Compacted(compaction=compaction):
            return _turn(root, event, lambda frame: _shorter(frame, compaction))
        case ev.CallLost():
            return _attempt(root, event, "intent", lambda frame, call: calls.lose(call, frame, event.at))
        case ev.Said(message=message) if message is not None:
            heard = replies.again(root) if event.interrupt and root.turn.sent else root
            known = taints.merged(root.taints, taints.said(event.taints, "message"))
            return replace(heard, inbox=(*root.inbox, message), taints=known)
        case ev.Cancelled():
            return ending.cancelled(root)
        case ev.GaveUp(error=error):
            return ending.failed(root, error)
    return None


Turning = ev.Replied | ev.ModelErred | ev.ModelLost | ev.Compacted


def _shorter(frame: Frame, compaction: Compaction) -> Frame | None:
    return replace(frame, compaction=compaction) if frame.compaction != compaction else None


def _turn(root: Frame, event: Turning, change: Callable[[Frame], Frame | None]) -> Frame | None:
    """Change the frame whose running model attempt the event names."""

    def running(frame: Frame) -> bool:
        sent = frame.state == "ready" and frame.turn.sent
        return sent and (frame.step, frame.turn.attempt) == (event.step, event.attempt)

    return tree.at_frame(root, event.frame, lambda frame: change(frame) if running(frame) else None)


def _announce(continuation: Continuation, event: ev.ModelAsked) -> Continuation | None:
    """Set a model call's cost aside, or stop where there is no room for it."""
    frame = _asking(continuation, event)
    if frame is None:
        return None
    after = budgets.announced(continuation, event, frame)
    if after is None:
        return None
    refused = after is not continuation
    change = replies.again if refused else lambda one: replies.ask_model(one, event)
    after = after if refused else budgets.pinned(after, event)
    return replace(after, root=tree.at_frame(after.root, event.frame, change) or after.root)


def _asking(continuation: Continuation, event: ev.ModelAsked | ev.Unfunded) -> Frame | None:
    """The frame whose next model call the event is about; None where no such call is due."""
    frame = next(iter(path(continuation.root, event.frame)[-1:]), None)
    if frame is None or continuation.wait is not None or not pauses.asks(frame):
        return None
    return frame if (frame.step, frame.turn.attempt) == (event.step, event.attempt) else None


def _intend(agents: Agents, continuation: Continuation, event: ev.Intended) -> Continuation | None:
    """Write down that a call begins, where nothing holds it."""

    def begin(frame: Frame, call: Call) -> Call | None:
        held = continuation.wait is not None or calls.barred(agents, frame)
        return None if held or not budgets.runs(call) else calls.intend(call, continuation.run_id, event.at)

    root = _attempt(continuation.root, event, "authorized", begin)
    return replace(continuation, root=root) if root is not None else None


def _return(agents: Agents, continuation: Continuation, event: ev.Returned) -> Continuation | None:
    """Take what a tool returned, with what it says of its results."""

    def end(frame: Frame, call: Call) -> Call:
        known = taints.flow(agents, frame, call, continuation.floor).taints
        return taints.tainted(calls.finish(call, event), known) if known else calls.finish(call, event)

    root = _attempt(continuation.root, event, "intent", end)
    return replace(continuation, root=root) if root is not None else None


def _attempt(
    root: Frame,
    event: ev.Intended | ev.Returned | ev.CallLost,
    state: CallState,
    change: Callable[[Frame, Call], Call | None],
) -> Frame | None:
    """Change the call whose present attempt the event names."""
    place = (state, event.attempt)
    return tree.at_call(
        root, event.call, lambda frame, call: change(frame, call) if (call.state, call.attempt) == place else None
    )


def _hold(continuation: Continuation, event: ev.Paused) -> Continuation:
    title = waits.visible(f"{event.by} put the run on hold. {event.reason}".rstrip())
    wait = waits.question("hold", f"run?{continuation.waits}", frame="/", at=event.at, title=title)
    return replace(continuation, wait=wait, waits=continuation.waits + 1)


def _match(agents: Agents, continuation: Continuation, at: datetime) -> Continuation:
    """Give every signal, the first one first, to the oldest call that waits for an event of its name."""
    waiting = [wait for wait in pending(continuation) if wait.kind == "event" and (wait.expires_at or at) >= at]
    waiting.sort(key=lambda wait: wait.created_at)
    root, left = continuation.root, []
    for signal in continuation.signals:
        wait = next((wait for wait in waiting if wait.about == signal.name), None)
        if wait is None or wait.call is None:
            left.append(signal)
            continue
        waiting.remove(wait)
        hear = calls.hearing(agents, continuation.floor, signal)
        root = tree.at_call(root, wait.call, hear) or root
    return replace(continuation, root=root, signals=tuple(left))


def _seal(before: Continuation, after: Continuation, event: ev.Event) -> Continuation:
    """Count the event, and link it into the hash chain."""
    return replace(
        after, rev=before.rev + 1, head=link(before.head, event), updated_at=max(before.updated_at, event.at)
    )


# ---- effects ---------------------------------------------------------------------------------


def _call_model(agents: Agents, continuation: Continuation, frame: Frame, room: Room) -> CallModel:
    model = agents[frame.agent.digest].models[frame.turn.model]
    return CallModel(
        frame=frame.id,
        agent=frame.agent.digest,
        step=frame.step,
        attempt=frame.turn.attempt,
        model=model,
        messages=frame.messages,
        compaction=frame.compaction,
        goal=frame.history[-1].stop if frame.history else 0,
        room=room,
        tariff=next((pin.tariff for pin in continuation.prices if pin.model == model), None),
    )


def _call_tool(continuation: Continuation, frame: Frame, call: Call) -> CallTool:
    return CallTool(
        frame=frame.id,
        agent=frame.agent.digest,
        step=frame.step - 1,
        call=call.uid,
        attempt=call.attempt,
        tool=call.tool.name,
        effect=call.tool.effect,
        args=waits.arguments(call),
        key=call.key or calls.idempotency_key(continuation.run_id, call),
        provider_id=call.provider_id,
        approved=call.gate is not None and call.gate.verdict == "ask",
    )
