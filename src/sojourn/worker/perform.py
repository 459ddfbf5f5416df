"""One effect, performed: a model call or a tool call in, the event that answers it out.

`drive.py` runs each in a task of its own. The rule: it always answers; what goes wrong is an event too, and nothing
that an adapter raises gets further than this file.
"""

import asyncio
import logging
from contextlib import aclosing
from datetime import datetime

import msgspec

from sojourn.errors import Refused, SojournError, Unavailable
from sojourn.loop import events as ev
from sojourn.loop.agent import Agent
from sojourn.loop.continuation import Failure
from sojourn.loop.effects import CallModel, CallTool, Effect
from sojourn.loop.messages import Message, observed
from sojourn.models.model import Delta, ModelFailed, Request, ToolDefinition
from sojourn.sandboxes.sandbox import Sandbox
from sojourn.tools.tool import Misused, Outcome
from sojourn.worker.parts import Parts, Place
from sojourn.worker.sessions import sandbox_of

log = logging.getLogger("sojourn.worker")

STOP_S = 15.0
GRACE_S = 30.0
"""A tool ends itself at its time-out; one that does not is given up after so much more."""


class ToolOutput(msgspec.Struct, frozen=True, tag="tool_output"):
    """A piece of what a tool printed."""

    call: str
    text: str


async def perform(parts: Parts, place: Place, agent: Agent, effect: Effect) -> ev.Event:
    """Do it and say what came of it."""
    match effect:
        case CallModel():
            return await _call_model(parts, place, agent, effect)
        case CallTool():
            return await _call_tool(parts, place, effect)


# ---- the model -------------------------------------------------------------------------------


async def _call_model(parts: Parts, place: Place, agent: Agent, effect: CallModel) -> ev.Event:
    try:
        return await _stream(parts, place, agent, effect)
    except ModelFailed as error:
        failure, retry, after_s = Failure(error.code, str(error)), error.retry, error.retry_after_s
    except SojournError as error:
        failure, retry, after_s = Failure(error.code, str(error)), error.retry, error.retry_after_s
    except Exception:
        log.exception("model.bug", extra={"run": place.run_id, "model": effect.model})
        failure = Failure("sojourn.bug", "The call failed inside Sojourn; the log has the cause.")
        retry, after_s = False, None
    log.info("model.failed", extra={"run": place.run_id, "model": effect.model, "code": failure.code})
    return ev.ModelErred(
        at=parts.now(),
        frame=effect.frame,
        step=effect.step,
        attempt=effect.attempt,
        error=failure,
        retry=retry,
        retry_after_s=after_s,
    )


async def _stream(parts: Parts, place: Place, agent: Agent, effect: CallModel) -> ev.Replied:
    """One attempt: deltas go to the stream as they come, the whole message is the answer."""
    model, name = parts.models.resolve(effect.model)
    began = parts.now()
    first: datetime | None = None
    message: Message | None = None
    request = _request(agent, name, effect)
    async with aclosing(model.stream(request, message_id=f"{effect.frame}#{effect.step}")) as stream:
        async for item in stream:
            first = first or parts.now()
            if isinstance(item, Message):
                message = item
            else:
                _show(parts, place, effect, item)
    if message is None:
        raise ModelFailed("protocol", "The adapter gave no message.", retry=True)
    return ev.Replied(
        at=parts.now(),
        frame=effect.frame,
        step=effect.step,
        attempt=effect.attempt,
        message=message,
        usd_micros=parts.price(effect.model, message.usage) if message.usage else None,
        first_token_ms=round((first - began).total_seconds() * 1000) if first else None,
    )


def _request(agent: Agent, name: str, effect: CallModel) -> Request:
    return Request(
        model=name,
        system=agent.system,
        messages=effect.messages,
        tools=tuple(ToolDefinition(tool.name, tool.description, tool.schema) for tool in agent.tools),
        params=agent.params,
    )


def _show(parts: Parts, place: Place, effect: Effect, item: Delta | ToolOutput) -> None:
    where = (place.tenant, place.run_id, effect.frame, effect.step, effect.attempt)
    parts.deltas.add(where, msgspec.json.encode(item))


# ---- tools -----------------------------------------------------------------------------------


class CallContext:
    """What a tool is told about its call: see tools/tool.py."""

    def __init__(self, parts: Parts, place: Place, effect: CallTool) -> None:
        self.tenant, self.user = place.tenant, place.user
        self.session_id, self.run_id = place.session_id, place.run_id
        self.call, self.attempt, self.key = effect.call, effect.attempt, effect.key
        self.timeout_s = parts.settings.tool_timeout_s
        self._parts, self._place, self._effect = parts, place, effect

    async def sandbox(self) -> Sandbox:
        return await sandbox_of(self._parts, self._place)

    def show(self, text: str) -> None:
        _show(self._parts, self._place, self._effect, ToolOutput(self.call, text))


async def _call_tool(parts: Parts, place: Place, effect: CallTool) -> ev.Returned:
    outcome = await _run(parts, place, effect)
    text = _clip(outcome.text, parts.settings.observation_max_bytes)
    return ev.Returned(
        at=parts.now(),
        call=effect.call,
        attempt=effect.attempt,
        message=observed(effect.call, effect.provider_id, text, error=outcome.failed),
        failed=outcome.failed,
    )


async def _run(parts: Parts, place: Place, effect: CallTool) -> Outcome:
    tool = parts.tools.get(effect.tool)
    if tool is None:
        return Outcome(f"This worker has no tool named {effect.tool}. Nothing was run.", failed=True)
    limit_s = parts.settings.tool_timeout_s + GRACE_S
    try:
        return await asyncio.wait_for(tool.run(effect.args, CallContext(parts, place, effect)), limit_s)
    except TimeoutError:
        return Outcome(f"It did not end within {limit_s:g} s and was given up.", failed=True)
    except (Misused, Refused) as error:
        return Outcome(str(error), failed=True)
    except Unavailable as error:
        log.warning("tool.unavailable", extra={"run": place.run_id, "tool": effect.tool, "code": error.code})
        return Outcome(f"The tool cannot be used now: {error}", failed=True)
    except Exception:
        log.exception("tool.bug", extra={"run": place.run_id, "tool": effect.tool})
        return Outcome("The tool failed inside Sojourn. It may have run in part.", failed=True)


async def stop(parts: Parts, place: Place, effect: Effect) -> None:
    """End what an abandoned tool call has begun outside this process."""
    if isinstance(effect, CallTool) and (tool := parts.tools.get(effect.tool)) is not None:
        try:
            await asyncio.wait_for(tool.stop(CallContext(parts, place, effect)), STOP_S)
        except (SojournError, TimeoutError) as error:
            name = type(error).__name__
            log.warning("tool.stop_failed", extra={"run": place.run_id, "tool": effect.tool, "error": name})


def _clip(text: str, limit_bytes: int) -> str:
    """Head and tail of a text that is too long for a transcript."""
    data = text.encode(errors="replace")
    if len(data) <= limit_bytes:
        return data.decode()
    half = limit_bytes // 2
    head, tail = data[:half].decode(errors="ignore"), data[-half:].decode(errors="ignore")
    return f"{head}\n[{len(data) - 2 * half} bytes left out]\n{tail}"
