"""The tools of this process, by name. `wiring` fills it once; the worker runs from it and the API lists it.

The rule: a name means one tool, so two that claim the same name stop the start.
"""

from collections.abc import Iterable, Mapping

from sojourn.errors import Invalid
from sojourn.loop import agent
from sojourn.loop.continuation import Flow
from sojourn.loop.step.taints import more_of
from sojourn.tools import functions
from sojourn.tools.files import EditFile, ListFiles, ReadFile, WriteFile
from sojourn.tools.shell import Python, Shell
from sojourn.tools.tool import Context, Outcome, Tool, Toolbox
from sojourn.tools.waiting import ASK_USER, SLEEP, WAIT_FOR_EVENT


class Told:
    """A tool of which the operator says more than its author."""

    def __init__(self, tool: Tool, definition: agent.Tool) -> None:
        self.definition = definition
        self._tool = tool

    async def run(self, args: str, context: Context) -> Outcome:
        return await self._tool.run(args, context)

    async def stop(self, context: Context) -> None:
        await self._tool.stop(context)


def fill(more: Iterable[Tool] = (), said: Mapping[str, Flow] | None = None) -> Toolbox:
    """The sandbox tools, those that wait for somebody, what installed packages offer, and `more`.

    `said` is what the operator says of some of them. Raises Invalid.
    """
    tools: dict[str, Tool] = {}
    builtin = (Shell(), Python(), ReadFile(), WriteFile(), EditFile(), ListFiles(), ASK_USER, WAIT_FOR_EVENT, SLEEP)
    for tool in (*builtin, *functions.load(), *more):
        name = tool.definition.name
        if name in tools:
            raise Invalid(f"Two tools are named {name}; rename one of them.", code="tool.broken")
        tools[name] = tool
    for name, flow in (said or {}).items():
        if name not in tools:
            raise Invalid(f"[tools.{name}]: no tool has this name.", code="settings.invalid")
        tools[name] = Told(tools[name], more_of(tools[name].definition, flow))
    return tools
