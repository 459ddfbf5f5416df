"""`sojourn seals` and `sojourn trust`: the keys that sign your exports, and those of others that you let in.

The rule: a key is named by its public half, and nobody is shown the secret one.
"""

from argparse import Namespace
from typing import Any

from sojourn.cli.client import segment
from sojourn.cli.command import JSON, Command, Group, Shell, flag
from sojourn.cli.exits import OK
from sojourn.cli.terminal import ago

KEY = flag("key", metavar="KEY", help="the key: ed25519: and 43 characters")
TRUST = """
The key is the `issuer` of their exports, and what `sojourn seals list` shows them: have them tell you over a
channel that you trust. An export of theirs then does here whatever you could do yourself when you import it.
"""


def seals(args: Namespace, shell: Shell) -> int:
    """Show the keys that sign."""
    return _show(args, shell, shell.client().get("/v1/seals"))


def rotate(args: Namespace, shell: Shell) -> int:
    """Sign with a new key."""
    return _show(args, shell, shell.client().post("/v1/seals/rotate", {}))


def revoke(args: Namespace, shell: Shell) -> int:
    """Take a key's signatures for nothing."""
    return _ended(args, shell, f"/v1/seals/{segment(args.key)}", "is revoked")


def trusted(args: Namespace, shell: Shell) -> int:
    """Show whose exports are let in."""
    return _show(args, shell, shell.client().get("/v1/trust"))


def trust(args: Namespace, shell: Shell) -> int:
    """Let somebody's exports in."""
    return _show(args, shell, shell.client().post("/v1/trust", {"issuer": args.key, "name": args.name or args.key}))


def distrust(args: Namespace, shell: Shell) -> int:
    """Let them in no longer."""
    return _ended(args, shell, f"/v1/trust/{segment(args.key)}", "is trusted no longer")


def _show(args: Namespace, shell: Shell, found: Any) -> int:
    if args.json:
        shell.print_json(found)
        return OK
    rows = [(one["issuer"], one["state"], ago(one["created_at"]), one["name"] or "-") for one in found["data"]]
    shell.out.table(("KEY", "STATE", "SINCE", "NAME"), rows)
    return OK


def _ended(args: Namespace, shell: Shell, path: str, what: str) -> int:
    answer = shell.client().json("DELETE", path)
    shell.print_json(answer) if args.json else shell.out.line(f"{args.key} {what}")
    return OK


COMMANDS = {
    "seals": Group(
        "List, rotate and revoke the keys that sign your exports",
        {
            "list": Command(
                "List the keys that sign your exports", seals, flags=(JSON,), examples=("sojourn seals list",)
            ),
            "rotate": Command(
                "Sign with a new key; what the old one signed stays good",
                rotate,
                flags=(JSON,),
                about="Wherever your exports are let in, the new key must be trusted too.",
                examples=("sojourn seals rotate",),
            ),
            "revoke": Command(
                "Revoke a key, now and for ever",
                revoke,
                flags=(KEY, JSON),
                about="What it has signed is not let in here any more. Tell everybody who trusts it.",
                examples=("sojourn seals revoke ed25519:MCow...",),
            ),
        },
    ),
    "trust": Group(
        "Say whose exports are let in",
        {
            "list": Command("List whose exports are let in", trusted, flags=(JSON,), examples=("sojourn trust list",)),
            "add": Command(
                "Let in the exports of another installation",
                trust,
                flags=(KEY, flag("--name", metavar="NAME", help="whose it is; for people"), JSON),
                about=TRUST,
                examples=("sojourn trust add ed25519:MCow... --name staging",),
            ),
            "remove": Command(
                "Let them in no longer",
                distrust,
                flags=(KEY, JSON),
                examples=("sojourn trust remove ed25519:MCow...",),
            ),
        },
    ),
}
