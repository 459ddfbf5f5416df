"""`sojourn budgets`: what the tenant and its users may spend in a day, and what is left.

The rule: it shows what holds; whose bound that is, the operator's or the tenant's, makes no difference to a run.
"""

from argparse import Namespace
from typing import Any

from sojourn.cli.client import segment
from sojourn.cli.command import JSON, Command, Group, Shell, flag
from sojourn.cli.exits import OK, USAGE, Stop

LIST = """
A day is one of UTC. What is held is what the model calls on their way may cost at most; it becomes what they
cost once they end. A run that finds no room fails, or waits until there is some, as its limits say
(`on_exhaust`).
"""
SET = """
N is an amount, or `none` for no bound of yours; what is not said becomes none, too. The operator's bounds
(`sojourn tenants set`) hold beside yours: yours may be tighter, not wider. Runs that wait for room go on
within seconds once there is some.
"""


def list_budgets(args: Namespace, shell: Shell) -> int:
    """Show the pools."""
    client, after = shell.client(), None
    pools: list[dict[str, Any]] = []
    while True:
        found = client.get("/v1/budgets", user=args.user, after=after)
        pools += found["data"]
        if not (after := found.get("next")):
            break
    if args.json:
        shell.print_json({"data": pools, "users": found["users"]})
        return OK
    head = ("POOL", "USD LIMIT", "SPENT", "HELD", "LEFT", "TOKEN LIMIT", "SPENT", "HELD", "LEFT")
    shell.out.table(head, [_row(pool) for pool in pools])
    if not any(pool[measure]["limit"] is not None for pool in pools for measure in ("usd", "tokens")):
        shell.err.line("Nothing is bounded. `sojourn budgets set --users --usd 5` bounds what each user spends.", "dim")
    elif pools:
        shell.err.line(f"The day ends at {pools[0]['resets_at']}.", "dim")
    return OK


def _row(pool: dict[str, Any]) -> tuple[str, ...]:
    name = "tenant" if pool["pool"] == "tenant" else f"user {pool['user']}"
    shown = [pool[measure][part] for measure in ("usd", "tokens") for part in ("limit", "spent", "held", "left")]
    return name, *("-" if value is None else str(value) for value in shown)


def set_budget(args: Namespace, shell: Shell) -> int:
    """Set bounds."""
    if args.tenant + args.users + bool(args.user) != 1:
        raise Stop("Say whose: --tenant, --users for each of them, or --user USER.", USAGE)
    if args.usd is None and args.tokens is None:
        raise Stop("Say how much: --usd N, --tokens N, or `none` for no bound.", USAGE)
    place = "tenant" if args.tenant else f"users/{segment(args.user)}" if args.user else "users"
    usd, tokens = _amount(args.usd), _amount(args.tokens, whole=True)
    body = {"usd": usd, "tokens": None if tokens is None else int(tokens)}
    made = shell.client().put(f"/v1/budgets/{place}", body)
    if args.json:
        shell.print_json(made)
        return OK
    whose = {"tenant": "The tenant", "users": "Each user", "user": f"User {args.user}"}[made["whose"]]
    bounds = [f"{made['usd']} US dollars"] * (made["usd"] is not None)
    bounds += [f"{made['tokens']} tokens"] * (made["tokens"] is not None)
    shell.out.line(f"{whose}: " + (" and ".join(bounds) + " a day" if bounds else "no bound of yours"))
    return OK


def _amount(given: str | None, *, whole: bool = False) -> str | None:
    if given is None or given == "none":
        return None
    digits = given if whole else given.replace(".", "", 1)
    if not (digits.isascii() and digits.isdecimal()):
        raise Stop(
            f"An amount is a number such as {'200000' if whole else '5 or 0.50'}, or none; not {given!r}.", USAGE
        )
    return given


COMMANDS = {
    "budgets": Group(
        "What may be spent in a day, and what is left",
        {
            "list": Command(
                "Show what the tenant and its users spent today, and what is left",
                list_budgets,
                flags=(flag("--user", metavar="USER", help="only this user"), JSON),
                about=LIST,
                examples=("sojourn budgets list", "sojourn budgets list --user ann --json | jq '.data[0].usd.left'"),
            ),
            "set": Command(
                "Bound what the tenant, each user or one user spends in a day",
                set_budget,
                flags=(
                    flag("--tenant", action="store_true", help="all users of the tenant together"),
                    flag("--users", action="store_true", help="each user who has no bound of their own"),
                    flag("--user", metavar="USER", help="this user"),
                    flag("--usd", metavar="N", help="US dollars"),
                    flag("--tokens", metavar="N", help="tokens, of input and output together"),
                    JSON,
                ),
                about=SET + "\nNeeds a key with the scope admin:budgets.",
                examples=(
                    "sojourn budgets set --users --usd 5",
                    "sojourn budgets set --user ann --tokens 200000",
                ),
            ),
        },
    )
}
