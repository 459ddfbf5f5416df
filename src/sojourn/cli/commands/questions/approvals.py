"""`sojourn approvals`, `approve`, `reject`, `edit`, `answer` and `decide`: what runs wait with, and the answers.

The rule: an id names one question of one run for ever, so that a late answer cannot hit a newer question.
"""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from sojourn.cli.client import segment
from sojourn.cli.command import JSON, Command, Flag, Shell, flag
from sojourn.cli.exits import OK, USAGE, Stop
from sojourn.cli.questions import body, how
from sojourn.cli.terminal import ago, one_line

Json = dict[str, Any]

APPROVAL = flag("approval", metavar="ID", help="the question's id, as `sojourn approvals` shows it")
SEEN = flag(
    "--seen", metavar="DIGEST", help="the arguments_digest that you saw: other arguments than those are not decided"
)
GRANT = flag("--grant", metavar="N", type=int, help="say yes to the next N calls with the same arguments, too")
GRANT_ANY = flag("--any-arguments", action="store_true", help="with --grant: whatever their arguments are")


def approvals(args: Namespace, shell: Shell) -> int:
    """Show the open questions, or one of them whole."""
    if args.approval is not None:
        return _show(args, shell)
    wanted = {"run": args.run, "kind": args.kind, "mine": "true" if args.mine else None}
    found = list(shell.client().pages("/v1/approvals", **{name: value for name, value in wanted.items() if value}))
    if args.json:
        shell.print_json({"data": found})
        return OK
    rows = [(one["id"], one["kind"], ago(one.get("created_at")), f"{one['title']} {body(one)}") for one in found]
    shell.table(("ID", "KIND", "ASKED", "QUESTION"), rows, empty="Nothing waits for an answer.")
    return OK


def _show(args: Namespace, shell: Shell) -> int:
    found = shell.client().get(f"/v1/approvals/{segment(args.approval)}")
    if args.json:
        shell.print_json(found)
        return OK
    shell.out.line(found["title"])
    if found.get("display"):
        shell.out.line(found["display"])
    facts = {
        "policy": found.get("reason"),
        "run": found.get("run_id"),
        "place": found.get("path"),
        "answers": ", ".join(found.get("allowed") or ()),
        "needs": _needs(found),
        "until": found.get("expires_at"),
        "seen": found.get("arguments_digest"),
    }
    for name, value in facts.items():
        if value:
            shell.out.line(f"  {name:<8} {one_line(str(value), 100)}")
    shell.out.line(f"  {how({**found, 'approval': found['id']})}", "bold")
    return OK


def _needs(found: Json) -> str:
    votes = [vote["by"] for vote in found.get("votes") or ()]
    who = f" of {', '.join(found['approvers'])}" if found.get("approvers") else ""
    return f"{found.get('need', 1)} yes{who}" + (f", has {', '.join(votes)}" if votes else "")


def approve(args: Namespace, shell: Shell) -> int:
    """Let it happen."""
    return _decide(args, shell, "approve", **_grant(args))


def reject(args: Namespace, shell: Shell) -> int:
    """Refuse it; the agent reads the reason and goes on."""
    return _decide(args, shell, "reject")


def edit(args: Namespace, shell: Shell) -> int:
    """Let it happen with other arguments; the agent is told."""
    return _decide(args, shell, "edit", arguments=_arguments(args.arguments), **_grant(args))


def answer(args: Namespace, shell: Shell) -> int:
    """Answer in the tool's place: nothing runs."""
    return _decide(args, shell, "answer", text=args.text)


def decide(args: Namespace, shell: Shell) -> int:
    """Any other answer."""
    more: Json = {"text": args.text} if args.text else {}
    limits = {name: value for name, value in (("steps", args.steps), ("usd", args.usd)) if value is not None}
    limits |= dict(map(limit, args.limit))
    if limits:
        more["limits"] = limits
    if args.until:
        more["expires_at"] = args.until
    return _decide(args, shell, args.decision, **more)


def _grant(args: Namespace) -> Json:
    if args.grant is None:
        return {}
    return {"grant": {"count": args.grant, "same_arguments": not args.any_arguments}}


def limit(given: str) -> tuple[str, Any]:
    """NAME=N; the server knows the names. Raises Stop."""
    name, _, value = given.partition("=")
    try:
        return name, value if name in ("usd", "on_exhaust") else json.loads(value)
    except ValueError:
        raise Stop(f"{given!r} is no limit: one looks like active_s=7200.", USAGE) from None


def _arguments(given: str) -> Json:
    """Arguments as written, or from @FILE. Raises Stop."""
    try:
        text = Path(given[1:]).read_text() if given.startswith("@") else given
        found = json.loads(text)
    except (OSError, ValueError) as error:
        raise Stop(f"The arguments cannot be read: {error}.", USAGE) from None
    if not isinstance(found, dict):
        raise Stop('The arguments are a JSON object, such as \'{"command": "ls"}\'.', USAGE)
    return found


def _decide(args: Namespace, shell: Shell, decision: str, **more: Any) -> int:
    body = {"decision": decision, **more}
    if args.reason:
        body["reason"] = args.reason
    if args.seen:
        body["arguments_digest"] = args.seen
    found = shell.client().post(f"/v1/approvals/{segment(args.approval)}", body)
    before = " (it was given before)" if found.get("replayed") else ""
    shell.print_json(found) if args.json else shell.out.line(f"{args.approval}: {decision}{before}")
    return OK


def _flags(why: str, *more: Flag) -> tuple[Flag, ...]:
    return (APPROVAL, *more, flag("--reason", metavar="TEXT", help=why), SEEN, JSON)


KEPT = "why; it is kept with the run"
READ = "why; the agent reads it"

COMMANDS = {
    "approvals": Command(
        "List the questions that runs wait with, or show one",
        approvals,
        flags=(
            flag("approval", metavar="ID", nargs="?", help="show this one whole: what would run, who may answer"),
            flag("--run", metavar="RUN", help="only the questions of this run"),
            flag("--kind", metavar="KIND", help="only this kind, such as approval, answer, budget or client_tool"),
            flag("--mine", action="store_true", help="only what you may answer, and have not approved yet"),
            JSON,
        ),
        examples=("sojourn approvals", "sojourn approvals run_01J....YXBw"),
    ),
    "approve": Command(
        "Approve what a run asks for",
        approve,
        flags=_flags(KEPT, GRANT, GRANT_ANY),
        examples=("sojourn approve run_01J....YXBw", "sojourn approve run_01J....YXBw --grant 5"),
    ),
    "reject": Command(
        "Reject what a run asks for",
        reject,
        flags=_flags(READ),
        examples=('sojourn reject run_01J....YXBw --reason "not on a Friday"',),
    ),
    "edit": Command(
        "Approve it with other arguments",
        edit,
        flags=_flags(READ, flag("arguments", metavar="JSON", help="the arguments, or @FILE"), GRANT, GRANT_ANY),
        about="They must fit the tool's schema, the policy judges them again, and the agent is told of the change.",
        examples=("""sojourn edit run_01J....YXBw '{"to": "bob@example.com"}'""",),
    ),
    "answer": Command(
        "Answer a question, or in a tool's place",
        answer,
        flags=_flags(KEPT, flag("text", metavar="TEXT", help="what the agent reads")),
        examples=('sojourn answer run_01J....YXBw "the blue one"',),
    ),
    "decide": Command(
        "Give any other answer that a question takes",
        decide,
        flags=_flags(
            READ,
            flag(
                "decision",
                metavar="DECISION",
                choices=("approve", "reject", "retry", "mark_done", "cancel", "extend"),
                help="approve, reject, extend; or retry, mark_done, cancel, which say what became of a call whose "
                "outcome is not known",
            ),
            flag("--text", metavar="TEXT", help="with mark_done: what the agent reads"),
            flag("--steps", metavar="N", type=int, help="with extend: the new limit of steps"),
            flag("--usd", metavar="USD", help="with extend: the new limit of money"),
            flag(
                "--limit",
                metavar="NAME=N",
                action="append",
                default=[],
                help="with extend: any new limit, such as active_s=7200; again for more",
            ),
            flag("--until", metavar="TIME", help="with extend: the new end, such as 2026-12-01T12:00:00Z"),
        ),
        examples=("sojourn decide run_01J....YXBw retry", "sojourn decide run_01J....YXBw extend --steps 200"),
    ),
}
