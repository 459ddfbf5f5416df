"""`sojourn stop`, `stops` and `lift`: the operator's switch. What they do is in operator.py, which imports the server.

The rule: they need no key and no running API, but what the server itself has: its data folder or its database.
"""

from sojourn.cli.command import JSON, Command, flag
from sojourn.cli.commands.server import DATA_DIR, served

STOP = """
From the moment that this returns nothing begins of what is named: new runs are refused, those that wait
are cancelled, and those that run are cancelled where they are. The stop stays in force until it is
lifted. Workers carry it out; a server that is down does when it comes back.

It needs no key, but what the server itself has: the data folder, as the user that runs the server, or
SOJOURN_DATABASE_URL. With --wait the exit code is 0 once nothing is left, and 1 where --timeout ends first.
"""


STOP_ID = flag("stop", metavar="STOP", help="the stop's id")

COMMANDS = {
    "stop": Command(
        "Stop a run, a session, an agent, a user, a tenant, or everything",
        served("stopping.operator", "stop"),
        flags=(
            flag("--tenant", metavar="T", help="this tenant; with one of the next four: theirs (default)"),
            flag("--user", metavar="USER", help="all runs of a user"),
            flag("--agent", metavar="NAME", help="all runs of an agent, in all versions"),
            flag("--session", metavar="SESSION", help="the runs of a session"),
            flag("--run", metavar="RUN", help="one run"),
            flag("--all", action="store_true", help="the whole installation, every tenant"),
            flag("--hold", action="store_true", help="let runs stand still instead; lifting lets them go on"),
            flag("--reason", metavar="TEXT", default="", help="why; refusals and runs say it"),
            flag("--wait", action="store_true", help="show what is left until nothing is"),
            flag("--timeout", metavar="S", type=float, help="wait no longer than so many seconds"),
            DATA_DIR,
            JSON,
        ),
        about=STOP,
        examples=(
            'sojourn stop --tenant acme --reason "the key leaked" --wait',
            "sojourn stop --agent reviewer --hold",
            "sojourn stop --all --wait --timeout 60 --json",
        ),
    ),
    "stops": Command(
        "List the stops that are in force, or show one and what is left",
        served("stopping.operator", "stops"),
        flags=(
            flag("stop", metavar="STOP", nargs="?", help="show this one, and what is left"),
            flag("--all", action="store_true", help="those that were lifted, too"),
            flag("--limit", metavar="N", type=int, default=200, help="how many, the newest first (200)"),
            DATA_DIR,
            JSON,
        ),
        examples=("sojourn stops", "sojourn stops stp_01J... --json | jq .progress"),
    ),
    "lift": Command(
        "Lift a stop",
        served("stopping.operator", "lift"),
        flags=(STOP_ID, DATA_DIR, JSON),
        about="New runs begin again, and those that were held go on where they stood. What was cancelled stays so.",
        examples=("sojourn lift stp_01J...",),
    ),
}
