"""What each command asks of the API, and how it shows the answer."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import get_args

import pytest
from console_script import Console
from scripted_api import AT, Problem, ScriptedApi, Seen, page

from sojourn.store.rows import Status

AGENT = {"object": "agent", "name": "reviewer", "live_version": 2, "archived_at": None, "created_at": AT}
VERSION = {
    "object": "agent_version", "name": "reviewer", "version": 2, "digest": "sha256:2", "models": ["openai:x"],
    "system": "", "tools": [{"name": "shell"}], "limits": {"steps": 75}, "created_at": AT, "created_by": "local",
}  # fmt: skip
MODEL = ("--model", "openai:x")


# ---- errors ----------------------------------------------------------------------------------


async def test_no_server_says_how_to_start_one(sojourn: Console):
    result = await sojourn("runs", SOJOURN_API_URL="http://127.0.0.1:1")
    assert result.code == 3
    assert "No server answers at http://127.0.0.1:1 (connection refused). Start one with `sojourn serve`" in result.err


@pytest.mark.parametrize("url", ["ftp://x", "nonsense", "http://", "http://x:99999"])
async def test_an_address_that_is_none_is_wrong_usage(sojourn: Console, url: str):
    result = await sojourn("runs", SOJOURN_API_URL=url)
    assert result.code == 2
    assert "SOJOURN_API_URL" in result.err


@pytest.mark.parametrize(
    ("status", "exit_code"), [(401, 4), (404, 5), (403, 1), (409, 1), (422, 1), (429, 1), (500, 1), (503, 3)]
)
async def test_a_refusal_is_one_line_with_code_and_request_id(
    api: ScriptedApi, sojourn: Console, status: int, exit_code: int
):
    def refuse(seen: Seen) -> None:
        errors = [{"pointer": "/limit", "detail": "Expected an int.\x1b[2J"}]
        raise Problem(status, "some.code", "It cannot be.\nDo this.", request_id="req_7", errors=errors)

    api.answers["GET /v1/runs/run_1"] = refuse
    result = await sojourn("get", "run_1")
    assert (result.code, result.out) == (exit_code, "")
    assert result.err.startswith("sojourn: It cannot be. Do this. [/limit: Expected an int.␛[2J]")
    assert result.err.endswith("(some.code, request req_7)\n")
    assert result.err.count("\n") == 1


async def test_an_answer_that_is_no_json_is_not_a_traceback(api: ScriptedApi, sojourn: Console):
    api.answers["GET /v1/runs/run_1"] = b"<html>a proxy</html>"
    result = await sojourn("get", "run_1")
    assert result.code == 3
    assert "is it a Sojourn server?" in result.err


async def test_a_refused_key_says_how_to_make_one(api: ScriptedApi, sojourn: Console):
    def refuse(seen: Seen) -> None:
        raise Problem(401, "auth.unauthenticated", "The key has expired.", request_id="req_1")

    api.answers["GET /v1/runs"] = refuse
    result = await sojourn("runs")
    assert result.code == 4
    assert "The key has expired." in result.err
    assert "`env -u SOJOURN_API_KEY sojourn keys create NAME` makes a key" in result.err
    assert "sk_test" not in result.err
    without = await sojourn("runs", SOJOURN_API_KEY=None)
    assert f"there is no local key at {sojourn.home}/data/local.key" in without.err


async def test_the_local_key_is_used_here_and_sent_to_no_other_machine(api: ScriptedApi, sojourn: Console):
    api.answers["GET /v1/runs"] = page()
    (sojourn.home / "data").mkdir()
    (sojourn.home / "data" / "local.key").write_text("sk_local\n")
    assert (await sojourn("runs", SOJOURN_API_KEY=None)).code == 0
    assert api.seen[-1].headers["Authorization"] == "Bearer sk_local"
    elsewhere = f"http://0.0.0.0:{api.port}"  # reaches this machine by a name that is not loopback's
    assert (await sojourn("runs", SOJOURN_API_KEY=None, SOJOURN_API_URL=elsewhere)).code == 0
    assert "Authorization" not in api.seen[-1].headers


async def test_a_key_that_is_none_is_not_sent(api: ScriptedApi, sojourn: Console):
    result = await sojourn("runs", SOJOURN_API_KEY="sk\nX-Evil: 1")
    assert result.code == 4
    assert not api.seen
    assert "Evil" not in result.err


async def test_a_connection_that_breaks_makes_one_run_of_two_requests(api: ScriptedApi, sojourn: Console):
    run = api.run()
    run.finish("Done.")
    answer = api.answers["POST /v1/runs"]
    broken = []

    def break_once(seen: Seen) -> object:
        if not broken:
            broken.append(seen)
            raise ConnectionAbortedError
        return answer

    api.answers["POST /v1/runs"] = break_once
    assert (await sojourn("run", "goal", *MODEL)).out == "Done.\n"
    first, second = api.asked("POST /v1/runs")
    assert first.headers["Idempotency-Key"] == second.headers["Idempotency-Key"]


# ---- runs ------------------------------------------------------------------------------------


async def test_run_sends_what_the_flags_say(api: ScriptedApi, sojourn: Console, tmp_path: Path):
    api.run()
    (tmp_path / "system.md").write_text("Be brief.")
    flags = ("--model", "a:x", "--model", "b:y", "--system", f"@{tmp_path}/system.md", "--tool", "shell,python")
    result = await sojourn(
        "run",
        "the goal",
        *flags,
        "--tool",
        "list_files",
        "--max-steps",
        "5",
        "--limit",
        "wall_s=60.5",
        "--limit",
        "on_exhaust=suspend",
        "--detach",
    )
    assert (result.code, result.out) == (0, "run_1\n")
    assert api.seen[-1].json == {
        "agent": {"models": ["a:x", "b:y"], "system": "Be brief.", "tools": ["shell", "python", "list_files"]},
        "input": "the goal",
        "limits": {"steps": 5, "wall_s": 60.5, "on_exhaust": "suspend"},
    }
    result = await sojourn(
        "run", "-", "--agent", "reviewer", "--session", "ses_1", "--detach", "--json", stdin=b"piped"
    )
    assert result.json["run_id"] == "run_1"
    assert api.seen[-1].json == {"agent": "reviewer", "input": "piped", "session": "ses_1"}


async def test_files_are_in_the_session_before_the_run_begins(api: ScriptedApi, sojourn: Console, tmp_path: Path):
    api.run()
    (tmp_path / "rain fall.csv").write_bytes(b"\x00\xffdata")
    api.answers["POST /v1/sessions"] = {"id": "ses_1"}
    api.answers["PUT /v1/sessions/ses_1/files/rain fall.csv"] = {"path": "rain fall.csv"}
    result = await sojourn("run", "goal", *MODEL, "--file", str(tmp_path / "rain fall.csv"), "--detach")
    assert result.code == 0
    assert [f"{seen.method} {seen.path}" for seen in api.seen] == [
        "POST /v1/sessions", "PUT /v1/sessions/ses_1/files/rain fall.csv", "POST /v1/runs",
    ]  # fmt: skip
    assert api.seen[1].body == b"\x00\xffdata"
    assert api.seen[2].json["session"] == "ses_1"
    assert api.seen[2].json["input"] == "goal\n\nFiles in the working directory: rain fall.csv (6 B)"


async def test_two_files_of_one_name_are_refused(api: ScriptedApi, sojourn: Console, tmp_path: Path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x").touch()
    result = await sojourn("run", "goal", *MODEL, "--file", f"{tmp_path}/a/x", "--file", f"{tmp_path}/b/x")
    assert result.code == 2
    assert not api.seen


async def test_runs_are_listed_over_several_pages(api: ScriptedApi, sojourn: Console):
    documents = [api.run(f"run_{n}", status="completed").document for n in range(1, 4)]
    pages = {None: documents[:2], "c2": documents[2:]}

    def answer(seen: Seen) -> object:
        data = pages[seen.query.get("after")]
        return {"data": data, "has_more": data is pages[None], "next": "c2" if data is pages[None] else None}

    api.answers["GET /v1/runs"] = answer
    result = await sojourn("runs", "--status", "completed", "--agent", "inline", "--limit", "3")
    assert result.out.splitlines()[0].split() == ["RUN", "STATUS", "AGENT", "STEPS", "COST", "CREATED", "GOAL"]
    assert [line.split()[0] for line in result.out.splitlines()[1:]] == ["run_1", "run_2", "run_3"]
    assert api.seen[0].query == {"limit": "3", "status": "completed", "agent": "inline"}
    assert api.seen[1].query["limit"] == "1"
    assert [run["id"] for run in (await sojourn("runs", "--json")).json["data"]] == ["run_1", "run_2", "run_3"]


async def test_get_shows_a_run(api: ScriptedApi, sojourn: Console):
    run = api.run(status="completed", output="The answer.")
    result = await sojourn("get", run.id)
    assert result.out.startswith("run_1  completed\n")
    assert "The answer.\n" in result.out
    assert (await sojourn("get", run.id, "--json")).json == run.document


async def test_logs_walk_all_pages_and_begin_where_they_are_told(api: ScriptedApi, sojourn: Console):
    run = api.run()
    for n in range(450):
        run.event("agent.message", text=f"message {n}")
    result = await sojourn("logs", run.id, "--after", "2", "--json")
    assert [line["seq"] for line in result.lines] == list(range(3, 451))


async def test_cancel_goes_on_after_one_that_is_not_there(api: ScriptedApi, sojourn: Console):
    run = api.run()
    api.answers["POST /v1/runs/run_1/cancel"] = run.document
    result = await sojourn("cancel", "run_0", "run_1", "--reason", "no longer")
    assert result.code == 5
    assert result.out == "run_1 is being cancelled\n"
    assert "run_0: There is no /v1/runs/run_0/cancel." in result.err
    assert api.seen[-1].json == {"reason": "no longer"}


async def test_say_sends_a_message(api: ScriptedApi, sojourn: Console):
    api.answers["POST /v1/runs/run_1/messages"] = {"accepted": True}
    assert (await sojourn("say", "run_1", "stop that", "--interrupt")).code == 0
    assert api.seen[-1].json == {"input": "stop that", "interrupt": True}
    assert (await sojourn("say", "run_1", "and faster")).code == 0
    assert api.seen[-1].json == {"input": "and faster"}


@pytest.mark.parametrize("name", ["../keys", "a/b", "a?x=1", "a b"])
async def test_an_id_cannot_leave_its_place_in_the_path(api: ScriptedApi, sojourn: Console, name: str):
    await sojourn("get", name)
    assert [seen.path for seen in api.seen] in ([f"/v1/runs/{name}"], [])


async def test_runs_of_every_status_can_be_asked_for(api: ScriptedApi, sojourn: Console):
    run = api.run(status="quarantined")
    api.answers["GET /v1/runs"] = lambda seen: page(*[run.document] * (seen.query["status"] == run.status))
    for status in get_args(Status):
        assert (await sojourn("runs", "--status", status)).out.count("run_1") == (status == run.status)
    assert "once the cause is mended: sojourn retry run_1" in (await sojourn("get", "run_1")).out


async def test_trace_is_a_tree_with_times_tokens_and_cost(api: ScriptedApi, sojourn: Console):
    usage = {"input_tokens": 10, "cache_read_tokens": 0, "cache_write_tokens": 0, "output_tokens": 5}
    times = {"started_at": AT, "ended_at": "2026-03-01T12:00:02Z", "status": "ok"}
    later = {**times, "started_at": "2026-03-01T12:00:01Z"}
    failed = {**times, "status": "failed", "error": {"code": "model.overloaded", "detail": "529"}}
    spans = [
        {"id": "run", "parent": None, "kind": "run", "name": "inline", **times},
        {"id": "/#0", "parent": "run", "kind": "step", "name": "step 1", **times},
        {"id": "m1", "parent": "/#0", "kind": "model", "name": "openai:x", "attempt": 1, **failed},
        {"id": "m2", "parent": "/#0", "kind": "model", "name": "openai:x", "attempt": 2, "provider": "openai",
         "first_token_ms": 120, "usage": usage, "cost": {"usd": "0.000100"}, **later},
        {"id": "m2/summary", "parent": "m2", "kind": "summary", "name": "openai:x", "usage": usage, **later},
        {"id": "w1", "parent": "/#0", "kind": "wait", "name": "May it?", "decision": "approve", "by": "ann", **later},
        {"id": "w2", "parent": "/#0", "kind": "wait", "name": "Waits for the event x.", **later},
        {"id": "t1", "parent": "/#0", "kind": "tool", "name": "shell", "attempt": 1, **later},
    ]  # fmt: skip
    totals = {"steps": 1, "model_attempts": 2, "tool_attempts": 1, "usage": usage, "cost": {"usd": None}}
    api.answers["GET /v1/runs/run_1/trace"] = {"run_id": "run_1", "spans": spans, "totals": totals}
    result = await sojourn("trace", "run_1")
    assert result.out.splitlines() == [
        "run inline  +0 ms · 2.0 s · ok",
        "  step 1  +0 ms · 2.0 s · ok",
        "    model openai:x  +0 ms · 2.0 s · failed  529 (model.overloaded)",
        "    model openai:x  attempt 2 · +1.0 s · 1.0 s · first token 120 ms · openai"
        " · 10 tokens in, 5 out · $0.000100 · ok",
        "      summary openai:x  +1.0 s · 1.0 s · 10 tokens in, 5 out · ok",
        "    wait May it?  +1.0 s · open 1.0 s · approve by ann",
        "    wait Waits for the event x.  +1.0 s · open 1.0 s · ok",
        "    tool shell  +1.0 s · 1.0 s · ok",
        "total · 10 tokens in, 5 out · cost unknown",
    ]
    assert (await sojourn("trace", "run_1", "--json")).json["spans"] == spans


# ---- agents, keys, approvals -------------------------------------------------------------------


async def test_apply_creates_then_adds_a_version_then_has_nothing_to_do(
    api: ScriptedApi, sojourn: Console, tmp_path: Path
):
    (tmp_path / "prompt.md").write_text("Read it.")
    file = tmp_path / "reviewer.toml"
    file.write_text('name = "reviewer"\nmodel = "openai:x"\nsystem_file = "prompt.md"\n[limits]\nsteps = 4\n')
    spec = {"model": "openai:x", "system": "Read it.", "limits": {"steps": 4}}

    api.answers["POST /v1/agents"] = {**VERSION, "version": 1}
    assert (await sojourn("agents", "apply", str(file))).out == "reviewer is version 1 now\n"
    assert api.seen[-1].json == {"name": "reviewer", **spec}

    api.answers["GET /v1/agents/reviewer"] = {**AGENT, "live_version": 1}
    api.answers["POST /v1/agents/reviewer/versions"] = VERSION
    api.answers["PUT /v1/agents/reviewer/live"] = AGENT
    assert (await sojourn("agents", "apply", str(file))).out == "reviewer is version 2 now (it was 1)\n"
    assert [seen.json for seen in api.seen[-2:]] == [spec, {"version": 2, "expected": 1}]

    api.answers["GET /v1/agents/reviewer"] = AGENT
    api.seen.clear()
    assert (await sojourn("agents", "apply", str(file))).out == "reviewer is version 2 already\n"
    assert not api.asked("PUT /v1/agents/reviewer/live")


async def test_times_of_an_agents_file_are_sent_as_text(api: ScriptedApi, sojourn: Console, tmp_path: Path):
    (tmp_path / "a.toml").write_text('name = "a"\n[suspend]\nat = 2027-01-01T08:00:00Z\nday = 2027-01-01\n')
    api.answers["POST /v1/agents"] = {**VERSION, "version": 1}
    assert (await sojourn("agents", "apply", str(tmp_path / "a.toml"))).code == 0
    assert api.seen[-1].json["suspend"] == {"at": "2027-01-01T08:00:00+00:00", "day": "2027-01-01"}


@pytest.mark.parametrize("text", ["", "name = 3", "not toml", 'name = "a"\nsystem_file = "nowhere"'])
async def test_a_file_that_is_no_agent_is_refused_here(api: ScriptedApi, sojourn: Console, tmp_path: Path, text: str):
    (tmp_path / "a.toml").write_text(text)
    assert (await sojourn("agents", "apply", str(tmp_path / "a.toml"))).code == 2
    assert not api.seen


async def test_agents_are_shown(api: ScriptedApi, sojourn: Console):
    api.answers["GET /v1/agents"] = page(AGENT)
    api.answers["GET /v1/agents/reviewer"] = {**AGENT, "live": VERSION}
    api.answers["GET /v1/agents/reviewer/versions"] = page(VERSION)
    api.answers["GET /v1/agents/reviewer/versions/2"] = VERSION
    api.answers["PUT /v1/agents/reviewer/live"] = AGENT
    assert (await sojourn("agents", "list")).out.splitlines()[1].split()[:3] == ["reviewer", "2", "live"]
    assert "  tools        shell\n" in (await sojourn("agents", "get", "reviewer")).out
    assert (await sojourn("agents", "get", "reviewer", "--version", "2", "--json")).json == VERSION
    assert "sha256:2" in (await sojourn("agents", "versions", "reviewer")).out
    assert (await sojourn("agents", "live", "reviewer", "2")).out == "reviewer is version 2 for new runs\n"
    assert api.seen[-1].json == {"version": 2}


# ---- sessions --------------------------------------------------------------------------------


async def test_sessions_and_their_files(api: ScriptedApi, sojourn: Console, tmp_path: Path):
    api.answers["GET /v1/sessions"] = page({"id": "ses_1", "created_at": AT, "closed_at": None})
    assert (await sojourn("sessions", "list")).out.splitlines()[1].split()[:2] == ["ses_1", "open"]
    entries = [{"path": "out", "kind": "directory", "bytes": 0}, {"path": "a.csv", "kind": "file", "bytes": 2048}]
    api.answers["GET /v1/sessions/ses_1/files"] = page(*entries)
    listed = (await sojourn("sessions", "files", "ses_1", "out", "--depth", "2")).out
    assert listed.splitlines()[1:] == ["-        out/", "2.0 KiB  a.csv"]
    assert api.seen[-1].query == {"path": "out", "depth": "2"}
    api.answers["GET /v1/sessions/ses_1/files"] = {**page(entries[0]), "has_more": True}
    assert "list the folders below" in (await sojourn("sessions", "files", "ses_1")).err
    api.answers["GET /v1/sessions/ses_1/files"] = page()
    assert "There is no file" in (await sojourn("sessions", "files", "ses_1")).err
    assert (await sojourn("simulate", "--port", "65536")).code == 2
    (tmp_path / "a.csv").write_bytes(b"a,b")
    api.answers["PUT /v1/sessions/ses_1/files/in/a.csv"] = {"path": "in/a.csv", "bytes": 3}
    assert (await sojourn("sessions", "put", "ses_1", str(tmp_path / "a.csv"), "in/a.csv")).code == 0
    assert api.seen[-1].body == b"a,b"
    api.answers["POST /v1/sessions/ses_1/close"] = {"id": "ses_1"}
    assert (await sojourn("sessions", "close", "ses_1")).out == "ses_1 is closed\n"


async def test_a_file_comes_out_byte_for_byte_and_never_raw_on_a_terminal(
    api: ScriptedApi, sojourn: Console, tmp_path: Path
):
    data = b"\x1b[2Jevil" + bytes(range(32, 127)) * 3000
    api.answers["GET /v1/sessions/ses_1/files/out/a.bin"] = data
    result = await sojourn("sessions", "get", "ses_1", "out/a.bin", "-o", str(tmp_path / "a.bin"))
    assert result.code == 0
    assert (tmp_path / "a.bin").read_bytes() == data
    assert (await sojourn("sessions", "get", "ses_1", "out/a.bin")).out.encode() == data
    async with sojourn.in_terminal("sessions", "get", "ses_1", "out/a.bin") as terminal:
        assert await terminal.end() == 0
    assert "␛[2Jevil" in terminal.text
    assert "\x1b" not in terminal.text


async def test_a_file_that_breaks_off_is_an_error_and_leaves_nothing(
    api: ScriptedApi, sojourn: Console, tmp_path: Path
):
    target = tmp_path / "a.bin"
    async with cut_off() as url:
        result = await sojourn("sessions", "get", "ses_1", "a.bin", "-o", str(target), SOJOURN_API_URL=url)
    assert result.code == 3
    assert "broke before the file was whole" in result.err
    assert not list(tmp_path.glob("a.bin*"))


@asynccontextmanager
async def cut_off() -> AsyncIterator[str]:
    """Give the address of a server that promises more than it sends."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_json_is_whole_and_safe_whatever_it_holds(api: ScriptedApi, sojourn: Console):
    nasty = "\x1b[2J\x7f\x9b\u202e é \ud800"
    api.answers["GET /v1/runs/run_1"] = json.dumps({"id": "run_1", "output": nasty}).encode()
    result = await sojourn("get", "run_1", "--json")
    assert result.out.isascii()
    assert not set(result.out.rstrip("\n")) & {"\x1b", "\x7f"}
    assert result.json["output"] == nasty
