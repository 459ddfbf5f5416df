"""The sums of what was paid over HTTP: who sees them, as JSON and as a sheet, page by page."""

import csv
import io
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import pytest
from played_worker import Player
from served_api import Served

from sojourn.loop import events as ev

HOSTILE = "=cmd|' /C calc'!A0, \"quoted\"\nand more"
PAY = """
insert into ledger (tenant, run_id, seq, at, user_id, agent_name, provider, model, attempt, input, cache_read,
    cache_write, output, reasoning, usd_micros, estimated)
select $1, 'run_' || n || $3, n, now() - make_interval(days => n % 3),
    case n % 4 when 0 then $3 else 'user' || n % 4 end, 'clerk', 'p', 'm', 1, 10, 0, 0, 2, 0,
    case when n % 7 > 0 then n end, n % 4 = 0
from generate_series(1, $2::int) n
"""


async def pay(api: Served, rows: int = 20, tenant: str = "acme", hostile: str = HOSTILE) -> None:
    async with api.parts.database.engine() as engine:
        await engine.execute(PAY, tenant, rows, hostile)


async def test_a_run_and_its_last_event_say_what_it_cost(api: Served, player: Player) -> None:
    run_id = await api.start()
    play = await player.take(run_id)
    await play.finish("Done.")
    run = (await api.get(f"/v1/runs/{run_id}")).json
    (page,) = [(await api.get("/v1/usage?by=user,model,day")).json]
    assert run["cost"] == {"usd": "0.001500"}
    (group,) = page["data"]
    assert (group["user"], group["model"], group["calls"], group["cost"]) == ("local", "sim:one", 1, run["cost"])
    assert group["usage"] == page["total"]["usage"] == run["usage"]
    assert (page["by"], page["complete_since"], page["has_more"]) == (["user", "model", "day"], None, False)


async def test_sums_say_what_is_estimated_and_what_is_unknown(api: Served) -> None:
    await pay(api)
    page = (await api.get("/v1/usage")).json
    assert page["data"] == []
    total = page["total"]
    assert (total["calls"], total["estimated_calls"], total["unpriced_calls"]) == (20, 5, 2)
    assert total["cost"] == {"usd": None, "estimated": True}
    assert total["known_usd"] == f"0.{sum(n for n in range(1, 21) if n % 7):06}"
    since, until = (datetime.fromisoformat(page[name]) for name in ("since", "until"))
    assert timedelta(days=29) <= until - since <= timedelta(days=30) and since.hour == since.minute == 0


async def test_nobody_sees_more_than_its_tenant_and_with_the_scope(api: Served) -> None:
    await pay(api, tenant="rival")
    assert (await api.get("/v1/usage?by=tenant")).json["total"]["calls"] == 0
    assert (await api.get("/v1/usage?by=tenant", key=api.other)).json["data"][0]["tenant"] == "rival"
    narrow = await api.key_with("runs:*", "admin:keys")
    assert (await api.get("/v1/usage", key=narrow)).code == "auth.forbidden"
    assert (await api.get("/v1/usage", key=await api.key_with("usage:read"))).status == 200


async def test_pages_go_on_with_the_same_question(api: Served) -> None:
    await pay(api)
    every = (await api.get("/v1/usage?by=day,user")).json["data"]
    found: list[Any] = []
    path = "/v1/usage?by=day,user&limit=5"
    while path:
        page = (await api.get(path)).json
        found += page["data"]
        path = f"/v1/usage?by=day,user&limit=5&after={quote(page['next'])}" if page["has_more"] else ""
    assert found == every and len(every) == 12
    first = (await api.get("/v1/usage?by=day&limit=1")).json["next"]
    assert (await api.get(f"/v1/usage?by=user&after={quote(first)}")).pointer == "/after"


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("by=run", "/by"),
        ("by=user,user", "/by"),
        ("since=2026-01-01T00:00:00Z&until=2025-01-01T00:00:00Z", "/since"),
        ("since=2024-01-01T00:00:00Z&until=2026-01-01T00:00:00Z", "/since"),
        ("until=0001-01-01T00:00:00Z", "/until"),
        ("since=9999-12-30T23:59:59-23:59&until=9999-12-31T23:59:59-23:59", "/until"),
        ("since=0001-01-01T00:00:00%2B23:59&until=0001-01-02T00:00:00Z", "/since"),
        ("since=2026-01-01T00:00:00", "/since"),
        ("after=bm8", "/after"),
        ("after=%F0%9F%92%A9", "/after"),
        ("limit=1001", "/limit"),
        ("limit=0", "/limit"),
        ("format=xls", "/format"),
    ],
)
async def test_a_question_that_cannot_be_answered_is_refused(api: Served, query: str, pointer: str) -> None:
    refused = await api.get(f"/v1/usage?{query}")
    assert (refused.status, refused.code, refused.pointer) == (422, "request.invalid", pointer)


async def test_a_sheet_is_csv_without_formulas(api: Served) -> None:
    await pay(api)
    sheet = await api.get("/v1/usage?by=user,day", headers={"Accept": "text/csv"})
    assert sheet.headers["Content-Type"].startswith("text/csv; charset=utf-8")
    text = sheet.body.decode()
    assert text.endswith("\r\n")
    heads, *lines = csv.reader(io.StringIO(text, newline=""))
    assert heads[:5] == ["user", "day", "calls", "estimated_calls", "unpriced_calls"]
    assert {line[0] for line in lines} == {f"'{HOSTILE}", "user1", "user2", "user3"}
    assert sum(int(line[2]) for line in lines) == 20
    for mark in "=+-@\t\r":
        await pay(api, 4, hostile=f"{mark}1")
    sheet = await api.get("/v1/usage?by=user&format=csv&limit=2")
    assert 'rel="next"' in sheet.headers["Link"]
    cells: set[str] = set()
    while True:
        _, *lines = csv.reader(io.StringIO(sheet.body.decode(), newline=""))
        cells |= {line[0] for line in lines}
        if "Link" not in sheet.headers:
            break
        sheet = await api.get(sheet.headers["Link"].partition(">")[0][1:])
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))] and len(cells) == 10


async def test_a_call_that_was_given_up_is_told_with_its_cost(api: Served, player: Player) -> None:
    run_id = await api.start()
    play = await player.take(run_id)
    play.asked()
    await play.commit()
    bill = ev.Bill(model="sim:one", usage=ev.Usage(input=7), usd_micros=12, estimated=True)
    play.happened(ev.ModelLost(at=datetime.now(UTC), frame="/", step=0, attempt=1, bill=bill, given_up=True))
    play.happened(ev.Cancelled(at=datetime.now(UTC), by="ann"))
    await play.commit(release="cancelled")
    events = (await api.get(f"/v1/runs/{run_id}/events")).json["data"]
    (ended,) = [event for event in events if event["type"] == "model.request_finished"]
    assert (ended["error"]["code"], ended["cost"]) == ("model.given_up", {"usd": "0.000012", "estimated": True})
    spans = (await api.get(f"/v1/runs/{run_id}/trace")).json["spans"]
    (span,) = [span for span in spans if span["kind"] == "model"]
    assert (span["status"], span["usage"]["input_tokens"]) == ("cancelled", 7)
