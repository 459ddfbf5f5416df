"""One step of one frame: a model reply, the calls that it asks for, and their end.

`machine.py` calls these with a frame or a call that an event was found to answer. The rule: each takes a piece of the
tree and returns the piece that replaces it; none looks further up.
"""

import hashlib
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta

import msgspec
from msgspec.structs import replace

from sojourn.loop.agent import Agent, Tool, digest, ref
from sojourn.loop.continuation import (
    SETTLED,
    Attempt,
    Call,
    CallState,
    Decision,
    Failure,
    Frame,
    ToolRef,
    Turn,
    Wait,
    WaitKind,
)
from sojourn.loop.events import ModelErred, Replied, Returned
from sojourn.loop.messages import observed, said
from sojourn.loop.policy import gate

TRIES = 6
"""Failed attempts in a row on one model before the next one of the chain is asked."""
BACKOFF_S, BACKOFF_MAX_S = 0.5, 30.0
RETRY_AFTER_MAX_S = 300.0
PATIENCE_S = 20.0
"""A provider that asks for more patience than this is left, where the chain has another one."""

DEPTH_MAX = 16
"""How deep frames may be nested below the root."""

Agents = Mapping[str, Agent]
"""The agent versions that a run is pinned to, by digest."""


# ---- the model -------------------------------------------------------------------------------


def reply(agents: Agents, frame: Frame, event: Replied) -> Frame:
    """Take a reply into the transcript: open its calls, or end the frame with it."""
    message = event.message
    if message is None or not (message.calls or message.text or message.stop in ("content_filter", "refusal")):
        return retry(agents, frame, _empty(event))
    after = replace(frame, step=frame.step + 1, turn=Turn(model=frame.turn.model), messages=(*frame.messages, message))
    if message.calls:
        opened = tuple(_open(agents, frame, event, index) for index in range(len(message.calls)))
        return replace(after, state="acting", calls=opened)
    if frame.inbox:
        return after
    if not message.text:
        return failed(after, Failure(f"model.{message.stop}", "The provider withheld the model's answer."))
    return replace(after, state="done", result=message.text)


def _empty(event: Replied) -> ModelErred:
    error = Failure("model.empty", "The model answered with nothing.")
    return ModelErred(at=event.at, frame=event.frame, step=event.step, attempt=event.attempt, error=error, retry=True)


def retry(agents: Agents, frame: Frame, event: ModelErred) -> Frame:
    """Try the same model again later, or the next one of the chain at once, or give up."""
    turn, last = frame.turn, frame.turn.model + 1 >= len(agents[frame.agent.digest].models)
    failures = turn.failures + 1
    asked_s = event.retry_after_s
    wait_s = min(asked_s, RETRY_AFTER_MAX_S) if asked_s is not None else _backoff_s(frame, failures)
    if event.retry and failures < TRIES and (last or wait_s <= PATIENCE_S):
        turn = replace(again(frame).turn, failures=failures, not_before=event.at + timedelta(seconds=wait_s))
        return replace(frame, turn=turn)
    if not last:
        return replace(frame, turn=Turn(model=turn.model + 1, attempt=turn.attempt + 1))
    return failed(frame, event.error)


def ask_model(frame: Frame) -> Frame:
    """Announce the model call."""
    return replace(frame, turn=replace(frame.turn, sent=True))


def again(frame: Frame) -> Frame:
    """Make the model call once more, as a new attempt."""
    return replace(frame, turn=replace(frame.turn, attempt=frame.turn.attempt + 1, sent=False))


def _backoff_s(frame: Frame, failures: int) -> float:
    """Exponential, with a jitter that is drawn from the place itself: the same state waits the same time."""
    where = f"{frame.id} {frame.step} {frame.turn.attempt} {frame.agent.digest}"
    draw = hashlib.sha256(where.encode()).digest()[0] / 255
    return float(min(BACKOFF_MAX_S, BACKOFF_S * 2 ** (failures - 1)) * (0.5 + draw))


# ---- calls -----------------------------------------------------------------------------------


def _open(agents: Agents, frame: Frame, event: Replied, index: int) -> Call:
    """Turn a provider's tool call into ours: refused with an observation, or gated."""
    message, agent = event.message, agents[frame.agent.digest]
    assert message is not None
    request = message.calls[index]
    tool = agent.tool(request.name)
    call = Call(
        uid=f"{frame.id.rstrip('/')}/{frame.step}.{index}",
        provider_id=request.id,
        index=index,
        tool=_bind(tool) if tool else ToolRef(request.name, "", "read", "server"),
        args=request.arguments or "{}",
    )
    if tool is None:
        names = ", ".join(t.name for t in agent.tools) or "none"
        return close(call, "failed", f"There is no tool named {request.name!r}. The tools are: {names}.")
    if trouble := _malformed(call.args):
        cut = " The reply was cut off at the output limit: ask for less at a time." if message.stop == "length" else ""
        return close(call, "failed", f"The arguments are not a JSON object: {trouble}.{cut} Nothing was run.")
    verdict = gate(agent.policy, tool.name)
    call = replace(call, gate=verdict)
    if verdict.verdict == "deny":
        return close(call, "denied", f"The policy does not allow this call. {verdict.reason}".rstrip())
    if verdict.verdict == "ask":
        return ask(call, "approval", frame=frame.id, at=event.at, title=f"May {agent.name} run {tool.name}?")
    return authorize(agents, call, frame, event.at)


def _bind(tool: Tool) -> ToolRef:
    return ToolRef(tool.name, digest(tool), tool.effect, tool.executor)


def _malformed(args: str) -> str | None:
    try:
        msgspec.json.decode(args, type=dict)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
        return str(error).rstrip(".")
    return None


def authorize(agents: Agents, call: Call, frame: Frame, at: datetime) -> Call:
    """Let a call run: on a worker, at the caller's side, or as a frame of its own."""
    call = replace(call, state="authorized", wait=None)
    if call.tool.executor == "client":
        return ask(call, "client_tool", frame=frame.id, at=at, title=f"Run {call.tool.name} and send its result.")
    if call.tool.executor == "agent":
        if call.uid.count("/") > DEPTH_MAX:
            return close(call, "failed", f"Agents are nested {DEPTH_MAX} deep, which is the limit. Do it yourself.")
        tool = agents[frame.agent.digest].tool(call.tool.name)
        assert tool is not None and tool.agent is not None
        child = Frame(id=call.uid, agent=ref(agents[tool.agent]), messages=(said(call.uid, _task(call)),))
        return replace(call, child=child)
    return call


def _task(call: Call) -> str:
    """What a sub-agent is asked to do: the argument `input`, else all arguments as they were written."""
    args = msgspec.json.decode(call.args_effective or call.args)
    task = args.get("input")
    return task if isinstance(task, str) else call.args


_ALLOWED: Mapping[WaitKind, tuple[Decision, ...]] = {
    "approval": ("approve", "reject", "answer"),
    "client_tool": ("answer", "reject"),
    "outcome_unknown": ("retry", "mark_done", "reject"),
    "budget": ("extend", "reject"),
}


def question(kind: WaitKind, asker: Frame | Call, *, frame: str, at: datetime, title: str) -> Wait:
    """A new wait, numbered by who asks."""
    owner = asker.uid if isinstance(asker, Call) else asker.id
    id = f"{owner}?{asker.waits}"
    return Wait(id=id, kind=kind, frame=frame, title=title, allowed=_ALLOWED[kind], created_at=at)


def ask(call: Call, kind: WaitKind, *, frame: str, at: datetime, title: str) -> Call:
    """Open a question about a call, bound to the arguments that would run."""
    wait = question(kind, call, frame=frame, at=at, title=title)
    bound = digest(call.args_effective or call.args)
    state: CallState = "unknown" if kind == "outcome_unknown" else "waiting"
    return replace(call, state=state, waits=call.waits + 1, wait=replace(wait, call=call.uid, args_digest=bound))


def ask_budget(frame: Frame, limit: str, at: datetime) -> Frame:
    """Wait for somebody to raise a limit."""
    title = f"The run has used all of its {limit}. Raise it?"
    wait = question("budget", frame, frame=frame.id, at=at, title=title)
    return replace(frame, wait=wait, waits=frame.waits + 1)


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
    return replace(call, state=state, attempts=(*call.attempts[:-1], attempt), result=event.message)


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


# ---- the end of a step -----------------------------------------------------------------------


def settle(frame: Frame) -> Frame:
    """Fold ended children into their calls and settled calls into the transcript; then hear the user."""
    if frame.state == "acting":
        frame = replace(frame, calls=tuple(_settle_call(call) for call in frame.calls))
        if all(call.state in SETTLED for call in frame.calls):
            results = tuple(call.result for call in frame.calls if call.result is not None)
            frame = replace(frame, state="ready", calls=(), messages=(*frame.messages, *results))
    if frame.state == "ready" and frame.inbox and not frame.turn.sent:
        frame = replace(frame, messages=(*frame.messages, *frame.inbox), inbox=())
    return frame


def _settle_call(call: Call) -> Call:
    if call.child is None:
        return call
    child = settle(call.child)
    if child.state == "done":
        return close(call, "succeeded", child.result or "")
    if child.ended:
        detail = child.error.detail if child.error else "It was cancelled."
        return close(call, "failed", f"The sub-agent {child.agent.name} did not finish. {detail}")
    return replace(call, child=child)


def failed(frame: Frame, error: Failure) -> Frame:
    """End a frame without a result, and all below it."""
    return replace(_stopped(frame), state="failed", error=error)


def cancelled(frame: Frame) -> Frame:
    """Stop a frame and all below it."""
    return replace(_stopped(frame), state="cancelled")


def _stopped(frame: Frame) -> Frame:
    calls = tuple(
        call
        if call.state in SETTLED
        else replace(call, state="cancelled", wait=None, child=cancelled(call.child) if call.child else None)
        for call in frame.calls
    )
    return replace(frame, calls=calls, wait=None)


# ---- one place of the tree -------------------------------------------------------------------


def at_frame(root: Frame, id: str, change: Callable[[Frame], Frame | None]) -> Frame | None:
    """The tree with one frame changed; None where there is no such frame or `change` says None."""
    if root.id == id:
        return change(root)
    for i, call in enumerate(root.calls):
        if call.child is not None and (id == call.uid or id.startswith(f"{call.uid}/")):
            child = at_frame(call.child, id, change)
            return replace(root, calls=put(root.calls, i, replace(call, child=child))) if child else None
    return None


def at_call(root: Frame, uid: str, change: Callable[[Frame, Call], Call | None]) -> Frame | None:
    """The tree with one call changed; None where there is no such call or `change` says None."""

    def visit(frame: Frame) -> Frame | None:
        for i, call in enumerate(frame.calls):
            if call.uid == uid:
                changed = change(frame, call)
                return replace(frame, calls=put(frame.calls, i, changed)) if changed else None
        return None

    return at_frame(root, uid.rpartition("/")[0] or "/", visit)


def put(calls: tuple[Call, ...], i: int, call: Call) -> tuple[Call, ...]:
    return (*calls[:i], call, *calls[i + 1 :])
