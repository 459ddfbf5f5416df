"""`sojourn keys`: the API keys of your tenant, and for the operator the installation's own keys.

The rule: a key is shown once, when it is made, alone on standard output.
"""

import json
from argparse import Namespace
from typing import Any

from sojourn.cli.client import JSON_TYPE, segment
from sojourn.cli.command import JSON, Command, Group, Shell, flag
from sojourn.cli.commands.clock.times import ahead, seconds
from sojourn.cli.commands.safekeeping.rotate import ROTATE
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
REPLACE = """
The successor has the name, user, scopes and length of life of KEY, and the schedules that act as KEY act as its
successor from now on. Put it where KEY is used before KEY ends.
"""


def create(args: Namespace, shell: Shell) -> int:
    """Make a key and print it."""
    body: dict[str, Any] = {"name": args.name}
    if args.user:
        body["user"] = args.user
    if args.confined:
        body["confined"] = True
    if args.scope:
        body["scopes"] = args.scope
    if args.days is not None:
        if not 1 <= args.days <= DAYS_MAX:
            raise Stop(f"--days is a number from 1 to {DAYS_MAX}.", USAGE)
        body["expires_in_s"] = args.days * 86400
    return _show(shell, _made(shell, "/v1/keys", body), as_json=args.json)


def replace(args: Namespace, shell: Shell) -> int:
    """Make a key's successor and print it."""
    body = {"overlap_s": int(seconds(args.overlap))}
    made = _made(shell, f"/v1/keys/{segment(args.key)}/replace", body)
    shell.err.line(f"{args.key} is good for {args.overlap} more, or until it would have expired anyway.", "dim")
    return _show(shell, made, as_json=args.json)


def _made(shell: Shell, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Make a key, without an Idempotency-Key, which would have the secret remembered."""
    made: dict[str, Any] = shell.client().json("POST", path, body=json.dumps(body).encode(), headers=JSON_TYPE)
    return made


def _show(shell: Shell, made: dict[str, Any], *, as_json: bool) -> int:
    """Show a new key, once."""
    if as_json:
        shell.print_json(made)
        return OK
    shell.err.line(f"{made['id']}: this is the only time that the key is shown.", "dim")
    shell.out.line(made["key"])
    return OK


def list_keys(args: Namespace, shell: Shell) -> int:
    """Show the keys, without what they are."""
    found = list(shell.client().pages("/v1/keys"))
    if args.json:
        shell.print_json({"data": found})
        return OK
    rows = [_row(key) for key in found]
    shell.out.table(("KEY", "NAME", "USER", "STATE", "EXPIRES", "LAST USED", "SCOPES"), rows)
    return OK


def _row(key: dict[str, Any]) -> tuple[str, ...]:
    used, scopes = ago(key.get("last_used_at")), " ".join(key.get("scopes") or ())
    scopes += " (confined)" if key.get("confined") else ""
    expires = ahead(key["expires_at"]) if key.get("expires_at") else "never"
    ended = "revoked" if key.get("revoked_at") else "expired" if expires == "now" else ""
    state = ended or ("replaced" if key.get("replaced_by") else "active")
    return key["id"], key.get("name") or "-", key.get("user_id") or "-", state, "-" if ended else expires, used, scopes


def revoke(args: Namespace, shell: Shell) -> int:
    """Revoke a key, now and for ever."""
    answer = shell.client().json("DELETE", f"/v1/keys/{segment(args.key)}")
    shell.print_json(answer) if args.json else shell.out.line(f"{args.key} is revoked")
    return OK


COMMANDS = {
    "keys": Group(
        "Make, list, replace and revoke API keys; renew the installation's own",
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
                    flag("--confined", action="store_true", help="it sees and touches what is USER's, and no more"),
                    flag("--days", metavar="N", type=int, help="it expires after so many days"),
                    JSON,
                ),
                examples=(
                    "sojourn keys create ci --days 30",
                    "sojourn keys create ann-phone --user ann --confined --scope 'runs:*' --scope 'approvals:*'",
                    "export SOJOURN_API_KEY=$(sojourn keys create laptop)",
                ),
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
            "rotate": ROTATE,
            "list": Command("List the keys", list_keys, flags=(JSON,), examples=("sojourn keys list",)),
            "replace": Command(
                "Make a key's successor and print it, once",
                replace,
                flags=(
                    flag("key", metavar="KEY", help="the key's id"),
                    flag("--overlap", metavar="TIME", default="1d", help="how long KEY stays good: 15m, 2h, 3d (1d)"),
                    JSON,
                ),
                about=REPLACE,
                examples=(
                    "sojourn keys replace key_01J... --overlap 1d",
                    "sojourn keys replace key_01J... --overlap 0s",
                ),
            ),
            "revoke": Command(
                "Revoke a key, now and for ever",
                revoke,
                flags=(flag("key", metavar="KEY", help="the key's id"), JSON),
                examples=("sojourn keys revoke key_01J...",),
            ),
        },
    )
}
