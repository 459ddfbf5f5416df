"""`sojourn usage`: a table, JSON or a sheet, and words for what a sum lacks."""

from typing import Any

import pytest
from console_script import Console
from scripted_api import ScriptedApi, Seen

NONE: dict[str, Any] = {
    "calls": 0, "estimated_calls": 0, "unpriced_calls": 0, "cost": {"usd": "0.000000"}, "known_usd": "0.000000",
    "estimated_usd": "0.000000", "usage": {"input_tokens": 0, "output_tokens": 0},
}  # fmt: skip
SOME = {**NONE, "calls": 1200, "known_usd": "1.500000", "usage": {"input_tokens": 5000, "output_tokens": 70}}
SOME["cost"] = {"usd": "1.500000"}
LACKING = {**SOME, "estimated_calls": 2, "unpriced_calls": 1, "estimated_usd": "0.100000"}
LACKING["cost"] = {"usd": None, "estimated": True}
PAGE: dict[str, Any] = {
    "object": "usage", "since": "2026-10-01T00:00:00Z", "until": "2026-11-01T00:00:00Z", "by": ["model"],
    "complete_since": None, "total": LACKING, "has_more": False, "next": None,
    "data": [{**SOME, "model": "openai:gpt \x1b[2J"}, {**LACKING, "model": "local:m"}],
}  # fmt: skip


async def test_a_table_has_groups_a_total_and_what_they_lack(sojourn: Console, api: ScriptedApi):
    api.answers["GET /v1/usage"] = PAGE
    result = await sojourn("usage", "--since", "7d")
    lines = result.out.splitlines()
    assert lines[0].split() == ["MODEL", "CALLS", "TOKENS", "COST"] and "\x1b" not in result.out
    assert "1,200" in lines[1] and lines[1].endswith("$1.500000")
    assert lines[2].endswith("~$1.500000 + ?") and lines[3].split()[0] == "total"
    assert "2 calls of it by an estimate, $0.100000" in lines[4] and "1 call without a known price" in lines[5]
    (asked,) = api.asked("GET /v1/usage")
    assert asked.query["by"] == "model" and "T" in asked.query["since"] and "until" not in asked.query


async def test_the_empty_state_and_what_was_deleted_are_told(sojourn: Console, api: ScriptedApi):
    api.answers["GET /v1/usage"] = {**PAGE, "total": NONE, "data": [], "complete_since": "2026-10-20T00:00:00Z"}
    out = (await sojourn("usage", "--by", "user,day")).out
    assert "Nothing was paid from 2026-10-01T00:00 to 2026-11-01T00:00" in out and "--since 90d" in out
    assert "Not whole: what was paid before 2026-10-20T00:00" in out
    api.answers["GET /v1/usage"] = {**PAGE, "data": []}
    assert (await sojourn("usage", "--by", "")).out.startswith("1,200 calls · 5,000 tokens in, 70 out · ~$1.500000 + ?")


async def test_what_one_paid_oneself_is_asked_for_page_by_page(sojourn: Console, api: ScriptedApi):
    api.answers["GET /v1/me/usage"] = lambda seen: {**PAGE, "has_more": "after" not in seen.query, "next": "c"}
    assert len((await sojourn("usage", "--me", "--json")).json["data"]) == 4
    assert {seen.path for seen in api.seen} == {"/v1/me/usage"}


async def test_json_holds_every_page(sojourn: Console, api: ScriptedApi):
    def answer(seen: Seen) -> Any:
        return PAGE if seen.query.get("after") == "c" else {**PAGE, "has_more": True, "next": "c"}

    api.answers["GET /v1/usage"] = answer
    found = (await sojourn("usage", "--json")).json
    assert len(found["data"]) == 4 and (found["has_more"], found["next"]) == (False, None)
    assert [seen.query.get("after") for seen in api.asked("GET /v1/usage")] == [None, "c"]


@pytest.mark.parametrize("words", [("--by", "run"), ("--since", "soon"), ("--csv", "--json"), ("--until", "99999999d")])
async def test_a_mistake_is_told_before_the_server_is_asked(sojourn: Console, api: ScriptedApi, words: tuple[str, ...]):
    result = await sojourn("usage", *words)
    assert result.code == 2 and not api.seen
