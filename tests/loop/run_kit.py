"""A run in the hands of a test, with an agent that has a tool of every kind."""

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from msgspec.structs import replace

from sojourn.loop import events as ev
from sojourn.loop.agent import Agent, Suspend, Tool, digest, ref
from sojourn.loop.budget import Limits
from sojourn.loop.continuation import (
    Continuation,
    Failure,
    Frame,
    Principal,
    Wait,
    attach,
    detach,
    frames,
    fresh,
    path,
    pending,
)
from sojourn.loop.effects import CallModel
from sojourn.loop.machine import apply, begin, due, in_flight, phase, wake_at
from sojourn.loop.messages import Message, Part, ToolCall, observed, said
from sojourn.loop.policy import Policy, Rule
from sojourn.loop.step.decisions import refusal

T0 = datetime(2026, 1, 1, tzinfo=UTC)
HELPER = Agent(name="helper", models=("sim:h",), tools=(Tool(name="look", effect="read"),))
AGENT = Agent(
    name="a",
    models=("sim:a", "sim:b"),
    tools=(
        Tool(name="look", effect="read"),
        Tool(name="pay"),
        Tool(name="wire"),
        Tool(name="hand", executor="client"),
        Tool(name="help", executor="agent", agent=digest(HELPER)),
    ),
    policy=Policy(rules=(Rule("wire", "ask"), Rule("pa*", "allow")), otherwise="allow"),
)


class Run:
    """A run in the hands of a test: it announces what is due and answers by name."""

    def __init__(self, agent: Agent = AGENT, limits: Limits | None = None, **more: Any) -> None:
        """`more` may be `others`, the agents below, `suspend`, the run's own rules, and `taints` of its input."""
        self.agents = {digest(one): one for one in (agent, HELPER, *more.get("others", ()))}
        self.second = 0
        self.journal: list[ev.Event] = []
        first = ev.Began(
            at=T0,
            run_id="run_1",
            tenant="t",
            session_id="ses_1",
            principal=Principal("u"),
            agent=ref(agent),
            limits=limits or Limits(),
            suspend=more.get("suspend") or Suspend(),
            message=said("in", "go"),
            taints=more.get("taints", ()),
        )
        self.state: Continuation = begin(first)

    def at(self) -> datetime:
        self.second += 1
        return T0 + timedelta(seconds=self.second)

    def tell(self, event: ev.Event) -> bool:
        before, self.state = self.state, apply(self.agents, self.state, event)
        return self.state is not before

    def announce(self) -> tuple[Any, ...]:
        effects = due(self.agents, self.state)
        for effect in effects:
            if isinstance(effect, CallModel):
                asked = ev.ModelAsked(
                    at=self.at(), frame=effect.frame, step=effect.step, attempt=effect.attempt, model=effect.model
                )
                assert self.tell(asked)
            else:
                assert self.tell(ev.Intended(at=self.at(), call=effect.call, attempt=effect.attempt))
        return effects

    def reply(self, *parts: Part, stop: str = "end", frame: str = "/", **more: Any) -> bool:
        """Announce what is due, then answer the model call of `frame`."""
        self.announce()
        place = next(f for f in frames(self.state.root) if f.id == frame)
        message = Message(id=f"{frame}#{place.step}", role="assistant", parts=parts, stop=stop, **more)
        return self.tell(
            ev.Replied(at=self.at(), frame=frame, step=place.step, attempt=place.turn.attempt, message=message)
        )

    def fail(self, *, retry: bool, after_s: float | None = None) -> bool:
        self.announce()
        frame = self.state.root
        return self.tell(
            ev.ModelErred(
                at=self.at(),
                frame="/",
                step=frame.step,
                attempt=frame.turn.attempt,
                error=Failure("model.overloaded", "busy"),
                retry=retry,
                retry_after_s=after_s,
            )
        )

    def returned(self, call: str, text: str = "ok", attempt: int = 1, failed: bool = False) -> bool:
        message = observed(call, "p", text, error=failed)
        return self.tell(ev.Returned(at=self.at(), call=call, attempt=attempt, message=message, failed=failed))

    def decide(self, wait: str, decision: Any, by: str = "boss", **more: Any) -> bool:
        return self.tell(self.decided(wait, decision, by, **more))

    def decided(self, wait: str, decision: Any, by: str = "boss", **more: Any) -> ev.Decided:
        return ev.Decided(at=self.at(), wait=wait, by=by, decision=decision, **more)

    def refused(self, wait: str, decision: Any, by: str = "boss", **more: Any) -> str | None:
        """The code with which a decision is refused; what is refused must change nothing."""
        event = self.decided(wait, decision, by, **more)
        failure, before = refusal(self.agents, self.state, event), self.state
        assert (failure is None) == self.tell(event)
        assert failure is None or self.state is before
        return failure.code if failure is not None else None

    def tick(self, later_s: float = 0.0) -> bool:
        """Let time pass, up to the next thing that is due by then or for so long."""
        wake = wake_at(self.state)
        at = max(self.state.updated_at, wake) if wake is not None and not later_s else self.state.updated_at
        self.second = int((at - T0).total_seconds() + later_s)
        return self.tell(ev.Ticked(at=at + timedelta(seconds=later_s)))

    def pending(self, kind: str | None = None) -> list[Wait]:
        return [wait for wait in pending(self.state) if kind in (None, wait.kind)]

    def moved(self) -> None:
        """Take the run up in another process: out of the row and the bodies that were written."""
        row = msgspec.json.encode(replace(self.state, root=detach(self.root)))
        bodies = {(frame, slot): message for frame, slot, message in fresh(None, self.state)}
        loaded = msgspec.json.decode(row, type=Continuation)
        self.state = replace(loaded, root=attach(loaded.root, bodies))
        for lost in in_flight(self.state, self.state.updated_at):
            assert self.tell(lost)

    @property
    def root(self) -> Frame:
        return self.state.root

    @property
    def phase(self) -> str:
        return phase(self.agents, self.state)

    def texts(self, frame: str = "/") -> list[str]:
        """What was said and observed in a frame."""
        messages = path(self.root, frame)[-1].messages
        return [message.text or "".join(getattr(part, "text", "") for part in message.parts) for message in messages]

    def last(self) -> str:
        """The text of the last observation."""
        return self.root.messages[-1].parts[0].text  # type: ignore[union-attr]


def call(name: str, args: str = "{}", id: str = "p") -> ToolCall:
    return ToolCall(id, name, args)
