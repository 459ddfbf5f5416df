"""The tools that work on the session's files: `read_file`, `write_file`, `edit_file`, `list_files`.

The toolbox holds them. The rule: paths are the sandbox's to check, and every one of these can be run again after a
crash with the same end.
"""

from typing import Annotated

from msgspec import Meta

from sojourn.errors import NotFound, Refused
from sojourn.loop import agent
from sojourn.tools.tool import Arguments, Context, Outcome, parse, schema

Path = Annotated[str, Meta(description="Path in the workspace, such as `data/a.csv`.", min_length=1)]
READ_BYTES_MAX = 64 << 10
EDIT_BYTES_MAX = 2 << 20
"""A file is edited in the worker's memory, which all of its runs share."""


class ReadArguments(Arguments, frozen=True):
    path: Path
    offset: Annotated[int, Meta(description="Begin at this byte.", ge=0)] = 0
    limit_bytes: Annotated[int, Meta(description="Read at most so many bytes.", ge=1, le=READ_BYTES_MAX)] = 32 << 10


class WriteArguments(Arguments, frozen=True):
    path: Path
    content: Annotated[str, Meta(description="The whole new content.")]


class EditArguments(Arguments, frozen=True):
    path: Path
    old: Annotated[str, Meta(description="The text to replace; it must stand in the file exactly once.", min_length=1)]
    new: Annotated[str, Meta(description="What stands there afterwards.")]


class ListArguments(Arguments, frozen=True):
    path: Annotated[str, Meta(description="A folder in the workspace.")] = "."
    depth: Annotated[int, Meta(description="How many levels to go down.", ge=1, le=8)] = 2


class FileTool:
    """What the four have in common: nothing of theirs outlives the call, and a refused path is an observation."""

    definition: agent.Tool

    async def run(self, args: str, context: Context) -> Outcome:
        try:
            return Outcome(await self.work(args, context))
        except Refused as error:
            return Outcome(str(error), failed=True)

    async def work(self, args: str, context: Context) -> str:
        raise NotImplementedError

    async def stop(self, context: Context) -> None:
        return None


class ReadFile(FileTool):
    definition = agent.Tool(
        name="read_file", description="Read a text file.", schema=schema(ReadArguments), effect="read"
    )

    async def work(self, args: str, context: Context) -> str:
        wanted = parse(ReadArguments, args)
        sandbox = await context.sandbox()
        data = await sandbox.read(wanted.path, offset=wanted.offset, limit_bytes=wanted.limit_bytes)
        size = (await sandbox.stat(wanted.path)).size_bytes
        end = wanted.offset + len(data)
        more = f"\n[bytes {wanted.offset} to {end} of {size}; read on with offset {end}]" if end < size else ""
        return data.decode(errors="replace") + more


class WriteFile(FileTool):
    definition = agent.Tool(
        name="write_file",
        description="Write a text file, with its folders; an existing one is replaced.",
        schema=schema(WriteArguments),
        effect="idempotent",
    )

    async def work(self, args: str, context: Context) -> str:
        wanted = parse(WriteArguments, args)
        data = wanted.content.encode(errors="replace")
        await (await context.sandbox()).write(wanted.path, data)
        return f"Wrote {len(data)} bytes to {wanted.path}."


class EditFile(FileTool):
    definition = agent.Tool(
        name="edit_file",
        description="Replace one piece of a text file by another.",
        schema=schema(EditArguments),
        effect="verifiable",
    )

    async def work(self, args: str, context: Context) -> str:
        wanted = parse(EditArguments, args)
        sandbox = await context.sandbox()
        if (await sandbox.stat(wanted.path)).size_bytes > EDIT_BYTES_MAX:
            raise Refused(f"{wanted.path} is larger than {EDIT_BYTES_MAX >> 20} MiB; edit it with a shell command.")
        data = await sandbox.read(wanted.path, limit_bytes=EDIT_BYTES_MAX)
        old, new = wanted.old.encode(errors="replace"), wanted.new.encode(errors="replace")
        found = data.count(old)
        if context.attempt > 1 and new in data and (not found or old in new):
            return f"Edited {wanted.path}."
        if found != 1:
            raise Refused(f"The text to replace stands {found} times in {wanted.path}, not once. Nothing was changed.")
        await sandbox.write(wanted.path, data.replace(old, new))
        return f"Edited {wanted.path}."


class ListFiles(FileTool):
    definition = agent.Tool(
        name="list_files", description="List the files of a folder.", schema=schema(ListArguments), effect="read"
    )

    async def work(self, args: str, context: Context) -> str:
        wanted = parse(ListArguments, args)
        try:
            entries = await (await context.sandbox()).list(wanted.path, depth=wanted.depth)
        except NotFound:
            if wanted.path != ".":
                raise
            entries = []
        marks = {"directory": "/", "symlink": "@", "other": "?"}
        lines = [f"{entry.path}{marks.get(entry.kind, '')}\t{entry.size_bytes}" for entry in entries]
        return "\n".join(lines) or "The folder is empty."
