"""A backup into an empty database. Called by `sojourn restore`.

The rules: one transaction does it all, so a failure leaves the database as empty as it was; the tables are made by the
migrations that the backup names, filled, and then brought up to this release. Whoever held a run when the backup was
made is not there any more, and workers take its runs over as after a failover.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import asyncpg  # type: ignore[import-untyped]

from sojourn.errors import Conflict, Invalid
from sojourn.store import migrate
from sojourn.store.audit import writing as audit
from sojourn.store.audit.writing import Act
from sojourn.store.backup.container import Checked, Files, Header, Table, sections
from sojourn.store.backup.dump import TABLES, acting_as
from sojourn.store.db import Connection, Database
from sojourn.store.migrate import Migration
from sojourn.store.tenant.blobs import digest_of

THERE = """
select count(*) from pg_class c
where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'S', 'f')
    and not exists (select from pg_depend d where d.objid = c.oid and d.deptype = 'e')
"""
FORCED = "select relname as name from pg_class where relforcerowsecurity"
KEYS = """
select conrelid::regclass::text as of, quote_ident(conname) as name, pg_get_constraintdef(oid) as definition
from pg_constraint where contype = 'f' and connamespace = 'public'::regnamespace and conparentid = 0
"""
SEQUENCES = "select seqrelid::regclass::text as name, seqmax, seqcycle from pg_sequence"
AHEAD = 1 << 30
"""Numbers are given out from here on: readers may have seen some that were given out after the backup."""
KEEP = """
insert into blob (tenant, digest, bytes, data, kept_until, look_at) values ($1, $2, length($3::bytea), $3, now(), now())
on conflict do nothing returning 1
"""
TALLY = "insert into blob_tally (tenant, bytes) values ($1, $2)"
PUT_AWAY = "update session set host = null, workspace = $3, wanted_at = null where tenant = $1 and id = $2"


class Loose(NamedTuple):
    """What was taken off the tables while they are filled."""

    keys: list[asyncpg.Record]
    forced: frozenset[str]


async def load(db: Database, path: Path, checked: Checked, told: Callable[[str], None], *, by: str = "setup") -> None:
    """Fill an empty database from a file that was checked. Raises Conflict where it is not empty, and Invalid."""
    known = migrate.load()
    level = fits(checked.header, known)
    async with db.migrator() as conn:
        async with conn.transaction():
            await conn.execute("select pg_advisory_xact_lock($1)", migrate.LOCK)
            if await conn.fetchval(THERE):
                raise Conflict(
                    "The database is not empty: a backup is restored into a new one. Name another data folder, or "
                    "another SOJOURN_DATABASE_URL.",
                    code="backup.not_empty",
                )
            await migrate.lay(conn, known[:level])
            owners = {row["name"]: row["owner"] for row in await conn.fetch(TABLES)}
            loose = await _loosen(conn, owners)
            for section, pieces in sections(path):
                if isinstance(section, Table):
                    told(section.name)
                    await _fill(conn, section, pieces, owners)
                else:
                    await _files(conn, section, pieces)
            await _count_on(conn, checked.footer.sequences)
            await _tighten(conn, loose)
            await migrate.lay(conn, known[level:])
            act = Act(action="database.restore", detail={"made_at": checked.header.made_at.isoformat()})
            await audit.operated(conn, act, tenant=audit.EVERYBODY, by=by)
        await conn.execute("analyze")


def fits(header: Header, known: list[Migration]) -> int:
    """How many of our migrations the backup has. Raises Invalid where it has others."""
    ours = [(f"{one.version:04}_{one.name}", one.sha256.hex()) for one in known]
    theirs = list(header.migrations)
    if len(theirs) > len(ours):
        raise Invalid(
            f"The backup is of release {header.release}, at migration {theirs[-1][0]}, and this release knows "
            f"{len(ours)}. Restore it with that release or a newer one.",
            code="backup.newer",
        )
    for (name, digest), (our_name, our_digest) in zip(theirs, ours, strict=False):
        if (name, digest) != (our_name, our_digest):
            raise Invalid(
                f"The backup's migration {name} is not the one of this release. Restore it with release "
                f"{header.release}.",
                code="backup.other_schema",
            )
    return len(theirs)


async def _loosen(conn: Connection, owners: dict[str, str]) -> Loose:
    """Take foreign keys, triggers and forced row level security off, and empty what migrations put in."""
    keys = await conn.fetch(KEYS)
    forced = frozenset([row["name"] for row in await conn.fetch(FORCED)])
    for key in keys:
        await conn.execute(f"alter table {key['of']} drop constraint {key['name']}")
    for name, owner in owners.items():
        async with acting_as(conn, owner):
            await conn.execute(f'alter table "{name}" no force row level security')
            await conn.execute(f'alter table "{name}" disable trigger user')
            await conn.execute(f'truncate "{name}"')
    return Loose(keys, forced)


async def _fill(conn: Connection, table: Table, pieces: Iterator[bytes], owners: dict[str, str]) -> None:
    """Fill a table. Raises Invalid for one that this schema does not have."""

    async def source() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    if table.name not in owners:
        raise Invalid(f"The backup has a table {table.name}, which its migrations do not make.", code="backup.damaged")
    async with acting_as(conn, owners[table.name]):
        try:
            await conn.copy_to_table(table.name, source=source(), columns=list(table.columns), format="binary")
        except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, asyncpg.UndefinedColumnError) as error:
            raise Invalid(
                f"The backup's table {table.name} cannot be filled ({type(error).__name__}).", code="backup.damaged"
            ) from None


async def _files(conn: Connection, files: Files, pieces: Iterator[bytes]) -> None:
    """Keep a session's files as if its sandbox had been put away. Raises Invalid."""
    data = b"".join(pieces)
    if files.digest != digest_of(data):
        raise Invalid(f"The files of session {files.session} are damaged.", code="backup.damaged")
    if await conn.fetchval(KEEP, files.tenant, files.digest, data):
        await conn.execute(TALLY, files.tenant, len(data))
    await conn.execute(PUT_AWAY, files.tenant, files.session, files.digest)


async def _count_on(conn: Connection, sequences: dict[str, int]) -> None:
    """Let sequences go on where they stood, and well past what was given out since."""
    for row in await conn.fetch(SEQUENCES):
        if row["name"] in sequences:
            value = sequences[row["name"]] + (0 if row["seqcycle"] else AHEAD)
            await conn.execute("select setval($1::text::regclass, $2)", row["name"], min(row["seqmax"], value))


async def _tighten(conn: Connection, loose: Loose) -> None:
    """Put everything back that was taken off; the foreign keys are checked once, over all rows."""
    for key in loose.keys:
        try:
            await conn.execute(f"alter table {key['of']} add constraint {key['name']} {key['definition']}")
        except asyncpg.ForeignKeyViolationError:
            raise Invalid(
                f"The backup's table {key['of']} refers to what is not there.", code="backup.damaged"
            ) from None
    for row in await conn.fetch(TABLES):
        async with acting_as(conn, row["owner"]):
            await conn.execute(f'alter table "{row["name"]}" enable trigger user')
            if row["name"] in loose.forced:
                await conn.execute(f'alter table "{row["name"]}" force row level security')
