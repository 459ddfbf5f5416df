"""`sojourn agents`: agents with immutable versions, of which one is live.

The rule: `apply` is safe to repeat; a file that did not change makes no new version.
"""

import json
import tomllib
from argparse import Namespace
from datetime import date, time
from pathlib import Path
from typing import Any

from sojourn.cli.client import Client, Refusal, segment
from sojourn.cli.command import JSON, Command, Group, Shell, flag
from sojourn.cli.exits import NOT_FOUND, OK, USAGE, Stop
from sojourn.cli.terminal import ago, one_line

Json = dict[str, Any]

NAME = flag("name", metavar="NAME", help="the agent's name")
APPLY = """
The file names the agent and says what it is; the fields are those of POST /v1/agents:

  name = "reviewer"
  models = ["anthropic:claude-sonnet-4-5", "openai:gpt-5"]   # the first that answers; or: model = "..."
  system_file = "reviewer.md"                                # beside this file; or: system = "..."
  tools = ["shell", "read_file"]
  [limits]
  steps = 40

A file that differs from the live version becomes a new version, and new runs use it at once.
"""


def list_agents(args: Namespace, shell: Shell) -> int:
    """Show every agent."""
    found = list(shell.client().pages("/v1/agents"))
    if args.json:
        shell.print_json({"data": found})
        return OK
    rows = [
        (one["name"], str(one.get("live_version") or "-"), _state(one), ago(one.get("created_at"))) for one in found
    ]
    shell.table(
        ("AGENT", "VERSION", "STATE", "CREATED"),
        rows,
        empty="There is none. `sojourn agents apply FILE.toml` makes one.",
    )
    return OK


def _state(agent: Json) -> str:
    return "archived" if agent.get("archived_at") else "live"


def get(args: Namespace, shell: Shell) -> int:
    """Show an agent as its live version makes it."""
    path = f"/v1/agents/{segment(args.name)}"
    client = shell.client()
    found = client.get(path if args.version is None else f"{path}/versions/{args.version}")
    if args.json:
        shell.print_json(found)
        return OK
    for name, value in (found.get("live") or found).items():
        if name != "object" and value not in (None, "", [], {}):
            shell.out.line(f"  {name:<12} {_shown(value)}")
    return OK


def _shown(value: Any) -> str:
    """A field for people: lists of names in one line, longer things cut."""
    if isinstance(value, list):
        value = ", ".join(str(item.get("name") if isinstance(item, dict) else item) for item in value)
    elif isinstance(value, dict):
        value = " ".join(f"{name}={_shown(inner)}" for name, inner in value.items() if inner not in (None, "", [], {}))
    return one_line(str(value), 400)


def versions(args: Namespace, shell: Shell) -> int:
    """Show an agent's versions, newest first."""
    found = list(shell.client().pages(f"/v1/agents/{segment(args.name)}/versions"))
    if args.json:
        shell.print_json({"data": found})
        return OK
    rows = [(str(one["version"]), ago(one["created_at"]), one["digest"]) for one in found]
    shell.out.table(("VERSION", "CREATED", "DIGEST"), rows)
    return OK


def live(args: Namespace, shell: Shell) -> int:
    """Point an agent at a version: instant for every new run."""
    made = shell.client().put(f"/v1/agents/{segment(args.name)}/live", {"version": args.version})
    shell.print_json(made) if args.json else shell.out.line(f"{args.name} is version {args.version} for new runs")
    return OK


def apply(args: Namespace, shell: Shell) -> int:
    """Make an agent be what a file says."""
    spec = read_spec(Path(args.file))
    client = shell.client()
    made, was = _apply(client, spec)
    now = made.get("version") or made.get("live_version")
    if args.json:
        shell.print_json(made)
    elif was == now:
        shell.out.line(f"{spec['name']} is version {now} already")
    else:
        shell.out.line(f"{spec['name']} is version {now} now" + (f" (it was {was})" if was else ""))
    return OK


def _apply(client: Client, spec: Json) -> tuple[Json, int | None]:
    """Create the agent or its next version, and make that one live. Returns it, with the version that was live."""
    path = f"/v1/agents/{segment(spec['name'])}"
    try:
        was = client.get(path).get("live_version")
    except Refusal as refusal:
        if refusal.code != NOT_FOUND:
            raise
        return client.post("/v1/agents", spec), None
    made = client.post(f"{path}/versions", {name: value for name, value in spec.items() if name != "name"})
    if made["version"] != was:
        client.put(f"{path}/live", {"version": made["version"], "expected": was})
    return made, was


def read_spec(path: Path) -> Json:
    """Read an agent's file. The server checks the fields; here the name must be there."""
    try:
        spec: Json = json.loads(json.dumps(tomllib.loads(path.read_text()), default=_iso))
        if "system_file" in spec:
            spec["system"] = (path.parent / spec.pop("system_file")).read_text()
    except OSError as error:
        raise Stop(f"{error.filename or path} cannot be read: {error.strerror}.", USAGE) from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, TypeError) as error:
        raise Stop(f"{path} is no TOML: {error}. `sojourn agents apply --help` shows an example.", USAGE) from None
    if not isinstance(spec.get("name"), str):
        raise Stop(f'{path} names no agent: it needs a line like name = "reviewer".', USAGE)
    return spec


def _iso(at: date | time) -> str:
    """TOML has times, and JSON has not."""
    return at.isoformat()


COMMANDS = {
    "agents": Group(
        "Define agents, and choose the version that new runs use",
        {
            "list": Command("List the agents", list_agents, flags=(JSON,), examples=("sojourn agents list",)),
            "get": Command(
                "Show an agent",
                get,
                flags=(
                    NAME,
                    flag("--version", metavar="N", type=int, help="this version; the live one if not given"),
                    JSON,
                ),
                examples=("sojourn agents get reviewer", "sojourn agents get reviewer --version 3 --json"),
            ),
            "apply": Command(
                "Make an agent be what a file says",
                apply,
                flags=(flag("file", metavar="FILE.toml", help="the agent's file"), JSON),
                about=APPLY,
                examples=("sojourn agents apply reviewer.toml",),
            ),
            "versions": Command(
                "List an agent's versions", versions, flags=(NAME, JSON), examples=("sojourn agents versions reviewer",)
            ),
            "live": Command(
                "Choose the version that new runs use; going back is the same call",
                live,
                flags=(NAME, flag("version", metavar="VERSION", type=int, help="the version's number"), JSON),
                examples=("sojourn agents live reviewer 3",),
            ),
        },
    )
}
