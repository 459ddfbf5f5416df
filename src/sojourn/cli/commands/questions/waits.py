"""`sojourn hold`, `resume`, `signal`, `hook` and `result`: a run stopped from outside, and told what it waits for."""

import json
from argparse import Namespace
from typing import Any

from sojourn.cli.client import segment
from sojourn.cli.command import JSON, Command, Shell, flag
from sojourn.cli.exits import OK

RUN = flag("run", metavar="RUN", help="the run's id")
REASON = flag("--reason", metavar="TEXT", help="why; it is kept with the run")


def hold(args: Namespace, shell: Shell) -> int:
    """Stop a run before its next step."""
    return _post(args, shell, "hold", {"reason": args.reason or ""}, said="is held as soon as nothing is in flight")


def resume(args: Namespace, shell: Shell) -> int:
    """Let a held run go on."""
    return _post(args, shell, "resume", {"reason": args.reason or ""}, said="is on hold no longer")


def signal(args: Namespace, shell: Shell) -> int:
    """Tell a run that something happened."""
    body: dict[str, Any] = {"name": args.name, "data": _data(args.data)}
    if args.id:
        body["id"] = args.id
    return _post(args, shell, "signals", body, said=f"hears {args.name}")


def result(args: Namespace, shell: Shell) -> int:
    """Say what a tool of the caller's returned."""
    kind = "error" if args.error else "output"
    return _post(
        args, shell, "tool_results", {"call": args.call, kind: args.text}, said=f"reads the {kind} of {args.call}"
    )


def hook(args: Namespace, shell: Shell) -> int:
    """Show where an outside system sends a run's events."""
    client = shell.client()
    found = client.get(f"/v1/runs/{segment(args.run)}/hook")
    if args.json:
        shell.print_json(found)
        return OK
    shell.out.line(f"  url     {client.url}{found['path']}")
    shell.out.line(f"  secret  {found['secret']}")
    return OK


def _post(args: Namespace, shell: Shell, what: str, body: dict[str, Any], *, said: str) -> int:
    found = shell.client().post(f"/v1/runs/{segment(args.run)}/{what}", body)
    shell.print_json(found) if args.json else shell.out.line(f"{args.run} {said}")
    return OK


def _data(text: str | None) -> Any:
    """JSON where it is JSON, else the words themselves."""
    try:
        return json.loads(text) if text is not None else None
    except ValueError:
        return text


COMMANDS = {
    "hold": Command(
        "Put a run on hold",
        hold,
        flags=(RUN, REASON, JSON),
        about="What is in flight ends; nothing new begins, in the run and in its sub-agents. It then holds nothing.",
        examples=('sojourn hold run_01J... --reason "the vendor is down"',),
    ),
    "resume": Command(
        "Let a held run go on", resume, flags=(RUN, REASON, JSON), examples=("sojourn resume run_01J...",)
    ),
    "signal": Command(
        "Tell a run that something happened",
        signal,
        flags=(
            RUN,
            flag("name", metavar="NAME", help="the event's name, as the agent waits for it"),
            flag("data", metavar="DATA", nargs="?", help="what the agent reads: JSON or words"),
            flag("--id", metavar="ID", help="the same id twice is one event"),
            JSON,
        ),
        examples=("""sojourn signal run_01J... payment.settled '{"cents": 1200}'""",),
    ),
    "hook": Command(
        "Show where outside systems send a run's events",
        hook,
        flags=(RUN, JSON),
        about="They send Standard Webhooks, signed with this run's own secret. Whoever has it can signal this one run.",
        examples=("sojourn hook run_01J...",),
    ),
    "result": Command(
        "Send what a tool of your own returned",
        result,
        flags=(
            RUN,
            flag("call", metavar="CALL", help="the call's id, as `sojourn approvals --kind client_tool` shows it"),
            flag("text", metavar="TEXT", help="what the agent reads"),
            flag("--error", action="store_true", help="the tool failed"),
            JSON,
        ),
        examples=("sojourn result run_01J... /0.0 shipped",),
    ),
}
