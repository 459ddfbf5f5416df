"""How often a caller may ask: refused exactly where the limit says, with the words that let a client keep to it."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from served_api import GOAL, Reply, Served, serve, tenant

from sojourn import settings
from sojourn.api.app import served
from sojourn.api.rates.known import Known
from sojourn.errors import Invalid
from sojourn.store.db import Database
from sojourn.store.sharing import limits, rates
from sojourn.store.sharing.rates import Limits, Rate, Rates
from sojourn.store.tenant import keys

HOUR = Rate(3, 3600)
"""Three at once, and the next one after twenty minutes."""
AGENT = {"name": "one", "model": "sim:one"}
PAGE = Path(__file__).parents[2] / "docs/operate/limits.md"


@asynccontextmanager
async def limited(database: Database, **classes: Limits) -> AsyncIterator[Served]:
    async with serve(database, rates=Rates(**{"runs": Limits(), **classes})) as api:
        yield api


async def admitted(api: Served, method: str, path: str, **more: Any) -> Reply:
    """Ask until no limit refuses it."""
    async with asyncio.timeout(30):
        while (reply := await api.call(method, path, **more)).status == 429:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return reply


def statuses(replies: list[Reply]) -> list[int]:
    return [reply.status for reply in replies]


async def test_an_answer_says_what_is_left_and_a_refusal_when_to_come_back(database: Database) -> None:
    async with limited(database, runs=Limits(user=Rate(60, 3600, 2), tenant=Rate(100, 3600))) as api:
        first, second, refused, again = [await api.post("/v1/runs", GOAL) for _ in range(4)]
        assert statuses([first, second, refused, again]) == [202, 202, 429, 429]
        policy = '"runs-tenant";q=100;w=3600;sojourn-burst=100, "runs-user";q=60;w=3600;sojourn-burst=2'
        assert {reply.headers["RateLimit-Policy"] for reply in (first, second, refused, again)} == {policy}
        assert first.headers["RateLimit"] == '"runs-tenant";r=99, "runs-user";r=1'
        assert second.headers["RateLimit"] in [f'"runs-tenant";r=98, "runs-user";r=0;t={t}' for t in (59, 60)]
        assert "Retry-After" not in second.headers
        for reply in (refused, again):
            assert (reply.code, reply.json["retryable"]) == ("limit.rate", True)
            assert reply.json["violated-policies"] == ["runs-user"]
            after_s = int(reply.headers["Retry-After"])
            assert reply.json["retry_after_s"] <= after_s <= 60
            assert f'"runs-user";r=0;t={after_s}' in reply.headers["RateLimit"]
            assert reply.json["detail"] == (
                f"The limit on runs of your user is reached: 60 in 3600 s, 2 at once. The next one fits in {after_s} s."
            )


async def test_what_no_limit_holds_for_is_silent(database: Database) -> None:
    async with limited(database, writes=Limits(user=HOUR)) as api:
        for reply in [await api.post("/v1/runs", GOAL), await api.get("/v1/runs"), await api.get("/healthz")]:
            assert not {"RateLimit-Policy", "RateLimit"} & reply.headers.keys()


async def test_two_servers_admit_together_exactly_what_the_limit_allows(database: Database) -> None:
    async with limited(database, runs=Limits(user=Rate(15, 3600))) as one:
        async with serve(database, tenants=(), rates=one.parts.settings.rates) as two:
            urls = [one, two] * 40
            replies = await asyncio.gather(*(api.post("/v1/runs", GOAL, key=one.key) for api in urls))
        assert statuses(replies).count(202) == 15
        assert set(statuses(replies)) == {202, 429}
        assert len((await one.get("/v1/runs?limit=100")).json["data"]) == 15
        assert (await one.post("/v1/runs", GOAL, key=one.other)).status == 202, "another tenant has its own"
        ann = await one.key_with("*", user="ann")
        assert (await one.post("/v1/runs", GOAL, key=ann)).status == 202, "and another user"


async def test_an_answered_request_that_comes_again_neither_counts_nor_is_refused(database: Database) -> None:
    async with limited(database, runs=Limits(user=HOUR)) as api:
        sent = {"headers": {"Idempotency-Key": "one"}}
        first = await api.post("/v1/runs", GOAL, **sent)
        again = await asyncio.gather(*(api.post("/v1/runs", GOAL, **sent) for _ in range(10)))
        assert {reply.json["run_id"] for reply in again} == {first.json["run_id"]}
        assert again[0].headers["RateLimit"] == '"runs-user";r=2'
        assert statuses([await api.post("/v1/runs", GOAL) for _ in range(3)]) == [202, 202, 429]
        assert (await api.post("/v1/runs", GOAL, **sent)).json == first.json, "although nothing is left"
        other = await api.post("/v1/runs", {**GOAL, "input": "Another."}, **sent)
        assert (other.status, other.code) == (429, "limit.rate"), "the same key with another body is a new request"
        fresh = {"headers": {"Idempotency-Key": "two"}}
        assert (await api.post("/v1/runs", GOAL, **fresh)).status == 429


async def test_a_request_that_is_refused_for_another_reason_counts(database: Database) -> None:
    async with limited(database, runs=Limits(user=HOUR)) as api:
        body = {"agent": "nobody", "input": "go"}
        assert [(await api.post("/v1/runs", body)).status for _ in range(4)] == [422, 422, 422, 429]
        malformed = await api.call("POST", "/v1/runs", data=b"{", headers={"Content-Type": "application/json"})
        assert malformed.status == 429, "what is known is said before the body is read"


async def test_an_agents_limit_is_each_agents_own(database: Database) -> None:
    async with limited(database, runs=Limits(agent=HOUR)) as api:
        for name in ("one", "two"):
            await api.post("/v1/agents", {**AGENT, "name": name})
        by_name, by_path = (
            ("/v1/runs", {"agent": "one", "input": "go"}),
            ("/v1/agents/one/run", {"input": "go", "wait": 0}),
        )
        replies = [await api.post(*asked) for asked in (by_name, by_path, by_name, by_path, by_name)]
        assert statuses(replies) == [202, 202, 202, 429, 429]
        assert "The limit on runs of this agent is reached" in replies[3].json["detail"]
        assert (await api.post("/v1/runs", {"agent": "two", "input": "go"})).status == 202
        for body in (GOAL, {"agent": "nobody", "input": "go"}):
            reply = await api.post("/v1/runs", body)
            assert reply.status in (202, 422)
            assert "RateLimit" not in reply.headers, "it names no agent that there is"


async def test_what_is_known_to_be_used_up_costs_no_query(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, take = [], rates.take

    async def watched(db, takings):
        asked.extend(takings)
        return await take(db, takings)

    monkeypatch.setattr(rates, "take", watched)
    async with limited(database, runs=Limits(user=HOUR)) as api:
        replies = [await api.post("/v1/runs", GOAL) for _ in range(30)]
        assert statuses(replies) == [202] * 3 + [429] * 27
        assert len(asked) == 4
        ann = await api.key_with("*", user="ann")
        assert (await api.post("/v1/runs", GOAL, key=ann)).status == 202
        counted = (await api.get("/metrics")).body.decode()
        assert 'sojourn_rate_limited_total{class="runs",subject="user"} 27\n' in counted
        assert "acme" not in counted


async def test_what_is_used_up_comes_free_again(database: Database) -> None:
    async with limited(database, runs=Limits(user=Rate(60, 6, 1))) as api:
        assert (await api.post("/v1/runs", GOAL)).status == 202
        await admitted(api, "POST", "/v1/runs", json=GOAL)


async def test_an_operators_limit_holds_within_moments(database: Database) -> None:
    async with limited(database, runs=Limits(user=HOUR)) as api:
        assert statuses([await api.post("/v1/runs", GOAL) for _ in range(4)])[-1] == 429
        await limits.set_rates(database, "acme", {"runs.user": Rate(1000, 3600), "reads.tenant": HOUR})
        reply = await admitted(api, "POST", "/v1/runs", json=GOAL)
        assert reply.headers["RateLimit-Policy"] == '"runs-user";q=1000;w=3600;sojourn-burst=1000'
        assert statuses([await api.get("/v1/me") for _ in range(4)]) == [200, 200, 200, 429]
        assert (await api.get("/v1/me", key=api.other)).status == 200, "the limits of the others stay"
        await limits.set_rates(database, "acme", {"reads.tenant": "off"})
        await admitted(api, "GET", "/v1/me")


async def test_an_operators_limit_holds_from_the_first_request_of_a_server(database: Database) -> None:
    await tenant(database, "early")
    await limits.set_rates(database, "early", {"reads.user": Rate(1, 3600)})
    async with serve(database, tenants=()) as api:
        token = await keys.recover(database, tenant="early", user="local")
        assert statuses([await api.get("/v1/me", key=token) for _ in range(2)]) == [200, 429]


async def test_a_stream_that_is_opened_is_no_read(database: Database) -> None:
    async with limited(database, streams=Limits(user=Rate(1, 3600))) as api:
        run_id = (await api.post("/v1/runs", GOAL)).json["run_id"]
        path, accept = f"/v1/runs/{run_id}/events", {"Accept": "text/event-stream"}
        headers = {"Authorization": f"Bearer {api.key}", **accept}
        async with api.http.get(api.url + path, headers=headers) as stream:
            assert stream.headers["RateLimit"].startswith('"streams-user";r=0;t=')
        assert (await api.get(path, headers=accept)).status == 429
        assert (await api.get(path)).status == 200


async def test_a_flood_of_writes_keeps_nobody_from_a_stop(database: Database) -> None:
    async with limited(database, runs=Limits(tenant=HOUR), writes=Limits(tenant=HOUR)) as api:
        run_id = (await api.post("/v1/runs", GOAL)).json["run_id"]
        assert statuses([await api.post("/v1/sessions", {}) for _ in range(4)])[-1] == 429
        stop = {"what": "user", "id": "local"}
        assert (await api.post(f"/v1/runs/{run_id}/cancel")).status == 202
        assert (await api.post("/v1/admin/stops", stop)).status == 202


async def test_a_key_that_cannot_be_one_is_refused_and_takes_nothing(database: Database) -> None:
    async with limited(database, runs=Limits(user=HOUR)) as api:
        for key in ("x" * 256, "é"):
            assert (await api.post("/v1/runs", GOAL, headers={"Idempotency-Key": key})).status == 422
        assert (await api.post("/v1/runs", GOAL)).headers["RateLimit"] == '"runs-user";r=2'


async def test_while_the_database_is_away_what_is_known_holds(database: Database) -> None:
    known = Known(database, Rates(runs=Limits(user=HOUR)))
    await tenant(database, "acme")
    await limits.set_rates(database, "acme", {"runs.user": "off", "reads.user": HOUR})
    await known.look()
    await database.close()
    await known.look()
    assert known.of("acme", "runs") is None
    assert known.of("acme", "reads") == Limits(user=HOUR)
    assert known.of("rival", "runs") == Limits(user=HOUR)


def test_limits_come_from_the_file_and_from_the_environment_before_it(tmp_path: Path) -> None:
    environ = {"SOJOURN_DATA_DIR": str(tmp_path), "SOJOURN_RATES_RUNS_USER": "off", "SOJOURN_RATES_READS_USER": "7/1"}
    file = tmp_path / "sojourn.toml"
    file.write_text('[rates.runs]\ntenant = { max = 9, window_s = 60, burst = 3 }\nuser = "6/60"\nagent = "6/60/2"\n')
    read = settings.load(environ).rates
    assert read.runs == Limits(tenant=Rate(9, 60, 3), agent=Rate(6, 60, 2))
    assert read.reads == Limits(user=Rate(7, 1))
    for wrong in (
        "rates = 3",
        "[rates]\nruns = 3",
        "[rates.cats]",
        '[rates.runs]\ncat = "off"',
        '[rates.runs]\nuser = "6"',
    ):
        file.write_text(wrong)
        with pytest.raises(Invalid):
            settings.load({"SOJOURN_DATA_DIR": str(tmp_path)})


def test_the_page_says_what_each_route_counts_as() -> None:
    told = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|$", PAGE.read_text(), re.MULTILINE))
    named = {class_: set(re.findall(r"`([A-Z]+ /[^`]+)`", routes)) for class_, routes in told.items()}
    made = {class_: {route.name for route in served() if route.rate == class_} for class_ in named}
    assert {**made, "streams": {"GET /v1/runs/{run_id}/events"}} == named
    assert list(named) == list(Rates.__struct_fields__)
