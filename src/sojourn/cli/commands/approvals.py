"""`sojourn approvals`, `approve` and `reject`: the questions that runs wait with, and their answers.

The rule: an id names one question of one run for ever, so that a late answer cannot hit a newer question.
"""

from argparse import Namespace

from sojourn.cli.client import segment
from sojourn.cli.command import JSON, Command, Shell, flag
from sojourn.cli.exits import OK
from sojourn.cli.terminal import ago

APPROVAL = flag("approval", metavar="ID", help="the approval's id, as `sojourn approvals` shows it")


def approvals(args: Namespace, shell: Shell) -> int:
    """Show the open questions."""
    found = list(shell.client().pages("/v1/approvals"))
    if args.json:
        shell.print_json({"data": found})
        return OK
    rows = [(one["id"], one.get("kind") or "-", ago(one.get("created_at")), one.get("title") or "-") for one in found]
    shell.out.table(("ID", "KIND", "ASKED", "QUESTION"), rows)
    return OK


def approve(args: Namespace, shell: Shell) -> int:
    """Let it happen."""
    return _decide(args, shell, "approve")


def reject(args: Namespace, shell: Shell) -> int:
    """Refuse it; the agent reads the reason and goes on."""
    return _decide(args, shell, "reject")


def _decide(args: Namespace, shell: Shell, decision: str) -> int:
    body = {"decision": decision, **({"reason": args.reason} if args.reason else {})}
    answer = shell.client().post(f"/v1/approvals/{segment(args.approval)}", body)
    shell.print_json(answer) if args.json else shell.out.line(f"{args.approval}: {decision}")
    return OK


COMMANDS = {
    "approvals": Command(
        "List the questions that runs wait with", approvals, flags=(JSON,), examples=("sojourn approvals",)
    ),
    "approve": Command(
        "Approve what a run asks for",
        approve,
        flags=(APPROVAL, flag("--reason", metavar="TEXT", help="why; it is kept with the run"), JSON),
        examples=("sojourn approve run_01J....YXBw",),
    ),
    "reject": Command(
        "Reject what a run asks for",
        reject,
        flags=(APPROVAL, flag("--reason", metavar="TEXT", help="why; the agent reads it"), JSON),
        examples=('sojourn reject run_01J....YXBw --reason "not on a Friday"',),
    ),
}
