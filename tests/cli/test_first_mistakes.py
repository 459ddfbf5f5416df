"""What a new user gets wrong, and the one line that says what to do about it."""

from pathlib import Path

import pytest
from console_script import Console, until
from scripted_api import Problem, ScriptedApi, Seen

from sojourn.store import embedded

PNG = b"\x89PNG\r\n\x1a\n picture"


def not_found(seen: Seen) -> None:
    raise Problem(404, "request.not_found", "There is no such thing.", request_id="req_1")


async def test_a_picture_is_uploaded_and_shown_beside_the_goal(api: ScriptedApi, sojourn: Console, tmp_path: Path):
    api.run()
    api.answers["POST /v1/blobs"] = {"digest": "sha256:1", "bytes": len(PNG), "media_type": "image/png"}
    (tmp_path / "chart.dat").write_bytes(PNG)
    result = await sojourn("run", "What is this?", "--model", "a:x", "--image", str(tmp_path / "chart.dat"), "--detach")
    assert result.code == 0, result.err
    (upload,) = api.asked("POST /v1/blobs")
    assert (upload.body, upload.headers["Content-Type"]) == (PNG, "image/png")
    assert api.seen[-1].json["input"] == [
        {"type": "text", "text": "What is this?"},
        {"type": "image", "blob": "sha256:1", "media_type": "image/png"},
    ]


async def test_what_is_no_picture_is_not_sent(api: ScriptedApi, sojourn: Console, tmp_path: Path):
    (tmp_path / "notes.png").write_text("words")
    for name in ("notes.png", "nowhere.png"):
        result = await sojourn("run", "What is this?", "--model", "a:x", "--image", str(tmp_path / name))
        assert (result.code, result.err.count("\n")) == (2, 1)
        assert name in result.err
    assert not api.seen


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("get", "run_9"), "`sojourn runs` lists yours"),
        (("trace", "run_9"), "`sojourn runs` lists yours"),
        (("agents", "get", "nobody"), "`sojourn agents list` lists yours"),
        (("sessions", "files", "ses_9"), "`sojourn sessions list` lists yours"),
        (("keys", "revoke", "key_9"), "`sojourn keys list` lists yours"),
    ],
)
async def test_what_is_not_there_comes_with_the_command_that_lists_what_is(
    api: ScriptedApi, sojourn: Console, words: tuple[str, ...], hint: str
):
    result = await sojourn(*words)
    assert (result.code, result.out) == (5, "")
    assert hint in result.err


async def test_an_address_may_end_where_the_api_begins(api: ScriptedApi, sojourn: Console):
    api.answers["GET /v1/runs"] = {"data": [], "has_more": False, "next": None}
    assert (await sojourn("runs", SOJOURN_API_URL=f"{api.url}/v1/")).code == 0


async def test_a_server_that_is_another_program_is_told(api: ScriptedApi, sojourn: Console):
    result = await sojourn("runs", SOJOURN_API_URL=f"{api.url}/elsewhere")
    assert result.code == 5
    tls = await sojourn("runs", SOJOURN_API_URL=api.url.replace("http:", "https:"))
    assert tls.code == 3
    assert "SOJOURN_API_URL begins with http://" in tls.err


@pytest.mark.parametrize("days", ["0", "-4", "99999999"])
async def test_a_key_never_lives_longer_than_was_asked(api: ScriptedApi, sojourn: Console, days: str):
    result = await sojourn("keys", "create", "ci", "--days", days)
    assert (result.code, result.err) == (2, "sojourn: --days is a number from 1 to 3660.\n")
    assert not api.seen


@pytest.mark.parametrize("limit", ["0", "-4"])
async def test_a_list_of_nothing_is_not_asked_for(api: ScriptedApi, sojourn: Console, limit: str):
    result = await sojourn("runs", "--limit", limit)
    assert (result.code, result.err) == (2, "sojourn: --limit is a number from 1 on.\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('name = "x"\nmodel =', "agent.toml is no TOML: "),
        ('nme = "x"', 'it needs a line like name = "reviewer"'),
        ('name = "x"\nsystem_file = "gone.md"', "gone.md cannot be read: No such file or directory."),
        ('name = "x"\nsystem_file = 3', "agent.toml is no TOML: "),
    ],
)
async def test_an_agent_file_that_cannot_be_used_says_where(sojourn: Console, tmp_path: Path, text: str, said: str):
    (tmp_path / "agent.toml").write_text(text)
    result = await sojourn("agents", "apply", str(tmp_path / "agent.toml"))
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert said in result.err


async def test_a_key_that_is_none_says_how_to_get_one(sojourn: Console):
    result = await sojourn("runs", SOJOURN_API_KEY="not a key")
    assert result.code == 4
    assert "`sojourn keys create NAME`" in result.err
    assert "not a key" not in result.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--data-dir", "/proc/nope"), "Set SOJOURN_DATA_DIR to a folder of yours"),
        (("--host", "999.1.1.1", "--port", "0"), "SOJOURN_HOST and SOJOURN_PORT name an address"),
        (("--port", "many"), "`$.port`"),
        (("--wait-database", "soon"), "`$.database_wait_s`"),
        (("--wait-database=-1",), "`$.database_wait_s`"),
    ],
)
async def test_a_server_that_cannot_start_says_which_setting(
    sojourn: Console, data_dir: Path, words: tuple[str, ...], said: str
):
    result = await sojourn("serve", *words, SOJOURN_DATA_DIR=str(data_dir), PYTHONWARNINGS=None)
    await until(lambda: not embedded.running(data_dir))
    assert result.code == 2, result.err
    assert said in result.err
    assert "Traceback" not in result.err
