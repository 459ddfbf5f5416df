"""What operators see, and what a caller sees when something is broken."""

import asyncio
import logging
import re

import pytest
from played_worker import Player
from reading import follow
from served_api import GOAL, Served, serve
from wire import wired

from sojourn.api.runs import routes as runs_routes
from sojourn.store.db import connect
from sojourn.store.migrate import migrate
from sojourn.store.roles import Dsns


async def test_a_ready_server_says_so_without_a_key(api: Served) -> None:
    for path in ("/healthz", "/readyz"):
        reply = await api.get(path, key="")
        assert (reply.status, reply.json) == (200, {"status": "ok"})


async def test_a_server_without_its_schema_is_up_and_not_ready(blank: Dsns) -> None:
    async with await connect(blank) as database, serve(database, tenants=()) as api:
        assert (await api.get("/healthz", key="")).status == 200
        reply = await api.get("/readyz", key="")
        assert (reply.status, reply.code) == (503, "store.unavailable")
        assert "0001" in reply.json["detail"] or "scope" in reply.json["detail"]


async def test_metrics_count_requests_and_runs(api: Served, player: Player) -> None:
    await api.start()
    await api.get("/v1/runs/run_00000000000000000000000000")
    text = (await api.get("/metrics")).body.decode()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert values['sojourn_http_requests_total{method="POST",route="/v1/runs",status="202"}'] == "1"
    assert values['sojourn_http_requests_total{method="GET",route="/v1/runs/{run_id}",status="404"}'] == "1"
    assert values['sojourn_runs{status="queued"}'] == "1"
    assert (values["sojourn_queue_depth"], values["sojourn_workers"], values["sojourn_leases"]) == ("1", "1", "0")
    assert float(values["sojourn_queue_oldest_seconds"]) >= 0
    assert values['sojourn_http_request_seconds_bucket{le="+Inf"}'] == values["sojourn_http_request_seconds_count"]
    for name in {line.split("{")[0].split(" ")[0] for line in values}:
        base = re.sub(r"_(bucket|sum|count)$", "", name)
        assert f"# TYPE {base} " in text, name


async def test_every_answer_has_an_id_and_safe_headers(api: Served) -> None:
    for path in ("/v1/runs", "/v1/nowhere", "/healthz", "/docs", "/v1/runs?limit=0"):
        reply = await api.get(path)
        assert reply.headers["X-Request-Id"].startswith("req_")
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
        assert reply.headers["Cache-Control"] == "no-store"
        assert reply.headers["Server"] == "sojourn"
        assert "default-src 'none'" in reply.headers["Content-Security-Policy"]


async def test_a_callers_request_id_is_kept_when_it_is_sane(api: Served) -> None:
    reply = await api.get("/v1/nowhere", headers={"X-Request-Id": "abc-12345"})
    assert reply.headers["X-Request-Id"] == reply.json["request_id"] == "abc-12345"
    for odd in ("short", "x" * 129, "<script>alert</script>"):
        assert (await api.get("/v1/nowhere", headers={"X-Request-Id": odd})).headers["X-Request-Id"] != odd


async def test_a_request_is_one_line_in_the_log_without_secrets(api: Served, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "sojourn.api"):
        run_id = await api.start({"input": "my secret plan"})
        await api.get(f"/v1/runs/{run_id}")
    lines = [record.__dict__ for record in caplog.records if record.message == "http.request"]
    assert [(line["method"], line["route"], line["status"]) for line in lines] == [
        ("POST", "/v1/runs", 202),
        ("GET", "/v1/runs/{run_id}", 200),
    ]
    assert (lines[1]["run"], lines[1]["tenant"]) == (run_id, "acme")
    assert lines[1]["key"].startswith("key_")
    assert not any("secret plan" in str(line) or api.key in str(line) for line in lines)


async def test_a_bug_is_logged_once_and_tells_the_caller_nothing(
    api: Served, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs_routes, "seen", lambda run: {}["the inside"])
    reply = await api.get(f"/v1/runs/{await api.start()}")
    assert (reply.status, reply.code) == (500, "sojourn.bug")
    assert b"inside" not in reply.body
    bugs = [record for record in caplog.records if record.message == "http.bug"]
    assert [record.__dict__["request"] for record in bugs] == [reply.json["request_id"]]


async def test_an_outage_is_an_answer_and_the_server_comes_back(blank: Dsns) -> None:
    async with wired(blank) as (wire, dsns), await connect(dsns) as database:
        await migrate(database)
        async with serve(database) as api:
            run_id = await api.start()
            async with follow(api, run_id) as reading:
                await reading.until("user.message")
                wire.cut()
                reply = await api.post("/v1/runs", GOAL)
                assert (reply.status, reply.code, reply.json["retryable"]) == (503, "store.unavailable", True)
                assert "Retry-After" in reply.headers
                assert (await api.get("/healthz")).status == 200
                assert (await api.get("/readyz")).status == 503
                assert "sojourn_database_up 0" in (await api.get("/metrics")).body.decode()
                wire.mend()
                async with asyncio.timeout(20):
                    while (reply := await api.get(f"/v1/runs/{run_id}")).status == 503:
                        pass
                assert reply.json["status"] == "queued"
                player = await Player.start(database, api.parts.doorbell.ring)
                await (await player.take(run_id)).finish("1998.")
                assert (await reading.rest())[-1].event == "run.completed", "the stream outlived the outage"
                await player.close()
