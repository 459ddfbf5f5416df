"""`sojourn export`, `import` and `fork`: runs that move, or branch.

The rule: a file is whole or not there, and what an export is, the server alone judges.
"""

import json
import os
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from sojourn.cli.client import JSON_TYPE, segment
from sojourn.cli.command import JSON, Command, Shell, flag
from sojourn.cli.exits import OK, USAGE, Stop
from sojourn.cli.terminal import size

RUN = flag("run", metavar="RUN", help="the run's id")
EXPORT = """
One JSON object with everything that the run needs to go on elsewhere: its words, its sub-agents, the agents'
versions, the session's files. It is signed with a key of yours (`sojourn seals list`). Whoever imports it must
trust that key: tell them, and they run `sojourn trust add`. It holds no API key and no approval, but all that
was said: treat it like the conversation itself.

The run must stand still: waiting, queued or ended. Hold a running one first. It goes on here as if nothing had
happened, so leave it on hold, or cancel it, if it is to go on there alone.
"""
IMPORT = """
The run goes on here as a new run of yours, in a session of its own with its files. Its open questions are open
here, under the same names; what a person had approved there and had not run yet is asked again. An export is
taken once, and never after a newer one of the same run. One that began here is not taken: fork it.
"""
FORK = """
A new run with the words of the old one, which stays as it is. Without --step it stands where the old one stands.
With --step N it begins before the model's reply of that step (`sojourn trace` shows the numbers), with nothing
open and nothing spent: so a step is tried again. Tools that ran are not undone, and the files are those of now.
"""


def export(args: Namespace, shell: Shell) -> int:
    """Write a run to a file, or to standard output."""
    client = shell.client()
    query = {"files": "false"} if args.no_files else {}
    run = client.get(f"/v1/runs/{segment(args.run)}/continuation", **query)
    text = json.dumps(run, ensure_ascii=False, separators=(",", ":")) + "\n"
    if not args.output:
        sys.stdout.flush()
        sys.stdout.buffer.write(text.encode())
        sys.stdout.buffer.flush()
        return OK
    _save(Path(args.output), text.encode())
    rev, issuer = run["continuation"]["rev"], run["issuer"]
    facts = {"run_id": args.run, "rev": rev, "file": args.output, "bytes": len(text.encode()), "issuer": issuer}
    if args.json:
        shell.print_json(facts)
        return OK
    shell.out.line(f"{args.run} is in {args.output} ({size(facts['bytes'])}, after {rev} events)")
    shell.err.line(f"signed by {issuer}; to let it in elsewhere: sojourn trust add {issuer}", "dim")
    return OK


def _save(target: Path, data: bytes) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    part = target.with_name(target.name + ".part")
    try:
        part.unlink(missing_ok=True)
        part.touch(mode=0o600)
        part.write_bytes(data)
        part.replace(target)
    except OSError as error:
        raise Stop(f"{target} cannot be written: {error.strerror}.") from None
    finally:
        part.unlink(missing_ok=True)


def import_(args: Namespace, shell: Shell) -> int:
    """Let an exported run go on here."""
    try:
        data = sys.stdin.buffer.read() if args.file == "-" else Path(args.file).read_bytes()
    except OSError as error:
        raise Stop(f"{args.file} cannot be read: {error.strerror}.", USAGE) from None
    headers = {**JSON_TYPE, "Idempotency-Key": os.urandom(16).hex()}
    return _began(args, shell, shell.client().json("POST", "/v1/runs/import", body=data, headers=headers))


def fork(args: Namespace, shell: Shell) -> int:
    """Let a run go on in a branch."""
    body: dict[str, Any] = {"session": "same"} if args.same_session else {}
    if args.step is not None:
        body["step"] = args.step
    if args.input:
        body["input"] = args.input
    if args.no_files:
        body["files"] = False
    return _began(args, shell, shell.client().post(f"/v1/runs/{segment(args.run)}/fork", body))


def _began(args: Namespace, shell: Shell, made: dict[str, Any]) -> int:
    if args.json:
        shell.print_json(made)
        return OK
    run_id = made["run_id"]
    shell.out.line(f"{run_id} is {made['status']} in {made['session_id']}")
    then = f"sojourn get {run_id}" if made["status"] == "suspended" else f"sojourn logs -f {run_id}"
    shell.err.line(f"next: {then}", "dim")
    return OK


COMMANDS = {
    "export": Command(
        "Write a run to a file, to go on elsewhere",
        export,
        flags=(
            RUN,
            flag("-o", "--output", metavar="FILE", help="where to; standard output if not given"),
            flag("--no-files", action="store_true", help="without the session's files"),
            JSON,
        ),
        about=EXPORT,
        examples=("sojourn export run_01J... -o run.json", "sojourn export run_01J... | ssh there sojourn import -"),
    ),
    "import": Command(
        "Let an exported run go on here",
        import_,
        flags=(flag("file", metavar="FILE", help="the export; - for standard input"), JSON),
        about=IMPORT,
        examples=("sojourn import run.json", "sojourn import - --json"),
    ),
    "fork": Command(
        "Go on with a run in a branch, or try again from a step",
        fork,
        flags=(
            RUN,
            flag(
                "--step", metavar="N", type=int, help="begin before the reply of this step, as `sojourn trace` counts"
            ),
            flag("--input", metavar="TEXT", help="what you say then"),
            flag("--same-session", action="store_true", help="in the same session; the run must have ended"),
            flag("--no-files", action="store_true", help="without the session's files"),
            JSON,
        ),
        about=FORK,
        examples=("sojourn fork run_01J... --step 3", 'sojourn fork run_01J... --input "Now in French, please"'),
    ),
}
