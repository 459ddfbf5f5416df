"""What the world must do next, as `machine.due` says it. The worker performs each and answers with one event."""

from sojourn.loop.agent import EffectClass
from sojourn.loop.budget import Room
from sojourn.loop.messages import Message, Plain


class CallModel(Plain, frozen=True, kw_only=True, tag="call_model"):
    """Ask `model` for the next reply of a frame; answered by Replied or ModelErred."""

    frame: str
    agent: str
    """The digest of the agent version, which holds system prompt and tools."""
    step: int
    attempt: int
    model: str
    messages: tuple[Message, ...]
    room: Room = Room()
    """What it may cost."""


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


Effect = CallModel | CallTool
