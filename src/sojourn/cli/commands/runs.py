"""`sojourn runs`, `get`, `logs`, `say` and `delete`: the runs that are there.

The rule: looking at a run never changes it; Ctrl-C in `logs -f` only stops looking.
"""

from argparse import Namespace
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sojourn.cli.client import Refusal, segment
from sojourn.cli.command import JSON, Command, Shell, flag
from sojourn.cli.exits import INTERRUPTED, OF_STATUS, OK
from sojourn.cli.questions import how
from sojourn.cli.stream import follow, look
from sojourn.cli.terminal import ago, money, one_line, status_style
from sojourn.cli.view import View, show_summary

RUN = flag("run", metavar="RUN", help="the run's id")
LOGS = """
With --json each durable event is one line of JSON. Following survives a restart of the server; Ctrl-C
only detaches. When --follow has seen the end of the run, the exit code tells its status.
"""
DELETE = """
With all that was said and done in them, for good; what they cost stays in the usage. Of a session the
last run goes first: later runs read what the earlier ones said. `sojourn sessions delete` takes them all.
"""
STATUSES = ("queued", "running", "suspended", "completed", "failed", "cancelled", "quarantined")


def list_runs(args: Namespace, shell: Shell) -> int:
    """Show the newest runs."""
    wanted = {"status": args.status, "agent": args.agent, "session": args.session, "schedule": args.schedule}
    found = list(shell.client().pages("/v1/runs", limit=args.limit, **wanted))
    if args.json:
        shell.print_json({"data": found})
        return OK
    heads = ("RUN", "STATUS", "AGENT", "STEPS", "COST", "CREATED", "GOAL")
    shell.table(heads, [_row(run) for run in found], empty="No run is like that. `sojourn run` starts one.")
    return OK


def _row(run: dict[str, Any]) -> tuple[str, ...]:
    cost = money(run["cost"]) if (run.get("cost") or {}).get("usd") is not None else "-"
    agent, steps, goal = (
        (run.get("agent") or {}).get("name") or "-",
        str(run.get("steps") or 0),
        run.get("input") or "",
    )
    return run["id"], _status(run), agent, steps, cost, ago(run.get("created_at")), goal


def _status(run: dict[str, Any]) -> str:
    """The status, and of a run that is to begin later the time."""
    later = run["status"] == "queued" and (run.get("start_at") or "") > datetime.now(UTC).isoformat()
    return f"begins {run['start_at'][:16]}Z" if later else str(run["status"])


def get(args: Namespace, shell: Shell) -> int:
    """Show one run."""
    run = shell.client().get(f"/v1/runs/{segment(args.run)}")
    if args.json:
        shell.print_json(run)
        return OK
    out, agent = shell.out, run.get("agent") or {}
    out.write(f"{run['id']}  ")
    out.line_end(run["status"], status_style(run["status"]))
    version = f" version {agent['version']}" if agent.get("version") else ""
    facts = {
        "session": run.get("session_id"),
        "agent": f"{agent.get('name') or '-'}{version}",
        "created": f"{run.get('created_at')} ({ago(run.get('created_at'))})",
        "begins": run.get("start_at"),
        "schedule": f"{run['schedule']}, for {run.get('fire_at') or 'now'}" if run.get("schedule") else "",
        "goal": one_line(run.get("input") or "", 400),
        "error": "{detail} ({code})".format_map(run["error"]) if run.get("error") else "",
        "waits": "\n           ".join(line for wait in run.get("waits") or () for line in (wait["title"], how(wait))),
        "stopped": f"once the cause is mended: sojourn retry {run['id']}" if run["status"] == "quarantined" else "",
    }
    for name, value in facts.items():
        if value:
            out.line(f"  {name:<8} {value}")
    if run.get("output"):
        out.line()
        out.line(run["output"])
        out.line()
    show_summary(out, run)
    return OK


def logs(args: Namespace, shell: Shell) -> int:
    """Show what happened in a run, and with --follow what happens. Returns the code of the run's end when it saw it."""
    client, view = shell.client(), View(shell.out)

    def notice(words: str) -> None:
        shell.err.line(words, "yellow")

    if not args.follow:
        for event in client.pages(f"/v1/runs/{segment(args.run)}/events", after=args.after or None):
            shell.print_json(event) if args.json else view.show(event)
        return OK
    try:
        for item in follow(client, args.run, after=args.after, notice=notice):
            if not args.json:
                view.show(item)
            elif "seq" in item or item["type"] == "run.quarantined":
                shell.print_json(item)
    except KeyboardInterrupt:
        shell.err.line(f"Detached. The run goes on: sojourn logs -f {args.run}", "dim")
        return INTERRUPTED
    run = look(client, args.run, notice)
    if not args.json:
        show_summary(shell.out, run)
    return OF_STATUS.get(run["status"], OK)


def say(args: Namespace, shell: Shell) -> int:
    """Send a message to a run that goes on; its agent reads it before its next reply."""
    body = {"input": args.message, **({"interrupt": True} if args.interrupt else {})}
    answer = shell.client().post(f"/v1/runs/{segment(args.run)}/messages", body)
    shell.print_json(answer) if args.json else shell.out.line(f"{args.run} will read it before its next step")
    return OK


def delete(args: Namespace, shell: Shell) -> int:
    """Delete runs. Returns the code of the first one that could not be."""
    client = shell.client()

    def one(run_id: str) -> None:
        client.json("DELETE", f"/v1/runs/{segment(run_id)}")
        shell.print_json({"id": run_id, "deleted": True}) if args.json else shell.out.line(f"{run_id} is deleted")

    return each(args.runs, one, shell)


def each(run_ids: list[str], do: Callable[[str], None], shell: Shell) -> int:
    """Do it with each run, whatever becomes of the others; the code of the first refusal."""
    first = OK
    for run_id in run_ids:
        try:
            do(run_id)
        except Refusal as refusal:
            shell.err.line(f"sojourn: {run_id}: {refusal}", "red")
            first = first or refusal.code
    return first


COMMANDS = {
    "runs": Command(
        "List the newest runs",
        list_runs,
        flags=(
            flag("--status", choices=STATUSES, help="only those of this status"),
            flag("--agent", metavar="NAME", help="only those of this agent"),
            flag("--session", metavar="SESSION", help="only those of this session"),
            flag("--schedule", metavar="NAME", help="only those that this schedule made"),
            flag("--limit", metavar="N", type=int, default=20, help="how many (20)"),
            JSON,
        ),
        examples=("sojourn runs", "sojourn runs --status failed --agent reviewer --limit 5"),
    ),
    "get": Command(
        "Show one run: status, answer, tokens and cost",
        get,
        flags=(RUN, JSON),
        examples=("sojourn get run_01J...", "sojourn get run_01J... --json | jq .output"),
    ),
    "logs": Command(
        "Show what happened in a run, and follow it",
        logs,
        flags=(
            RUN,
            flag("--follow", "-f", action="store_true", help="go on until the run has ended"),
            flag("--after", metavar="SEQ", type=int, default=0, help="begin after the event with this number"),
            JSON,
        ),
        about=LOGS,
        examples=("sojourn logs run_01J...", "sojourn logs -f run_01J...", "sojourn logs run_01J... --after 40 --json"),
    ),
    "say": Command(
        "Send a message to a run that goes on",
        say,
        flags=(
            RUN,
            flag("message", metavar="MESSAGE", help="what its agent should read"),
            flag(
                "--interrupt", action="store_true", help="give up the reply that is being made, and ask for a new one"
            ),
            JSON,
        ),
        examples=('sojourn say run_01J... "Only the last three years, please"',),
    ),
    "delete": Command(
        "Delete runs that have ended",
        delete,
        flags=(flag("runs", metavar="RUN", nargs="+", help="the runs' ids"), JSON),
        about=DELETE,
        examples=("sojourn delete run_01J...", "sojourn delete run_01K... run_01J..."),
    ),
}
