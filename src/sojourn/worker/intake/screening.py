"""What guardrails let pass between a model, its tools and whoever reads: replies, their deltas, and results.

`perform.py` asks it for everything that comes in, `drive.py` for calls that have not begun. The rules: what a guardrail
is about is shown to nobody before it was judged as a whole; and the journal names the version that acted, not the text.
"""

import asyncio
from collections.abc import Callable, Iterable
from datetime import datetime
from itertools import takewhile

import msgspec
from msgspec.structs import replace

from sojourn.guardrails.judging import Found, Judged
from sojourn.guardrails.policies.engine import Origin
from sojourn.guardrails.rules import On
from sojourn.loop.agent import Agent
from sojourn.loop.continuation import Call, Continuation, Frame, frames
from sojourn.loop.effects import CallModel, CallTool, Effect
from sojourn.loop.events import Judged as CallJudged
from sojourn.loop.events import Noted, Replied
from sojourn.loop.messages import Message, Reasoning, Text, ToolResult
from sojourn.loop.step.tree import depth
from sojourn.loop.step.waits import arguments, parsed
from sojourn.models.model import Delta
from sojourn.worker.parts import Parts, Place, Subject


class ToolOutput(msgspec.Struct, frozen=True, tag="tool_output"):
    """A piece of what a tool printed."""

    call: str
    text: str


def show(parts: Parts, place: Place, effect: Effect, item: Delta | ToolOutput) -> None:
    """Send a piece to whoever looks on."""
    where = (place.tenant, place.run_id, place.claimed.fence, effect.frame, effect.step, effect.attempt)
    parts.deltas.add(where, msgspec.json.encode(item))


def acted(at: datetime, found: Found, **where: str) -> Noted:
    """The fact that a rule acted, and where."""
    rail = found.guardrail
    data: dict[str, str | int | float | None] = {"guardrail": rail.name, "version": rail.version}
    more = {"operator": rail.operator, "rule": found.rule, "then": found.then}
    return Noted(at=at, kind="guardrail.acted", data={**data, **more, **where})


async def _consulted(place: Place, judged: Judged, subject: Subject) -> Judged:
    """What the rules say, and then the judges; these are not asked about what is refused anyway."""
    if judged.verdict == "refuse":
        return judged
    return judged._replace(found=(*judged.found, *await place.consult(subject)))


# ---- what is said to an agent ----------------------------------------------------------------

ELSEWHERE: dict[str, On] = {"client": "tool_result", "person": "tool_result", "event": "input"}


async def refusal(parts: Parts, place: Place, agent: Agent, effect: CallModel) -> str:
    """Have judges look at what people, clients and signals said since the last reply; why it is refused, if it is.

    The API has no time to ask a model, so they are asked before the agent's own reads it.
    """
    rules = parts.guardrails.of(place.tenant)
    if not (rules.judges("input") or rules.judges("tool_result")):
        return ""
    for on, text in _heard(agent, effect.messages):
        found = await place.consult(Subject(on, effect.frame, effect.step, text))
        for one in found:
            place.note(acted(parts.now(), one, on=on, frame=effect.frame))
        if found:
            return f"{found[0].words} refuses what was said to the agent."
    return ""


def _heard(agent: Agent, messages: tuple[Message, ...]) -> list[tuple[On, str]]:
    """What is new to a model and came from outside. What we say ourselves has an id that begins with a slash."""
    new = list(takewhile(lambda one: one.role != "assistant", reversed(messages)))[::-1]
    asked = messages[-len(new) - 1].calls if len(new) < len(messages) else ()
    tools = {call.id: agent.tool(call.name) for call in asked}
    heard: list[tuple[On, str]] = []
    for message in new:
        if message.role == "user" and not message.id.startswith("/"):
            heard.append(("input", message.text))
        for part in message.parts:
            tool = tools.get(part.id) if isinstance(part, ToolResult) else None
            if isinstance(part, ToolResult) and tool is not None and tool.executor in ELSEWHERE:
                heard.append((ELSEWHERE[tool.executor], part.text))
    return heard


# ---- replies ---------------------------------------------------------------------------------


class Pieces:
    """The deltas of one reply: none any more from the moment that an output guardrail is in force."""

    def __init__(self, parts: Parts, place: Place, effect: CallModel) -> None:
        self._parts, self._place, self._effect = parts, place, effect
        self._quiet = False

    def show(self, item: Delta) -> None:
        """Send a piece, unless the reply must be judged as a whole: its event is what readers get then."""
        self._quiet = self._quiet or self._parts.guardrails.of(self._place.tenant).covers("output")
        if not self._quiet:
            show(self._parts, self._place, self._effect, item)


async def screened(parts: Parts, place: Place, replied: Replied) -> Replied:
    """The reply as it may be read: as it is, redacted, or withheld."""
    message = replied.message
    if message is None or not parts.guardrails.of(place.tenant).covers("output"):
        return replied
    seen, judged = await parts.guardrails.message(place.tenant, "output", message)
    words = "\n".join(part.text for part in seen.parts if isinstance(part, Text | Reasoning))
    judged = await _consulted(place, judged, Subject("output", replied.frame, replied.step, words))
    for found in judged.found:
        place.note(acted(parts.now(), found, on="output", frame=replied.frame))
    match judged.verdict:
        case "pass":
            return replied
        case "redact":
            return replace(replied, message=seen)
    why = f"{judged.strictest.words} refuses this reply."
    return replace(replied, message=replace(message, parts=()), withheld=why)


# ---- tools -----------------------------------------------------------------------------------


async def let_in(parts: Parts, place: Place, effect: CallTool, text: str) -> str:
    """What the model reads of a result."""
    if not parts.guardrails.of(place.tenant).covers("tool_result"):
        return text
    judged = await parts.guardrails.text(place.tenant, "tool_result", text)
    where = Subject("tool_result", effect.frame, effect.step, judged.text, effect.call)
    judged = await _consulted(place, judged, where)
    for found in judged.found:
        place.note(acted(parts.now(), found, on="tool_result", call=effect.call))
    if judged.verdict == "refuse":
        return f"[The result is withheld. {judged.strictest.words} refuses it.]"
    return judged.text


LookedAt = tuple[object, str]
"""The rules that a call was judged by, and its arguments."""


class Calls:
    """The guardrails' eye on the calls of one run: each is judged before it begins, and again under other rules."""

    def __init__(self, parts: Parts, place: Place, wake: Callable[[], None]) -> None:
        self._parts, self._place, self._wake = parts, place, wake
        self._seen: dict[str, LookedAt] = {}
        self.asking: dict[str, tuple[LookedAt, asyncio.Task[tuple[Found, ...]]]] = {}
        """Judges that are asked about a call: meanwhile nothing of its step is durable."""

    async def judged(self, committed: Continuation, state: Continuation) -> list[tuple[CallJudged, list[Noted]]]:
        """What is to be said of the calls that have not begun, and by which rules; `committed` tells which have."""
        rules = self._parts.guardrails.of(self._place.tenant)
        if not rules.covers("tool_arguments") or state.root.ended:
            self._drop(self.asking.keys())
            return []
        left = set(self.asking)
        begun: set[str] | None = None
        said: list[tuple[CallJudged, list[Noted]]] = []
        for frame, call in ((one, call) for one in frames(state.root) for call in one.calls):
            looked_at = (rules, args := arguments(call))
            if call.state not in ("authorized", "waiting") or self._seen.get(call.uid) == looked_at:
                continue
            if _handed_out(call):
                begun = begun if begun is not None else _begun(committed)
                if call.uid in begun:
                    continue
            judged = await self._parts.guardrails.call(
                call.tool.name, args, effect=call.tool.effect, origin=self._origin(frame)
            )
            if judged.verdict != "refuse" and rules.judges("tool_arguments"):
                left.discard(call.uid)
                if (more := self._opinion(frame, call, looked_at)) is None:
                    continue
                judged = judged._replace(found=(*judged.found, *more))
            self._seen[call.uid] = looked_at
            if judged.found:
                facts = [acted(self._parts.now(), one, on="tool_arguments", call=call.uid) for one in judged.found]
                said.append((self._say(call, judged), facts))
        self._drop(left)
        return said

    def _opinion(self, frame: Frame, call: Call, looked_at: LookedAt) -> tuple[Found, ...] | None:
        """What judges say of a call; None while they are asked."""
        before, task = self.asking.get(call.uid, (None, None))
        if task is not None and before == looked_at:
            if not task.done():
                return None
            del self.asking[call.uid]
            return task.result()
        self._drop((call.uid,))
        try:
            args = parsed(looked_at[1])
        except (ValueError, RecursionError):
            return ()  # nothing runs with them
        text = msgspec.json.encode({"tool": call.tool.name, "arguments": args}).decode()
        subject = Subject("tool_arguments", frame.id, max(frame.step - 1, 0), text, call.uid)
        task = asyncio.create_task(self._place.consult(subject))
        task.add_done_callback(lambda _: self._wake())
        self.asking[call.uid] = looked_at, task
        return None

    def _drop(self, calls: Iterable[str]) -> None:
        """Ask no more about these."""
        for uid in list(calls):
            if uid in self.asking:
                self.asking.pop(uid)[1].cancel()

    def _origin(self, frame: Frame) -> Origin:
        return Origin(self._place.tenant, self._place.user, frame.agent.name, depth(frame.id))

    def _say(self, call: Call, judged: Judged) -> CallJudged:
        strictest = [found for found in judged.found if found.then == judged.verdict]
        refused = judged.verdict == "refuse"
        verb = "does not allow this call. It was not run." if refused else "asks about this call."
        return CallJudged(
            at=self._parts.now(),
            call=call.uid,
            waits=call.waits,
            verdict="deny" if refused else "ask",
            by=" ".join(sorted({found.guardrail.label for found in strictest})),
            reason=f"{judged.strictest.words} {verb}",
        )


def _handed_out(call: Call) -> bool:
    """Whether somebody else than a worker has it: a sub-agent, a client, a person, the world or the clock."""
    return call.child is not None or (call.wait is not None and call.wait.kind != "approval")


def _begun(committed: Continuation) -> set[str]:
    return {call.uid for frame in frames(committed.root) for call in frame.calls if _handed_out(call)}
