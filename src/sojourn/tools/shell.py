"""The tools that run a program in the session's sandbox: `shell` and `python`.

The toolbox holds them. The rule: a program is started at most once. The exec is named by the call's idempotency key, so
another attempt attaches to the program that the first one started and reads its output from the beginning; where it
may have been lost with an older sandbox, the model is told to look; and where it was never begun, it is run.
"""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from sojourn.loop import agent
from sojourn.sandboxes.sandbox import ExecUnknown, Exit, Output, SandboxEnded
from sojourn.tools.tool import Arguments, Context, Misused, Outcome, parse, schema

INTERRUPTED = (
    "The sandbox was lost while this was running, and was brought back with its files. It may have run wholly, in part "
    "or not at all, and background processes are gone. Look at the present state before you go on."
)


class ShellArguments(Arguments, frozen=True):
    command: Annotated[str, Meta(description="What to run, as for `bash -c`.", min_length=1)]
    timeout_s: Annotated[float | None, Meta(description="End it after so many seconds; 120 if absent.")] = None


class PythonArguments(Arguments, frozen=True):
    code: Annotated[str, Meta(description="Python source. The last expression's value is shown.", min_length=1)]
    timeout_s: Annotated[float | None, Meta(description="Interrupt it after so many seconds; 120 if absent.")] = None


class Shell:
    """Run a command in the workspace."""

    definition = agent.Tool(
        name="shell",
        description="Run a shell command in your own Linux sandbox, without network. Files and background processes "
        "stay for later calls.",
        schema=schema(ShellArguments),
        effect="verifiable",
    )

    async def run(self, args: str, context: Context) -> Outcome:
        wanted = parse(ShellArguments, args)
        return await _run(context, ["/bin/bash", "-c", wanted.command], b"", wanted.timeout_s)

    async def stop(self, context: Context) -> None:
        await _kill(context)


class Python:
    """Run Python code in an interpreter that stays."""

    definition = agent.Tool(
        name="python",
        description="Run Python code in your own sandbox. Variables and imports stay for later calls.",
        schema=schema(PythonArguments),
        effect="verifiable",
    )

    def __init__(self) -> None:
        self.program = Path(__file__).with_name("interpreter.py").read_text()

    async def run(self, args: str, context: Context) -> Outcome:
        wanted = parse(PythonArguments, args)
        return await _run(
            context, ["python3", "-c", self.program], wanted.code.encode(errors="replace"), wanted.timeout_s
        )

    async def stop(self, context: Context) -> None:
        await _kill(context)


async def _run(context: Context, argv: Sequence[str], stdin: bytes, timeout_s: float | None) -> Outcome:
    limit_s = context.timeout_s if timeout_s is None else timeout_s
    if not 0 < limit_s <= context.timeout_s:
        raise Misused(f"timeout_s must be more than 0 and at most {context.timeout_s:g}. Nothing was run.")
    for again in (context.attempt > 1, True):
        sandbox = await context.sandbox()
        stream = sandbox.exec(argv, exec_id=context.key, stdin=stdin, timeout_s=limit_s, resume=again)
        try:
            return await _heard(stream, context, limit_s)
        except SandboxEnded:  # the next one knows whether this was begun
            continue
        except ExecUnknown:
            break
    return Outcome(INTERRUPTED, failed=True)


async def _heard(stream: AsyncIterator[Output | Exit], context: Context, limit_s: float) -> Outcome:
    """What a program wrote, to its end."""
    pieces: list[str] = []
    async for item in stream:
        if isinstance(item, Exit):
            return Outcome("".join(pieces) + _ending(item, limit_s), failed=item.code != 0)
        pieces.append(item.data.decode(errors="replace"))
        context.show(pieces[-1])
    raise SandboxEnded


async def _kill(context: Context) -> None:
    await (await context.sandbox()).kill(context.key)


def _ending(end: Exit, limit_s: float) -> str:
    """The last line of an observation: what became of the program, where that is not plain success."""
    notes = []
    if end.truncated_bytes:
        notes.append(f"{end.truncated_bytes} bytes of output were left out of the middle")
    match end.reason:
        case "timeout":
            notes.append(f"ended after {limit_s:g} s, the time-out")
        case "memory" | "disk":
            notes.append(f"ended because the sandbox's {end.reason} limit was reached")
        case "killed":
            notes.append("ended from outside")
        case _ if end.code:
            notes.append(f"exit code {end.code}")
        case _ if end.signal:
            notes.append(f"ended by signal {end.signal}")
    return f"\n[{'; '.join(notes)}]" if notes else ""
