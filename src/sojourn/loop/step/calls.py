"""One tool request, from the reply that asks for it to its observation.

The rule: a call runs only when it was authorized, by the policy, a person or a grant; and whatever ends it leaves the
model one observation to read.
"""

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from math import isfinite
from typing import Any, NamedTuple

from msgspec.structs import replace

from sojourn.loop.agent import Agent, Executor, Tool, digest, ref
from sojourn.loop.continuation import (
    Attempt,
    Call,
    CallState,
    Continuation,
    Floor,
    Frame,
    Signal,
    ToolRef,
    Turn,
    Wait,
    frames,
)
from sojourn.loop.events import Judged, Replied, Returned
from sojourn.loop.messages import observed, said
from sojourn.loop.policy import Asking, Gate, Verdict, gate
from sojourn.loop.step import taints
from sojourn.loop.step.tree import at_frame, put
from sojourn.loop.step.waits import arguments, ask, asked, bound, may_run, parsed, visible

CALLS_MAX = 128
"""So many calls of one reply are looked at."""
SLEEP_S_MAX = 366 * 86_400.0

Agents = Mapping[str, Agent]
"""The agent versions that a run is pinned to, by digest."""


# ---- from the reply to the gate --------------------------------------------------------------


def open_call(agents: Agents, frame: Frame, event: Replied, index: int) -> tuple[Frame, Call]:
    """Turn a provider's tool call into ours: refused with an observation, or gated. The frame loses the grant used."""
    message, agent = event.message, agents[frame.agent.digest]
    assert message is not None
    request = message.calls[index]
    tool = agent.tool(request.name)
    call = Call(
        uid=f"{frame.id.rstrip('/')}/{event.step}.{index}",
        provider_id=request.id,
        index=index,
        tool=_bind(tool) if tool else ToolRef(request.name, "", "read", "server"),
        args=request.arguments or ("" if message.stop == "length" else "{}"),
    )
    if index >= CALLS_MAX:
        return frame, close(call, "failed", f"At most {CALLS_MAX} calls fit into one reply. This one was not run.")
    if tool is None:
        names = ", ".join(t.name for t in agent.tools) or "none"
        return frame, close(call, "failed", f"There is no tool named {request.name!r}. The tools are: {names}.")
    try:
        args = parsed(call.args)
    except (ValueError, RecursionError) as error:
        cut = " The reply was cut off at the output limit: ask for less at a time." if message.stop == "length" else ""
        return frame, close(call, "failed", f"The arguments are not a JSON object: {error}.{cut} Nothing was run.")
    call = replace(call, gate=gate(agent.policy, tool.name, args))
    return _judge(frame, call, event.at)


def _judge(frame: Frame, call: Call, at: datetime) -> tuple[Frame, Call]:
    """Do what the gate says: refuse, ask, or let it run; a grant answers a question before it is put."""
    assert call.gate is not None
    match call.gate.verdict:
        case "deny":
            return frame, close(call, "denied", f"The policy does not allow this call. {call.gate.reason}".rstrip())
        case "ask":
            granted = _use_grant(frame, call, at)
            if granted is None:
                return frame, ask(call, "approval", frame=frame.id, at=at, title=may_run(frame, call))
            frame = granted
    return frame, authorize(call)


def _use_grant(frame: Frame, call: Call, at: datetime) -> Frame | None:
    """The frame with one use less of a grant that fits the call; None where none does."""
    for i, grant in enumerate(frame.grants):
        fits = (grant.tool_digest, grant.ask) == (call.tool.digest, asked(call))
        fits = fits and grant.args_digest in (None, bound(call)) and grant.sending == (call.sending is not None)
        if fits and grant.left > 0 and (grant.expires_at is None or at < grant.expires_at):
            left = replace(grant, left=grant.left - 1)
            return replace(frame, grants=(*frame.grants[:i], left, *frame.grants[i + 1 :]))
    return None


def judge(agents: Agents, frame: Frame, call: Call, event: Judged) -> Call | None:
    """Deny a call that has not begun, or ask about it once more; None where that was asked, or it is too late."""
    if call.state not in ("authorized", "waiting") or call.waits != event.waits:
        return None
    if event.verdict == "deny":
        return close(call, "denied", event.reason)
    if call.judged == event.by:
        return None
    call = replace(call, judged=event.by, gate=Gate("ask", event.reason, _asking(agents, frame, call)))
    if call.wait is not None and call.wait.kind == "approval":
        return call
    return ask(replace(call, child=None), "approval", frame=frame.id, at=event.at, title=may_run(frame, call))


def _asking(agents: Agents, frame: Frame, call: Call) -> Asking:
    """How a question is put that the policy's rules do not ask."""
    return call.gate.ask if call.gate is not None and call.gate.ask else agents[frame.agent.digest].policy.ask


# ---- what may not be sent unseen -------------------------------------------------------------


def stop_sending(agents: Agents, continuation: Continuation, at: datetime) -> Continuation:
    """Ask about every call that would send outward from a frame with both taints, and has not begun; or deny it."""
    root = continuation.root
    if taints.clean(root):
        return continuation
    for frame in frames(root):
        if frame.calls and not frame.ended and len(taints.read(frame)) == 2:
            root = at_frame(root, frame.id, lambda one: _stop_sending(agents, continuation.floor, one, at)) or root
    return continuation if root is continuation.root else replace(continuation, root=root)


def _stop_sending(agents: Agents, floor: Floor | None, frame: Frame, at: datetime) -> Frame | None:
    verdict = taints.strictest(agents[frame.agent.digest].policy.outward, floor.outward if floor else "allow")
    sending = [call for call in frame.calls if _sends(agents, floor, frame, call)] if verdict != "allow" else []
    for call in sending:
        frame = put(*_stop_call(agents, frame, call, verdict, at=at))
    return frame if sending else None


def _sends(agents: Agents, floor: Floor | None, frame: Frame, call: Call) -> bool:
    """Whether a call sends outward, has not begun, and nobody was asked about that."""
    asked = call.wait is not None and call.wait.kind == "approval"
    still = call.sending is None and call.child is None and (call.state == "authorized" or asked)
    return still and taints.flow(agents, frame, call, floor).outward


def _stop_call(agents: Agents, frame: Frame, call: Call, verdict: Verdict, *, at: datetime) -> tuple[Frame, Call]:
    reason = taints.why(frame)
    if verdict == "deny":
        text = f"The policy does not allow this call. {reason}"
        return frame, close(replace(call, gate=Gate("deny", reason)), "denied", text)
    if call.gate is not None and call.gate.verdict == "ask":
        reason = f"{call.gate.reason} {reason}".lstrip()
    call = replace(call, sending="asked", gate=Gate("ask", reason, _asking(agents, frame, call)))
    if (granted := _use_grant(frame, call, at)) is not None:
        return granted, authorize(replace(call, sending="approved"))
    return frame, ask(call, "approval", frame=frame.id, at=at, title=may_run(frame, call))


def _bind(tool: Tool) -> ToolRef:
    return ToolRef(tool.name, digest(tool), tool.effect, tool.executor)


# ---- from the yes to the intent --------------------------------------------------------------


def authorize(call: Call) -> Call:
    """Let a call run."""
    return replace(call, state="authorized", wait=None)


def barred(agents: Agents, frame: Frame) -> bool:
    """Whether nothing of the frame may begin: it has a question of its own, or a step of it has, behind a barrier."""
    barrier = agents[frame.agent.digest].policy.barrier
    return frame.wait is not None or (
        barrier and any(call.wait is not None and call.wait.kind == "approval" for call in frame.calls)
    )


def launches(call: Call) -> bool:
    """Whether the call may run, and it is no worker that runs it."""
    return call.state == "authorized" and call.tool.executor != "server" and call.child is None


class Nest(NamedTuple):
    """How many sub-agents a frame may begin now, and what its model reads in the place of one more."""

    left: int
    refusal: str


def launch(agents: Agents, frame: Frame, at: datetime, *, nest: Nest) -> Frame:
    """Begin the calls that no worker runs: as a frame of their own, or as a question to whoever answers them."""
    if barred(agents, frame):
        return frame
    calls, left = [], nest.left
    for call in frame.calls:
        if launches(call) and call.tool.executor == "agent" and left <= 0:
            call = close(call, "failed", nest.refusal)
        elif launches(call):
            call = _launch(agents, call, frame, at)
            left -= call.child is not None
        calls.append(call)
    return replace(frame, calls=tuple(calls))


def _launch(agents: Agents, call: Call, frame: Frame, at: datetime) -> Call:
    if call.tool.executor == "agent":
        return _begin_child(agents, call, frame, at)
    return _ELSEWHERE[call.tool.executor](call, frame, at)


def _begin_child(agents: Agents, call: Call, frame: Frame, at: datetime) -> Call:
    tool = agents[frame.agent.digest].tool(call.tool.name)
    assert tool is not None and tool.agent is not None
    agent = agents[tool.agent]
    task = parsed(arguments(call)).get("input")
    words = said(call.uid, task if isinstance(task, str) else arguments(call))
    known = taints.merged(taints.read(frame), taints.tainted(call, tool.taints).taints)
    # One that was called back before it was written may have announced attempts; none is announced twice.
    turn = Turn(attempt=1 + call.waits if call.judged else 1)
    child = Frame(
        id=call.uid,
        agent=ref(agent),
        turn=turn,
        messages=(words,),
        limits=agent.limits,
        since=at,
        taints=known,
    )
    return replace(call, child=child)


def _ask_client(call: Call, frame: Frame, at: datetime) -> Call:
    return ask(call, "client_tool", frame=frame.id, at=at, title=f"Run {call.tool.name} and send its result.")


def _ask_person(call: Call, frame: Frame, at: datetime) -> Call:
    wanted = parsed(arguments(call)).get("question")
    if not isinstance(wanted, str) or not wanted.strip():
        return close(call, "failed", "Say what you want to know, as `question`. Nobody was asked.")
    return ask(call, "answer", frame=frame.id, at=at, title=f"{frame.agent.name} asks a question.")


def _await_event(call: Call, frame: Frame, at: datetime) -> Call:
    args = parsed(arguments(call))
    name, timeout_s = args.get("name"), args.get("timeout_s")
    if not isinstance(name, str) or not name or (timeout_s is not None and _seconds(timeout_s) is None):
        return close(call, "failed", "Say which event, as `name`, and how long at most, as `timeout_s` in seconds.")
    call = ask(call, "event", frame=frame.id, at=at, title=f"Waits for the event {visible(name[:200])}.")
    return _at_the_latest(call, None if timeout_s is None else at + timedelta(seconds=timeout_s), "reject", about=name)


def _await_time(call: Call, frame: Frame, at: datetime) -> Call:
    args = parsed(arguments(call))
    seconds = _seconds(args.get("seconds"))
    try:
        until = datetime.fromisoformat(args["until"]) if "until" in args else None
        ends_at = until if until is not None else at + timedelta(seconds=seconds if seconds is not None else -1)
        if not at <= ends_at <= at + timedelta(seconds=SLEEP_S_MAX):
            raise ValueError("out of range")
    except (TypeError, ValueError, OverflowError):
        return close(call, "failed", "Say `seconds`, or `until` as a time with its zone, at most 366 days ahead.")
    call = ask(call, "timer", frame=frame.id, at=at, title=f"Waits until {ends_at.isoformat(timespec='seconds')}.")
    return _at_the_latest(call, ends_at, "resume")


def _seconds(value: Any) -> float | None:
    """A number of seconds that can be waited for."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if number and isfinite(value) and 0 <= value <= SLEEP_S_MAX else None


def _at_the_latest(call: Call, at: datetime | None, then: Any, *, about: str | None = None) -> Call:
    """The call with an end to its question."""
    assert isinstance(call.wait, Wait)
    return replace(call, wait=replace(call.wait, expires_at=at, ask=Asking(on_expire=then), about=about))


_ELSEWHERE: Mapping[Executor, Callable[[Call, Frame, datetime], Call]] = {
    "client": _ask_client,
    "person": _ask_person,
    "event": _await_event,
    "clock": _await_time,
}


# ---- attempts --------------------------------------------------------------------------------


def idempotency_key(run_id: str, call: Call) -> str:
    """What names this call to the world, over all of its attempts."""
    return f"{run_id}{call.uid}"


def intend(call: Call, run_id: str, at: datetime) -> Call:
    """Write down that an attempt begins; the first one mints the idempotency key."""
    attempt = Attempt(n=len(call.attempts) + 1, state="sent", started_at=at)
    return replace(
        call, state="intent", attempts=(*call.attempts, attempt), key=call.key or idempotency_key(run_id, call)
    )


def finish(call: Call, event: Returned) -> Call:
    """End the running attempt with what the tool returned."""
    attempt = replace(call.attempts[-1], state="failed" if event.failed else "ok", ended_at=event.at)
    state: CallState = "failed" if event.failed else "succeeded"
    result = event.message or observed(call.uid, call.provider_id, "", error=event.failed)
    return replace(call, state=state, attempts=(*call.attempts[:-1], attempt), result=result)


def hearing(agents: Agents, floor: Floor | None, signal: Signal) -> Callable[[Frame, Call], Call]:
    """What ends a call that waited for an event, with what the event and the tool bring."""

    def hear(frame: Frame, call: Call) -> Call:
        known = taints.flow(agents, frame, call, floor).taints
        return taints.tainted(close(call, "answered", signal.data), (*signal.taints, *known))

    return hear


def lose(call: Call, frame: Frame, at: datetime) -> Call:
    """The running attempt died unseen: run it again where its tool says that this is safe, else ask a person."""
    attempt = replace(call.attempts[-1], state="lost", ended_at=at)
    call = replace(call, state="authorized", attempts=(*call.attempts[:-1], attempt))
    if call.tool.effect != "at_most_once":
        return call
    title = f"{call.tool.name} may or may not have run. What is true?"
    return ask(call, "outcome_unknown", frame=frame.id, at=at, title=title)


def close(call: Call, state: CallState, text: str) -> Call:
    """End a call with an observation of ours."""
    error = state not in ("answered", "succeeded")
    return replace(
        call, state=state, wait=None, child=None, result=observed(call.uid, call.provider_id, text, error=error)
    )
