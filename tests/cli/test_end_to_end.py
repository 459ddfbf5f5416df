"""The whole: `sojourn serve` and a simulated model as processes, and the command line as a person uses it."""

import asyncio
import re
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

import pytest
from console_script import TIMEOUT_S, Console, Running, until

from sojourn.store import embedded

SCRIPT = """
[[rules]]
when = { model = "counter", step = 0 }
text = "I count."
calls = [{ tool = "shell", arguments = { command = "wc -l < rain.csv; echo yes > seen.txt" } }]

[[rules]]
when = { model = "counter", tool = "shell" }
text = "It says {{last_tool_result}}"

[[rules]]
when = { model = "boss", step = 0 }
calls = [{ tool = "clerk", arguments = { input = "Do it." } }]

[[rules]]
when = { model = "boss" }
text = "Well done."

[[rules]]
when = { model = "clerk", step = 0 }
calls = [
    { tool = "shell", arguments = { command = "echo gone" } },
    { tool = "ask_user", arguments = { question = "Which colour?" } },
]

[[rules]]
when = { model = "clerk", step = 1 }
calls = [{ tool = "wait_for_event", arguments = { name = "paint.dry" } }]

[[rules]]
when = { model = "clerk", step = 2 }
calls = [{ tool = "sleep", arguments = { seconds = 0.2 } }]

[[rules]]
when = { model = "clerk" }
text = "Painted."
"""
COUNTER = ("--model", "openai:counter", "--tool", "shell")
SLOW = ("--model", "openai:sim-tokens-4000-rate-20")


@pytest.fixture(scope="module")
async def home() -> AsyncIterator[Path]:
    """Give a folder that root's database server can pass too (pytest's own is closed to it)."""
    folder = Path(mkdtemp(prefix="sojourn-test-"))
    folder.chmod(0o755)
    yield folder
    await until(lambda: not embedded.running(folder / "data"))
    rmtree(folder)


class Place:
    """A server with its model, and a console that is turned to it and knows no key but the local one."""

    def __init__(self, home: Path, stack: AsyncExitStack) -> None:
        self.stack = stack
        self.console = Console(home, "")
        self.console.env.pop("SOJOURN_API_KEY")
        self.console.env.pop("PYTHONWARNINGS")
        self.console.env["SOJOURN_RATES_RUNS_USER"] = "1000000/1"
        self.server: Running
        self.said = ""

    async def serve(self, port: str) -> None:
        self.server = await self.stack.enter_async_context(self.console.with_pipes("serve", "--port", port))
        await self.server.shows("Sojourn listens on http://")
        self.console.env["SOJOURN_API_URL"] = found(r"Sojourn listens on (http://\S+)", self.server.text)


@pytest.fixture(scope="module")
async def place(home: Path) -> AsyncIterator[Place]:
    (home / "model.toml").write_text(SCRIPT)
    async with AsyncExitStack() as stack:
        place = Place(home, stack)
        simulate = ("simulate", "--port", "0", "--script", str(home / "model.toml"))
        model = await stack.enter_async_context(place.console.with_pipes(*simulate))
        await model.shows("ANTHROPIC_BASE_URL=")
        place.console.env["OPENAI_BASE_URL"] = found(r"OPENAI_BASE_URL=(\S+)", model.text)
        place.console.env["OPENAI_API_KEY"] = "any"
        await place.serve("0")
        place.said = place.server.text
        yield place
        for running in (place.server, model):
            running.process.send_signal(signal.SIGTERM)
            assert await running.end() == 0


@pytest.fixture
def sojourn(place: Place) -> Console:
    return place.console


def found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    assert match, f"{pattern} not in {text}"
    return match[1]


async def test_the_first_start_says_where_the_key_is_and_only_its_owner_can_read_it(place: Place, home: Path):
    key = home / "data" / "local.key"
    assert f"The local key is in {key}" in place.said
    assert key.stat().st_mode & 0o777 == 0o600
    assert key.read_text().strip() not in place.said


async def test_a_goal_with_a_file_is_worked_on_in_a_sandbox(sojourn: Console, tmp_path: Path):
    (tmp_path / "rain.csv").write_text("january,98\nfebruary,71\nmarch,64\n")
    result = await sojourn("run", "How many lines?", *COUNTER, "--file", str(tmp_path / "rain.csv"))
    assert result.code == 0, result.err
    assert re.search(r"^It says .*\b3\b", result.out)
    assert "→ shell wc -l < rain.csv" in result.err
    assert re.search(r"^completed · 2 steps · .* · run_\w+$", result.err, re.MULTILINE)

    run_id, session = found(r"(run_\w+)", result.err), found(r"(ses_\w+)", result.err)
    run = (await sojourn("get", run_id, "--json")).json
    assert (run["status"], run["output"]) == ("completed", result.out)
    assert (await sojourn("runs", "--status", "completed")).out.count(run_id) == 1
    events = (await sojourn("logs", run_id, "--json")).lines
    followed = (await sojourn("logs", "-f", run_id, "--json")).lines
    assert events == followed
    assert events[-1]["type"] == "run.completed"
    assert "tool shell" in (await sojourn("trace", run_id)).out
    assert "seen.txt" in (await sojourn("sessions", "files", session)).out
    assert (await sojourn("sessions", "get", session, "seen.txt")).out == "yes\n"
    assert session in (await sojourn("sessions", "list")).out


async def test_the_live_view_streams_and_ctrl_c_leaves_the_run_to_be_cancelled(sojourn: Console):
    async with sojourn.in_terminal("run", "Talk.", *SLOW) as terminal:
        await terminal.shows("> Talk.")
        shown = len(terminal.text)
        await terminal.shows_more_than(shown + 40)
        terminal.press("\x03")
        assert await terminal.end() == 130
    run_id = found(r"sojourn cancel (run_\w+)", terminal.text)
    assert (await sojourn("get", run_id, "--json")).json["status"] == "running"
    assert (await sojourn("cancel", run_id, "--reason", "enough")).code == 0
    assert (await sojourn("logs", "-f", run_id)).code == 6


async def test_an_agent_is_applied_run_and_changed(sojourn: Console, tmp_path: Path):
    file = tmp_path / "echo.toml"
    file.write_text('name = "echo"\nmodel = "openai:sim-echo"\n')
    assert (await sojourn("agents", "apply", str(file))).out == "echo is version 1 now\n"
    assert (await sojourn("agents", "apply", str(file))).out == "echo is version 1 already\n"
    result = await sojourn("run", "Say this.", "--agent", "echo")
    assert (result.code, result.out) == (0, "Say this.\n")
    file.write_text('name = "echo"\nmodel = "openai:sim-echo"\nsystem = "Be brief."\n')
    assert (await sojourn("agents", "apply", str(file))).out == "echo is version 2 now (it was 1)\n"
    assert (await sojourn("agents", "live", "echo", "1")).code == 0
    assert (await sojourn("agents", "list")).out.splitlines()[1].split()[:2] == ["echo", "1"]
    assert len((await sojourn("agents", "versions", "echo", "--json")).json["data"]) == 2
    assert "openai:sim-echo" in (await sojourn("agents", "get", "echo")).out


async def test_a_run_that_asks_ends_the_command_with_7_and_goes_on_once_approved(sojourn: Console, tmp_path: Path):
    file = tmp_path / "careful.toml"
    file.write_text('name = "careful"\nmodel = "openai:counter"\ntools = ["shell"]\n[policy]\notherwise = "ask"\n')
    assert (await sojourn("agents", "apply", str(file))).code == 0
    asked = await sojourn("run", "How many lines?", "--agent", "careful")
    assert asked.code == 7
    approval, run_id = found(r"sojourn approve (\S+)", asked.err), found(r"(run_\w+)", asked.err)
    assert approval in (await sojourn("approvals")).out
    assert approval in (await sojourn("get", run_id)).out
    assert (await sojourn("approve", approval, "--reason", "fine")).code == 0
    followed = await sojourn("logs", "-f", run_id)
    assert followed.code == 0
    assert "local decided: approve · fine\n" in followed.out
    assert (await sojourn("approve", approval)).code == 1


async def test_a_sub_agents_questions_are_answered_where_the_run_is_watched_and_the_trace_tells_who_did(
    sojourn: Console, tmp_path: Path
):
    clerk, boss = tmp_path / "clerk.toml", tmp_path / "boss.toml"
    tools = '["shell", "ask_user", "wait_for_event", "sleep"]'
    rule = '[[policy.rules]]\ntool = "shell"\nverdict = "ask"\n'
    clerk.write_text(f'name = "clerk"\nmodel = "openai:clerk"\ntools = {tools}\n{rule}')
    boss.write_text('name = "boss"\nmodel = "openai:boss"\ntools = [{ name = "clerk", agent = "clerk" }]\n')
    assert [(await sojourn("agents", "apply", str(file))).code for file in (clerk, boss)] == [0, 0]

    async with sojourn.in_terminal("run", "Paint it.", "--agent", "boss", columns=200) as terminal:
        await terminal.shows("May clerk run shell? y, n WHY or skip: ")
        terminal.press("y\n")
        await terminal.shows("clerk asks a question. Answer it")
        terminal.press("blue\n")
        assert await terminal.end() == 7
    run_id = found(r"sojourn signal (run_\w+) paint.dry DATA", terminal.text)
    assert (await sojourn("hold", run_id, "--reason", "lunch")).code == 0
    assert (await sojourn("signal", run_id, "paint.dry", "at last")).code == 0
    await until_held(sojourn, run_id)
    assert (await sojourn("resume", run_id)).code == 0
    followed = await sojourn("logs", "-f", run_id)
    assert followed.code == 0
    for line in ("local put the run on hold · lunch", "signal paint.dry at last", "local ended the hold", "Well done."):
        assert f"\n{line}\n" in followed.out

    trace = (await sojourn("trace", run_id)).out
    for line in (
        r"^ {8}wait May clerk run shell\?  \S+ \S+ · open .* · approve by local$",
        r"^ +wait clerk asks a question\.  .* · open .* · answer by local$",
        r"^ +wait Waits for the event paint\.dry\.  .* · open .* · ok$",
        r"^ +wait Waits until .* · open .* · ok$",
        r"^  wait local put the run on hold\. lunch  .* · open .* · approve by local$",
    ):
        assert re.search(line, trace, re.MULTILINE), (line, trace)
    assert "cancelled" not in trace
    assert "so far" not in trace


async def until_held(sojourn: Console, run_id: str) -> None:
    """Wait until the run stands still for its hold alone."""
    async with asyncio.timeout(TIMEOUT_S):
        while [one["kind"] for one in (await sojourn("get", run_id, "--json")).json["waits"]] != ["hold"]:
            pass


async def test_a_new_key_works_until_it_is_revoked(sojourn: Console):
    made = (await sojourn("keys", "create", "ci", "--scope", "runs:read", "--days", "1", "--json")).json
    assert (await sojourn("runs", SOJOURN_API_KEY=made["key"])).code == 0
    refused = await sojourn("agents", "list", SOJOURN_API_KEY=made["key"])
    assert refused.code == 1
    assert "agents:read" in refused.err
    assert made["id"] in (await sojourn("keys", "list")).out
    assert (await sojourn("keys", "revoke", made["id"])).code == 0
    assert (await sojourn("runs", SOJOURN_API_KEY=made["key"])).code == 4


async def test_what_is_not_there_is_5_and_what_the_server_refuses_is_1(sojourn: Console):
    assert (await sojourn("get", "run_00000000000000000000000000")).code == 5
    refused = await sojourn("run", "goal", "--model", "nobody:x")
    assert refused.code == 1
    assert re.search(r"\(model\.\w+, request \S+\)$", refused.err.strip())
    assert (await sojourn("run", "goal", "--model", "openai:sim-echo", "--tool", "teleport")).code == 1


async def test_a_wrong_key_is_4(sojourn: Console):
    assert (await sojourn("runs", SOJOURN_API_KEY="sk_wrong")).code == 4


async def test_following_survives_a_restart_of_the_server_and_shows_every_event_once(place: Place, sojourn: Console):
    port = found(r":(\d+)$", sojourn.env["SOJOURN_API_URL"])
    run_id = (await sojourn("run", "Talk.", "--model", "openai:sim-tokens-60-rate-30", "--detach")).out.strip()
    async with sojourn.with_pipes("logs", "-f", run_id, "--json") as follower:
        await follower.shows("model.request_started")
        place.server.process.kill()
        await place.server.end()
        await follower.shows("The connection is lost")
        await place.serve(port)
        assert await follower.end() == 0
    durable = (await sojourn("logs", run_id, "--json")).out.splitlines()
    shown = [line for line in follower.text.splitlines() if line.startswith("{")]
    assert shown == durable


async def test_a_second_server_on_the_same_port_is_told_so(sojourn: Console):
    port = found(r":(\d+)$", sojourn.env["SOJOURN_API_URL"])
    result = await sojourn("serve", "--port", port, "--no-worker")
    assert result.code == 1
    assert "The port is taken" in result.err
    assert "Traceback" not in result.err


async def test_doctor_tells_what_works(sojourn: Console):
    result = await sojourn("doctor", OPENAI_API_KEY="sk-secret")
    assert result.code == 0, result.out
    assert "✓ database: PostgreSQL" in result.out
    assert "sk-secret" not in result.out
    findings = (await sojourn("doctor", "--json")).json["findings"]
    assert {"data folder", "database", "sandbox", "sandbox limits"} <= {one["name"] for one in findings}


async def test_doctor_says_what_is_in_the_way(sojourn: Console):
    result = await sojourn("doctor", SOJOURN_DATABASE_URL="postgresql://nobody@127.0.0.1:1/none")
    assert result.code == 1
    assert "✗ database: " in result.out


@pytest.mark.parametrize("command", ["serve", "worker", "doctor"])
async def test_a_setting_that_cannot_be_used_stops_the_start_with_its_name(sojourn: Console, command: str):
    result = await sojourn(command, SOJOURN_LEASE_S="soon")
    assert result.code == 2
    assert "lease_s" in result.err
    assert "Traceback" not in result.err
