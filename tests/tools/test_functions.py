"""Operators' own functions as tools."""

import asyncio
import importlib.metadata
import threading
from typing import Annotated, Any

import msgspec
import pytest
from msgspec import Meta

from sojourn.errors import Invalid
from sojourn.loop.continuation import Flow
from sojourn.sandboxes.sandbox import Sandbox
from sojourn.tools import functions
from sojourn.tools.functions import FunctionTool, tool
from sojourn.tools.tool import Context, Misused
from sojourn.tools.toolbox import fill


class Here:
    """A call's context without a sandbox."""

    tenant, user, session_id, run_id, call, attempt, key, timeout_s = "t", "u", "s", "r", "/0.0", 1, "r/0.0", 5.0

    async def sandbox(self) -> Sandbox:
        raise AssertionError("a function needs no sandbox")

    def show(self, text: str) -> None:
        raise AssertionError("nothing to show")


@tool(effect="idempotent")
async def bill(
    customer: Annotated[str, Meta(description="Who pays.", min_length=1)],
    cents: Annotated[int, Meta(ge=1)] = 100,
    *,
    context: Context,
) -> dict[str, Any]:
    """Send an invoice."""
    return {"customer": customer, "cents": cents, "key": context.key}


async def test_the_signature_is_the_schema_and_the_docstring_the_description() -> None:
    definition = bill.definition
    assert (definition.name, definition.description, definition.effect) == ("bill", "Send an invoice.", "idempotent")
    assert msgspec.json.decode(definition.schema) == {
        "type": "object",
        "properties": {
            "customer": {"type": "string", "description": "Who pays.", "minLength": 1},
            "cents": {"type": "integer", "minimum": 1, "default": 100},
        },
        "required": ["customer"],
        "additionalProperties": False,
    }


async def test_a_function_gets_typed_arguments_and_the_calls_context() -> None:
    outcome = await bill.run('{"customer":"ada","cents":5}', Here())
    assert msgspec.json.decode(outcome.text) == {"customer": "ada", "cents": 5, "key": "r/0.0"}
    assert not outcome.failed
    assert (await bill("bob", context=Here()))["cents"] == 100, "it is still a function"


@pytest.mark.parametrize("args", ["{}", '{"customer":""}', '{"customer":"a","cents":"5"}', '{"customer":"a","x":1}'])
async def test_arguments_that_do_not_fit_run_nothing(args: str) -> None:
    with pytest.raises(Misused, match="Nothing was run"):
        await bill.run(args, Here())


async def test_what_a_function_raises_is_an_observation() -> None:
    @tool
    def divide(a: int, b: int) -> float:
        """Divide."""
        return a / b

    outcome = await divide.run('{"a":1,"b":0}', Here())
    assert outcome.failed and outcome.text == "ZeroDivisionError: division by zero"
    assert divide.definition.effect == "at_most_once", "the undeclared is never run twice"


@pytest.mark.parametrize("error", [SystemExit(2), asyncio.CancelledError(), StopIteration()])
async def test_a_function_cannot_end_the_worker_or_vanish(error: BaseException) -> None:
    @tool
    async def leave_async() -> None:
        raise error

    @tool
    def leave() -> None:
        raise error

    for leaving in (leave, leave_async):
        assert (await leaving.run("{}", Here())).failed


async def test_a_call_that_is_cancelled_is_cancelled() -> None:
    @tool
    async def wait() -> None:
        await asyncio.Event().wait()

    task = asyncio.create_task(wait.run("{}", Here()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_functions_that_hang_take_nothing_from_others() -> None:
    let_go = threading.Event()

    @tool
    def hang() -> None:
        let_go.wait()

    @tool
    def quick() -> str:
        return "quick"

    hanging = [asyncio.create_task(hang.run("{}", Here())) for _ in range(40)]
    assert (await asyncio.wait_for(quick.run("{}", Here()), 10)).text == "quick"
    let_go.set()
    await asyncio.gather(*hanging)


async def test_a_plain_function_does_not_block_the_worker() -> None:
    @tool(name="where")
    def thread() -> int:
        return threading.get_ident()

    outcome = await thread.run("{}", Here())
    assert int(outcome.text) != threading.get_ident()


def test_a_parameter_without_a_type_is_refused() -> None:
    with pytest.raises(Invalid, match="needs a type for its parameter what"):

        @tool
        def untyped(what):  # type: ignore[no-untyped-def]
            return what


class Point:
    """An entry point that loads what it is told."""

    def __init__(self, thing: object) -> None:
        self.name, self.value, self.thing = "mine", "pkg:thing", thing

    def load(self) -> object:
        if isinstance(self.thing, Exception):
            raise self.thing
        return self.thing


def test_installed_packages_offer_tools_through_the_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    def offered(thing: object) -> None:
        monkeypatch.setattr(functions, "entry_points", lambda group: [Point(thing)] if group == "sojourn.tools" else [])

    offered(bill)
    assert isinstance(fill()["bill"], FunctionTool)
    offered(ImportError("no such module"))
    with pytest.raises(Invalid, match=r"mine \(pkg:thing\) cannot be loaded: no such module"):
        fill()
    offered(print)
    with pytest.raises(Invalid, match="is not made with"):
        fill()
    assert importlib.metadata.entry_points(group="sojourn.tools") is not None


def test_two_tools_of_one_name_stop_the_start() -> None:
    @tool(name="shell")
    def other() -> None: ...

    with pytest.raises(Invalid, match="Two tools are named shell"):
        fill([other])


def test_an_operator_says_more_of_a_tool_than_its_author() -> None:
    @tool(name="mail", taints=["untrusted"])
    def sending() -> None: ...

    said = {"mail": Flow(taints=("private",), outward=True), "shell": Flow(taints=("untrusted",))}
    tools = fill([sending], said)
    told = tools["mail"].definition
    assert (told.taints, told.outward) == (("untrusted", "private"), True)
    assert (tools["shell"].definition.taints, fill()["shell"].definition.taints) == (("untrusted",), ())
    assert (sending.definition.taints, sending.definition.outward) == (("untrusted",), False)


def test_the_operator_can_say_nothing_of_a_tool_that_is_not_there() -> None:
    with pytest.raises(Invalid, match=r"\[tools.nothing\]: no tool has this name"):
        fill(said={"nothing": Flow(outward=True)})
