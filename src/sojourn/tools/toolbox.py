"""The tools of this process, by name. `wiring` fills it once; the worker runs from it and the API lists it.

The rule: a name means one tool, so two that claim the same name stop the start.
"""

from collections.abc import Iterable

from sojourn.errors import Invalid
from sojourn.tools import functions
from sojourn.tools.files import EditFile, ListFiles, ReadFile, WriteFile
from sojourn.tools.shell import Python, Shell
from sojourn.tools.tool import Tool, Toolbox
from sojourn.tools.waiting import ASK_USER, SLEEP, WAIT_FOR_EVENT


def fill(more: Iterable[Tool] = ()) -> Toolbox:
    """The sandbox tools, those that wait for somebody, what installed packages offer, and `more`. Raises Invalid."""
    tools: dict[str, Tool] = {}
    builtin = (Shell(), Python(), ReadFile(), WriteFile(), EditFile(), ListFiles(), ASK_USER, WAIT_FOR_EVENT, SLEEP)
    for tool in (*builtin, *functions.load(), *more):
        name = tool.definition.name
        if name in tools:
            raise Invalid(f"Two tools are named {name}; rename one of them.", code="tool.broken")
        tools[name] = tool
    return tools
