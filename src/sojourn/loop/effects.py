"""What the world must do next, as `machine.due` says it. Whoever drives a run performs each and answers with one event.

The events that announce and answer an effect are made from it here, so that they name the exact attempt.
"""

from datetime import datetime

from sojourn.loop.agent import EffectClass
from sojourn.loop.budget import Bill, Held, Room, Tariff
from sojourn.loop.continuation import Compaction, Failure
from sojourn.loop.events import Intended, ModelAsked, ModelErred, Replied, Returned
from sojourn.loop.messages import Message, Plain, Usage, observed


class CallModel(Plain, frozen=True, kw_only=True, tag="call_model"):
    """Ask `model` for the next reply of a frame; answered by Replied or ModelErred."""

    frame: str
    agent: str
    """The digest of the agent version, which holds system prompt and tools."""
    step: int
    attempt: int
    model: str
    messages: tuple[Message, ...]
    """The whole transcript; `window.shown` says what of it the model reads."""
    compaction: Compaction | None = None
    goal: int = 0
    """The position of what the frame was asked to do."""
    room: Room = Room()
    """What it may cost."""
    tariff: Tariff | None = None
    """What the model costs this run, once it was asked."""

    def announced(
        self, at: datetime, held: Held | None = None, *, least: Bill | None = None, tariff: Tariff | None = None
    ) -> ModelAsked:
        """Say that it is about to be made: what it may cost, what it costs at least, and the price where it is new."""
        return ModelAsked(
            at=at,
            frame=self.frame,
            step=self.step,
            attempt=self.attempt,
            model=self.model,
            held=held or Held(),
            least=least,
            tariff=tariff,
        )

    def replied(
        self,
        at: datetime,
        message: Message,
        *,
        usd_micros: int | None = None,
        estimate: Usage | None = None,
        first_token_ms: int | None = None,
    ) -> Replied:
        """Say what the model answered."""
        return Replied(
            at=at,
            frame=self.frame,
            step=self.step,
            attempt=self.attempt,
            message=message,
            usd_micros=usd_micros,
            estimate=estimate,
            first_token_ms=first_token_ms,
        )

    def erred(
        self, at: datetime, error: Failure, *, retry: bool = False, retry_after_s: float | None = None
    ) -> ModelErred:
        """Say that the attempt failed, and whether the same model may do better later."""
        return ModelErred(
            at=at,
            frame=self.frame,
            step=self.step,
            attempt=self.attempt,
            error=error,
            retry=retry,
            retry_after_s=retry_after_s,
        )


class CallTool(Plain, frozen=True, kw_only=True, tag="call_tool"):
    """Run a tool; answered by Returned. From the second attempt on, an earlier one may have had its effect."""

    frame: str
    agent: str
    step: int
    call: str
    attempt: int
    tool: str
    effect: EffectClass
    args: str
    key: str
    """The idempotency key: the same for every attempt of this call."""
    provider_id: str
    """What the observation is paired with."""
    approved: bool = False
    """A person was asked about it; the tool that runs must be the very one that they saw."""

    def announced(self, at: datetime) -> Intended:
        """Say that it is about to run."""
        return Intended(at=at, call=self.call, attempt=self.attempt)

    def returned(self, at: datetime, text: str, *, failed: bool = False) -> Returned:
        """Say what came back."""
        message = observed(self.call, self.provider_id, text, error=failed)
        return Returned(at=at, call=self.call, attempt=self.attempt, message=message, failed=failed)


Effect = CallModel | CallTool
