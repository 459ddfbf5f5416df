"""The doorbell between connections that are really lost."""

import asyncio
import gc
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest
from tests.conftest import until

from sojourn.store import doorbell
from sojourn.store.db import Database
from sojourn.store.doorbell import IDS_MAX, Doorbell, Subscription
from sojourn.store.roles import Dsns

CHANNELS = ("runnable", "journal")


@pytest.fixture
async def here(database: Database) -> AsyncIterator[Doorbell]:
    """Give one process's bell."""
    async with Doorbell(database, CHANNELS) as bell:
        yield bell


@pytest.fixture
async def there(database: Database) -> AsyncIterator[Doorbell]:
    """Give another's, of the same database."""
    async with Doorbell(database, CHANNELS) as bell:
        yield bell


ELSEWHERE = """
import asyncio, asyncpg, sys

async def main():
    connection = await asyncpg.connect(sys.argv[1])
    await connection.execute(sys.argv[2])
    await connection.close()

asyncio.run(main())
"""


def run_elsewhere(dsns: Dsns, sql: str) -> None:
    """Run a statement while this process stands still, so that none of its bells notices yet."""
    subprocess.run([sys.executable, "-c", ELSEWHERE, dsns.api, sql], check=True)


async def heard(ear: Subscription) -> frozenset[str]:
    """Wait for a ring, and not for the time-out that a waiter takes for one."""
    async with asyncio.timeout(30):
        return await ear.wait(3600)


async def listening(database: Database) -> list[int]:
    """Name the server processes of the bells."""
    async with database.api() as connection:
        rows = await connection.fetch(
            "select pid from pg_stat_activity where datname = current_database() and query ~* 'listen|pg_notify'"
            " and pid <> pg_backend_pid()"
        )
        return [row["pid"] for row in rows]


async def test_a_ring_wakes_waiters_here_and_there_with_its_ids(here: Doorbell, there: Doorbell) -> None:
    with here.subscribe("runnable") as near, there.subscribe("runnable") as far:
        here.ring("runnable", ["run-1", "run-2"])
        assert await heard(near) == await heard(far) == {"run-1", "run-2"}


async def test_a_waiter_for_one_id_sleeps_through_the_others(here: Doorbell, there: Doorbell) -> None:
    with there.subscribe("journal", "run-2") as two, there.subscribe("journal") as every:
        here.ring("journal", ["run-1"])
        assert await heard(every) == {"run-1"}
        here.ring("journal", ["run-3", "run-2"])
        assert await heard(two) == {"run-2"}


async def test_channels_are_apart(here: Doorbell, there: Doorbell) -> None:
    with there.subscribe("journal") as journal, there.subscribe("runnable") as runnable:
        here.ring("runnable", ["run-1"])
        here.ring("journal", ["run-2"])
        assert await heard(journal) == {"run-2"}
        assert await heard(runnable) == {"run-1"}


async def test_what_is_rung_between_two_waits_is_not_missed(here: Doorbell) -> None:
    with here.subscribe("runnable") as ear:
        here.ring("runnable", ["run-1"])
        here.ring("runnable", ["run-2"])
        assert await heard(ear) == {"run-1", "run-2"}


async def test_rings_of_the_same_moment_are_one_message(here: Doorbell, database: Database) -> None:
    heard: list[str] = []
    listener = await database.listener()
    await listener.add_listener("runnable", lambda *message: heard.append(message[3]))
    with here.subscribe("runnable"):
        for number in range(100):
            here.ring("runnable", [f"run-{number}"])
        await until(lambda: sum(len(payload.split()) for payload in heard) == 100)
    assert len(heard) == 1
    await listener.close()


async def test_many_ids_are_split_over_messages_and_all_arrive(here: Doorbell, there: Doorbell) -> None:
    ids = {f"run-{number:>032}" for number in range(2_000)}
    with there.subscribe("runnable") as ear:
        here.ring("runnable", ids)
        arrived: set[str] = set()
        while arrived != ids:
            some = await heard(ear)
            assert some
            arrived |= some


async def test_too_many_ids_are_everything(here: Doorbell, there: Doorbell) -> None:
    with there.subscribe("runnable") as ear, there.subscribe("runnable", "another") as other:
        here.ring("runnable", [str(number) for number in range(IDS_MAX + 1)])
        assert await heard(ear) == await heard(other) == frozenset()


async def test_a_wait_that_times_out_means_everything(here: Doorbell) -> None:
    with here.subscribe("runnable") as ear:
        assert await ear.wait(0.01) == frozenset()


async def test_a_lost_connection_wakes_everybody_and_comes_back(here: Doorbell, database: Database) -> None:
    with here.subscribe("journal", "run-1") as one, here.subscribe("runnable") as every:
        listener = await database.listener()
        for pid in await listening(database):
            await listener.execute("select pg_terminate_backend($1)", pid)
        assert await heard(one) == await heard(every) == frozenset()
        await listener.execute("select pg_notify('journal', 'run-1')")
        assert await heard(one) == {"run-1"}
        await listener.close()


async def test_a_ring_that_is_lost_with_its_connection_is_sent_again(
    here: Doorbell, database: Database, dsns: Dsns
) -> None:
    (pid,) = await listening(database)
    async with Doorbell(database, CHANNELS) as there:
        with there.subscribe("runnable") as ear:
            run_elsewhere(dsns, f"select pg_terminate_backend({pid}, 10000)")
            here.ring("runnable", ["run-1"])
            assert await heard(ear) == {"run-1"}


async def test_what_is_rung_last_is_sent_before_the_end(there: Doorbell, database: Database) -> None:
    with there.subscribe("runnable") as ear:
        async with Doorbell(database, CHANNELS) as bell:
            bell.ring("runnable", ["run-1"])
        assert await heard(ear) == {"run-1"}


async def test_a_server_that_does_not_answer_holds_up_no_end(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doorbell, "CLOSE_S", 0)
    async with Doorbell(database, CHANNELS) as bell:
        bell.ring("runnable", ["run-1"])
    del bell
    gc.collect()  # a connection that was left open would warn


@pytest.mark.parametrize("id_", ["", "two words", "ä", "x" * 201, "nul\0"])
async def test_what_is_no_id_is_refused(here: Doorbell, id_: str) -> None:
    with pytest.raises(ValueError, match="ids only"):
        here.ring("runnable", [id_])


async def test_a_waiter_that_left_is_forgotten(here: Doorbell) -> None:
    for _ in range(3):
        with here.subscribe("journal", "run-1"), here.subscribe("journal", "run-1"):
            pass
    here.ring("journal", ["run-1"])
    assert here._ears["journal"] == {}
