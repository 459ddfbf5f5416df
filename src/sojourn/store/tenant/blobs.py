"""Bytes by digest. Called by the API with a caller's scope, and by the worker with a lent one.

The rule: a digest is what the bytes are, and the database checks it.
"""

import hashlib

from sojourn.errors import NotFound, TooLarge
from sojourn.store.db import Connection

PUT = """
insert into blob (tenant, digest, bytes, data) values (scope_tenant(), $1, $2, $3) on conflict do nothing
"""
GET = "select data from blob where tenant = (select scope_tenant()) and digest = $1"


async def put(conn: Connection, data: bytes, *, bytes_max: int) -> str:
    """Keep bytes and give their name, `sha256:<hex>`. Raises TooLarge."""
    if len(data) > bytes_max:
        raise TooLarge(f"{len(data)} bytes are more than the limit of {bytes_max}.")
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    await conn.execute(PUT, digest, len(data), data)
    return digest


async def get(conn: Connection, digest: str) -> bytes:
    """Read bytes by their name. Raises NotFound."""
    data: bytes | None = await conn.fetchval(GET, digest)
    if data is None:
        raise NotFound(f"There is no blob {digest}.")
    return data
