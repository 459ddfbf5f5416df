"""The command line: what a person types, and what a script calls.

    __init__   the table of commands, and main
    command    how a command is declared, parsed and explained
    commands/  the commands, one file a subject; some of them import the server
    client     requests to the API        stream    a run's events, through every broken connection
    terminal   everything that is shown   view      a run as one watches it        exits  the exit codes
    running    what goes on right now     questions what a run asks, and asking the person who watches it
    owner      the database itself, for the operator's commands

The console script `sojourn` and `python -m sojourn.cli` call `main`. The rule: a command that talks to a server imports
nothing but the standard library, so that it starts in less than 0.1 s, and only the module of the chosen command.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from os import environ

from sojourn.cli.command import Command, Group, Shell, exit_codes, group_help, parser, unknown
from sojourn.cli.exits import FAILED, INTERRUPTED, OK, UNREACHABLE, USAGE, Stop
from sojourn.cli.terminal import Out
from sojourn.errors import Invalid, SojournError, Unavailable

SECTIONS: dict[str, dict[str, str]] = {
    "runs": {
        "run": "run",
        "runs": "runs",
        "get": "runs",
        "logs": "runs",
        "trace": "trace",
        "say": "runs",
        "cancel": "stopping.letters",
        "delete": "runs",
        "hold": "questions.waits",
        "resume": "questions.waits",
        "signal": "questions.waits",
        "hook": "questions.waits",
        "result": "questions.waits",
        "export": "continuations.moving",
        "import": "continuations.moving",
        "fork": "continuations.moving",
        "dead-letters": "stopping.letters",
        "retry": "stopping.letters",
    },
    "questions": {
        "approvals": "questions.approvals",
        "approve": "questions.approvals",
        "reject": "questions.approvals",
        "edit": "questions.approvals",
        "answer": "questions.approvals",
        "decide": "questions.approvals",
    },
    "what runs need": {"agents": "agents", "schedules": "clock.schedules", "sessions": "sessions", "keys": "keys"},
    "what runs may do": {"guardrails": "guardrails.rails"},
    "who did what": {"audit": "auditing.log"},
    "what runs cost": {"usage": "costs.usage", "budgets": "costs.budgets"},
    "what you are told": {"webhooks": "notices.webhooks", "alerts": "notices.alerts"},
    "runs from elsewhere": {"trust": "continuations.issuers", "seals": "continuations.issuers"},
    "the server": {
        "serve": "server",
        "worker": "server",
        "tenants": "tenants",
        "doctor": "server",
        "stop": "stopping.stops",
        "stops": "stopping.stops",
        "lift": "stopping.stops",
        "backup": "safekeeping.backups",
        "restore": "safekeeping.backups",
        "simulate": "server",
        "version": "server",
    },
}
"""Every command, by the section of the help, with its module in commands/."""

MODULES = {name: module for section in SECTIONS.values() for name, module in section.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if stream is not None:
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    shell = Shell(environ, Out(sys.stdout, environ), Out(sys.stderr, environ))
    try:
        return _dispatch(list(sys.argv[1:] if argv is None else argv), shell)
    except Stop as stop:
        shell.err.line(f"sojourn: {stop}", "red")
        return stop.code
    except SojournError as error:
        shell.err.line(f"sojourn: {error} ({error.code})", "red")
        return USAGE if isinstance(error, Invalid) else UNREACHABLE if isinstance(error, Unavailable) else FAILED
    except KeyboardInterrupt:
        shell.err.line("interrupted", "dim")
        return INTERRUPTED
    except BrokenPipeError:
        shell.out.detach()
        return OK


def find(name: str) -> Command | Group:
    """Load a command's module and find the command in it. Raises Stop for an unknown one."""
    if name not in MODULES:
        raise unknown(name, MODULES)
    # Dispatch: only the module of the chosen command is imported, which is most of what a start costs.
    found: Command | Group = import_module(f"sojourn.cli.commands.{MODULES[name]}").COMMANDS[name]
    return found


def _dispatch(words: list[str], shell: Shell) -> int:
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    if not words or words[0] in ("-h", "--help"):
        shell.out.line(top_help())
        return OK if words else USAGE
    if words[0] in ("-V", "--version"):
        words[0] = "version"
    name, rest = words[0], words[1:]
    found = find(name)
    if isinstance(found, Group):
        if not rest or rest[0] in ("-h", "--help"):
            shell.out.line(group_help(name, found))
            return OK if rest else USAGE
        if rest[0] not in found.commands:
            raise unknown(rest[0], found.commands, before=f"sojourn {name}")
        name, rest, found = f"{name} {rest[0]}", rest[1:], found.commands[rest[0]]
    return found.run(parser(name, found).parse_args(rest), shell)


def top_help() -> str:
    """The first page: every command with a line about it, the settings and the exit codes."""
    lines = ["usage: sojourn COMMAND ...", "", "A managed agent runtime that you host yourself.", ""]
    for section, names in SECTIONS.items():
        lines += [f"{section}:", *(f"  {name:<10} {find(name).summary}" for name in names), ""]
    lines += [
        "examples:",
        "  $ sojourn serve",
        '  $ sojourn run "What is in this file?" --file data.csv --model openai:gpt-5-mini --tool shell',
        "  $ sojourn COMMAND --help",
        "",
        "environment:",
        "  SOJOURN_API_URL  the server; http://127.0.0.1:8420 if not set",
        "  SOJOURN_API_KEY  the API key; if not set, the local key that the first `sojourn serve` here wrote",
        "  NO_COLOR         no colours, whatever it is set to",
        "",
        exit_codes(),
    ]
    return "\n".join(lines)
