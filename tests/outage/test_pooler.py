"""Behind a pooler that gives every transaction another connection, with and without prepared statements."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.installation import Installation, installed
from tests.own_postgres import OwnPostgres, own_postgres
from tests.pooler import Pooler, pooled

from sojourn.errors import Invalid, StoreUnavailable
from sojourn.models.simulator.script import Call, Pacing, Rule, Script, When
from sojourn.store.db import Options, connect
from sojourn.store.roles import Dsns

LOGINS = (
    "alter role sojourn_api login",
    "alter role sojourn_engine login",
    "create role front login in role sojourn_api",
)
SCRIPT = Script(
    pacing=Pacing(chunk_tokens=1, tokens_per_s=40),
    rules=(
        Rule(when=When(model="slow"), text="word " * 30),
        Rule(when=When(step=0), calls=(Call("shell", {"command": "echo hello > file; cat file"}),)),
        Rule(when=When(step=1), calls=(Call("ask_user", {"question": "And now?"}),)),
        Rule(text="all done"),
    ),
)


@pytest.fixture(scope="module")
async def postgres() -> AsyncIterator[OwnPostgres]:
    """A server with our roles, which may log in."""
    async with own_postgres() as postgres:
        await (await connect(postgres.url)).close()
        await postgres.say(*LOGINS)
        yield postgres


def urls(postgres: OwnPostgres, host: str) -> dict[str, str]:
    """The settings of a process behind a pooler."""
    return {
        "SOJOURN_DATABASE_URL": postgres.url,
        "SOJOURN_DATABASE_URL_API": f"postgresql://sojourn_api@/sojourn?host={host}",
        "SOJOURN_DATABASE_URL_ENGINE": f"postgresql://sojourn_engine@/sojourn?host={host}",
    }


def dsns(postgres: OwnPostgres, host: str) -> Dsns:
    return Dsns(*urls(postgres, host).values())


@pytest.mark.parametrize("pooler_is", ["transaction", "prepared"])
async def test_runs_go_through_a_transaction_pooler(data_dir: Path, postgres: OwnPostgres, pooler_is: str) -> None:
    async with pooled(postgres.home.run, keeps=pooler_is == "prepared") as (pooler, host):
        env = urls(postgres, host) | {"SOJOURN_DATABASE_POOLER": pooler_is, "SOJOURN_LEASE_S": "300"}
        async with installed(data_dir, SCRIPT, env=env) as installation:
            await see_a_run(installation)
            await see_a_takeover(installation, pooler)
            assert pooler.transactions > 100
        await postgres.say("truncate tenant, api_key cascade")


async def see_a_run(installation: Installation) -> None:
    """A run with a tool, a question and its stream."""
    run_id = await installation.run(model="openai:sim", input="go", tools=["shell", "ask_user"])
    (wait,) = (await installation.until(run_id, "suspended"))["waits"]
    await installation.post(f"/v1/approvals/{wait['approval']}", {"decision": "answer", "text": "nothing"})
    run = await installation.until(run_id)
    assert (run["status"], run["output"]) == ("completed", "all done")
    types = [event["type"] for event in await installation.events(run_id)]
    assert (types.count("agent.tool_result"), types.count("approval.resolved")) == (1, 1)


async def see_a_takeover(installation: Installation, pooler: Pooler) -> None:
    """A worker that dies is seen at once, for its lock is on the server; and a restart of the pooler costs nothing."""
    run_id = await installation.run(model="openai:slow", input="go")
    deltas = 0
    async with installation.http.get(f"/v1/runs/{run_id}/events", headers={"Accept": "text/event-stream"}) as response:
        async for line in response.content:
            deltas += line.startswith(b"event: delta.")
            if deltas == 5:
                break
    await installation.start_worker()
    installation.workers[0].kill()
    pooler.cut()
    run = await installation.until(run_id)
    assert (run["status"], run["steps"]) == ("completed", 1)


async def test_a_pooler_that_nobody_spoke_of_is_named_at_the_start(postgres: OwnPostgres) -> None:
    async with pooled(postgres.home.run) as (_, host):
        with pytest.raises(StoreUnavailable, match="SOJOURN_DATABASE_POOLER") as refused:
            await connect(f"postgresql://operator@/sojourn?host={host}")
        assert refused.value.code == "store.pooler"


async def test_a_pooler_needs_a_way_past_it(postgres: OwnPostgres) -> None:
    with pytest.raises(Invalid, match="go straight to the server"):
        await connect(postgres.url, Options(pooler="transaction"))
    async with pooled(postgres.home.run) as (_, host):
        everything = Dsns(
            *(f"postgresql://{user}@/sojourn?host={host}" for user in ("operator", "sojourn_api", "sojourn_engine"))
        )
        with pytest.raises(StoreUnavailable, match="straight to the server") as refused:
            await connect(everything, Options(pooler="transaction"))
        assert refused.value.code == "store.pooler"


async def test_a_login_that_is_not_the_role_is_refused_until_it_takes_it_on(postgres: OwnPostgres) -> None:
    async with pooled(postgres.home.run) as (_, host):
        whole = dsns(postgres, host)
        front = Dsns(whole.migrate, whole.api.replace("sojourn_api", "front"), whole.engine)
        with pytest.raises(StoreUnavailable, match="acts as front") as refused:
            await connect(front, Options(pooler="transaction"))
        assert refused.value.code == "store.roles"
        await postgres.say(str(refused.value).rpartition("run: ")[2])
    async with pooled(postgres.home.run) as (_, host):
        front = Dsns(whole.migrate, f"postgresql://front@/sojourn?host={host}", dsns(postgres, host).engine)
        await (await connect(front, Options(pooler="transaction"))).close()


async def test_the_connection_changes_with_every_transaction(postgres: OwnPostgres) -> None:
    whole = Options(pooler="transaction")
    async with pooled(postgres.home.run) as (_, host), await connect(dsns(postgres, host), whole) as database:
        async with database.engine() as engine:
            assert len({await engine.fetchval("select pg_backend_pid()") for _ in range(6)}) > 1
        async with database.engine() as engine, engine.transaction():
            assert len({await engine.fetchval("select pg_backend_pid()") for _ in range(6)}) == 1
    wrong = Options(pooler="prepared")
    async with pooled(postgres.home.run) as (_, host), await connect(dsns(postgres, host), wrong) as database:
        with pytest.raises(StoreUnavailable, match="SOJOURN_DATABASE_POOLER=transaction") as refused:
            async with database.engine() as engine:
                for _ in range(2):
                    await engine.fetchval("select 1")
        assert refused.value.code == "store.pooler"
