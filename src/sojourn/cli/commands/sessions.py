"""`sojourn sessions`: the conversations, and the files in their workspaces.

The rule: a file's bytes go out as they are, except that a terminal gets them cleaned.
"""

import sys
from argparse import Namespace
from http.client import HTTPException, HTTPResponse, IncompleteRead
from pathlib import Path
from typing import Any, BinaryIO

from sojourn.cli.client import Client, Unreachable, file_path, segment
from sojourn.cli.command import JSON, Command, Group, Shell, flag
from sojourn.cli.exits import OK, USAGE, Stop
from sojourn.cli.terminal import ago, size

CHUNK = 1 << 16
SESSION = flag("session", metavar="SESSION", help="the session's id")


def list_sessions(args: Namespace, shell: Shell) -> int:
    """Show the newest sessions."""
    found = list(shell.client().pages("/v1/sessions", limit=args.limit))
    if args.json:
        shell.print_json({"data": found})
        return OK
    rows = [(one["id"], "closed" if one.get("closed_at") else "open", ago(one.get("created_at"))) for one in found]
    shell.table(("SESSION", "STATE", "CREATED"), rows, empty="There is none. `sojourn run` begins one for each run.")
    return OK


def files(args: Namespace, shell: Shell) -> int:
    """List a folder of a session's workspace."""
    path = f"/v1/sessions/{segment(args.session)}/files"
    found = shell.client().get(path, path=args.path, depth=args.depth)
    if args.json:
        shell.print_json(found)
        return OK
    shell.table(("SIZE", "PATH"), [_file_row(entry) for entry in found["data"]], empty="There is no file.")
    if found.get("has_more"):
        shell.err.line("There is more than one list shows: list the folders below one by one.", "yellow")
    return OK


def _file_row(entry: dict[str, Any]) -> tuple[str, str]:
    folder = entry.get("kind") in ("dir", "directory")
    return ("-" if folder else size(int(entry.get("bytes") or 0)), entry["path"] + ("/" if folder else ""))


def get(args: Namespace, shell: Shell) -> int:
    """Bring a file out of a session, to standard output or into a file."""
    path = f"/v1/sessions/{segment(args.session)}/files/{file_path(args.path)}"
    client = shell.client()
    try:
        with client.open("GET", path, headers={"Accept": "*/*"}) as response:
            if args.output:
                _save(response, Path(args.output))
            elif shell.out.tty:
                shell.out.write(response.read().decode("utf-8", "replace"))
            else:
                _copy(response, sys.stdout.buffer)
                sys.stdout.buffer.flush()
    except HTTPException:
        raise Unreachable(f"The connection to {client.url} broke before the file was whole. Try again.") from None
    return OK


def _save(response: HTTPResponse, target: Path) -> None:
    """Write a file that is whole or not there."""
    part = target.with_name(target.name + ".part")
    try:
        with part.open("wb") as file:
            _copy(response, file)
        part.replace(target)
    except OSError as error:
        raise Stop(f"{target} cannot be written: {error.strerror}.") from None
    finally:
        part.unlink(missing_ok=True)


def _copy(response: HTTPResponse, target: BinaryIO) -> None:
    """Pass on the bytes as they come. Raises IncompleteRead."""
    while piece := response.read(CHUNK):
        target.write(piece)
    if response.length:  # what read(n) says nothing of
        raise IncompleteRead(b"", response.length)


def put(args: Namespace, shell: Shell) -> int:
    """Put a file into a session."""
    source = Path(args.file)
    name = args.path or source.name
    made = upload(shell.client(), args.session, source, name)
    if args.json:
        shell.print_json(made)
    else:
        shell.out.line(f"{name} ({size(source.stat().st_size)}) is in {args.session}")
    return OK


def close(args: Namespace, shell: Shell) -> int:
    """Close a session."""
    closed = shell.client().post(f"/v1/sessions/{segment(args.session)}/close", {})
    if args.json:
        shell.print_json(closed)
    else:
        shell.out.line(f"{args.session} is closed")
    return OK


def delete(args: Namespace, shell: Shell) -> int:
    """Delete a closed session."""
    shell.client().json("DELETE", f"/v1/sessions/{segment(args.session)}")
    if args.json:
        shell.print_json({"id": args.session, "deleted": True})
    else:
        shell.out.line(f"{args.session} is deleted, with its runs and files")
    return OK


def upload(client: Client, session: str, source: Path, name: str) -> Any:
    """Send a file into a session's workspace."""
    try:
        data = source.read_bytes()
    except OSError as error:
        raise Stop(f"{source} cannot be read: {error.strerror}.", USAGE) from None
    return client.json("PUT", f"/v1/sessions/{segment(session)}/files/{file_path(name)}", body=data)


COMMANDS = {
    "sessions": Group(
        "Show sessions and move files in and out of them",
        {
            "list": Command(
                "List the newest sessions",
                list_sessions,
                flags=(flag("--limit", metavar="N", type=int, default=20, help="how many (20)"), JSON),
                examples=("sojourn sessions list",),
            ),
            "files": Command(
                "List the files of a session's workspace",
                files,
                flags=(
                    SESSION,
                    flag("path", metavar="PATH", nargs="?", help="the folder; the whole workspace if not given"),
                    flag("--depth", metavar="N", type=int, help="how many folders deep"),
                    JSON,
                ),
                examples=("sojourn sessions files ses_01J...", "sojourn sessions files ses_01J... out --depth 1"),
            ),
            "get": Command(
                "Bring a file out of a session",
                get,
                flags=(
                    SESSION,
                    flag("path", metavar="PATH", help="the file, in the workspace"),
                    flag("--output", "-o", metavar="FILE", help="where to; standard output if not given"),
                ),
                examples=(
                    "sojourn sessions get ses_01J... report.md",
                    "sojourn sessions get ses_01J... a.png -o a.png",
                ),
            ),
            "put": Command(
                "Put a file into a session",
                put,
                flags=(
                    SESSION,
                    flag("file", metavar="FILE", help="the file here"),
                    flag(
                        "path", metavar="PATH", nargs="?", help="its place in the workspace; its own name if not given"
                    ),
                    JSON,
                ),
                examples=("sojourn sessions put ses_01J... data.csv", "sojourn sessions put ses_01J... a.csv in/a.csv"),
            ),
            "close": Command(
                "Close a session: no further runs, and its sandbox goes",
                close,
                flags=(SESSION, JSON),
                examples=("sojourn sessions close ses_01J...",),
            ),
            "delete": Command(
                "Delete a closed session with its runs and files",
                delete,
                flags=(SESSION, JSON),
                examples=("sojourn sessions delete ses_01J...",),
            ),
        },
    )
}
