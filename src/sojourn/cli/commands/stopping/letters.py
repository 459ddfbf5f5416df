"""`sojourn cancel`, `retry` and `dead-letters`: runs that are ended, and runs that no worker could go on with.

The rule: many runs are treated one by one; one that is refused does not keep the others from it.
"""

from argparse import Namespace
from collections.abc import Iterator
from typing import Any

from sojourn.cli.client import Client, segment
from sojourn.cli.command import JSON, Command, Shell, flag
from sojourn.cli.commands.runs import each
from sojourn.cli.exits import OK, USAGE, Stop
from sojourn.cli.terminal import ago, one_line

RUNS = flag("runs", metavar="RUN", nargs="*", help="the runs' ids")
FILTERS = (
    flag("--agent", metavar="NAME", help="only those of this agent"),
    flag("--session", metavar="SESSION", help="only those of this session"),
    flag("--user", metavar="USER", help="only those of this user"),
)
ABOUT = """
A dead letter is a run that eight workers took up in a row and that came no further, because it kills its
worker, or that none of them could read. It is `quarantined`: it has not ended, nothing of it is lost, and
nobody takes it up again by itself.
"""


def dead_letters(args: Namespace, shell: Shell) -> int:
    """Show the dead letters."""
    found = list(_letters(shell.client(), args, limit=args.limit))
    if args.json:
        shell.print_json({"data": found})
        return OK
    rows = [_row(letter) for letter in found]
    shell.table(("RUN", "SINCE", "AGENT", "CLAIMS", "ERROR"), rows, empty="No run is in quarantine.")
    if found:
        shell.err.line("`sojourn retry RUN` lets one go on where it stood; `sojourn cancel RUN` ends it.", "dim")
    return OK


def retry(args: Namespace, shell: Shell) -> int:
    """Put dead letters back into the queue."""
    return _each(args, shell, "retry", "goes on where it stood")


def cancel(args: Namespace, shell: Shell) -> int:
    """Cancel runs."""
    return _each(args, shell, "cancel", "is being cancelled")


def _letters(client: Client, args: Namespace, limit: int | None = None) -> Iterator[dict[str, Any]]:
    wanted = {"agent": args.agent, "session": args.session, "user": args.user}
    return client.pages("/v1/dead_letters", limit=limit, **wanted)


def _row(letter: dict[str, Any]) -> tuple[str, ...]:
    run = letter["run"]
    error = run.get("error") or {}
    words = f"{error.get('detail') or ''} ({error.get('code')})".strip()
    claims, agent = letter.get("claims"), (run.get("agent") or {}).get("name")
    return run["id"], ago(letter.get("quarantined_at")), agent or "-", str(claims or "-"), one_line(words, 200)


def _each(args: Namespace, shell: Shell, verb: str, done: str) -> int:
    """Do it to every run that is named or chosen. Returns the code of the first one that could not be."""
    client = shell.client()
    body = {"reason": args.reason} if getattr(args, "reason", None) else {}

    def one(run_id: str) -> None:
        run = client.post(f"/v1/runs/{segment(run_id)}/{verb}", body)
        shell.print_json(run) if args.json else shell.out.line(f"{run_id} {done}")

    return each(_chosen(args, client), one, shell)


def _chosen(args: Namespace, client: Client) -> list[str]:
    """The runs that are named, or all dead letters that fit."""
    filters = any((args.agent, args.session, args.user))
    if args.runs and (args.dead_letters or filters):
        raise Stop("Name runs, or choose among the dead letters with --dead-letters; not both.", USAGE)
    if not args.runs and not args.dead_letters:
        raise Stop("Name runs, or say --dead-letters for all of them; --agent and others choose among those.", USAGE)
    return args.runs or [letter["run"]["id"] for letter in _letters(client, args)]


ALL = flag("--dead-letters", action="store_true", help="all dead letters, or those that the next options choose")

COMMANDS = {
    "dead-letters": Command(
        "List the runs that no worker could go on with",
        dead_letters,
        flags=(*FILTERS, flag("--limit", metavar="N", type=int, default=50, help="how many (50)"), JSON),
        about=ABOUT,
        examples=("sojourn dead-letters", "sojourn dead-letters --agent reviewer --json"),
    ),
    "retry": Command(
        "Let dead letters go on where they stood",
        retry,
        flags=(RUNS, ALL, *FILTERS, JSON),
        about=ABOUT + "\nMend the cause first. Needs a key with the scope admin:runs.",
        examples=("sojourn retry run_01J...", "sojourn retry --dead-letters --agent reviewer"),
    ),
    "cancel": Command(
        "Cancel runs",
        cancel,
        flags=(RUNS, flag("--reason", metavar="TEXT", help="why; it is kept with the run"), ALL, *FILTERS, JSON),
        examples=(
            "sojourn cancel run_01J...",
            'sojourn cancel run_01J... run_01K... --reason "wrong data"',
            "sojourn cancel --dead-letters --agent reviewer",
        ),
    ),
}
