"""What a frame has read, and what it may therefore not send unseen.

A result can be private, or untrusted: it came from outside and may carry orders. A frame that has read both may have
been told to give away what it knows. So a call that sends outward from there is asked about, or denied, as the policy
says. `machine.py` asks after every event, `calls.py` does what is answered. The rule: taints only grow, in a frame and
from frame to frame, so whatever comes back later is counted before anything begins.
"""

from collections.abc import Collection, Iterable, Mapping

from msgspec.structs import replace

from sojourn.loop.agent import Agent, Executor, Taint, Tool
from sojourn.loop.continuation import Call, Floor, Flow, Frame, Origin, frames
from sojourn.loop.policy import Verdict

STRICTNESS: tuple[Verdict, ...] = ("allow", "ask", "deny")
THEIRS: tuple[Executor, ...] = ("client", "agent")
"""Whose tools the operator says nothing of: those of the caller, and sub-agents."""
WORDS: Mapping[Taint, str] = {"private": "private data", "untrusted": "untrusted words"}

SHOWN_MAX = 200
"""Characters of where a taint came from, in a question."""


# ---- what was read ---------------------------------------------------------------------------


def merged(*found: Iterable[Origin]) -> tuple[Origin, ...]:
    """All taints, each with its first origin."""
    first: dict[Taint, Origin] = {}
    for origin in (origin for some in found for origin in some):
        first.setdefault(origin.taint, origin)
    return tuple(first.values())


def said(taints: Iterable[Taint], source: str) -> tuple[Origin, ...]:
    """The taints of something that was said."""
    return merged(Origin(taint, source) for taint in taints)


def read(frame: Frame) -> tuple[Origin, ...]:
    """All that a frame has read: what is in its transcript, and what came back since."""
    return merged(frame.taints, *(call.taints for call in frame.calls if call.taints))


def clean(frame: Frame) -> bool:
    """Whether nothing is tainted in a frame and below it: as a rule, so it is asked first."""
    if frame.taints:
        return False
    for call in frame.calls:  # noqa: SIM110 (a generator takes longer, and this is asked for every event)
        if call.taints or (call.child is not None and not clean(call.child)):
            return False
    return True


def below(root: Frame) -> tuple[Origin, ...]:
    """All that a whole tree has read: its frames share one sandbox."""
    return merged(*(read(frame) for frame in frames(root)))


def flow(agents: Mapping[str, Agent], frame: Frame, call: Call, floor: Floor | None) -> Flow:
    """What the agent's version and the operator say of the tool of a call."""
    tool = agents[frame.agent.digest].tool(call.tool.name)
    pinned = flow_of(tool) if tool is not None else Flow()
    least = floor.tools.get(call.tool.name) if floor is not None and call.tool.executor not in THEIRS else None
    return pinned if least is None else united(pinned, least)


def flow_of(tool: Tool) -> Flow:
    """What a tool says of itself."""
    return Flow(taints=tool.taints, outward=tool.outward)


def more_of(tool: Tool, flow: Flow) -> Tool:
    """The tool with what else is said of it."""
    both = united(flow_of(tool), flow)
    return replace(tool, taints=both.taints, outward=both.outward)


def united(one: Flow, other: Flow) -> Flow:
    """What either says."""
    return Flow(taints=tuple(dict.fromkeys((*one.taints, *other.taints))), outward=one.outward or other.outward)


def tainted(call: Call, taints: Iterable[Taint]) -> Call:
    """The call with the taints of what came back."""
    return replace(call, taints=merged(call.taints, (Origin(taint, call.uid, call.tool.name) for taint in taints)))


# ---- what the operator says ------------------------------------------------------------------


def strictest(*verdicts: Verdict) -> Verdict:
    """The one that allows least."""
    return max(verdicts, key=STRICTNESS.index)


def raised(floor: Floor | None, more: Floor) -> Floor | None:
    """The floor with what is new in another one; None where nothing is."""
    before = floor or Floor()
    tools = {name: united(before.tools.get(name, Flow()), flow) for name, flow in more.tools.items()}
    after = Floor(outward=strictest(before.outward, more.outward), tools={**before.tools, **tools})
    return after if after != before else None


def lacking(agents: Collection[Agent], outward: Verdict, tools: Mapping[str, Tool]) -> Floor:
    """What the operator says, of server tools and of what they send, that these agents do not say themselves."""
    milder = any(strictest(agent.policy.outward, outward) != agent.policy.outward for agent in agents)
    said: dict[str, Flow] = {}
    for tool in (tool for agent in agents for tool in agent.tools if tool.executor not in THEIRS):
        known = tools.get(tool.name)
        if known is not None and united(flow_of(tool), flow_of(known)) != flow_of(tool):
            said[tool.name] = flow_of(known)
    return Floor(outward=outward if milder else "allow", tools=said)


# ---- what it may not send --------------------------------------------------------------------


def why(frame: Frame) -> str:
    """Name what the frame has read, and where each came from."""
    told = [f"{WORDS[one.taint]} ({f'{one.tool} {one.source}'.strip()[:SHOWN_MAX]})" for one in read(frame)]
    return f"It sends outward, and {frame.agent.name} has read {' and '.join(told)}."
