"""`sojourn alerts`: what somebody should look at.

The rule: an alert closes when what it is about is over; who has seen it is only written down.
"""

from argparse import Namespace

from sojourn.cli.client import segment
from sojourn.cli.command import JSON, Command, Group, Shell, flag
from sojourn.cli.exits import OK
from sojourn.cli.terminal import ago, one_line


def list_alerts(args: Namespace, shell: Shell) -> int:
    """Show the alerts."""
    found = list(shell.client().pages("/v1/alerts", limit=args.limit, all="true" if args.all else None))
    if args.json:
        shell.print_json({"data": found})
        return OK
    rows = [
        (
            one["id"],
            one["kind"],
            f"{one['what']} {one['subject']}".strip(),
            ago(one["opened_at"]),
            "over" if one["closed_at"] else f"seen by {one['acked_by']}" if one["acked_at"] else "open",
            one_line(one["detail"], 200),
        )
        for one in found
    ]
    told = "There was none." if args.all else "Nothing is open; --all shows what was."
    empty = f"{told} `sojourn webhooks add URL --event 'alert.*'` has alerts sent to you."
    shell.table(("ALERT", "KIND", "WHAT", "OPENED", "STATE", "DETAIL"), rows, empty=empty)
    return OK


def ack(args: Namespace, shell: Shell) -> int:
    """Say that an alert was seen."""
    seen = shell.client().post(f"/v1/alerts/{segment(args.alert)}/ack", {})
    shell.print_json(seen) if args.json else shell.out.line(f"{args.alert} was seen by {seen['acked_by']}")
    return OK


COMMANDS = {
    "alerts": Group(
        "See what somebody should look at",
        {
            "list": Command(
                "List the alerts that are open",
                list_alerts,
                flags=(
                    flag("--all", action="store_true", help="those that are over, too"),
                    flag("--limit", metavar="N", type=int, default=50, help="how many (50)"),
                    JSON,
                ),
                about="Spending out of the usual, agents that fail, a queue that stands, webhooks that do not answer.",
                examples=("sojourn alerts list", "sojourn alerts list --all --json"),
            ),
            "ack": Command(
                "Say that you have seen one",
                ack,
                flags=(flag("alert", metavar="ALERT", help="the alert's id"), JSON),
                about="It stays open until what it is about is over.",
                examples=("sojourn alerts ack alr_01J...",),
            ),
        },
    )
}
