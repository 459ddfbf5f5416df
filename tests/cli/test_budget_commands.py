"""`sojourn budgets`: what may be spent in a day, and what is left."""

from typing import Any

from console_script import Console
from scripted_api import AT, ScriptedApi


def pool(user: str | None, limit: str | None) -> dict[str, Any]:
    money = {"limit": limit, "spent": "1.500000", "held": "0.250000", "left": limit and "3.250000"}
    tokens = {"limit": None, "spent": 700, "held": 0, "left": None}
    return {"pool": "user" if user else "tenant", "user": user, "resets_at": AT, "usd": money, "tokens": tokens}


def page(*pools: dict[str, Any], next: str | None = None) -> dict[str, Any]:
    own = {"whose": "users", "user": None, "usd": None, "tokens": None}
    return {"data": pools, "users": own, "has_more": next is not None, "next": next}


async def test_pools_are_listed_over_all_pages(sojourn: Console, api: ScriptedApi):
    pages = {None: page(pool(None, "5.000000"), next="ann"), "ann": page(pool("bob\x1b[2J", None))}
    api.answers["GET /v1/budgets"] = lambda asked: pages[asked.query.get("after")]
    shown = await sojourn("budgets", "list")
    lines = shown.out.splitlines()
    assert lines[1].split() == ["tenant", "5.000000", "1.500000", "0.250000", "3.250000", "-", "700", "0", "-"]
    assert lines[2].startswith("user bob") and "\x1b" not in shown.out and AT in shown.err
    assert len((await sojourn("budgets", "list", "--json")).json["data"]) == 2
    await sojourn("budgets", "list", "--user", "bob")
    assert api.asked("GET /v1/budgets")[-1].query["user"] == "bob"


async def test_where_nothing_is_bounded_it_says_how(sojourn: Console, api: ScriptedApi):
    api.answers["GET /v1/budgets"] = page(pool(None, None))
    assert "sojourn budgets set --users --usd 5" in (await sojourn("budgets", "list")).err


async def test_bounds_are_set_for_whom_they_are_meant(sojourn: Console, api: ScriptedApi):
    made = {"whose": "user", "user": "a/b", "usd": "5.000000", "tokens": 700}
    for path in ("tenant", "users", "users/a/b"):
        api.answers[f"PUT /v1/budgets/{path}"] = made
    done = await sojourn("budgets", "set", "--user", "a/b", "--usd", "5", "--tokens", "700")
    assert done.out == "User a/b: 5.000000 US dollars and 700 tokens a day\n"
    api.answers["PUT /v1/budgets/tenant"] = {**made, "whose": "tenant", "usd": None, "tokens": None}
    assert (await sojourn("budgets", "set", "--tenant", "--usd", "none")).out == "The tenant: no bound of yours\n"
    assert (await sojourn("budgets", "set", "--users", "--tokens", "0", "--json")).json == made
    bodies = [one.json for one in api.seen if one.method == "PUT"]
    assert bodies == [{"usd": "5", "tokens": 700}, {"usd": None, "tokens": None}, {"usd": None, "tokens": 0}]


async def test_what_cannot_be_meant_is_told(sojourn: Console, api: ScriptedApi):
    for words in (
        *((), ("--usd", "5"), ("--tenant",), ("--tenant", "--users", "--usd", "5")),
        *(("--tenant", "--usd", "-5"), ("--tenant", "--usd", "1e9"), ("--tenant", "--tokens", "1.5")),
    ):
        assert (await sojourn("budgets", "set", *words)).code == 2, words
    assert api.seen == []
