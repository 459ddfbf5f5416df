"""What `sojourn serve`, `worker` and `doctor` do.

The rule: only this module of the command line imports the server, and it is loaded for these commands alone.
"""

from argparse import Namespace

import msgspec

from sojourn import settings, wiring
from sojourn.cli.client import DEFAULT_URL, key_path
from sojourn.cli.command import Shell
from sojourn.cli.commands.simulating import run
from sojourn.cli.exits import FAILED, OK
from sojourn.doctor import examine

_MARKS = {True: ("✓", "green"), False: ("✗", "red"), None: ("–", "dim")}


def serve(args: Namespace, shell: Shell) -> int:
    """Run API and worker until a signal ends them."""
    environ = _environ(args, shell)
    key = key_path(environ)
    first = not key.exists()

    def ready(url: str) -> None:
        if first and key.exists():
            shell.out.line(f"The local key is in {key}; `sojourn` finds it there.")
        shell.out.line(f"Sojourn listens on {url}", "bold")
        if url.rstrip("/") != DEFAULT_URL:
            shell.out.line(f"  export SOJOURN_API_URL={url}", "dim")

    run(wiring.serve(settings.load(environ), worker=not args.no_worker, ready=ready))
    return OK


def worker(args: Namespace, shell: Shell) -> int:
    """Run a worker until a signal ends it."""
    run(wiring.work(settings.load(_environ(args, shell))))
    return OK


def doctor(args: Namespace, shell: Shell) -> int:
    """Show what was found on this machine. Returns FAILED if something is in the way."""
    return int(run(_examined(args, shell)))


async def _examined(args: Namespace, shell: Shell) -> int:
    """Show each finding as it comes, or all of them as one document."""
    findings = []
    async for finding in examine(settings.load(_environ(args, shell))):
        findings.append(finding)
        if not args.json:
            mark, style = _MARKS[finding.ok]
            shell.out.write(f"{mark} {finding.name}: ", style)
            shell.out.line_end(finding.detail)
            if finding.hint:
                shell.out.line(f"  {finding.hint}", "yellow")
    sound = all(finding.ok is not False for finding in findings)
    if args.json:
        shell.print_json({"ok": sound, "findings": [msgspec.to_builtins(finding) for finding in findings]})
    else:
        shell.out.line("All that is needed works." if sound else "Something is in the way.", "bold")
    return OK if sound else FAILED


def _environ(args: Namespace, shell: Shell) -> dict[str, str]:
    """The environment with the flags that stand for settings; a flag wins."""
    given = {name: getattr(args, name, None) for name in ("host", "port", "data_dir")}
    return {**shell.environ, **{f"SOJOURN_{name.upper()}": value for name, value in given.items() if value}}
