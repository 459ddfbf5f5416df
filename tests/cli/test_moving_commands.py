"""`sojourn export`, `import`, `fork`, `release`, `seals` and `trust`."""

import json
from pathlib import Path

import pytest
from console_script import Console
from scripted_api import AT, Problem, ScriptedApi, Seen

KEY = "ed25519:" + "A" * 43
EXPORT = {
    "format": "sojourn.continuation",
    "issuer": KEY,
    "continuation": {"rev": 7, "limits": {"active_s": 3600.0}, "text": "ä \u001b[2J \u202e"},
}
CONTINUATION = "GET /v1/runs/run_1/continuation"
MADE = {"run_id": "run_2", "session_id": "ses_2", "status": "suspended"}
SEALS = {"data": [{"issuer": KEY, "state": "active", "name": "", "created_at": AT, "ended_at": None}]}


async def test_an_export_goes_to_a_file_that_only_its_owner_reads(sojourn: Console, api: ScriptedApi, tmp_path: Path):
    api.answers[CONTINUATION] = EXPORT
    target = tmp_path / "run.json"
    result = await sojourn("export", "run_1", "-o", str(target))
    assert result.code == 0 and "after 7 events" in result.out
    assert f"sojourn trust add {KEY}" in result.err
    assert json.loads(target.read_text()) == EXPORT
    assert target.stat().st_mode & 0o777 == 0o600
    facts = (await sojourn("export", "run_1", "-o", str(target), "--json", "--no-files")).json
    assert (facts["rev"], facts["issuer"], facts["bytes"]) == (7, KEY, target.stat().st_size)
    assert [one.query for one in api.asked(CONTINUATION)] == [{}, {"files": "false"}]
    nowhere = await sojourn("export", "run_1", "-o", str(tmp_path / "no" / "run.json"))
    assert nowhere.code == 1 and "cannot be written" in nowhere.err


async def test_an_export_goes_through_a_pipe_as_it_is(sojourn: Console, api: ScriptedApi):
    api.answers[CONTINUATION] = EXPORT
    result = await sojourn("export", "run_1")
    assert (result.json, result.err) == (EXPORT, "")
    api.answers["POST /v1/runs/import"] = MADE
    landed = await sojourn("import", "-", stdin=result.out.encode())
    assert landed.out == "run_2 is suspended in ses_2\n" and "sojourn get run_2" in landed.err
    (asked,) = api.asked("POST /v1/runs/import")
    assert asked.json == EXPORT and asked.headers["Content-Type"] == "application/json"
    assert asked.headers["Idempotency-Key"]


async def test_an_export_that_is_refused_says_why(sojourn: Console, api: ScriptedApi, tmp_path: Path):
    def refuse(seen: Seen) -> None:
        raise Problem(409, "import.replayed", "This export was imported before, as run run_9.")

    api.answers["POST /v1/runs/import"] = refuse
    file = tmp_path / "run.json"
    file.write_text(json.dumps(EXPORT))
    result = await sojourn("import", str(file))
    assert result.code == 1 and "as run run_9" in result.err and "import.replayed" in result.err
    missing = await sojourn("import", str(tmp_path / "none.json"))
    assert missing.code == 2 and "cannot be read" in missing.err


@pytest.mark.parametrize(
    ("words", "body"),
    [
        ((), {}),
        (("--step", "3"), {"step": 3}),
        (("--step", "0", "--input", "Try again", "--no-files"), {"step": 0, "input": "Try again", "files": False}),
        (("--same-session",), {"session": "same"}),
    ],
)
async def test_a_fork_says_where_it_begins(sojourn: Console, api: ScriptedApi, words: tuple[str, ...], body: object):
    api.answers["POST /v1/runs/run_1/fork"] = {**MADE, "status": "queued"}
    result = await sojourn("fork", "run_1", *words)
    assert result.out == "run_2 is queued in ses_2\n" and "sojourn logs -f run_2" in result.err
    (asked,) = api.asked("POST /v1/runs/run_1/fork")
    assert asked.json == body
    assert (await sojourn("fork", "run_1", "--json")).json["run_id"] == "run_2"


async def test_keys_are_listed_rotated_and_revoked(sojourn: Console, api: ScriptedApi):
    api.answers["GET /v1/seals"] = SEALS
    api.answers["POST /v1/seals/rotate"] = SEALS
    api.answers[f"DELETE /v1/seals/{KEY}"] = b""
    for words in (("seals", "list"), ("seals", "rotate")):
        assert KEY in (await sojourn(*words)).out
        assert (await sojourn(*words, "--json")).json == SEALS
    assert (await sojourn("seals", "revoke", KEY)).out == f"{KEY} is revoked\n"


async def test_whose_exports_are_let_in(sojourn: Console, api: ScriptedApi):
    api.answers["GET /v1/trust"] = api.answers["POST /v1/trust"] = SEALS
    api.answers[f"DELETE /v1/trust/{KEY}"] = b""
    assert KEY in (await sojourn("trust", "list")).out
    assert (await sojourn("trust", "add", KEY, "--name", "staging")).code == 0
    assert (await sojourn("trust", "add", KEY)).code == 0
    assert [one.json for one in api.asked("POST /v1/trust")] == [
        {"issuer": KEY, "name": "staging"},
        {"issuer": KEY, "name": KEY},
    ]
    assert (await sojourn("trust", "remove", KEY)).out == f"{KEY} is trusted no longer\n"
