"""What the drill does to a fleet: each fault is a function, and the table says how many of each are in a deck.

Decks are shuffled and dealt one after the other, so that every kind comes as often as the table says.
"""

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable, Iterator

from tests.drill.fleet import LEASE_S, Fleet, Member

Fault = Callable[[Fleet, random.Random], Awaitable[None]]
EXIT_S = 60.0


async def kill_worker(fleet: Fleet, dice: random.Random) -> None:
    async with fleet.one(dice) as worker:
        await _kill(fleet, worker)


async def kill_api(fleet: Fleet, dice: random.Random) -> None:
    async with fleet.one(dice, api=True) as api:
        await _kill(fleet, api)


async def stop_worker(fleet: Fleet, dice: random.Random) -> None:
    async with fleet.one(dice) as worker:
        await _stop(worker, dice)


async def stop_api(fleet: Fleet, dice: random.Random) -> None:
    async with fleet.one(dice, api=True) as api:
        await _stop(api, dice)


async def cut_worker(fleet: Fleet, dice: random.Random) -> None:
    async with fleet.one(dice) as worker:
        await _cut(worker, dice)


async def cut_api(fleet: Fleet, dice: random.Random) -> None:
    async with fleet.one(dice, api=True) as api:
        await _cut(api, dice)


async def deploy_worker(fleet: Fleet, dice: random.Random) -> None:
    async with fleet.one(dice) as worker:
        await _deploy(fleet, worker)


async def deploy_api(fleet: Fleet, dice: random.Random) -> None:
    async with fleet.one(dice, api=True) as api:
        await _deploy(fleet, api)


async def restart_database(fleet: Fleet, dice: random.Random) -> None:
    await _restart(fleet, signal.SIGINT, dice)


async def crash_database(fleet: Fleet, dice: random.Random) -> None:
    await _restart(fleet, signal.SIGQUIT, dice)


TABLE: dict[Fault, int] = {
    kill_worker: 3,
    kill_api: 1,
    stop_worker: 2,
    stop_api: 1,
    cut_worker: 2,
    cut_api: 1,
    deploy_worker: 2,
    deploy_api: 1,
    restart_database: 1,
    crash_database: 1,
}


def decks(dice: random.Random) -> Iterator[list[Fault]]:
    """Shuffled decks without end."""
    while True:
        deck = [fault for fault, number in TABLE.items() for _ in range(number)]
        dice.shuffle(deck)
        yield deck


async def _kill(fleet: Fleet, member: Member) -> None:
    member.running.kill()
    await member.running.wait()
    await fleet.start(member)


async def _stop(member: Member, dice: random.Random) -> None:
    """Stop it for longer than the lease."""
    member.running.send_signal(signal.SIGSTOP)
    try:
        await asyncio.sleep(LEASE_S + dice.uniform(0.2, 2))
    finally:
        member.running.send_signal(signal.SIGCONT)


async def _cut(member: Member, dice: random.Random) -> None:
    """Cut it off, for less or more than the lease."""
    member.wire.cut()
    try:
        await asyncio.sleep(LEASE_S * dice.uniform(0.3, 2))
    finally:
        member.wire.mend()


async def _deploy(fleet: Fleet, member: Member) -> None:
    """Put the other release in its place."""
    member.running.send_signal(signal.SIGTERM)
    code = await asyncio.wait_for(member.running.wait(), EXIT_S)
    assert code == 0, (member.name, code, fleet.here.tail())
    member.release = {} if member.release else fleet.newer
    await fleet.start(member)


async def _restart(fleet: Fleet, number: signal.Signals, dice: random.Random) -> None:
    async with fleet.database:
        await fleet.postgres.stop(number)
        await asyncio.sleep(dice.uniform(0, 1))
        await fleet.postgres.start()
