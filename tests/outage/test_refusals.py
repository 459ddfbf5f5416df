"""A database that is there and refuses: no connection left, no login, nothing but reading. All wait, and then go on."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from tests.conftest import until
from tests.installation import Installation, installed
from tests.own_postgres import FLAGS, OwnPostgres, own_postgres

GOAL: dict[str, Any] = {"input": "Talk.", "agent": {"model": "openai:sim-tokens-40-rate-20"}}
CONNECTIONS_MAX, POOL = 24, 2
END_OURS = "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'operator'"


@pytest.fixture(scope="module")
async def postgres() -> AsyncIterator[OwnPostgres]:
    async with own_postgres((*FLAGS, "-c", f"max_connections={CONNECTIONS_MAX}")) as postgres:
        yield postgres


@asynccontextmanager
async def all_taken(postgres: OwnPostgres) -> AsyncIterator[None]:
    """Others have all connections but those that are kept for the superuser."""
    taken: list[asyncpg.Connection] = []
    try:
        async with asyncio.timeout(30):
            while len(taken) < CONNECTIONS_MAX - 3:
                try:
                    taken.append(await asyncpg.connect(postgres.url))
                except asyncpg.TooManyConnectionsError:
                    theirs = "application_name like 'sojourn%' and usename = 'operator'"
                    await postgres.say(f"select pg_terminate_backend(pid) from pg_stat_activity where {theirs}")
        yield
    finally:
        for connection in taken:
            await connection.close()


@asynccontextmanager
async def no_login(postgres: OwnPostgres) -> AsyncIterator[None]:
    """The login is refused, as while a password is changed."""
    await postgres.say("alter role operator nologin", END_OURS)
    yield
    await postgres.say("alter role operator login")


@asynccontextmanager
async def reading_only(postgres: OwnPostgres) -> AsyncIterator[None]:
    """The server takes no writes, as some do before their disk is full, and every demoted one does."""
    await postgres.say("alter system set default_transaction_read_only = on", "select pg_reload_conf()")
    yield
    await postgres.say("alter system reset default_transaction_read_only", "select pg_reload_conf()")


TROUBLES = {all_taken: "max_connections", no_login: "refuses the login", reading_only: "can only be read"}


async def readiness(installation: Installation, status: int, words: str) -> None:
    """Wait until /readyz has this status and says these words."""
    async with asyncio.timeout(60):
        while True:
            async with installation.http.get("/readyz") as response:
                if response.status == status and words in await response.text():
                    return
            await asyncio.sleep(0.05)


@pytest.fixture(scope="module")
async def here(postgres: OwnPostgres) -> AsyncIterator[Installation]:
    """One installation for all these tests."""
    env = {"SOJOURN_DATABASE_URL": postgres.url, "SOJOURN_DATABASE_CONNECTIONS_MAX": str(POOL)}
    with tempfile.TemporaryDirectory(prefix="sojourn-test-") as folder:
        async with installed(Path(folder), env=env) as installation:
            yield installation


@pytest.mark.parametrize("trouble", TROUBLES)
async def test_what_is_refused_is_waited_for(here: Installation, postgres: OwnPostgres, trouble: Any) -> None:
    runs = [await here.run(**GOAL) for _ in range(6)]
    await here.until(runs[0], "running")
    async with trouble(postgres):
        await readiness(here, 503, TROUBLES[trouble])
        async with here.http.post("/v1/runs", json=GOAL) as response:
            assert (response.status, response.headers["Retry-After"]) == (503, "1")
        late = await here.start("worker", "--wait-database", "60", name=trouble.__name__)
        log = here.data_dir / f"{trouble.__name__}.log"
        await until(lambda: "store.awaited" in log.read_text())
        worker_log = (here.data_dir / "worker.log").read_text()
    await readiness(here, 200, "ok")
    runs.append(await here.run(**GOAL))
    ended = [await here.until(run_id) for run_id in runs]
    assert {(run["status"], run["steps"]) for run in ended} == {("completed", 1)}, here.tail()
    assert TROUBLES[trouble] in log.read_text() and TROUBLES[trouble] in worker_log
    assert worker_log.count("worker.store_away") <= 4 * 2 * len(TROUBLES), "each loop says it, and not twice a second"
    assert all(process.returncode is None for process in here.processes)
    late.terminate()
    await late.wait()
    here.processes.remove(late)


async def test_a_process_uses_no_more_connections_than_it_may(here: Installation, postgres: OwnPostgres) -> None:
    most = 0
    runs = [await here.run(**GOAL) for _ in range(20)]
    while not all([(await here.get(f"/v1/runs/{run_id}"))["status"] == "completed" for run_id in runs]):
        ((count,),) = await postgres.say("select count(*) from pg_stat_activity where usename = 'operator'")
        most = max(most, count)
    assert POOL <= most <= 2 * (2 * POOL) + 2 + 1, "two pools in each process, two bells, and a worker's life"
