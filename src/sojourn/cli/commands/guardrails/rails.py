"""`sojourn guardrails`: rules that every run is judged by. What --operator does is in operator.py, which imports the
server.

The rule: `set` is safe to repeat; a file that did not change makes no new version.
"""

import json
import tomllib
from argparse import Namespace
from pathlib import Path
from typing import Any

from sojourn.cli.client import segment
from sojourn.cli.command import JSON, Command, Group, Shell, flag
from sojourn.cli.commands.server import DATA_DIR, served
from sojourn.cli.exits import FAILED, OK, USAGE, Stop
from sojourn.cli.terminal import ago, one_line

Json = dict[str, Any]

NAME = flag("name", metavar="NAME", help="the guardrail's name")
OPERATOR = flag(
    "--operator",
    action="store_true",
    help="those of the operator, for every tenant: needs no key, but the data folder or SOJOURN_DATABASE_URL",
)
ON = ("input", "output", "tool_arguments", "tool_result")
SET = """
The file names the guardrail and lists its rules; docs/guardrails.md has all kinds:

  name = "customers"
  [[rules]]
  kind = "pii"                     # or: size, pattern, secrets, tools, hosts, cedar, judge
  on = ["output", "tool_result"]   # or: input, tool_arguments
  then = "redact"                  # or: refuse, ask (a person, about a call)

It is in force for every run within a second, those that go on included. A file that differs from what is in
force becomes a new version; the old ones can be read for ever. With --operator it holds for every tenant, and
none can take it back: of all rules that fit the strictest wins.
"""


def list_rails(args: Namespace, shell: Shell) -> int:
    """Show what is in force."""
    if args.operator:
        return _operator("page", args, shell)
    found = shell.client().get("/v1/guardrails")
    if args.json:
        shell.print_json(found)
        return OK
    show_list(found["data"], shell)
    for one in found["operator"]:
        shell.out.line(f"{one['name']} (version {one['version']}) is the operator's, and holds beside yours", "dim")
    return OK


def show_list(found: list[Json], shell: Shell) -> None:
    """Guardrails as a table, or what to do where there is none."""
    rows = [(one["name"], str(one["version"]), str(len(one["rules"])), ago(one["made_at"])) for one in found]
    none = "There is none. `sojourn guardrails set --help` shows how one is made."
    shell.table(("GUARDRAIL", "VERSION", "RULES", "SINCE"), rows, empty=none)


def show(args: Namespace, shell: Shell) -> int:
    """Show one guardrail, or all its versions."""
    if args.operator:
        return _operator("show", args, shell)
    path = f"/v1/guardrails/{segment(args.name)}"
    found = shell.client().get(f"{path}/versions")["data"] if args.versions else [shell.client().get(path)]
    shell.print_json({"data": found} if args.versions else found[0]) if args.json else show_each(found, shell)
    return OK


def show_each(found: list[Json], shell: Shell) -> None:
    """Versions with their rules."""
    for one in found:
        ended = "  ended" if one["ended"] else ""
        shell.out.line(f"{one['name']}  version {one['version']}{ended}  by {one['made_by']}, {ago(one['made_at'])}")
        for number, rule in enumerate(one["rules"], 1):
            more = {name: value for name, value in rule.items() if name not in ("kind", "on", "then", "policies")}
            told = " ".join(f"{name}={one_line(json.dumps(value), 200)}" for name, value in more.items())
            where, then = ", ".join(rule["on"]), rule.get("then", "as follows" if "policies" in rule else "refuse")
            shell.out.line(f"  {number}. {rule['kind']} on {where}: {then} {told}".rstrip())
            for line in rule.get("policies", "").splitlines():
                shell.out.line(f"       {one_line(line, 200)}")


def put(args: Namespace, shell: Shell) -> int:
    """Bring a file's rules into force."""
    spec = read_spec(Path(args.file))
    args.name = spec.pop("name")
    if args.operator:
        args.spec = spec
        return _operator("put", args, shell)
    made = shell.client().put(f"/v1/guardrails/{segment(args.name)}", spec)
    told = f"{made['name']} is version {made['version']}; every run is judged by it within a second"
    shell.print_json(made) if args.json else shell.out.line(told)
    return OK


def read_spec(path: Path) -> Json:
    """Read a guardrail's file. The server checks the rules; here the name must be there."""
    try:
        text = path.read_text()
        spec: Json = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise Stop(f"{path} cannot be read: {error.strerror}.", USAGE) from None
    except ValueError as error:
        raise Stop(f"{path} is no TOML or JSON: {error}. `sojourn guardrails set --help` shows one.", USAGE) from None
    if not isinstance(spec, dict) or not isinstance(spec.get("name"), str):
        raise Stop(f'{path} names no guardrail: it needs a line like name = "customers".', USAGE)
    return spec


def remove(args: Namespace, shell: Shell) -> int:
    """Take a guardrail out of force."""
    if args.operator:
        return _operator("end", args, shell)
    ended = shell.client().json("DELETE", f"/v1/guardrails/{segment(args.name)}")
    shell.print_json(ended) if args.json else shell.out.line(f"{args.name} is out of force; its versions stay")
    return OK


def test(args: Namespace, shell: Shell) -> int:
    """Judge a text. Returns FAILED for one that would be refused."""
    asked = {name: getattr(args, name) for name in ("text", "on", "tool", "effect", "user", "agent", "depth")}
    found = shell.client().post("/v1/guardrails/test", asked)
    if args.json:
        shell.print_json(found)
    else:
        shell.out.line(found["verdict"], "bold")
        for one in found["found"]:
            why = f" ({one_line(one['why'], 500)})" if one["why"] else ""
            shell.out.line(f"  {_rule(one)}: {one['kind']} -> {one['then']}{why}")
        for one in found["judges"]:
            shell.out.line(f"  {_rule(one)}: a judge would be asked, and was not")
        if found["verdict"] == "redact":
            shell.out.line(f"  {one_line(found['text'], 500)}")
    return FAILED if found["verdict"] == "refuse" else OK


def _rule(one: Json) -> str:
    """Name the rule that a verdict is about."""
    whose = " (operator)" if one["operator"] else ""
    return f"{one['guardrail']}{whose} version {one['version']}, rule {one['rule']}"


def _operator(name: str, args: Namespace, shell: Shell) -> int:
    return served("guardrails.operator", name)(args, shell)


COMMANDS = {
    "guardrails": Group(
        "Have everything that passes through runs judged by rules",
        {
            "list": Command(
                "List the guardrails in force",
                list_rails,
                flags=(OPERATOR, DATA_DIR, JSON),
                examples=("sojourn guardrails list", "sojourn guardrails list --operator"),
            ),
            "show": Command(
                "Show a guardrail, and its versions",
                show,
                flags=(
                    NAME,
                    flag("--versions", action="store_true", help="all of them, newest first"),
                    OPERATOR,
                    DATA_DIR,
                    JSON,
                ),
                examples=("sojourn guardrails show customers", "sojourn guardrails show customers --versions"),
            ),
            "set": Command(
                "Bring a file's rules into force, for every run at once",
                put,
                flags=(flag("file", metavar="FILE", help="the guardrail, TOML or JSON"), OPERATOR, DATA_DIR, JSON),
                about=SET,
                examples=("sojourn guardrails set customers.toml", "sojourn guardrails set secrets.toml --operator"),
            ),
            "test": Command(
                "Judge a text by what is in force; exit code 1 where it would be refused",
                test,
                flags=(
                    flag("text", metavar="TEXT", help="the text; for tool_arguments the arguments as JSON"),
                    flag("--on", choices=ON, default="input", help="what it is judged as (input)"),
                    flag("--tool", metavar="TOOL", default="", help="the tool that is called, for tool_arguments"),
                    flag("--effect", default="at_most_once", help="the tool's class of effects (at_most_once)"),
                    flag("--user", default="", help="whose run it is (yours)"),
                    flag("--agent", metavar="NAME", default="", help="the agent that calls it"),
                    flag("--depth", type=int, default=0, help="how many frames stand above the agent's (0)"),
                    JSON,
                ),
                examples=(
                    'sojourn guardrails test "Write to ann@example.com" --on output',
                    """sojourn guardrails test '{"url": "https://example.com"}' --on tool_arguments --tool fetch""",
                ),
            ),
            "remove": Command(
                "Take a guardrail out of force; its versions stay",
                remove,
                flags=(NAME, OPERATOR, DATA_DIR, JSON),
                examples=("sojourn guardrails remove customers",),
            ),
        },
    )
}
