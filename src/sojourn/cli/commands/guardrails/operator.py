"""What `sojourn guardrails ... --operator` does, with the login of the database's owner.

The rule: rules are checked here as the API checks a tenant's; running processes find the change by looking.
"""

import re
from argparse import Namespace
from typing import Any

import msgspec

from sojourn import settings, wiring
from sojourn.api.guardrails import shapes
from sojourn.api.patterns import NAME
from sojourn.cli.command import Shell
from sojourn.cli.commands.guardrails.rails import show_each, show_list
from sojourn.cli.commands.simulating import run
from sojourn.cli.exits import OK
from sojourn.cli.owner import owning
from sojourn.errors import Invalid
from sojourn.guardrails import rules
from sojourn.guardrails.policies import cedar
from sojourn.store import guardrails as store
from sojourn.store.audit import writing as audit
from sojourn.store.audit.writing import Act
from sojourn.store.db import Connection

Json = dict[str, Any]


def page(args: Namespace, shell: Shell) -> int:
    """Show what is in force."""

    async def read() -> list[store.Version]:
        async with owning(args, shell, readonly=True) as conn:
            return await store.page(conn, store.EVERYBODY)

    found = [_seen(row) for row in run(read())]
    shell.print_json({"data": found}) if args.json else show_list(found, shell)
    return OK


def show(args: Namespace, shell: Shell) -> int:
    """Show one guardrail, or all its versions."""

    async def read() -> list[store.Version]:
        async with owning(args, shell, readonly=True) as conn:
            if args.versions:
                return await store.versions(conn, store.EVERYBODY, args.name)
            return [await store.get(conn, store.EVERYBODY, args.name)]

    found = [_seen(row) for row in run(read())]
    shell.print_json({"data": found} if args.versions else found[0]) if args.json else show_each(found, shell)
    return OK


def put(args: Namespace, shell: Shell) -> int:
    """Bring rules into force for every tenant. Raises Invalid."""
    if not re.fullmatch(NAME, args.name):
        raise Invalid("A guardrail's name is up to 64 letters, digits, dots, dashes and underscores.")
    try:
        spec = msgspec.convert(args.spec, rules.Guardrail)
    except msgspec.ValidationError as error:
        raise Invalid(f"The rules cannot be read: {error}.") from None
    providers = [one.name for one in settings.load(shell.environ_for(args)).endpoints]
    rules.check(spec, cedar.installed(), providers=providers)

    async def work() -> store.Version:
        by = wiring.operator()
        async with owning(args, shell) as conn:
            made, new = await store.put(conn, store.EVERYBODY, args.name, spec=rules.encode(spec), by=by)
            if new:
                await _noted(conn, made, "guardrail.set")
        return made

    made = run(work())
    told = f"{made.name} is version {made.version}; every run of every tenant is judged by it within a second"
    shell.print_json(_seen(made)) if args.json else shell.out.line(told)
    return OK


def end(args: Namespace, shell: Shell) -> int:
    """Take a guardrail out of force."""

    async def work() -> store.Version:
        async with owning(args, shell) as conn:
            ended = await store.end(conn, store.EVERYBODY, args.name, by=wiring.operator())
            await _noted(conn, ended, "guardrail.end")
        return ended

    ended = run(work())
    shell.print_json(_seen(ended)) if args.json else shell.out.line(f"{args.name} is out of force; its versions stay")
    return OK


def _seen(row: store.Version) -> Json:
    shown: Json = msgspec.to_builtins(shapes.seen(row))
    return shown


async def _noted(conn: Connection, row: store.Version, action: str) -> None:
    """Write it into the operator's audit log."""
    act = Act(action=action, subject=row.name, detail={"version": str(row.version)})
    await audit.operated(conn, act, tenant=audit.EVERYBODY, by=row.made_by)
