"""What a model reads of a tool's result: all of it, or its two ends and the name of the blob that holds the whole.

`perform.py` asks it for every observation. The rule: no result is lost over keeping it; where the whole cannot be kept,
the model is told so and reads the ends all the same.
"""

import logging

from sojourn.errors import SojournError
from sojourn.store import queue
from sojourn.store.tenant import blobs
from sojourn.worker.parts import Parts, Place

log = logging.getLogger("sojourn.worker")


async def told(parts: Parts, place: Place, text: str) -> str:
    """The text as an observation of at most `observation_max_bytes` and one line."""
    data, limit_bytes = text.encode(errors="replace"), parts.settings.observation_max_bytes
    if len(data) <= limit_bytes:
        return data.decode()
    half = limit_bytes // 2
    head, tail = data[:half].decode(errors="ignore"), data[-half:].decode(errors="ignore")
    left_out = f"{len(data) - 2 * half} of {len(data)} bytes are left out here"
    return f"{head}\n[{left_out}. {await _kept(parts, place, data)}]\n{tail}"


async def _kept(parts: Parts, place: Place, data: bytes) -> str:
    """Keep a whole result as a blob of the tenant, in the run's own scope; say where it is, or that it is nowhere."""
    try:
        async with queue.lent(parts.database, parts.worker_id, place.claimed) as connection:
            digest = await blobs.put(
                connection,
                data,
                bytes_max=parts.settings.blob_max_bytes,
                tenant_bytes_max=parts.settings.blobs_max_bytes,
                media_type="text/plain",
            )
            await blobs.use(connection, digest, run_id=place.run_id)
    except SojournError as error:
        log.warning("result.not_kept", extra={"run": place.run_id, "bytes": len(data), "code": error.code})
        return "The whole could not be kept."
    return f"The whole is kept as the blob {digest}."
