"""`sojourn audit`: who did what. The operator's own chain is read by operator.py, which imports the server.

The rule: what is verified is verified here, on the rows, and not by the server that sent them.
"""

import json
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any

from sojourn.cli.client import Client, Unreachable
from sojourn.cli.command import JSON, Command, Group, Shell, flag
from sojourn.cli.commands.auditing import chain
from sojourn.cli.commands.clock.times import past
from sojourn.cli.commands.server import DATA_DIR, served
from sojourn.cli.exits import FAILED, OK, USAGE, Stop
from sojourn.cli.terminal import ago, count, json_text

Json = dict[str, Any]

OPERATOR = """
--operator reads the operator's own chain: what was done on the command line of this installation, straight
from its database. It needs no key, but what the server itself has: the data folder, or SOJOURN_DATABASE_URL.
"""
VERIFY = """
Without FILE the rows come from the server; with it no server is needed. The exit code is 0 if every row is
as it was written, and 1 otherwise; the first row that is not is named.

Whoever owns the database could write the whole chain anew. Keep a head somewhere else, and give it with
--from: then nothing up to it can have changed.
"""


def list_(args: Namespace, shell: Shell) -> int:
    """Show the rows, newest first."""
    return listed(shell.client().pages("/v1/audit", limit=args.limit, **wanted(args)), args, shell)


def wanted(args: Namespace) -> Json:
    """What the flags choose, as the API takes it. Raises Stop."""
    since, until = (past(text) if text is not None else None for text in (args.since, args.until))
    return {"action": args.action, "user": args.user, "since": since, "until": until}


def export(args: Namespace, shell: Shell) -> int:
    """Write the chain."""
    return exported(_lines(shell.client(), args.after), shell)


def verify(args: Namespace, shell: Shell) -> int:
    """Check the chain."""
    if not args.file:
        return verified(_lines(shell.client()), args, shell)
    try:
        with Path(args.file).open("rb") as file:
            return verified(chain.parsed(file), args, shell)
    except OSError as error:
        raise Stop(f"{args.file} cannot be read ({(error.strerror or str(error)).lower()}).", USAGE) from None


def head(args: Namespace, shell: Shell) -> int:
    """Show where the chain ends."""
    return headed(shell.client().get("/v1/audit/head"), args, shell)


# ---- shown, wherever the rows come from --------------------------------------------------------


def listed(rows: Iterable[Json], args: Namespace, shell: Shell) -> int:
    """Show rows."""
    found = list(rows)
    if args.json:
        shell.print_json({"data": found})
        return OK
    none = "No row is like that; `sojourn audit list` without filters shows all."
    shell.table(("ROW", "WHEN", "WHO", "DID", "TO", "MORE"), [_row(row) for row in found], empty=none)
    return OK


def exported(lines: Iterable[Json], shell: Shell) -> int:
    """Write lines of JSON. Raises Stop where the last one is not the head."""
    whole = False
    for line in lines:
        shell.out.line(json_text(line))
        whole = "head" in line
    if not whole:
        raise Unreachable("The export broke off before its end. Try again; --after N goes on after row N.")
    return OK


def verified(lines: Iterable[Json], args: Namespace, shell: Shell) -> int:
    """Say whether a chain is sound. Raises Stop for a head that is none."""
    try:
        kept = chain.head(args.kept) if args.kept else None
    except ValueError as error:
        raise Stop(str(error), USAGE) from None
    try:
        verdict = chain.verify(lines, kept)
    except ValueError as error:
        raise Stop(str(error)) from None
    if args.json:
        sound = {"rows": verdict.sound.n, "head": str(verdict.sound)}
        shell.print_json({"ok": verdict.bad is None, **sound, "bad": verdict.bad, "why": verdict.why or None})
    elif verdict.bad is None:
        shell.out.line(f"{count(verdict.sound.n, 'row')}, each as it was written. The head is {verdict.sound}")
    else:
        shell.out.line(f"Row {verdict.bad} is bad: {verdict.why}.", "red")
    return OK if verdict.bad is None else FAILED


def headed(found: Json, args: Namespace, shell: Shell) -> int:
    """Show a head."""
    shell.print_json(found) if args.json else shell.out.line(f"{found['n']}:{found['hash']}")
    return OK


def _row(row: Json) -> tuple[str, ...]:
    who = f"{row['user_id']} (operator)" if row["operator"] else row["user_id"]
    more = [row["outcome"]] if row["outcome"] != "done" else []
    more += [f"{name}={value}" for name, value in row["detail"].items()]
    return str(row["n"]), ago(row["at"]), who, row["action"], row["subject"] or "-", " ".join(more)


def _lines(client: Client, after: int = 0) -> Iterator[Json]:
    """The lines of the server's export. Raises Stop."""
    query = {"format": "jsonl", "after": after}
    try:
        with client.open("GET", "/v1/audit", query=query, headers={"Accept": "application/jsonl"}) as response:
            for line in response:
                yield json.loads(line)
    except (HTTPException, OSError, ValueError):
        raise Unreachable("The export broke off before its end. Try again in a moment.") from None


def _either(ours: Callable[[Namespace, Shell], int], name: str) -> Callable[[Namespace, Shell], int]:
    """A command over the server's chain of the tenant, or over the operator's."""

    def run(args: Namespace, shell: Shell) -> int:
        return (served("auditing.operator", name) if args.operator else ours)(args, shell)

    return run


READ = (flag("--operator", action="store_true", help="the operator's own chain, from the database"), DATA_DIR)

COMMANDS = {
    "audit": Group(
        "Who did what, and the proof that nobody changed it",
        {
            "list": Command(
                "List what was done, the newest first",
                _either(list_, "list_"),
                flags=(
                    flag("--action", metavar="ACTION", help="only this, such as key.create; or all on a noun: key"),
                    flag("--user", metavar="USER", help="only what this user did"),
                    flag("--since", metavar="TIME", help="only from then on: 7d, 12h, or 2027-01-31T09:00"),
                    flag("--until", metavar="TIME", help="only before then"),
                    flag("--limit", metavar="N", type=int, default=50, help="how many (50)"),
                    *READ,
                    JSON,
                ),
                about="Needs a key with the scope admin:audit.\n" + OPERATOR,
                examples=("sojourn audit list", "sojourn audit list --action key --since 2027-01-31 --json"),
            ),
            "export": Command(
                "Write the whole chain as lines of JSON, with its head last",
                _either(export, "export"),
                flags=(flag("--after", metavar="N", type=int, default=0, help="go on after this row"), *READ),
                about="Needs a key with the scope admin:audit.\n" + OPERATOR,
                examples=("sojourn audit export | gzip > audit.jsonl.gz", "sojourn audit export --after 1200"),
            ),
            "verify": Command(
                "Check that no row was changed, removed, added or moved",
                _either(verify, "verify"),
                flags=(
                    flag("file", metavar="FILE", nargs="?", help="an export; without it, the rows of the server"),
                    flag(
                        "--from", metavar="HEAD", dest="kept", help="a head that you kept, as `audit head` printed it"
                    ),
                    *READ,
                    JSON,
                ),
                about=VERIFY + OPERATOR,
                examples=("sojourn audit verify", "sojourn audit verify audit.jsonl --from 42:9f86d0..."),
            ),
            "head": Command(
                "Print the number and the hash of the last row",
                _either(head, "head"),
                flags=(*READ, JSON),
                about="Keep it where nobody who owns the database can change it: on paper, or in another system.\n"
                + OPERATOR,
                examples=("sojourn audit head", "sojourn audit head --operator"),
            ),
        },
    )
}
