"""What guardrails let pass between a model, its tools and whoever reads: replies, their deltas, and results.

`perform.py` asks it for everything that comes in, `drive.py` for calls that have not begun. The rules: what a guardrail
is about is shown to nobody before it was judged as a whole; and the journal names the version that acted, not the text.
"""

from datetime import datetime

import msgspec
from msgspec.structs import replace

from sojourn.guardrails.judging import Found, Judged
from sojourn.guardrails.policies.engine import Origin
from sojourn.loop.continuation import Call, Continuation, Frame, frames
from sojourn.loop.effects import CallModel, Effect
from sojourn.loop.events import Judged as CallJudged
from sojourn.loop.events import Noted, Replied
from sojourn.loop.step.tree import depth
from sojourn.loop.step.waits import arguments
from sojourn.models.model import Delta
from sojourn.worker.parts import Parts, Place


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


async def let_in(parts: Parts, place: Place, call: str, text: str) -> str:
    """What the model reads of a result."""
    if not parts.guardrails.of(place.tenant).covers("tool_result"):
        return text
    judged = await parts.guardrails.text(place.tenant, "tool_result", text)
    for found in judged.found:
        place.note(acted(parts.now(), found, on="tool_result", call=call))
    if judged.verdict == "refuse":
        return f"[The result is withheld. {judged.strictest.words} refuses it.]"
    return judged.text


class Calls:
    """The guardrails' eye on the calls of one run: each is judged before it begins, and again under other rules."""

    def __init__(self, parts: Parts, place: Place) -> None:
        self._parts, self._place = parts, place
        self._seen: dict[str, tuple[object, str]] = {}

    async def judged(self, committed: Continuation, state: Continuation) -> list[tuple[CallJudged, list[Noted]]]:
        """What is to be said of the calls that have not begun, and by which rules; `committed` tells which have."""
        rules = self._parts.guardrails.of(self._place.tenant)
        if not rules.covers("tool_arguments") or state.root.ended:
            return []
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
            self._seen[call.uid] = looked_at
            judged = await self._parts.guardrails.call(
                call.tool.name, args, effect=call.tool.effect, origin=self._origin(frame)
            )
            if judged.found:
                facts = [acted(self._parts.now(), one, on="tool_arguments", call=call.uid) for one in judged.found]
                said.append((self._say(call, judged), facts))
        return said

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
