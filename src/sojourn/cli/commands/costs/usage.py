"""`sojourn usage`: what your tenant paid for models.

The rule: a sum that is not whole says so, in the table and below it.
"""

import re
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

from sojourn.cli.client import Client
from sojourn.cli.command import JSON, Command, Shell, flag
from sojourn.cli.commands.clock.times import past
from sojourn.cli.exits import OK, USAGE, Stop
from sojourn.cli.terminal import count, money, tokens

Json = dict[str, Any]

KEYS = ("tenant", "user", "agent", "model", "purpose", "day")
PAGE = 1000
NEXT = re.compile(r'<([^>]+)>; rel="next"')
ABOUT = """
Every call to a model is in it, by the day (UTC) on which it ended: replies, summaries of long transcripts,
and calls that were cut (a worker that died, a cancelled run, a provider that broke off), these by an
estimate. "~" marks sums that hold an estimate, and "+ ?" those that lack calls whose price is not known:
docs/operate/costs.md says how to tell it.
"""


def usage(args: Namespace, shell: Shell) -> int:
    """Show the sums."""
    if args.csv and args.json:
        raise Stop("Use either --csv or --json.", USAGE)
    by = [name.strip() for name in args.by.split(",") if name.strip()]
    if wrong := [name for name in by if name not in KEYS]:
        raise Stop(f"--by takes some of {','.join(KEYS)}, not {wrong[0]}.", USAGE)
    since, until = (past(text) if text is not None else None for text in (args.since, args.until))
    asked: Json = {"by": ",".join(by), "since": since, "until": until}
    client, path = shell.client(), "/v1/me/usage" if args.me else "/v1/usage"
    if args.csv:
        for text in _sheets(client, path, {**asked, "format": "csv", "limit": PAGE}):
            shell.out.write(text)
        return OK
    found = _whole(client, path, {**asked, "limit": PAGE})
    if args.json:
        shell.print_json(found)
    else:
        _show(found, by, shell)
    return OK


def _whole(client: Client, path: str, query: Json) -> Json:
    """All pages as one."""
    found: Json = client.get(path, **query)
    page = found
    while page["has_more"]:
        page = client.get(path, by=query["by"], limit=PAGE, after=page["next"])
        found["data"] += page["data"]
    return {**found, "has_more": False, "next": None}


def _sheets(client: Client, path: str, query: Json) -> Iterator[str]:
    """The pages of the sheet, with the heads of the first alone."""
    heads = True
    while path:
        with client.open("GET", path, query=query) as response:
            text = response.read().decode()
            more = NEXT.search(response.headers.get("Link") or "")
        yield text if heads else text.partition("\r\n")[2]
        path, query, heads = more[1] if more else "", {}, False


def _show(found: Json, by: list[str], shell: Shell) -> None:
    total, out = found["total"], shell.out
    if not total["calls"]:
        out.line(f"Nothing was paid from {found['since'][:16]} to {found['until'][:16]} (UTC).")
        out.line("`--since 90d` looks further back; `sojourn run` starts what costs something.", "dim")
    elif found["data"]:
        rows = [(*(str(row.get(name)) for name in by), *_sums(row)) for row in found["data"]]
        heads = ("CALLS", "TOKENS", "COST")
        out.table((*map(str.upper, by), *heads), [*rows, *([_last(by, total)] if len(rows) > 1 else [])])
    if total["calls"] and not found["data"]:
        out.line(" · ".join((count(total["calls"], "call"), *_sums(total)[1:])), "bold")
    _notes(found, shell)


def _last(by: list[str], total: Json) -> tuple[str, ...]:
    return ("total", *[""] * (len(by) - 1), *_sums(total))


def _sums(row: Json) -> tuple[str, str, str]:
    cost = money({**row["cost"], "usd": row["known_usd"]}) + (" + ?" if row["unpriced_calls"] else "")
    return f"{row['calls']:,}", tokens(row["usage"]), cost


def _notes(found: Json, shell: Shell) -> None:
    """What the sums lack, or guess."""
    total = found["total"]
    if total["estimated_calls"]:
        calls = count(total["estimated_calls"], "call")
        shell.out.line(f"~ {calls} of it by an estimate, ${total['estimated_usd']}.", "dim")
    if total["unpriced_calls"]:
        calls = count(total["unpriced_calls"], "call")
        shell.out.line(f"+ ? {calls} without a known price; `[prices]` in the server's settings tells one.", "dim")
    if found["complete_since"] and found["complete_since"] > found["since"]:
        shell.out.line(f"Not whole: what was paid before {found['complete_since'][:16]} (UTC) was deleted.", "yellow")


COMMANDS = {
    "usage": Command(
        "Show what was paid for models, by user, agent, model or day",
        usage,
        flags=(
            flag("--me", action="store_true", help="of your own user alone; needs runs:read and not usage:read"),
            flag("--by", metavar="KEYS", default="model", help=f"group by some of {','.join(KEYS)} (default: model)"),
            flag("--since", metavar="TIME", help="from then on: 7d, 12h, or 2027-01-31 (default: 30 days)"),
            flag("--until", metavar="TIME", help="up to then (default: now)"),
            flag("--csv", action="store_true", help="print a sheet, for spreadsheets"),
            JSON,
        ),
        about=ABOUT,
        examples=(
            "sojourn usage --by user,model --since 7d",
            "sojourn usage --by day --since 2027-01-01 --until 2027-02-01",
            "sojourn usage --by user,agent,day --csv",
            "sojourn usage --me --by day",
        ),
    )
}
