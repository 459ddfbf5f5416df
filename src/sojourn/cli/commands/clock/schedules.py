"""`sojourn schedules`: runs again and again, by the clock of a time zone.

The rule: what a schedule will do next is always shown beside what it says.
"""

from argparse import Namespace
from typing import Any

from sojourn.cli.client import Client, segment
from sojourn.cli.command import JSON, Command, Group, Shell, flag
from sojourn.cli.commands.clock.times import ahead, instant, seconds
from sojourn.cli.exits import OK, USAGE, Stop
from sojourn.cli.terminal import ago, one_line

Json = dict[str, Any]

NAME = flag("name", metavar="NAME", help="the schedule's name")
CREATE = """
Say when: --cron LINE with --zone, or --every TIME. A cron line has five fields (minute, hour, day of
month, month, day of week), or is @hourly, @daily, @weekly, @monthly or @yearly. When the clocks change, a
fixed time still fires once; see docs/schedules.md.

The agent's live version runs. Each fire has a new session, or with --session kept always the same one.
--missed says what becomes of fires while the server was down: skip, once (the last one) or all;
--overlap what becomes of a fire while the run before goes on: skip, wait or allow.

The schedule acts as your key, and stops when that is revoked; `sojourn schedules resume` with another
key takes it over.
"""


def list_schedules(args: Namespace, shell: Shell) -> int:
    """Show every schedule."""
    found = list(shell.client().pages("/v1/schedules"))
    if args.json:
        shell.print_json({"data": found})
        return OK
    heads = ("SCHEDULE", "STATUS", "NEXT", "LAST RUN", "AGENT", "WHEN")
    shell.table(heads, [_row(one) for one in found], empty="There is none. `sojourn schedules create` makes one.")
    return OK


def _row(one: Json) -> tuple[str, ...]:
    status = one["last_error"]["code"] if one.get("last_error") else one["status"]
    return one["name"], status, ahead(one["next_at"]), ago(one["last_fire_at"]), one["run"]["agent"], _when(one)


def _when(one: Json) -> str:
    return f"{one['cron']} {one['timezone']}" if one.get("cron") else f"every {one['every_s']} s"


def get(args: Namespace, shell: Shell) -> int:
    """Show a schedule, its next fires and how it went."""
    client, path = shell.client(), f"/v1/schedules/{segment(args.name)}"
    found = client.get(path)
    found["next"] = client.get(f"{path}/next")["data"]
    if args.json:
        shell.print_json(found)
        return OK
    made, error = found["run"], found.get("last_error")
    facts = {
        "when": _when(found),
        "next": "\n            ".join(f"{at} ({ahead(at)})" for at in found["next"])
        if found["status"] == "active"
        else "",
        "agent": made["agent"] + (f" version {made['version']}" if made.get("version") else ""),
        "session": made["session"],
        "goal": one_line(made["input"], 400),
        "missed": found["missed"],
        "overlap": found["overlap"],
        "acts as": f"{found['user_id']} ({found['key_id']})",
        "last run": f"{found['last_run_id']} ({ago(found['last_fire_at'])})" if found.get("last_run_id") else "",
        "error": f"{error['detail']} ({error['code']}, {ago(error['at'])})" if error else "",
        "fires": ", ".join(f"{count} {what}" for what, count in found["fires"].items()),
    }
    shell.out.line(f"{found['name']}  {found['status']}", "bold")
    for name, value in facts.items():
        if value:
            shell.out.line(f"  {name:<9} {value}")
    return OK


def create(args: Namespace, shell: Shell) -> int:
    """Make a schedule."""
    if bool(args.cron) == bool(args.every):
        raise Stop("Say either --cron LINE or --every TIME.", USAGE)
    run: Json = {"agent": args.agent, "input": args.goal, "session": args.session}
    if args.max_steps is not None:
        run["limits"] = {"steps": args.max_steps}
    body: Json = {"name": args.name, "missed": args.missed, "overlap": args.overlap, "run": run}
    body |= {"cron": args.cron, "timezone": args.zone} if args.cron else {"every_s": int(seconds(args.every))}
    given = {"start_at": args.start and instant(args.start), "end_at": args.end and instant(args.end)}
    body |= {name: at for name, at in given.items() if at}
    if args.jitter:
        body["jitter_s"] = int(seconds(args.jitter))
    made = shell.client().post("/v1/schedules", body)
    if args.json:
        shell.print_json(made)
    else:
        shell.out.line(f"{made['name']} fires next at {made['next_at']} ({ahead(made['next_at'])})")
    return OK


def pause(args: Namespace, shell: Shell) -> int:
    """Pause a schedule."""
    return _told(args, shell, _post(shell.client(), args.name, "pause"), "is paused")


def resume(args: Namespace, shell: Shell) -> int:
    """Let a schedule go on, as the caller's key."""
    made = _post(shell.client(), args.name, "resume")
    return _told(args, shell, made, f"fires next at {made['next_at']} ({ahead(made['next_at'])})")


def run(args: Namespace, shell: Shell) -> int:
    """Fire a schedule now."""
    made = _post(shell.client(), args.name, "run")
    shell.print_json(made) if args.json else shell.out.line(made["run_id"])
    return OK


def delete(args: Namespace, shell: Shell) -> int:
    """Delete a schedule."""
    answer = shell.client().json("DELETE", f"/v1/schedules/{segment(args.name)}")
    return _told(args, shell, answer, "is deleted; its runs stay")


def _post(client: Client, name: str, what: str) -> Json:
    found: Json = client.post(f"/v1/schedules/{segment(name)}/{what}", {})
    return found


def _told(args: Namespace, shell: Shell, answer: Any, words: str) -> int:
    shell.print_json(answer) if args.json else shell.out.line(f"{args.name} {words}")
    return OK


COMMANDS = {
    "schedules": Group(
        "Run agents again and again, by the clock",
        {
            "list": Command("List the schedules", list_schedules, flags=(JSON,), examples=("sojourn schedules list",)),
            "get": Command(
                "Show a schedule, its next fires and how it went",
                get,
                flags=(NAME, JSON),
                examples=("sojourn schedules get nightly", "sojourn schedules get nightly --json | jq .next"),
            ),
            "create": Command(
                "Make a schedule",
                create,
                flags=(
                    NAME,
                    flag("goal", metavar="GOAL", help="what to do each time"),
                    flag("--agent", metavar="AGENT", required=True, help="the agent that does it"),
                    flag("--cron", metavar="LINE", help="when: minute, hour, day of month, month, day of week"),
                    flag("--zone", metavar="ZONE", default="UTC", help="whose clock, as Europe/Berlin (UTC)"),
                    flag("--every", metavar="TIME", help="instead of --cron: 90s, 15m, 2h, 3d"),
                    flag("--start", metavar="TIME", help="no fire before, as 2027-01-31T09:00"),
                    flag("--end", metavar="TIME", help="no fire after"),
                    flag("--jitter", metavar="TIME", help="spread the fires of many schedules over so long"),
                    flag(
                        "--session", metavar="SESSION", default="new", help="new (each time), kept, or a session's id"
                    ),
                    flag("--missed", choices=("skip", "once", "all"), default="once", help="missed fires (once)"),
                    flag(
                        "--overlap", choices=("skip", "wait", "allow"), default="skip", help="while one goes on (skip)"
                    ),
                    flag("--max-steps", metavar="N", type=int, help="stop each run after so many model replies"),
                    JSON,
                ),
                about=CREATE,
                examples=(
                    'sojourn schedules create nightly "What changed?" --agent analyst --cron "30 2 * * mon-fri" '
                    "--zone Europe/Berlin",
                    'sojourn schedules create watch "Is the site up?" --agent watcher --every 15m --session kept',
                ),
            ),
            "pause": Command(
                "Pause a schedule", pause, flags=(NAME, JSON), examples=("sojourn schedules pause nightly",)
            ),
            "resume": Command(
                "Let a schedule go on from now, as your key",
                resume,
                flags=(NAME, JSON),
                examples=("sojourn schedules resume nightly",),
            ),
            "run": Command(
                "Fire a schedule now, and print the run's id",
                run,
                flags=(NAME, JSON),
                examples=("sojourn schedules run nightly", "sojourn logs -f $(sojourn schedules run nightly)"),
            ),
            "delete": Command(
                "Delete a schedule; its runs stay",
                delete,
                flags=(NAME, JSON),
                examples=("sojourn schedules delete nightly",),
            ),
        },
    )
}
