"""The tools that act in a session's sandbox, in a real one."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.conftest import until
from tests.sandboxes.test_crash import keeper_pid

from sojourn.sandboxes.bwrap import BwrapProvider
from sojourn.sandboxes.keeper import protocol
from sojourn.sandboxes.sandbox import Limits, Sandbox, Spec
from sojourn.tools.shell import INTERRUPTED
from sojourn.tools.tool import Misused, Outcome, Toolbox
from sojourn.tools.toolbox import fill


@dataclass
class Call:
    """One call's context, and the tools to run it with."""

    provider: BwrapProvider
    session_id: str
    call: str = "/0.0"
    attempt: int = 1
    tenant: str = "t"
    user: str = "u"
    run_id: str = "run_1"
    timeout_s: float = 20.0
    shown: list[str] = field(default_factory=list)
    tools: Toolbox = field(default_factory=fill)

    @property
    def key(self) -> str:
        return f"{self.run_id}{self.call}"

    async def sandbox(self) -> Sandbox:
        return await self.provider.create(self.session_id, Spec(limits=Limits(memory_bytes=256 << 20)), first=True)

    def show(self, text: str) -> None:
        self.shown.append(text)

    async def do(self, tool: str, **arguments: Any) -> Outcome:
        return await self.tools[tool].run(msgspec.json.encode(arguments).decode(), self)

    async def next(self, tool: str, **arguments: Any) -> Outcome:
        """The same session's next call."""
        self.call = f"/{int(self.call[1:].partition('.')[0]) + 1}.0"
        return await self.do(tool, **arguments)


@pytest.fixture
async def provider(data_dir: Path) -> AsyncIterator[BwrapProvider]:
    provider = BwrapProvider(data_dir / "sandboxes", idle_s=0.5)
    yield provider
    await provider.reap(frozenset())
    await provider.close()


@pytest.fixture
def call(provider: BwrapProvider) -> Call:
    return Call(provider, "ses_1")


async def test_a_command_runs_in_the_workspace_and_its_output_streams(call: Call) -> None:
    outcome = await call.do("shell", command="echo hi; pwd; echo no >&2")
    assert sorted(outcome.text.split()) == ["/workspace", "hi", "no"] and not outcome.failed
    assert "".join(call.shown) == outcome.text


async def test_a_failing_command_says_its_exit_code(call: Call) -> None:
    outcome = await call.do("shell", command="echo oops; exit 3")
    assert outcome == Outcome("oops\n\n[exit code 3]", failed=True)
    assert (await call.next("shell", command="kill -SEGV $$")).text.strip() == "[ended by signal 11]"


async def test_a_command_past_its_timeout_is_ended_and_says_so(call: Call) -> None:
    outcome = await call.do("shell", command="echo begun; sleep 60", timeout_s=0.5)
    assert outcome.failed and outcome.text == "begun\n\n[ended after 0.5 s, the time-out]"
    with pytest.raises(Misused, match="at most 20"):
        await call.next("shell", command="true", timeout_s=21)


async def test_another_attempt_attaches_to_the_command_of_the_first(call: Call) -> None:
    command = "echo once >> log; echo begun; sleep 0.5; cat log"
    first = asyncio.create_task(call.do("shell", command=command))
    await until(lambda: bool(call.shown))
    first.cancel()
    again = Call(call.provider, call.session_id, attempt=2)
    assert await again.do("shell", command=command) == Outcome("begun\nonce\n")


async def test_another_attempt_starts_what_the_first_one_never_did(call: Call) -> None:
    call.attempt = 2
    assert await call.do("shell", command="echo now") == Outcome("now\n")


async def test_another_attempt_without_the_first_ones_sandbox_tells_to_look(call: Call) -> None:
    await call.do("shell", command="echo once >> log")
    os.kill(keeper_pid(call.provider), signal.SIGKILL)
    call.attempt = 2
    assert await call.do("shell", command="echo once >> log") == Outcome(INTERRUPTED, failed=True)
    assert (await call.next("read_file", path="log")).text == "once\n", "its files are kept"


async def test_a_sandbox_that_has_ended_meanwhile_is_opened_again_for_what_was_not_begun(call: Call) -> None:
    opened = await call.sandbox()
    await opened.suspend()
    handles = [opened]

    async def sandbox() -> Sandbox:
        return handles.pop() if handles else await call.provider.create(call.session_id, Spec())

    call.sandbox = sandbox  # type: ignore[method-assign]
    assert await call.do("shell", command="echo once >> log; cat log") == Outcome("once\n")


async def test_a_command_that_its_keeper_takes_down_is_told_and_not_run_again(call: Call) -> None:
    running = asyncio.create_task(call.do("shell", command="echo once >> log; echo begun; sleep 60"))
    await until(lambda: bool(call.shown))
    (call.provider._folder / protocol.BEGUN / call.session_id).unlink()
    os.kill(keeper_pid(call.provider), signal.SIGKILL)
    assert await running == Outcome(INTERRUPTED, failed=True)
    assert (await call.next("read_file", path="log")).text == "once\n"


async def test_stopping_ends_the_command(call: Call) -> None:
    running = asyncio.create_task(call.do("shell", command="echo begun; sleep 60"))
    await until(lambda: bool(call.shown))
    await call.tools["shell"].stop(call)
    assert (await running).text == "begun\n\n[ended from outside]"


async def test_python_keeps_its_variables(call: Call) -> None:
    assert await call.do("python", code="import math\nx = 20\nprint('set')\nx + 1") == Outcome("set\n21\n")
    assert await call.next("python", code="x += 1; x") == Outcome("21\n")
    failed = await call.next("python", code="print('a'); 1/0")
    assert failed.failed and "ZeroDivisionError" in failed.text and "interpreter.py" not in failed.text
    assert (await call.next("python", code="import sys; sys.exit(4)")).text.endswith("[exit code 4]")
    assert await call.next("python", code="print(x, 'é', end='')") == Outcome("21 é")


async def test_python_that_takes_too_long_is_interrupted_and_keeps_its_variables(call: Call) -> None:
    outcome = await call.do("python", code="x = 1\nwhile True: pass", timeout_s=0.7)
    assert outcome.failed and "KeyboardInterrupt" in outcome.text and "time-out" in outcome.text
    assert await call.next("python", code="x") == Outcome("1\n")


async def test_python_that_ends_its_interpreter_says_so(call: Call) -> None:
    outcome = await call.do("python", code="import os; x = 1; os._exit(0)")
    assert outcome.failed and "its variables are gone" in outcome.text
    assert "NameError" in (await call.next("python", code="x")).text


async def test_a_process_that_python_leaves_behind_does_not_hold_the_call(call: Call) -> None:
    code = "import subprocess; subprocess.Popen(['sleep', '60']); print('left')"
    assert await call.do("python", code=code) == Outcome("left\n")


async def test_files_are_written_read_edited_and_listed(call: Call) -> None:
    assert (await call.do("write_file", path="a/b.txt", content="one two")).text == "Wrote 7 bytes to a/b.txt."
    assert (await call.do("edit_file", path="a/b.txt", old="two", new="three")).text == "Edited a/b.txt."
    assert (await call.do("read_file", path="a/b.txt")).text == "one three"
    part = await call.do("read_file", path="a/b.txt", offset=4, limit_bytes=3)
    assert part.text == "thr\n[bytes 4 to 7 of 9; read on with offset 7]"
    assert "a/b.txt\t9" in (await call.do("list_files")).text
    assert (await call.next("shell", command="cat a/b.txt")).text == "one three"


async def test_an_edit_says_what_stands_in_its_way(call: Call) -> None:
    await call.do("write_file", path="f", content="x x")
    outcome = await call.do("edit_file", path="f", old="x", new="y")
    assert outcome.failed and "stands 2 times" in outcome.text
    assert (await call.do("edit_file", path="nope", old="x", new="y")).failed
    call.attempt = 2
    await call.do("write_file", path="f", content="done")
    assert (await call.do("edit_file", path="f", old="todo", new="done")).text == "Edited f."


async def test_a_file_that_is_too_large_to_edit_is_not_read(call: Call) -> None:
    await call.do("shell", command="truncate -s 900M big")
    outcome = await call.do("edit_file", path="big", old="x", new="y")
    assert outcome.failed and "larger than 2 MiB" in outcome.text


@pytest.mark.parametrize("path", ["../escape", "/etc/passwd", "link", "a\0b"])
async def test_a_path_that_leaves_the_workspace_is_an_observation(call: Call, path: str) -> None:
    await call.do("shell", command="ln -s /etc/passwd link")
    outcome = await call.do("read_file", path=path)
    assert outcome.failed and "root:" not in outcome.text


async def test_two_sessions_do_not_see_each_other(call: Call) -> None:
    await call.do("write_file", path="secret", content="mine")
    other = Call(call.provider, "ses_2")
    assert (await other.do("list_files")).text == "The folder is empty."
    assert (await other.do("python", code="import os; os.listdir('.')")).text == "[]\n"
