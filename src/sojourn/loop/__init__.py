"""The agent loop, pure: no clock, no randomness, no I/O. It can be imported alone; docs/frameworks.md shows how.

messages       what is said               events    what has happened
agent, policy  what a run is pinned to    effects   what the world must do next
continuation   what a run is              machine   begin, apply, due (with steps, decisions, budget)
files          a run as text

For a program with a loop of its own, this is all of it:

    run = begin(events.Began(...))                      a new run
    run = apply(agents, run, event)                     what has happened; a late or second answer changes nothing
    for effect in due(agents, run): ...                 what to do next: effect.announced(at), save, do it, and then
                                                        effect.replied(at, ...) or effect.returned(at, ...)
    phase(agents, run), pending(run), wake_at(run)      where it stands, which questions are open, when to look again
    refusal(agents, run, decided)                       why a decision is not taken, if it is not
    in_flight(run, at)                                  what a process that died has left, as the events that say so
    given_up(run, after, event)                         the model calls that an event ends, as the events to apply first
    dumps(run, agents), loads(text)                     a run as the text of one file
"""

from sojourn.loop import events
from sojourn.loop.agent import Agent, Params, Suspend, Tool, digest, ref
from sojourn.loop.budget import Bill, Held, Limits, Price, Tariff
from sojourn.loop.continuation import (
    Call,
    Continuation,
    Failure,
    Floor,
    Flow,
    Frame,
    Origin,
    Principal,
    Wait,
    frames,
    pending,
)
from sojourn.loop.effects import CallModel, CallTool, Effect
from sojourn.loop.files import Kept, dumps, loads
from sojourn.loop.machine import apply, begin, due, given_up, in_flight, phase, wake_at
from sojourn.loop.messages import (
    File,
    Image,
    Message,
    Native,
    Reasoning,
    Source,
    Text,
    ToolCall,
    ToolResult,
    Usage,
    observed,
    said,
)
from sojourn.loop.policy import Asking, Condition, Policy, Rule
from sojourn.loop.step.decisions import refusal

__all__ = [
    "Agent",
    "Asking",
    "Bill",
    "Call",
    "CallModel",
    "CallTool",
    "Condition",
    "Continuation",
    "Effect",
    "Failure",
    "File",
    "Floor",
    "Flow",
    "Frame",
    "Held",
    "Image",
    "Kept",
    "Limits",
    "Message",
    "Native",
    "Origin",
    "Params",
    "Policy",
    "Price",
    "Principal",
    "Reasoning",
    "Rule",
    "Source",
    "Suspend",
    "Tariff",
    "Text",
    "Tool",
    "ToolCall",
    "ToolResult",
    "Usage",
    "Wait",
    "apply",
    "begin",
    "digest",
    "due",
    "dumps",
    "events",
    "frames",
    "given_up",
    "in_flight",
    "loads",
    "observed",
    "pending",
    "phase",
    "ref",
    "refusal",
    "said",
    "wake_at",
]
