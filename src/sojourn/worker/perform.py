"""One effect, performed: a model call or a tool call in, the event that answers it out.

`drive.py` runs each in a task of its own. The rule: it always answers; what goes wrong is an event too, and nothing
that an adapter raises gets further than this file.
"""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import aclosing
from datetime import datetime

from msgspec.structs import replace

from sojourn.errors import Refused, SojournError, Unavailable
from sojourn.loop import agent as pinned
from sojourn.loop import events as ev
from sojourn.loop.agent import Agent
from sojourn.loop.continuation import Failure
from sojourn.loop.effects import CallModel, CallTool, Effect
from sojourn.loop.messages import Message
from sojourn.models.attachments import attachments, fits
from sojourn.models.model import ModelFailed, Request
from sojourn.sandboxes.sandbox import Sandbox
from sojourn.store import queue
from sojourn.store.tenant import blobs
from sojourn.tools.tool import Misused, Outcome, Tool
from sojourn.worker.asking import request
from sojourn.worker.intake.results import told
from sojourn.worker.intake.screening import Pieces, ToolOutput, let_in, refusal, screened, show
from sojourn.worker.parts import Parts, Place
from sojourn.worker.upkeep.sessions import sandbox_of

log = logging.getLogger("sojourn.worker")

STOP_S = 15.0
GRACE_S = 30.0
"""A tool ends itself at its time-out; one that does not is given up after so much more."""


async def perform(parts: Parts, place: Place, agent: Agent, effect: Effect) -> ev.Event:
    """Do it and say what came of it."""
    match effect:
        case CallModel():
            return await _call_model(parts, place, agent, effect)
        case CallTool():
            return await _call_tool(parts, place, agent, effect)


# ---- the model -------------------------------------------------------------------------------


async def _call_model(parts: Parts, place: Place, agent: Agent, effect: CallModel) -> ev.Event:
    meter = place.meter(effect)
    try:
        if why := await refusal(parts, place, agent, effect):
            return effect.erred(parts.now(), Failure("guardrail.input", why))
        try:
            return await _stream(parts, place, await request(parts, place, agent, effect), effect)
        except ModelFailed as error:
            if error.kind != "too_long":
                raise
            meter.failed(error)
            return await _stream(parts, place, await request(parts, place, agent, effect, tighter=True), effect)
    except SojournError as error:
        meter.failed(error)
        failure, retry, after_s = Failure(error.code, str(error)), error.retry, error.retry_after_s
    except Exception:
        log.exception("model.bug", extra={"run": place.run_id, "model": effect.model})
        failure = Failure("sojourn.bug", "The call failed inside Sojourn; the log has the cause.")
        retry, after_s = False, None
    log.info("model.failed", extra={"run": place.run_id, "model": effect.model, "code": failure.code})
    return replace(effect.erred(parts.now(), failure, retry=retry, retry_after_s=after_s), bill=meter.bill())


async def _stream(parts: Parts, place: Place, asked: Request, effect: CallModel) -> ev.Replied:
    """One attempt: deltas go to the stream as they come, the whole message is the answer."""
    model, _ = parts.models.resolve(effect.model)
    first: datetime | None = None
    message: Message | None = None
    asked = replace(asked, blobs=await _attached(parts, place, asked.messages))
    meter, name = place.meter(effect), f"{effect.frame}#{effect.step}"
    may_send = meter.begin(asked, parts.tenure.check)
    pieces = Pieces(parts, place, effect)
    async with parts.calls.slot(model.provider):
        began = parts.now()
        sending = model.stream(asked, message_id=name, run=place, may_send=may_send, told=meter.told)
        async with aclosing(sending) as stream:
            del asked  # nothing holds its images and files once they are sent
            async for item in stream:
                first = first or parts.now()
                meter.hear(item)
                if isinstance(item, Message):
                    message = item
                else:
                    pieces.show(item)
    if message is None:
        raise ModelFailed("protocol", "The adapter gave no message.", retry=True)
    replied = effect.replied(
        parts.now(),
        message,
        usd_micros=effect.tariff.cost_micros(meter.usage) if effect.tariff else None,
        estimate=None if message.usage else meter.usage,
        first_token_ms=round((first - began).total_seconds() * 1000) if first else None,
    )
    return await screened(parts, place, replied)


async def _attached(parts: Parts, place: Place, messages: Sequence[Message]) -> dict[str, bytes]:
    """Read the images and files that a transcript names, in the scope of its run; what is gone is left out."""
    digests = attachments(messages)
    if not digests:
        return {}
    async with queue.lent(parts.database, parts.worker_id, place.claimed) as connection:
        kept = await blobs.about(connection, digests)
        fits(sum(blob.size_bytes for blob in kept.values()))
        return {name: await blobs.get(connection, name) for name in digests if name in kept}


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
        sandbox = await self._place.patiently(sandbox_of, self._parts, self._place)
        await self._parts.tenure.held()  # files may have come from far
        return sandbox

    def show(self, text: str) -> None:
        if not self._parts.guardrails.of(self.tenant).covers("tool_result"):
            show(self._parts, self._place, self._effect, ToolOutput(self.call, text))


async def _call_tool(parts: Parts, place: Place, agent: Agent, effect: CallTool) -> ev.Returned:
    outcome = await _run(parts, place, agent, effect)
    text = await told(parts, place, await let_in(parts, place, effect, outcome.text))
    return effect.returned(parts.now(), text, failed=outcome.failed)


async def _run(parts: Parts, place: Place, agent: Agent, effect: CallTool) -> Outcome:
    tool = parts.tools.get(effect.tool)
    if tool is None:
        return Outcome(f"This worker has no tool named {effect.tool}. Nothing was run.", failed=True)
    if effect.approved and _changed(agent.tool(effect.tool), tool.definition):
        return Outcome(
            "The tool has changed since a person approved this call. Nothing was run; ask again.", failed=True
        )
    limit_s = parts.settings.tool_timeout_s + GRACE_S
    try:
        return await asyncio.wait_for(_begun(parts, tool, effect.args, CallContext(parts, place, effect)), limit_s)
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


async def _begun(parts: Parts, tool: Tool, args: str, context: CallContext) -> Outcome:
    """Run it, if it may still begin once its task has its turn."""
    await parts.tenure.held()
    return await tool.run(args, context)


def _changed(seen: pinned.Tool | None, now: pinned.Tool) -> bool:
    """Whether a tool is not the one that people saw: it takes other arguments, or another try does something else."""
    return seen is None or (seen.schema, seen.effect) != (now.schema, now.effect)


async def stop(parts: Parts, place: Place, effect: Effect) -> None:
    """End what an abandoned tool call has begun outside this process."""
    if isinstance(effect, CallTool) and (tool := parts.tools.get(effect.tool)) is not None:
        try:
            await asyncio.wait_for(tool.stop(CallContext(parts, place, effect)), STOP_S)
        except (SojournError, TimeoutError) as error:
            name = type(error).__name__
            log.warning("tool.stop_failed", extra={"run": place.run_id, "tool": effect.tool, "error": name})
