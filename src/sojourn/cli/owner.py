"""The database of an installation, for commands of whoever owns it. Their modules import it, and with it the server.

The rule: it opens what is there and makes nothing; who changes something in `owning` tells the audit log.
"""

from argparse import Namespace
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sojourn import settings, wiring
from sojourn.cli.command import Shell
from sojourn.store.audit.operator import operator
from sojourn.store.db import Connection, Database


@asynccontextmanager
async def owned(args: Namespace, shell: Shell) -> AsyncIterator[Database]:
    """Open the database that the environment and the flags name. Raises SojournError."""
    async with wiring.existing_database(settings.load(shell.environ_for(args))) as database:
        yield database


@asynccontextmanager
async def owning(args: Namespace, shell: Shell, *, readonly: bool = False) -> AsyncIterator[Connection]:
    """Lend one transaction of the operator in it. Raises SojournError."""
    async with owned(args, shell) as database, operator(database, readonly=readonly) as conn:
        yield conn
