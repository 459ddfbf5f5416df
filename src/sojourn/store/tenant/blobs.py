"""Bytes by digest. Called by the API with a caller's scope, and by the worker with a lent one.

    put    keep bytes        hold   for a while, whatever names them        use   for as long as a run is kept

The rules: a digest is what the bytes are, and the database checks it. The same bytes are kept once, with the media type
that they first came with. What nothing names goes: whoever puts a blob says in the same transaction what it is for.
"""

import hashlib
from collections.abc import Collection

import msgspec

from sojourn.errors import BudgetSpent, NotFound, TooLarge
from sojourn.store.db import Connection

HEAD_BYTES = 16
UNKNOWN_TYPE = "application/octet-stream"

PUT = """
insert into blob (tenant, digest, bytes, data, media_type, kept_until, look_at)
values (scope_tenant(), $1, $2, $3, $4, now(), now())
on conflict (tenant, digest) do update set kept_until = greatest(blob.kept_until, excluded.kept_until)
"""
HOLD = """
update blob set kept_until = greatest(kept_until, now() + make_interval(secs => $2))
where tenant = (select scope_tenant()) and digest = $1
"""
USE = "insert into blob_use (tenant, run_id, digest) values (scope_tenant(), $2, $1) on conflict do nothing"
GET = "select data from blob where tenant = (select scope_tenant()) and digest = $1"
PIECE = "select substr(data, $2, $3) from blob where tenant = (select scope_tenant()) and digest = $1"
ABOUT = f"""
select digest, bytes as size_bytes, media_type, substr(data, 1, {HEAD_BYTES}) as head
from blob where tenant = (select scope_tenant()) and digest = any($1::text[])
"""
ALL_BYTES = "select coalesce(sum(bytes), 0)::bigint from blob_tally where tenant = (select scope_tenant())"


class Blob(msgspec.Struct, frozen=True):
    """What a blob is, without its bytes but for the first few."""

    digest: str
    size_bytes: int
    media_type: str
    head: bytes


def digest_of(data: bytes | bytearray) -> str:
    """Name bytes by what they are: sha256:<hex>."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


async def put(
    conn: Connection,
    data: bytes | bytearray,
    *,
    bytes_max: int,
    tenant_bytes_max: int | None = None,
    media_type: str = UNKNOWN_TYPE,
) -> str:
    """Keep bytes and give their digest. Raises TooLarge, and BudgetSpent where the tenant keeps too much.

    Uploads that come together may pass the tenant's limit by what is underway.
    """
    if len(data) > bytes_max:
        raise TooLarge(f"{len(data)} bytes are more than the limit of {bytes_max}.")
    digest = digest_of(data)
    if tenant_bytes_max is not None and not await about(conn, (digest,)):
        kept = await conn.fetchval(ALL_BYTES)
        if kept + len(data) > tenant_bytes_max:
            raise BudgetSpent(
                f"The tenant keeps {kept} bytes of blobs, and its limit is {tenant_bytes_max}. An operator can raise "
                "the setting blobs_max_bytes.",
                code="limit.blobs",
            )
    await conn.execute(PUT, digest, len(data), data, media_type)
    return digest


async def get(conn: Connection, digest: str) -> bytes:
    """Read bytes by their name. Raises NotFound."""
    data: bytes | None = await conn.fetchval(GET, digest)
    if data is None:
        raise _missing(digest)
    return data


async def piece(conn: Connection, digest: str, *, offset: int, limit_bytes: int) -> bytes:
    """Read some of the bytes. Raises NotFound."""
    data: bytes | None = await conn.fetchval(PIECE, digest, offset + 1, limit_bytes)
    if data is None:
        raise _missing(digest)
    return data


async def hold(conn: Connection, digest: str, *, keep_s: float) -> None:
    """Keep a blob for so long from now on, for somebody who has yet to say what it is for."""
    await conn.execute(HOLD, digest, keep_s)


async def use(conn: Connection, digest: str, *, run_id: str) -> None:
    """Keep a blob for as long as a run is kept. What callers say to a run is noted by the database itself."""
    await conn.execute(USE, digest, run_id)


async def about(conn: Connection, digests: Collection[str], *, keep: bool = False) -> dict[str, Blob]:
    """Tell what these blobs are; those that are not there are left out. `keep` them until the transaction ends."""
    statement = f"{ABOUT} order by digest for key share" if keep else ABOUT
    return {row["digest"]: Blob(**row) for row in await conn.fetch(statement, list(digests))}


def _missing(digest: str) -> NotFound:
    return NotFound(f"There is no blob {digest}.")
