"""Operators' own tools: Python functions that run in the worker, typed from their signature.

A package offers them through the entry point group `sojourn.tools`; the worker loads them at its start. The rule: they
are trusted code, and an undeclared effect is `at_most_once`, so that a crash never runs one twice.

    @tool(effect="idempotent")
    async def send_invoice(customer: str, cents: int, *, context: Context) -> str:
        "Send an invoice to a customer."
        await billing.post(..., idempotency_key=context.key)
        return "sent"
"""

import asyncio
import contextlib
import inspect
import threading
import typing
from collections.abc import Callable, Iterable
from importlib.metadata import entry_points
from typing import Any, overload

import msgspec

from sojourn.errors import Invalid
from sojourn.loop import agent
from sojourn.loop.continuation import Flow
from sojourn.tools.tool import Arguments, Context, Outcome, parse, schema

GROUP = "sojourn.tools"

Function = Callable[..., Any]


class FunctionTool:
    """A Python function as a tool. A parameter named `context` gets the call's Context and is not the model's."""

    def __init__(self, function: Function, effect: agent.EffectClass, name: str, flow: Flow) -> None:
        self.function = function
        self.arguments, self.wants_context = _typed(function, name)
        self.definition = agent.Tool(
            name=name,
            description=inspect.getdoc(function) or "",
            schema=schema(self.arguments),
            effect=effect,
            taints=flow.taints,
            outward=flow.outward,
        )

    async def run(self, args: str, context: Context) -> Outcome:
        values = msgspec.structs.asdict(parse(self.arguments, args))
        if self.wants_context:
            values["context"] = context
        try:
            if inspect.iscoroutinefunction(self.function):
                result = await self.function(**values)
            else:
                result = await _in_thread(self.function, values)
        except asyncio.CancelledError as error:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            return _raised(error)
        except (Exception, SystemExit) as error:  # the function is not ours: what it raises is for the model to read
            return _raised(error)
        return Outcome(result if isinstance(result, str) else msgspec.json.encode(result).decode())

    async def stop(self, context: Context) -> None:
        return None

    def __call__(self, *args: Any, **values: Any) -> Any:
        return self.function(*args, **values)


@overload
def tool(function: Function) -> FunctionTool: ...
@overload
def tool(
    *, effect: agent.EffectClass = ..., name: str = ..., taints: Iterable[agent.Taint] = ..., outward: bool = ...
) -> Callable[[Function], FunctionTool]: ...
def tool(
    function: Function | None = None,
    *,
    effect: agent.EffectClass = "at_most_once",
    name: str = "",
    taints: Iterable[agent.Taint] = (),
    outward: bool = False,
) -> Any:
    """Make a function a tool; its docstring is what the model reads, docs/taints.md tells what the last two are for."""

    def wrap(wrapped: Function) -> FunctionTool:
        return FunctionTool(wrapped, effect, name or wrapped.__name__, Flow(taints=tuple(taints), outward=outward))

    return wrap if function is None else wrap(function)


def load() -> list[FunctionTool]:
    """The functions that installed packages offer. Raises Invalid, naming the entry point."""
    found: list[FunctionTool] = []
    for point in entry_points(group=GROUP):
        try:
            offered = point.load()
        except Exception as error:
            raise Invalid(
                f"The tool {point.name} ({point.value}) cannot be loaded: {error}.", code="tool.broken"
            ) from error
        if not isinstance(offered, FunctionTool):
            raise Invalid(f"{point.value} is not made with sojourn.tools.functions.tool.", code="tool.broken")
        found.append(offered)
    return found


async def _in_thread(function: Function, values: dict[str, Any]) -> Any:
    """Call a function in a thread of its own: one that hangs takes nothing from others, and does not hold the exit."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Any] = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if not answer.done():
            answer.set_exception(error) if error is not None else answer.set_result(result)

    def work() -> None:
        try:
            result, error = function(**values), None
        except StopIteration:
            result, error = None, RuntimeError("StopIteration")
        except BaseException as raised:  # also SystemExit, which would end the thread without a word
            result, error = None, raised
        with contextlib.suppress(RuntimeError):  # the loop is gone
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=work, name=f"tool {function.__name__}", daemon=True).start()
    return await answer


def _raised(error: BaseException) -> Outcome:
    return Outcome(f"{type(error).__name__}: {error}", failed=True)


def _typed(function: Function, name: str) -> tuple[type[Arguments], bool]:
    """A Struct with the function's parameters as fields, and whether it takes the context."""
    hints = typing.get_type_hints(function, include_extras=True)
    fields: list[Any] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name == "context":
            continue
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or parameter.name not in hints:
            raise Invalid(f"The tool {name} needs a type for its parameter {parameter.name}.", code="tool.broken")
        fields.append(_field(parameter, hints[parameter.name]))
    kind = msgspec.defstruct(f"{name}_arguments", fields, bases=(Arguments,), frozen=True, kw_only=True)
    return kind, "context" in inspect.signature(function).parameters


def _field(parameter: inspect.Parameter, hint: Any) -> tuple[Any, ...]:
    if parameter.default is parameter.empty:
        return parameter.name, hint
    return parameter.name, hint, parameter.default
