"""What `sojourn stop`, `stops` and `lift` do, with the login of the database's owner.

The rule: it says what stands in the tables, so whoever is killed while waiting can ask again.
"""

import asyncio
import time
from argparse import Namespace
from typing import Any

import msgspec

from sojourn import wiring
from sojourn.cli.command import Shell
from sojourn.cli.commands.simulating import run
from sojourn.cli.exits import FAILED, OK, USAGE, Stop
from sojourn.cli.owner import owned, owning
from sojourn.cli.terminal import ago
from sojourn.store import stops as store
from sojourn.store.audit import writing as audit
from sojourn.store.audit.operator import operator
from sojourn.store.audit.writing import Act
from sojourn.store.db import Connection, Database
from sojourn.store.tenant.keys import TENANT

POLL_S = 0.5
LIMIT_MAX = 10_000


def stop(args: Namespace, shell: Shell) -> int:
    """Make a stop, and wait for it where that is asked for."""
    new = _wanted(args)

    async def work() -> int:
        async with owned(args, shell) as database:
            async with operator(database) as conn:
                made = await store.make(conn, new, stop_id=wiring.new_id("stp"), by=wiring.operator(), operator=True)
                await _noted(conn, made, "stop.create")
            report = await _progress(database, made)
            if not args.json:
                shell.out.line(f"{made.id} is in force")
            if args.wait:
                report = await _settled(database, made, args, shell)
        if args.json:
            shell.print_json(_seen(made, report))
        elif args.wait or report.settled:
            shell.out.line("Nothing is left." if report.settled else "Something is left.", "bold")
        return OK if report.settled or not args.wait else FAILED

    return int(run(work()))


def stops(args: Namespace, shell: Shell) -> int:
    """List stops, or show one. Raises Stop for a limit that is none."""
    if not 1 <= args.limit <= LIMIT_MAX:
        raise Stop(f"--limit is a number from 1 to {LIMIT_MAX}.", USAGE)
    return int(run(_shown(args, shell) if args.stop else _listed(args, shell)))


async def _shown(args: Namespace, shell: Shell) -> int:
    async with owned(args, shell) as database:
        async with operator(database, readonly=True) as conn:
            made = await store.get(conn, args.stop)
        report = await _progress(database, made)
    if args.json:
        shell.print_json(_seen(made, report))
    else:
        shell.out.line(f"{made.id}  {_what(made)}  {made.mode}  {_state(made)}")
        shell.out.line(f"  {made.reason}" if made.reason else f"  made by {made.made_by}")
        _show(report, shell)
    return OK


async def _listed(args: Namespace, shell: Shell) -> int:
    async with owning(args, shell, readonly=True) as conn:
        found = await store.page(conn, lifted=args.all, limit=args.limit + 1)
    more, found = len(found) > args.limit, found[: args.limit]
    if args.json:
        shell.print_json({"data": [_seen(one) for one in found], "has_more": more})
        return OK
    rows = [(one.id, _what(one), one.mode, ago(one.created_at.isoformat()), _state(one)) for one in found]
    none = "No stop was ever made." if args.all else "No stop is in force; --all lists those that were."
    shell.table(("STOP", "WHAT", "MODE", "SINCE", "STATE"), rows, empty=none)
    if more:
        shell.err.line("There are older ones: --limit N shows so many.", "dim")
    return OK


def lift(args: Namespace, shell: Shell) -> int:
    """Lift a stop."""

    async def work() -> store.Stop:
        async with owning(args, shell) as conn:
            made = await store.lift(conn, args.stop, by=wiring.operator())
            await _noted(conn, made, "stop.lift")
        return made

    made = run(work())
    shell.print_json(_seen(made)) if args.json else shell.out.line(f"{made.id} is lifted")
    return OK


def _wanted(args: Namespace) -> store.NewStop:
    """What the flags name. Raises Stop."""
    within = {what: getattr(args, what) for what in ("run", "session", "agent", "user") if getattr(args, what)}
    mode: store.Mode = "hold" if args.hold else "cancel"
    if len(within) + args.all > 1 or (args.all and args.tenant):
        raise Stop("Stop one thing at a time: --run, --session, --agent, --user, --tenant or --all.", USAGE)
    if args.all:
        return store.NewStop(tenant=store.EVERYBODY, what="installation", mode=mode, reason=args.reason)
    for what, target in within.items():
        tenant = args.tenant or TENANT
        return store.NewStop(tenant=tenant, what=what, target=target, mode=mode, reason=args.reason)  # type: ignore[arg-type]
    if not args.tenant:
        raise Stop("Say what to stop: --run, --session, --agent, --user, --tenant or --all.", USAGE)
    return store.NewStop(tenant=args.tenant, what="tenant", mode=mode, reason=args.reason)


async def _progress(database: Database, made: store.Stop) -> store.Report:
    async with database.engine() as engine:
        return await store.report(engine, made, operator=True)


async def _settled(database: Database, made: store.Stop, args: Namespace, shell: Shell) -> store.Report:
    """Show what is left, as it changes, until nothing is or the time is over."""
    ends_at, told = None if args.timeout is None else time.monotonic() + args.timeout, None
    while not (report := await _progress(database, made)).settled:
        if told != report and not args.json:
            _show(report, shell)
        told = report
        if ends_at is not None and time.monotonic() > ends_at:
            break
        await asyncio.sleep(POLL_S)
    return report


def _show(report: store.Report, shell: Shell) -> None:
    hit = ", ".join(f"{count} {status}" for status, count in sorted(report.hit.items())) or "none"
    numbers = {"runs": report.runs, "leases": report.leases, "calls": report.calls, "sandboxes": report.sandboxes}
    left = ", ".join(f"{count} {name}" for name, count in numbers.items() if count) or "nothing"
    shell.out.line(f"  hit: {hit}; left: {left}")
    for one in report.left[:5]:
        shell.out.line(f"    {one.kind} {one.id}: {one.why}", "dim")


def _seen(made: store.Stop, report: store.Report | None = None) -> dict[str, Any]:
    progress = {**msgspec.structs.asdict(report), "settled": report.settled} if report and not made.lifted_at else None
    shown: dict[str, Any] = msgspec.to_builtins({**msgspec.structs.asdict(made), "progress": progress})
    return shown


def _what(made: store.Stop) -> str:
    if made.what in ("tenant", "installation"):
        return f"tenant {made.tenant}" if made.what == "tenant" else "everything"
    return f"{made.what} {made.target} of {made.tenant}"


def _state(made: store.Stop) -> str:
    return f"lifted by {made.lifted_by}" if made.lifted_at else "in force"


async def _noted(conn: Connection, made: store.Stop, action: str) -> None:
    """Write it into the audit logs of the operator and the tenant."""
    detail = {"what": made.what, "target": made.target, "mode": made.mode}
    act = Act(action=action, subject=made.id, detail=detail)
    await audit.operated(conn, act, tenant=made.tenant, by=wiring.operator())
