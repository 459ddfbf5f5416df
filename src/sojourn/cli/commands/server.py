"""`sojourn serve`, `worker`, `doctor`, `simulate` and `version`: the commands of the machine that the server runs on.

Their flags are here, and what they do in serving.py and simulating.py. The rule: their help needs no server.
"""

import os
import sys
from argparse import Namespace
from collections.abc import Callable
from importlib import import_module

from sojourn import __version__
from sojourn.cli.command import JSON, Command, Shell, flag
from sojourn.cli.exits import OK

DATA_DIR = flag("--data-dir", metavar="DIR", help="where database, sandboxes and keys live (SOJOURN_DATA_DIR)")
WAIT_DATABASE = flag(
    "--wait-database",
    metavar="S",
    help="wait so many seconds for a database that does not answer yet (SOJOURN_DATABASE_WAIT_S; 0)",
)
SERVE = """
One process answers the API and works on the runs. Without SOJOURN_DATABASE_URL a PostgreSQL of its own
starts in the data folder. The first start writes the local key, which every `sojourn` command on this
machine finds by itself. SIGTERM or Ctrl-C finishes what is in flight, or hands it back. Nothing is lost.

The models' keys come from OPENAI_API_KEY and ANTHROPIC_API_KEY (and OPENAI_BASE_URL, ANTHROPIC_BASE_URL).
"""
WORKER = """
For more than one worker, or for workers on other machines than the API (`sojourn serve --no-worker`).
All of them share a database: SOJOURN_DATABASE_URL, or the embedded one of the same data folder.
"""
DOCTOR = """
Python, the database, the sandbox and how each limit is enforced, the models and whether a key is there
(never the key), the data folder, disk space and the port. The exit code is 1 if something is in the way.
"""
SIMULATE = """
An endpoint that speaks the OpenAI and the Anthropic protocol and says what a script tells it to, with
failures on demand. Point OPENAI_BASE_URL and ANTHROPIC_BASE_URL at what it prints.
"""


def served(module: str, name: str) -> Callable[[Namespace, Shell], int]:
    """Name a command of a module that imports the server: it is loaded when it is the chosen one."""

    def run(args: Namespace, shell: Shell) -> int:
        code: int = getattr(import_module(f"sojourn.cli.commands.{module}"), name)(args, shell)
        return code

    return run


def version(args: Namespace, shell: Shell) -> int:
    """Say what this is."""
    machine = os.uname()
    python = ".".join(map(str, sys.version_info[:3]))
    if args.json:
        shell.print_json({"version": __version__, "python": python, "system": machine.sysname.lower()})
    else:
        shell.out.line(f"sojourn {__version__} (Python {python}, {machine.sysname} {machine.machine})")
    return OK


COMMANDS = {
    "serve": Command(
        "Run the server: API and worker in one process",
        served("serving", "serve"),
        flags=(
            flag("--host", metavar="HOST", help="the address to listen on (SOJOURN_HOST; 127.0.0.1)"),
            flag("--port", metavar="PORT", help="the port (SOJOURN_PORT; 8420), 0 for any that is free"),
            flag("--no-worker", action="store_true", help="only the API; `sojourn worker` does the work"),
            WAIT_DATABASE,
            DATA_DIR,
        ),
        about=SERVE,
        examples=("sojourn serve", "sojourn serve --port 9000 --data-dir ~/sojourn", "sojourn serve --no-worker"),
    ),
    "worker": Command(
        "Run a worker beside the server",
        served("serving", "worker"),
        flags=(WAIT_DATABASE, DATA_DIR),
        about=WORKER,
        examples=("sojourn worker", "SOJOURN_DATABASE_URL=postgresql://db/sojourn sojourn worker"),
    ),
    "doctor": Command(
        "Say what works on this machine, what not, and why",
        served("serving", "doctor"),
        flags=(DATA_DIR, JSON),
        about=DOCTOR,
        examples=("sojourn doctor", "sojourn doctor --json | jq '.findings[] | select(.ok == false)'"),
    ),
    "simulate": Command(
        "Run a simulated model endpoint",
        served("simulating", "simulate"),
        flags=(
            flag("--host", metavar="HOST", default="127.0.0.1", help="the address to listen on (127.0.0.1)"),
            flag("--port", metavar="PORT", type=int, default=4010, help="the port (4010), 0 for any that is free"),
            flag("--script", metavar="FILE", help="what it says: rules and faults, TOML or JSON"),
            flag("--seed", metavar="N", type=int, help="where all chance comes from (the script's, or 0)"),
            flag("--log", metavar="FILE", help="append a line of JSON for each request"),
        ),
        about=SIMULATE,
        examples=("sojourn simulate", "sojourn simulate --script agent.toml --seed 7 --log requests.jsonl"),
    ),
    "version": Command("Print the version", version, flags=(JSON,), examples=("sojourn version",)),
}
