"""What the drill does to a fleet: each fault is a function, and the table says how many of each are in a deck.

Decks are shuffled and dealt one after the other, so that every kind comes as often as the table says.
"""

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable, Iterator

from tests.drill.fleet import LEASE_S, Fleet, Member

Fault = Callable[[Fleet, random.Random], Awaitable[None]]
"""Its name is what the page says."""
Blow = Callable[[Fleet, Member, random.Random], Awaitable[None]]
EXIT_S = 60.0


async def kill(fleet: Fleet, member: Member, _dice: random.Random) -> None:
    member.running.kill()
    await member.running.wait()
    await fleet.start(member)


async def stop(_fleet: Fleet, member: Member, dice: random.Random) -> None:
    """Stop it for longer than the lease."""
    member.running.send_signal(signal.SIGSTOP)
    try:
        await asyncio.sleep(LEASE_S + dice.uniform(0.2, 2))
    finally:
        member.running.send_signal(signal.SIGCONT)


async def cut(_fleet: Fleet, member: Member, dice: random.Random) -> None:
    """Cut it off, for less or more than the lease."""
    member.wire.cut()
    try:
        await asyncio.sleep(LEASE_S * dice.uniform(0.3, 2))
    finally:
        member.wire.mend()


async def deploy(fleet: Fleet, member: Member, _dice: random.Random) -> None:
    """Put the other release in its place."""
    member.running.send_signal(signal.SIGTERM)
    code = await asyncio.wait_for(member.running.wait(), EXIT_S)
    assert code == 0, (member.name, code, fleet.here.tail())
    member.release = {} if member.release else fleet.newer
    await fleet.start(member)


async def restart_database(fleet: Fleet, dice: random.Random) -> None:
    await _restart(fleet, signal.SIGINT, dice)


async def crash_database(fleet: Fleet, dice: random.Random) -> None:
    await _restart(fleet, signal.SIGQUIT, dice)


async def _restart(fleet: Fleet, number: signal.Signals, dice: random.Random) -> None:
    async with fleet.database:
        await fleet.postgres.stop(number)
        await asyncio.sleep(dice.uniform(0, 1))
        await fleet.postgres.start()


def _on(kind: str, blow: Blow) -> Fault:
    """Make a fault of what is done to one worker, or to one API process."""

    async def fault(fleet: Fleet, dice: random.Random) -> None:
        async with fleet.one(dice, api=kind == "api") as member:
            await blow(fleet, member, dice)

    fault.__name__ = f"{blow.__name__}_{kind}"
    return fault


TABLE: dict[Fault, int] = {
    **{_on("worker", blow): number for blow, number in ((kill, 3), (stop, 2), (cut, 2), (deploy, 2))},
    **{_on("api", blow): 1 for blow in (kill, stop, cut, deploy)},
    restart_database: 1,
    crash_database: 1,
}


def decks(dice: random.Random) -> Iterator[list[Fault]]:
    """Shuffled decks without end."""
    while True:
        deck = [fault for fault, number in TABLE.items() for _ in range(number)]
        dice.shuffle(deck)
        yield deck
