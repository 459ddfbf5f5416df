"""How many calls of a provider each worker may have on their way at once, so that all together never have too many.

A worker settles its share now and then, and starts calls within it without asking anybody. The rules: a share is
promised until a time, and whoever could not renew it has ended its calls before; what one worker gets, another one gave
up first. So all shares together stay within the limit whatever crashes; a dead worker's is free once it ran out.
"""

from collections.abc import Sequence
from datetime import datetime

import msgspec

from sojourn.store.db import Database

LOCK = 0x504A_0004
STAKES = """
select worker, needs, slots, fed_at from call_share where provider = $1 and until > now() and worker <> $2
union all
select $2, $3, $4, coalesce(
    (select fed_at from call_share where provider = $1 and worker = $2 and until > now()), now()
)
"""
SETTLE = """
with over as (delete from call_share where provider = $1 and until <= now() and worker <> $2)
insert into call_share (provider, worker, needs, slots, fed_at, until)
values ($1, $2, $3, $4, now(), now() + make_interval(secs => $5))
on conflict (provider, worker) do update set needs = excluded.needs, slots = excluded.slots, until = excluded.until,
    fed_at = case when excluded.slots = 0 then call_share.fed_at else now() end
"""


class Stake(msgspec.Struct, frozen=True):
    """What a worker has of a provider's slots, and the calls that it has on their way or waiting."""

    worker: str
    needs: int
    slots: int
    fed_at: datetime
    """When it had a slot last, or came."""


class Asked(msgspec.Struct, frozen=True):
    """What a worker asks for: `floor` calls may be on their way until it has the answer."""

    worker: str
    needs: int
    floor: int


class Share(msgspec.Struct, frozen=True):
    """What a worker got: `slots` are its own until it settles again, and it starts calls up to `target` of them."""

    slots: int
    target: int


def split(calls_max: int, stakes: Sequence[Stake]) -> dict[str, int]:
    """Share slots out as level as the needs are; what nobody needs is kept ready, level too.

    Where there are fewer slots than workers, those that have none come first, by how long they have had none.
    """
    given = {stake.worker: 0 for stake in stakes}
    line = sorted(
        stakes, key=lambda stake: (stake.slots > 0, 0 if stake.slots else stake.fed_at.timestamp(), stake.worker)
    )
    left = calls_max
    while left and (hungry := [stake for stake in line if given[stake.worker] < stake.needs]):
        level = max(1, left // len(hungry))
        for stake in hungry:
            more = min(level, left, stake.needs - given[stake.worker])
            given[stake.worker] += more
            left -= more
    for place, stake in enumerate(line):
        given[stake.worker] += left // len(line) + (place < left % len(line))
    return given


async def settle(db: Database, provider: str, asked: Asked, *, calls_max: int, for_s: float) -> Share:
    """Renew a worker's share for a time."""
    async with db.engine() as engine, engine.transaction():
        await engine.execute("select pg_advisory_xact_lock($1, hashtext($2))", LOCK, provider)
        found = await engine.fetch(STAKES, provider, asked.worker, asked.needs, asked.floor)
        stakes = [Stake(*row) for row in found]
        free = calls_max - sum(stake.slots for stake in stakes if stake.worker != asked.worker)
        target = min(split(calls_max, stakes)[asked.worker], free)
        slots = max(asked.floor, target)
        await engine.execute(SETTLE, provider, asked.worker, asked.needs, slots, for_s)
    return Share(slots=slots, target=max(0, target))


async def give_up(db: Database, worker_id: str) -> None:
    """End the shares of a worker that makes no more calls."""
    async with db.engine() as engine:
        await engine.execute("delete from call_share where worker = $1", worker_id)
