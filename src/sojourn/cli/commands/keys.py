"""`sojourn keys`: the API keys of your tenant.

The rule: a key is shown once, when it is made, alone on standard output.
"""

import json
from argparse import Namespace
from typing import Any

from sojourn.cli.client import JSON_TYPE, segment
from sojourn.cli.command import JSON, Command, Group, Shell, flag
from sojourn.cli.commands.server import DATA_DIR, served
from sojourn.cli.exits import OK, USAGE, Stop
from sojourn.cli.terminal import ago

DAYS_MAX = 3660
RECOVER = """
For the operator, when local.key is deleted or revoked and no other key may make one. It needs no key and
no running server, but what the server itself has: the data folder, as the user that runs the server, or
SOJOURN_DATABASE_URL. The new key may do everything, as the first one did. All earlier local keys (those
that `sojourn keys list` shows as `first key`) are revoked; every other key stays as it is.
"""


def create(args: Namespace, shell: Shell) -> int:
    """Make a key and print it."""
    body: dict[str, Any] = {"name": args.name}
    if args.user:
        body["user"] = args.user
    if args.scope:
        body["scopes"] = args.scope
    if args.days is not None:
        if not 1 <= args.days <= DAYS_MAX:
            raise Stop(f"--days is a number from 1 to {DAYS_MAX}.", USAGE)
        body["expires_in_s"] = args.days * 86400
    # Without an Idempotency-Key, which would have the secret remembered.
    made = shell.client().json("POST", "/v1/keys", body=json.dumps(body).encode(), headers=JSON_TYPE)
    if args.json:
        shell.print_json(made)
        return OK
    shell.err.line(f"{made['id']}: this is the only time that the key is shown.", "dim")
    shell.out.line(made["key"])
    return OK


def list_keys(args: Namespace, shell: Shell) -> int:
    """Show the keys, without what they are."""
    found = shell.client().get("/v1/keys")
    if args.json:
        shell.print_json(found)
        return OK
    rows = [_row(key) for key in found["data"]]
    shell.out.table(("KEY", "NAME", "USER", "STATE", "LAST USED", "SCOPES"), rows)
    return OK


def _row(key: dict[str, Any]) -> tuple[str, ...]:
    used, scopes = ago(key.get("last_used_at")), " ".join(key.get("scopes") or ())
    return key["id"], key.get("name") or "-", key.get("user_id") or "-", _state(key), used, scopes


def _state(key: dict[str, Any]) -> str:
    if key.get("revoked_at"):
        return "revoked"
    return f"until {key['expires_at'][:10]}" if key.get("expires_at") else "active"


def revoke(args: Namespace, shell: Shell) -> int:
    """Revoke a key, now and for ever."""
    answer = shell.client().json("DELETE", f"/v1/keys/{segment(args.key)}")
    shell.print_json(answer) if args.json else shell.out.line(f"{args.key} is revoked")
    return OK


COMMANDS = {
    "keys": Group(
        "Make, list and revoke API keys",
        {
            "create": Command(
                "Make a key and print it, once",
                create,
                flags=(
                    flag("name", metavar="NAME", help="what it is for"),
                    flag("--user", metavar="USER", help="who acts with it; you, if not given"),
                    flag(
                        "--scope",
                        metavar="SCOPE",
                        action="append",
                        help="what it may do; again for more; yours if none",
                    ),
                    flag("--days", metavar="N", type=int, help="it expires after so many days"),
                    JSON,
                ),
                examples=("sojourn keys create ci --days 30", "export SOJOURN_API_KEY=$(sojourn keys create laptop)"),
            ),
            "recover": Command(
                "Make the local key anew, without any key",
                served("serving", "recover_key"),
                flags=(
                    flag("--print", action="store_true", help="print the key instead of writing it to local.key"),
                    DATA_DIR,
                    JSON,
                ),
                about=RECOVER,
                examples=("sojourn keys recover", "sojourn keys recover --print"),
            ),
            "list": Command("List the keys", list_keys, flags=(JSON,), examples=("sojourn keys list",)),
            "revoke": Command(
                "Revoke a key, now and for ever",
                revoke,
                flags=(flag("key", metavar="KEY", help="the key's id"), JSON),
                examples=("sojourn keys revoke key_01J...",),
            ),
        },
    )
}
