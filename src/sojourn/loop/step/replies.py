"""The model answered, or did not: the next attempt, the next model, the calls of a step, or the end of a frame."""

import hashlib
from datetime import timedelta

from msgspec.structs import replace

from sojourn.loop.budget import Held
from sojourn.loop.continuation import Call, Failure, Frame, Turn
from sojourn.loop.events import Consulted, ModelAsked, ModelErred, Replied
from sojourn.loop.messages import said
from sojourn.loop.step.calls import Agents, open_call
from sojourn.loop.step.ending import failed

TRIES = 6
"""Failed attempts in a row on one model before the next one of the chain is asked."""
BACKOFF_S, BACKOFF_MAX_S = 0.5, 30.0
RETRY_AFTER_MAX_S = 300.0
PATIENCE_S = 20.0
"""A provider that asks for more patience than this is left, where the chain has another one."""
OPINIONS_MAX = 64
"""What judges said last in a frame and is not asked again, by whoever goes on with it."""
ANOTHER = "Your reply was withheld and nobody has read it. Give another one that keeps to this."


def reply(agents: Agents, frame: Frame, event: Replied) -> Frame:
    """Take a reply into the transcript: open its calls, or end the frame with it."""
    message = event.message
    if event.withheld:
        return _withheld(frame, event)
    if message is None or not (message.calls or message.text or message.stop in ("content_filter", "refusal")):
        return retry(agents, frame, _empty(event))
    after = replace(frame, step=frame.step + 1, turn=Turn(model=frame.turn.model), messages=(*frame.messages, message))
    if message.calls:
        opened: list[Call] = []
        for index in range(len(message.calls)):
            after, call = open_call(agents, after, event, index)
            opened.append(call)
        return replace(after, state="acting", calls=tuple(opened))
    if frame.inbox:
        return after
    if not message.text:
        return failed(after, Failure(f"model.{message.stop}", "The provider withheld the model's answer."))
    return replace(after, state="done", result=message.text)


def _withheld(frame: Frame, event: Replied) -> Frame:
    """Tell the model once that its reply was refused, and ask again; the second time the frame fails."""
    if frame.turn.withheld:
        return failed(frame, Failure("guardrail.output", event.withheld))
    told = said(f"{frame.id}!{event.step}.{event.attempt}", f"{event.withheld} {ANOTHER}")
    turn = replace(again(frame).turn, failures=0, withheld=True)
    return replace(frame, turn=turn, messages=(*frame.messages, told))


def _empty(event: Replied) -> ModelErred:
    error = Failure("model.empty", "The model answered with nothing.")
    return ModelErred(at=event.at, frame=event.frame, step=event.step, attempt=event.attempt, error=error, retry=True)


def retry(agents: Agents, frame: Frame, event: ModelErred) -> Frame:
    """Try the same model again later, or the next one of the chain at once, or give up."""
    turn, last = frame.turn, frame.turn.model + 1 >= len(agents[frame.agent.digest].models)
    failures = turn.failures + 1
    asked_s = event.retry_after_s
    wait_s = min(asked_s, RETRY_AFTER_MAX_S) if asked_s is not None else backoff_s(frame, failures)
    if event.retry and failures < TRIES and (last or wait_s <= PATIENCE_S):
        turn = replace(again(frame).turn, failures=failures, not_before=event.at + timedelta(seconds=wait_s))
        return replace(frame, turn=turn)
    if not last and event.error.code != "guardrail.input":  # no other model is asked what a guardrail refused
        return replace(frame, turn=Turn(model=turn.model + 1, attempt=turn.attempt + 1))
    return failed(frame, event.error)


def consulted(frame: Frame, event: Consulted) -> Frame:
    """Keep what a judge said."""
    if event.verdict == "failed":
        return frame
    opinions = {**frame.opinions, event.key: event.verdict == "breaks"}
    return replace(frame, opinions=dict(list(opinions.items())[-OPINIONS_MAX:]))


def ask_model(frame: Frame, event: ModelAsked) -> Frame:
    """Announce the model call, and set aside what it may cost."""
    return replace(frame, turn=replace(frame.turn, sent=True, held=event.held, least=event.least))


def again(frame: Frame) -> Frame:
    """Make the model call once more, as a new attempt."""
    return replace(frame, turn=replace(frame.turn, attempt=frame.turn.attempt + 1, sent=False, held=Held(), least=None))


def backoff_s(frame: Frame, failures: int) -> float:
    """Exponential, with a jitter that is drawn from the place itself: the same state waits the same time."""
    where = f"{frame.id} {frame.step} {frame.turn.attempt} {frame.agent.digest}"
    draw = hashlib.sha256(where.encode()).digest()[0] / 255
    return float(min(BACKOFF_MAX_S, BACKOFF_S * 2 ** (failures - 1)) * (0.5 + draw))
