"""What an operator does on the server's machine: makes a lost key anew, and has the doctor look at the database."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest
from console_script import Console, operators
from tests.installation import Installation
from tests.own_postgres import OwnPostgres, own_postgres


async def test_a_lost_local_key_is_made_anew_beside_a_running_server(installation: Installation, data_dir: Path):
    sojourn, path = operators(data_dir, installation.url), data_dir / "local.key"
    lost = path.read_text().strip()
    other = (await sojourn("keys", "create", "ci")).out.strip()
    path.unlink()
    refused = await sojourn("runs")
    assert refused.code == 4
    assert "`sojourn keys recover` makes it anew" in refused.err

    made = await sojourn("keys", "recover")
    assert (made.code, made.out) == (0, f"The new local key is in {path}; `sojourn` finds it there.\n")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text().strip() not in made.out + made.err
    assert (await sojourn("keys", "create", "another")).code == 0, "it may do everything"
    states = {row.split()[0]: row for row in (await sojourn("keys", "list")).out.splitlines()[1:]}
    assert sum("first key" in row and "revoked" in row for row in states.values()) == 1
    assert sum("first key" in row and "active" in row for row in states.values()) == 1
    assert (await sojourn("runs", SOJOURN_API_KEY=other)).code == 0, "every other key stays as it is"
    await installation.stop()
    (data_dir / "api.log").unlink()
    await installation.start_api("--no-worker")
    again = operators(data_dir, installation.url)
    assert (await again("runs", SOJOURN_API_KEY=lost)).code == 4, "nobody remembers the lost one now"
    assert (await again("runs")).code == 0


async def test_an_operator_sets_what_a_tenant_may_use(installation: Installation, data_dir: Path):
    sojourn = operators(data_dir)
    done = await sojourn("tenants", "set", "default", "--runs-max", "20", "--queued-max", "0")
    assert (done.code, done.out) == (0, "default: runs_max 20, queued_max 0\n")
    body = {"agent": {"model": "openai:gpt-5"}, "input": "go"}
    assert (await installation.post("/v1/runs", body, expect=429))["code"] == "limit.queue"
    await sojourn("tenants", "set", "default", "--queued-max", "none")
    await installation.post("/v1/runs", body)
    await sojourn("tenants", "set", "default", "--runs-kept-days", "30")
    money = await sojourn("tenants", "set", "default", "--usd-day", "0.25", "--user-tokens-day", "700")
    assert money.out == "default: usd_day 0.250000, user_tokens_day 700\n"
    shown = await sojourn("tenants", "list")
    assert [" ".join(line.split()) for line in shown.out.splitlines()] == [
        "TENANT QUEUED RUNNING RUNS MAX QUEUED MAX RUNS KEPT DAYS LEDGER KEPT DAYS "
        "USD DAY TOKENS DAY USER USD DAY USER TOKENS DAY RATES",
        "default 1 0 20 - 30 - 0.250000 - - 700 -",
    ]
    listed = await sojourn("tenants", "list", "--json")
    limits = {"runs_max": 20, "queued_max": None, "runs_kept_days": 30, "ledger_kept_days": None, "rates": {}}
    limits |= {"usd_day_micros": 250_000, "tokens_day": None, "user_usd_day_micros": None, "user_tokens_day": 700}
    assert msgspec.json.decode(listed.out) == {"data": [{"id": "default", "queued": 1, "running": 0, **limits}]}
    for words, code in (
        (("nobody", "--runs-max", "1"), 1),
        (("default",), 2),
        (("default", "--runs-max", "-1"), 2),
        *((("default", "--usd-day", wrong), 2) for wrong in ("-1", "1e3", "", ".", "1.0000001", "9" * 10)),
    ):
        assert (await sojourn("tenants", "set", *words)).code == code, words


async def test_a_key_can_be_printed_instead(installation: Installation, data_dir: Path):
    sojourn = operators(data_dir, installation.url)
    before = (data_dir / "local.key").read_text()
    printed = (await sojourn("keys", "recover", "--print")).out.strip()
    assert (await sojourn("runs", SOJOURN_API_KEY=printed)).code == 0
    assert (data_dir / "local.key").read_text() == before
    told = (await sojourn("keys", "recover", "--print", "--json")).json
    assert (await sojourn("runs", SOJOURN_API_KEY=told["key"])).code == 0


async def test_where_there_is_no_installation_no_key_is_made_and_no_database(tmp_path: Path):
    result = await operators(tmp_path / "empty")("keys", "recover")
    assert result.code == 1
    assert "There is no installation in" in result.err
    assert not (tmp_path / "empty").exists()


# ---- an operator's own database --------------------------------------------------------------


@pytest.fixture
async def postgres() -> AsyncIterator[OwnPostgres]:
    async with own_postgres() as postgres:
        yield postgres


async def findings(sojourn: Console) -> dict[str, Any]:
    return {one["name"]: one for one in (await sojourn("doctor", "--json")).json["findings"]}


async def test_the_doctor_finds_what_weakens_the_walls_and_says_how_to_mend_it(data_dir: Path, postgres: OwnPostgres):
    sojourn = operators(data_dir, SOJOURN_DATABASE_URL=postgres.url)
    found = await findings(sojourn)
    assert (found["database schema"]["ok"], found["database schema"]["detail"][:4]) == (None, "0 of")
    for words in ("keys recover", "tenants list", "stops", "stop --all", "audit head --operator"):
        assert "no installation of this release" in (await sojourn(*words.split())).err, words
    installation = Installation(data_dir, "http://127.0.0.1:9", {"SOJOURN_DATABASE_URL": postgres.url})
    try:
        await installation.start_api("--no-worker")
        found = await findings(sojourn)
        names = ("database", "database schema", "database roles", "row level security")
        assert [found[name]["ok"] for name in names] == [True] * 4
        assert "database logins" not in found
        assert (await sojourn("keys", "recover")).code == 0
        await weaken(postgres)
        result = await sojourn("doctor")
        assert result.code == 1
        assert "✗ database roles: sojourn_api may do too much" in result.out
        assert "alter role sojourn_api nosuperuser nobypassrls nocreaterole;" in result.out
        assert "✗ row level security: not forced on run" in result.out
        assert "alter table run enable row level security, force row level security;" in result.out
        await mend(postgres, result.out)
        assert (await findings(sojourn))["database roles"]["ok"] is True
        assert (await findings(sojourn))["row level security"]["ok"] is True
    finally:
        await installation.stop()


async def weaken(postgres: OwnPostgres) -> None:
    admin = await asyncpg.connect(postgres.superuser_url)
    await admin.execute("alter role sojourn_api bypassrls")
    await admin.execute("alter table run no force row level security")
    await admin.close()


async def mend(postgres: OwnPostgres, advice: str) -> None:
    """Do what the doctor says, word for word."""
    admin = await asyncpg.connect(postgres.superuser_url)
    for line in advice.splitlines():
        if "alter " in line:
            await admin.execute("alter " + line.partition("alter ")[2])
    await admin.close()


async def test_the_doctor_tells_a_login_that_could_climb_over(data_dir: Path, postgres: OwnPostgres):
    found = await findings(operators(data_dir, SOJOURN_DATABASE_URL=postgres.superuser_url))
    assert found["database logins"]["ok"] is None
    assert "postgres could pass row level security" in found["database logins"]["detail"]
    assert "SOJOURN_DATABASE_URL_API" in found["database logins"]["hint"]
