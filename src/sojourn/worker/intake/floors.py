"""What the operator says of a run's tools where its agents do not: said to the run before anything of it begins.

`drive.py` asks once a claim. The rule: a run that knows it all already is told nothing.
"""

from collections.abc import Mapping

from sojourn.loop.agent import Agent
from sojourn.loop.continuation import Continuation
from sojourn.loop.events import FloorRaised
from sojourn.loop.step.taints import lacking, raised
from sojourn.worker.parts import Parts


def told(parts: Parts, agents: Mapping[str, Agent], run: Continuation) -> list[FloorRaised]:
    """The event that says it, where something is new."""
    if run.root.ended:
        return []
    tools = {name: tool.definition for name, tool in parts.tools.items()}
    floor = lacking(agents.values(), parts.settings.outward_floor, tools)
    return [FloorRaised(at=parts.now(), floor=floor)] if raised(run.floor, floor) is not None else []
