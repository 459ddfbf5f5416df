"""`sojourn keys`: what is asked of the API, and what is shown of keys."""

import re

from console_script import Console
from scripted_api import AT, ScriptedApi, page

KEY = {
    "id": "key_1", "name": "ci", "prefix": "sk_ab", "user_id": "local", "scopes": ["runs:read"], "created_at": AT,
    "expires_at": "2097-03-01T12:00:00Z", "revoked_at": None, "last_used_at": None, "replaced_by": None,
}  # fmt: skip


async def test_keys_are_listed_with_their_state_their_end_and_their_last_use(api: ScriptedApi, sojourn: Console):
    api.answers["GET /v1/keys"] = page(
        KEY,
        {**KEY, "id": "key_2", "expires_at": None, "last_used_at": AT},
        {**KEY, "id": "key_3", "replaced_by": "key_2"},
        {**KEY, "id": "key_4", "expires_at": AT},
        {**KEY, "id": "key_5", "revoked_at": AT, "confined": True},
    )
    head, *rows = (await sojourn("keys", "list")).out.splitlines()
    assert head.split() == ["KEY", "NAME", "USER", "STATE", "EXPIRES", "LAST", "USED", "SCOPES"]
    assert [row.endswith("runs:read (confined)") for row in rows] == [False] * 4 + [True]
    shown = {row.split()[0]: re.split(r"\s{2,}", row)[3:6] for row in rows}
    assert re.fullmatch(r"in \d+ d", shown["key_1"][1])
    assert (shown["key_1"][0], shown["key_1"][2]) == ("active", "-")
    assert shown["key_2"][:2] == ["active", "never"]
    assert shown["key_2"][2].endswith(" d ago")
    assert [shown[f"key_{n}"][0] for n in (3, 4, 5)] == ["replaced", "expired", "revoked"]
    assert [shown[f"key_{n}"][1] for n in (4, 5)] == ["-", "-"]


async def test_a_key_is_replaced_by_one_that_is_alone_on_standard_output(api: ScriptedApi, sojourn: Console):
    api.answers["POST /v1/keys/key_1/replace"] = {**KEY, "id": "key_2", "key": "sk_secret"}
    result = await sojourn("keys", "replace", "key_1", "--overlap", "3d")
    assert result.out == "sk_secret\n"
    assert "key_1 is good for 3d more" in result.err
    assert api.seen[-1].json == {"overlap_s": 259200}
    assert "Idempotency-Key" not in api.seen[-1].headers
    assert (await sojourn("keys", "replace", "key_1", "--json")).json["key"] == "sk_secret"
    assert api.seen[-1].json == {"overlap_s": 86400}
    assert (await sojourn("keys", "replace", "key_1", "--overlap", "soon")).code == 2


async def test_the_overlap_of_a_rotation_is_said_as_that_of_a_key(sojourn: Console):
    for wrong, told in (("soon", "15m, 2h or 3d"), ("366d", "365d at most"), ("-1h", "--overlap"), ("inf", "15m")):
        result = await sojourn("keys", "rotate", "--hooks", "--overlap", wrong)
        assert result.code == 2
        assert told in result.err


async def test_a_token_of_an_identity_provider_is_sent_as_a_key_is(api: ScriptedApi, sojourn: Console):
    api.answers["GET /v1/keys"] = page()
    assert (await sojourn("keys", "list", SOJOURN_API_KEY="eyJhbGc.eyJpc3M.c2ln")).code == 0
    assert api.seen[-1].headers["Authorization"] == "Bearer eyJhbGc.eyJpc3M.c2ln"


async def test_a_new_key_is_alone_on_standard_output(api: ScriptedApi, sojourn: Console):
    api.answers["POST /v1/keys"] = {**KEY, "key": "sk_secret"}
    result = await sojourn("keys", "create", "ci", "--days", "30", "--scope", "runs:read", "--user", "bot")
    assert result.out == "sk_secret\n"
    assert api.seen[-1].json == {"name": "ci", "user": "bot", "scopes": ["runs:read"], "expires_in_s": 2592000}
    assert "Idempotency-Key" not in api.seen[-1].headers
    await sojourn("keys", "create", "ann", "--user", "ann", "--confined")
    assert api.seen[-1].json == {"name": "ann", "user": "ann", "confined": True}
    api.answers["DELETE /v1/keys/key_1"] = b""
    assert (await sojourn("keys", "revoke", "key_1")).out == "key_1 is revoked\n"
