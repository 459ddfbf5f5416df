"""What `sojourn audit --operator` does, with the login of the database's owner.

The rule: it shows the rows exactly as the API would, so that one verifier is enough.
"""

from argparse import Namespace
from typing import Any

import msgspec

from sojourn.cli.command import Shell
from sojourn.cli.commands.auditing import log
from sojourn.cli.commands.simulating import run
from sojourn.cli.exits import USAGE, Stop
from sojourn.cli.owner import owning
from sojourn.store.audit import reading
from sojourn.store.audit.reading import Wanted
from sojourn.store.audit.writing import EVERYBODY

LIMIT_MAX = 10_000


def list_(args: Namespace, shell: Shell) -> int:
    """Show the rows, newest first. Raises Stop for a limit that is none."""
    wanted = msgspec.convert(log.wanted(args), Wanted)
    if not 1 <= args.limit <= LIMIT_MAX:
        raise Stop(f"--limit is a number from 1 to {LIMIT_MAX}.", USAGE)

    async def rows() -> list[Any]:
        async with owning(args, shell, readonly=True) as conn:
            return await reading.page(conn, EVERYBODY, wanted, before=None, limit=args.limit)

    return log.listed(msgspec.to_builtins(run(rows())), args, shell)


def export(args: Namespace, shell: Shell) -> int:
    """Write the chain. Raises Stop for a row that cannot be."""
    if not 0 <= args.after < reading.NEWEST:
        raise Stop("--after is the number of a row; 0 is before the first.", USAGE)
    return log.exported(run(_lines(args, shell, args.after)), shell)


def verify(args: Namespace, shell: Shell) -> int:
    """Check the chain. Raises Stop for a file, which needs no database."""
    if args.file:
        raise Stop("A file is verified without --operator.", USAGE)
    return log.verified(run(_lines(args, shell)), args, shell)


def head(args: Namespace, shell: Shell) -> int:
    """Show where the chain ends."""

    async def found() -> Any:
        async with owning(args, shell, readonly=True) as conn:
            return await reading.head(conn, EVERYBODY)

    return log.headed(msgspec.to_builtins(run(found())), args, shell)


async def _lines(args: Namespace, shell: Shell, after: int = 0) -> list[dict[str, Any]]:
    async with owning(args, shell, readonly=True) as conn:
        end = await reading.head(conn, EVERYBODY)
        rows = await reading.chain(conn, end, after=after, limit=end.n)
    return [*msgspec.to_builtins(rows), {"head": msgspec.to_builtins(end)}]
