"""Which root keys an installation needs: their ids, never the keys. Called at the start and by the doctor.

The rule: the database says which root key is the current one, so all processes agree on it.
"""

import msgspec

from sojourn.errors import NotFound
from sojourn.store.audit.operator import operator
from sojourn.store.db import Connection, Database

KNOWN = """
select r.id, r.ended_at is null as current,
    (select count(*) from data_key d where d.root_key = r.id) as wraps
from root_key r order by r.created_at
"""
PLAIN = "select count(*) from seal_key where secret is not null"
REGISTER = "insert into root_key (id) values ($1) on conflict do nothing"


class Known(msgspec.Struct, frozen=True):
    """A root key that the database knows of."""

    id: str
    current: bool
    wraps: int
    """How many data keys are under it."""


class Roots(msgspec.Struct, frozen=True):
    """What the database says of root keys."""

    known: tuple[Known, ...] = ()
    plain: int = 0
    """Signing keys that are not sealed."""

    @property
    def current(self) -> str | None:
        """The one that wraps what is new; None before there is any."""
        return next((one.id for one in self.known if one.current), None)

    @property
    def wanted(self) -> tuple[str, ...]:
        """Those without which something cannot be opened, or sealed."""
        return tuple(one.id for one in self.known if one.current or one.wraps)


async def read(db: Database) -> Roots:
    """Look which root keys there are; none in a database that does not know of them yet."""
    try:
        async with operator(db, readonly=True) as conn:
            known = tuple([Known(**row) for row in await conn.fetch(KNOWN)])
            return Roots(known, await conn.fetchval(PLAIN))
    except NotFound:
        return Roots()


async def register(db: Database, root: str) -> None:
    """Make a root key the current one where there is none."""
    async with db.migrator() as conn:
        await conn.execute(REGISTER, root)


async def current(conn: Connection) -> str | None:
    """The current root key, in a transaction of a caller."""
    found: str | None = await conn.fetchval("select id from root_key where ended_at is null")
    return found
