"""What `sojourn serve`, `worker`, `doctor` and `tenants` do.

The rule: only this module of the command line imports the server, and it is loaded for these commands alone.
"""

from argparse import Namespace
from collections.abc import Coroutine
from typing import Any

import msgspec

from sojourn import settings, wiring
from sojourn.cli.client import DEFAULT_URL, key_path
from sojourn.cli.command import Shell
from sojourn.cli.commands.simulating import run
from sojourn.cli.exits import FAILED, OK, UNREACHABLE, USAGE, Stop
from sojourn.doctor import examine
from sojourn.errors import Invalid, StoreUnavailable
from sojourn.settings import Settings
from sojourn.store.sharing.limits import LIMITS, TenantRow
from sojourn.store.sharing.rates import NAMES, Limit, read

LIMIT_MAX = 10**6
_MARKS = {True: ("✓", "green"), False: ("✗", "red"), None: ("–", "dim")}


def serve(args: Namespace, shell: Shell) -> int:
    """Run API and worker until a signal ends them."""
    environ = shell.environ_for(args)
    key = key_path(environ)
    first = not key.exists()

    def ready(url: str) -> None:
        if first and key.exists():
            shell.out.line(f"The local key is in {key}; `sojourn` finds it there.")
        shell.out.line(f"Sojourn listens on {url}", "bold")
        if url.rstrip("/") != DEFAULT_URL:
            shell.out.line(f"  export SOJOURN_API_URL={url}", "dim")

    using = settings.load(environ)
    _start(using, wiring.serve(using, worker=not args.no_worker, ready=ready))
    return OK


def worker(args: Namespace, shell: Shell) -> int:
    """Run a worker until a signal ends it."""
    using = settings.load(shell.environ_for(args))
    _start(using, wiring.work(using))
    return OK


def doctor(args: Namespace, shell: Shell) -> int:
    """Show what was found on this machine. Returns FAILED if something is in the way."""
    return int(run(_examined(args, shell)))


def recover_key(args: Namespace, shell: Shell) -> int:
    """Make the local key anew."""
    using = settings.load(shell.environ_for(args))
    token = run(wiring.recover_key(using))
    try:
        path = None if args.print else wiring.keep_local_key(using, token)
    except OSError as error:
        raise Stop(f"The key cannot be written ({error.strerror}): `sojourn keys recover --print` shows one.") from None
    if args.json:
        shell.print_json({"key": token if args.print else None, "path": str(path) if path else None})
    elif path:
        shell.out.line(f"The new local key is in {path}; `sojourn` finds it there.")
    else:
        shell.out.line(token)
    shell.err.line("The older local keys are revoked: no server takes them after 30 s.", "dim")
    return OK


def list_tenants(args: Namespace, shell: Shell) -> int:
    """Show the tenants."""
    found = run(wiring.tenants(settings.load(shell.environ_for(args))))
    if args.json:
        rows = [{"id": t.id, "queued": t.queued, "running": t.running, **t.limits, "rates": _rates(t)} for t in found]
        shell.print_json({"data": rows})
        return OK
    names = [name.removesuffix("_micros").upper().replace("_", " ") for name in LIMITS]
    shell.out.table(
        ("TENANT", "QUEUED", "RUNNING", *names, "RATES"),
        [
            (
                *(t.id, str(t.queued), str(t.running)),
                *(_shown(name, t.limits[name]) for name in LIMITS),
                " ".join(f"{name}={rate}" for name, rate in _rates(t).items()) or "-",
            )
            for t in found
        ],
    )
    return OK


def set_tenant(args: Namespace, shell: Shell) -> int:
    """Change a tenant's limits. Raises Stop where none is named."""
    given = {name: value for name in LIMITS if (value := getattr(args, name.removesuffix("_micros"))) is not None}
    if not given and not args.rate:
        raise Stop("Say which limit: see `sojourn tenants set --help`.", USAGE)
    limits = {name: _limit(name, value) for name, value in given.items()}
    rates = dict(_rate(text) for text in args.rate)
    run(wiring.set_tenant(settings.load(shell.environ_for(args)), args.tenant, limits, rates=rates))
    shown = {name: limit and str(limit) for name, limit in rates.items()}
    if args.json:
        shell.print_json({"id": args.tenant, **limits, **({"rates": shown} if rates else {})})
    else:
        told = {name.removesuffix("_micros"): _shown(name, limit) for name, limit in limits.items()}
        changes = (f"{name} {limit or '-'}" for name, limit in {**told, **shown}.items())
        shell.out.line(f"{args.tenant}: " + ", ".join(changes))
    return OK


def _rate(text: str) -> tuple[str, Limit | None]:
    """Read CLASS.SUBJECT=LIMIT. Raises Stop."""
    name, _, limit = text.partition("=")
    if name not in NAMES:
        raise Stop(f"--rate is one of {', '.join(NAMES)}, then = and the limit; not {text!r}.", USAGE)
    try:
        return name, None if limit == "none" else read(limit)
    except Invalid as error:
        raise Stop(str(error), USAGE) from None


def _rates(tenant: TenantRow) -> dict[str, str]:
    return {name: str(rate) for name, rate in sorted(tenant.rates.items())}


def _limit(name: str, value: str) -> int | None:
    if value == "none":
        return None
    if name.endswith("_micros"):
        return _micros(f"--{name.removesuffix('_micros').replace('_', '-')}", value)
    if not (value.isascii() and value.isdecimal() and int(value) <= LIMIT_MAX):
        raise Stop(f"--{name.replace('_', '-')} is a number up to {LIMIT_MAX}, or none.", USAGE)
    return int(value)


def _micros(option: str, value: str) -> int:
    """An amount in US dollars."""
    whole, _, part = value.partition(".")
    if not (value.isascii() and (whole + part).isdecimal() and len(part) <= 6 and len(whole) <= 9):
        raise Stop(f"{option} is an amount in US dollars such as 50 or 0.25, or none.", USAGE)
    return int(whole or 0) * 1_000_000 + int(part.ljust(6, "0"))


def _shown(name: str, limit: int | None) -> str:
    if limit is None:
        return "-"
    return f"{limit // 10**6}.{limit % 10**6:06}" if name.endswith("_micros") else str(limit)


async def _examined(args: Namespace, shell: Shell) -> int:
    """Show each finding as it comes, or all of them as one document."""
    findings = []
    async for finding in examine(settings.load(shell.environ_for(args))):
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


def _start(using: Settings, work: Coroutine[Any, Any, None]) -> None:
    """Run a server to its end. Raises Stop where it cannot begin because the operator's database is away."""
    try:
        run(work)
    except StoreUnavailable as error:
        if error.code != StoreUnavailable.code or not using.database_url:
            raise
        raise Stop(f"{error} To wait for it, start with --wait-database 60. ({error.code})", UNREACHABLE) from None
