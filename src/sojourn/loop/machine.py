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
"""

import hashlib
from collections.abc import Callable
from datetime import datetime, timedelta
from math import inf

from msgspec.structs import replace

from sojourn.loop import events as ev
from sojourn.loop import steps
from sojourn.loop.budget import Spent, charge_step, exhausted
from sojourn.loop.continuation import Call, CallState, Continuation, Failure, Frame, Phase, frames, pending
from sojourn.loop.decisions import decide, expire
from sojourn.loop.effects import CallModel, CallTool, Effect
from sojourn.loop.messages import Usage
from sojourn.loop.steps import Agents


def begin(event: ev.Began) -> Continuation:
    """The continuation that a caller's request begins with."""
    root = Frame(
        id="/",
        agent=event.agent,
        messages=(event.message,) if event.message is not None else (),
        stored=event.history[-1].stop if event.history else 0,
        history=event.history,
    )
    blank = Continuation(
        run_id=event.run_id,
        tenant=event.tenant,
        session_id=event.session_id,
        principal=event.principal,
        created_at=event.at,
        updated_at=event.at,
        limits=event.limits,
        root=root,
    )
    return _seal(blank, blank, event)


def apply(agents: Agents, continuation: Continuation, event: ev.Event) -> Continuation:
    """Say what is true after `event`. Returns `continuation` itself where the event answers nothing that is open."""
    if continuation.root.ended and not isinstance(event, ev.Turned | ev.Noted):
        return continuation
    root = _change(agents, continuation, event)
    if root is None:
        return continuation
    extended = event.limits if isinstance(event, ev.Decided) else None
    spent = _charge(continuation, event)
    limits = extended or continuation.limits
    root = _bound(replace(continuation, root=steps.settle(root), spent=spent, limits=limits), event.at)
    return _seal(continuation, replace(continuation, root=root, spent=spent, limits=limits), event)


def due(agents: Agents, continuation: Continuation) -> tuple[Effect, ...]:
    """Say what the world must do next and does not do yet."""
    effects: list[Effect] = []
    steps_left, calls_left = _steps_left(continuation), _calls_left(continuation)
    for frame in frames(continuation.root):
        if frame.ended or frame.wait is not None:
            continue
        if _asks(frame) and steps_left > 0:
            steps_left -= 1
            effects.append(_call_model(agents, frame))
        for call in filter(_runs, frame.calls):
            calls_left -= not call.attempts
            if call.attempts or calls_left >= 0:
                effects.append(_call_tool(continuation, frame, call))
    return tuple(effects)


def in_flight(continuation: Continuation, at: datetime) -> tuple[ev.ModelLost | ev.CallLost, ...]:
    """What was announced and not answered, each as the event that says so if its worker is dead."""
    lost: list[ev.ModelLost | ev.CallLost] = []
    for frame in frames(continuation.root):
        if not frame.ended and frame.turn.sent:
            lost.append(ev.ModelLost(at=at, frame=frame.id, step=frame.step, attempt=frame.turn.attempt))
        lost.extend(
            ev.CallLost(at=at, call=call.uid, attempt=call.attempt) for call in frame.calls if call.state == "intent"
        )
    return tuple(lost)


def wake_at(continuation: Continuation) -> datetime | None:
    """When `Ticked` must be applied at the latest, if nothing else happens."""
    if continuation.root.ended:
        return None
    times = [frame.turn.not_before for frame in frames(continuation.root) if frame.turn.not_before is not None]
    times += [wait.expires_at for wait in pending(continuation) if wait.expires_at and wait.on_expire != "keep"]
    if (left_ms := _active_left_ms(continuation)) < inf and _busy(continuation):
        times.append(continuation.updated_at + timedelta(milliseconds=max(0.0, left_ms)))
    return min(times, default=None)


def phase(agents: Agents, continuation: Continuation) -> Phase:
    """Where the run as a whole stands."""
    match continuation.root.state:
        case "done":
            return "completed"
        case "failed" | "cancelled" as ended:
            return ended
    pauses = any(frame.turn.not_before for frame in frames(continuation.root))
    return "running" if pauses or _busy(continuation) or due(agents, continuation) else "suspended"


def link(head: str, event: ev.Event) -> str:
    """The end of the hash chain once `event` is in it."""
    return hashlib.sha256(head.encode() + ev.encode(event)).hexdigest()


# ---- one event -------------------------------------------------------------------------------


def _change(agents: Agents, continuation: Continuation, event: ev.Event) -> Frame | None:
    """The root with the event in it, before steps are settled; None where the event answers nothing."""
    root, run_id = continuation.root, continuation.run_id
    match event:
        case ev.ModelAsked():
            return _turn(root, event, steps.ask_model, sent=False)
        case ev.Replied():
            return _turn(root, event, lambda frame: steps.reply(agents, frame, event))
        case ev.ModelErred():
            return _turn(root, event, lambda frame: steps.retry(agents, frame, event))
        case ev.ModelLost():
            return _turn(root, event, steps.again)
        case ev.Intended():
            return _attempt(root, event, "authorized", lambda _, call: steps.intend(call, run_id, event.at))
        case ev.Returned():
            return _attempt(root, event, "intent", lambda _, call: steps.finish(call, event))
        case ev.CallLost():
            return _attempt(root, event, "intent", lambda frame, call: steps.lose(call, frame, event.at))
        case ev.Said(message=message) if message is not None:
            return replace(root, inbox=(*root.inbox, message))
        case ev.Decided():
            return decide(agents, continuation, event)
        case ev.Ticked():
            passed_ms = _active_ms(continuation, event.at) - continuation.spent.active_ms
            return expire(continuation, event.at) or (root if passed_ms >= _active_left_ms(continuation) else None)
        case ev.Cancelled():
            return steps.cancelled(root)
        case ev.GaveUp(error=error):
            return steps.failed(root, error)
        case ev.Turned() | ev.Noted():
            return root
    return None


def _turn(
    root: Frame,
    event: ev.ModelAsked | ev.Replied | ev.ModelErred | ev.ModelLost,
    change: Callable[[Frame], Frame],
    *,
    sent: bool = True,
) -> Frame | None:
    """Change the frame whose present model attempt the event names."""
    place = (event.step, event.attempt, sent)

    def fits(frame: Frame) -> bool:
        return frame.state == "ready" and (frame.step, frame.turn.attempt, frame.turn.sent) == place

    return steps.at_frame(root, event.frame, lambda frame: change(frame) if fits(frame) else None)


def _attempt(
    root: Frame,
    event: ev.Intended | ev.Returned | ev.CallLost,
    state: CallState,
    change: Callable[[Frame, Call], Call],
) -> Frame | None:
    """Change the call whose present attempt the event names."""
    place = (state, event.attempt)
    return steps.at_call(
        root, event.call, lambda frame, call: change(frame, call) if (call.state, call.attempt) == place else None
    )


# ---- budgets and the seal --------------------------------------------------------------------


def _busy(continuation: Continuation) -> bool:
    """Whether anything is in flight."""
    return bool(in_flight(continuation, continuation.updated_at))


def _active_ms(continuation: Continuation, at: datetime) -> int:
    """The active time up to `at`; a clock that goes backwards adds nothing."""
    passed = max(timedelta(), at - continuation.updated_at) if _busy(continuation) else timedelta()
    return continuation.spent.active_ms + passed // timedelta(milliseconds=1)


def _active_left_ms(continuation: Continuation) -> float:
    """How much active time is left before what is in flight must be stopped; a limit that suspends stops nothing."""
    limits = continuation.limits
    if limits.active_s is None or limits.on_exhaust != "fail":
        return inf
    return limits.active_s * 1000 - continuation.spent.active_ms


def _charge(continuation: Continuation, event: ev.Event) -> Spent:
    """What is spent once the event is in."""
    spent = replace(continuation.spent, active_ms=_active_ms(continuation, event.at))
    match event:
        case ev.Replied():
            usage = event.message.usage if event.message else None
            return charge_step(spent, usage or Usage(), event.usd_micros or 0)
        case ev.Intended(attempt=1):
            return replace(spent, tool_calls=spent.tool_calls + 1)
    return spent


def _bound(continuation: Continuation, at: datetime) -> Frame:
    """The root, failed or asking for more, where a limit leaves no room for what comes next."""
    root, limits = continuation.root, continuation.limits
    spent_out = exhausted(limits, continuation.spent)
    if root.ended or spent_out is None:
        return root
    idle = [frame for frame in frames(root) if _asks(frame) or (spent_out == "tool_calls" and _starves(frame))]
    if limits.on_exhaust == "suspend":
        for frame in idle:
            root = steps.at_frame(root, frame.id, lambda f: steps.ask_budget(f, spent_out, at)) or root
        return root
    if idle or spent_out == "active_s":
        detail = f"The run has used all of its {spent_out} ({getattr(limits, spent_out)}). Start it with more."
        return steps.failed(root, Failure("budget.exhausted", detail))
    return root


def _steps_left(continuation: Continuation) -> float:
    """How many more model calls may begin now, those in flight counted as spent."""
    if continuation.limits.steps is None:
        return inf
    asked = sum(frame.turn.sent for frame in frames(continuation.root))
    return continuation.limits.steps - continuation.spent.steps - asked


def _calls_left(continuation: Continuation) -> float:
    """How many more tool calls may begin now; another attempt of one is none."""
    limit = continuation.limits.tool_calls
    return inf if limit is None else limit - continuation.spent.tool_calls


def _starves(frame: Frame) -> bool:
    """Whether the frame has a call that never ran and would run now."""
    return frame.wait is None and any(_runs(call) and not call.attempts for call in frame.calls)


def _seal(before: Continuation, after: Continuation, event: ev.Event) -> Continuation:
    """Count the event, and link it into the hash chain."""
    return replace(
        after, rev=before.rev + 1, head=link(before.head, event), updated_at=max(before.updated_at, event.at)
    )


# ---- effects ---------------------------------------------------------------------------------


def _asks(frame: Frame) -> bool:
    """Whether the frame's model is to be asked now."""
    turn = frame.turn
    return frame.state == "ready" and not turn.sent and turn.not_before is None and frame.wait is None


def _runs(call: Call) -> bool:
    """Whether the call's tool is to be run now, by a worker."""
    return call.state == "authorized" and call.child is None


def _call_model(agents: Agents, frame: Frame) -> CallModel:
    return CallModel(
        frame=frame.id,
        agent=frame.agent.digest,
        step=frame.step,
        attempt=frame.turn.attempt,
        model=agents[frame.agent.digest].models[frame.turn.model],
        messages=frame.messages,
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
        args=call.args_effective or call.args,
        key=call.key or steps.idempotency_key(continuation.run_id, call),
        provider_id=call.provider_id,
    )
