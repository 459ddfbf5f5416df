"""What a caller sees of a worker: real processes, killed, stopped, cancelled and cut off in the middle of a run."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import until
from tests.installation import Installation, at, installed

from sojourn.models.simulator.script import Call, Cut, Rule, Script, Status, When
from sojourn.store.roles import Dsns


def script(*steps: tuple[Call, ...], text: str = "all done", faults: tuple[Any, ...] = ()) -> Script:
    """A model that makes these calls, step by step, and then says `text`."""
    rules = (Rule(when=When(step=step), calls=calls) for step, calls in enumerate(steps))
    return Script(rules=(*rules, Rule(text=text)), faults=faults)


def shell(command: str) -> Call:
    return Call("shell", {"command": command})


AGENT = {"model": "openai:sim", "tools": ["shell", "write_file"]}
LONG = "echo begun >> log; for i in 1 2 3 4 5 6 7 8; do sleep 0.2; done; cat log"


@pytest.fixture
async def installation(data_dir: Path, dsns: Dsns, request: pytest.FixtureRequest) -> AsyncIterator[Installation]:
    """An installation with one worker; its script is the test's parameter."""
    env = {"SOJOURN_DRAIN_S": "0.2", "SOJOURN_BEAT_S": "0.2", **at(dsns)}
    async with installed(data_dir, request.param, env=env) as ready:
        yield ready


async def seen(installation: Installation, run_id: str, kind: str) -> Any:
    """The first event of a kind, once it is there."""
    async with asyncio.timeout(60):
        while True:
            for event in await installation.events(run_id):
                if event["type"] == kind:
                    return event
            await asyncio.sleep(0.02)


async def begun(installation: Installation, run_id: str) -> None:
    """Wait until the command of the run has written its first line."""
    session = (await installation.get(f"/v1/runs/{run_id}"))["session_id"]
    async with asyncio.timeout(60):
        while True:
            async with installation.http.get(f"/v1/sessions/{session}/files/log") as response:
                if response.status == 200 and await response.read():
                    return
            await asyncio.sleep(0.02)


async def results(installation: Installation, run_id: str) -> list[str]:
    return [event["text"] for event in await installation.events(run_id) if event["type"] == "agent.tool_result"]


@pytest.mark.parametrize("installation", [script((shell(LONG),))], indirect=True)
async def test_a_worker_killed_in_the_middle_of_a_command_costs_nothing(installation: Installation) -> None:
    run_id = await installation.run(agent=AGENT, input="go")
    await begun(installation, run_id)
    installation.workers[0].kill()
    await installation.start_worker()
    run = await installation.until(run_id)
    assert (run["status"], run["output"]) == ("completed", "all done")
    assert await results(installation, run_id) == ["begun\n"], "the command ran once, and was read to its end"


@pytest.mark.parametrize("installation", [script((shell(LONG),))], indirect=True)
async def test_a_worker_told_to_stop_hands_its_run_to_another(installation: Installation) -> None:
    run_id = await installation.run(agent=AGENT, input="go")
    await begun(installation, run_id)
    await installation.start_worker()
    installation.workers[0].send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(installation.workers[0].wait(), 30) == 0
    assert (await installation.until(run_id))["status"] == "completed"
    assert await results(installation, run_id) == ["begun\n"]


@pytest.mark.parametrize("installation", [script((shell("echo begun > log; sleep 61.337"),))], indirect=True)
async def test_cancelling_ends_the_command_in_the_sandbox(installation: Installation) -> None:
    run_id = await installation.run(agent=AGENT, input="go")
    await begun(installation, run_id)
    await until(lambda: running("61.337"))
    await installation.post(f"/v1/runs/{run_id}/cancel", {"reason": "enough"})
    assert (await installation.until(run_id))["status"] == "cancelled"
    await until(lambda: not running("61.337"))


def running(marker: str) -> bool:
    """Whether a `sleep` with this argument lives anywhere on the machine."""
    wanted = b"sleep\0" + marker.encode() + b"\0"
    return any(_command(path) == wanted for path in Path("/proc").glob("[0-9]*/cmdline"))


def _command(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


HURRY = Script(
    rules=(
        Rule(when=When(user="hurry"), text="I hurry."),
        Rule(when=When(step=0), calls=(shell(LONG),)),
        Rule(text="I did not hear it."),
    )
)


@pytest.mark.parametrize("installation", [HURRY], indirect=True)
async def test_a_message_to_a_running_run_is_heard_before_the_next_step(installation: Installation) -> None:
    run_id = await installation.run(agent=AGENT, input="go")
    await begun(installation, run_id)
    await installation.post(f"/v1/runs/{run_id}/messages", {"input": "hurry"})
    assert (await installation.until(run_id))["output"] == "I hurry."


FAILING = script(text="from the second", faults=(Status(status=404, when=When(dialect="openai")),))


@pytest.mark.parametrize("installation", [FAILING], indirect=True)
async def test_a_model_that_is_not_there_is_left_for_the_next_of_the_chain(installation: Installation) -> None:
    run_id = await installation.run(agent={"models": ["openai:gone", "anthropic:here"]}, input="go")
    run = await installation.until(run_id)
    assert (run["status"], run["output"]) == ("completed", "from the second")
    asked = [event["model"] for event in await installation.events(run_id) if event["type"] == "model.request_started"]
    assert asked == ["openai:gone", "anthropic:here"]


LIMITED = script(text="in the end", faults=(Status(status=429, retry_after=1, when=When(attempt=1)),))


@pytest.mark.parametrize("installation", [LIMITED], indirect=True)
async def test_a_rate_limited_call_waits_without_a_worker_and_is_made_again(installation: Installation) -> None:
    run_id = await installation.run(agent={"model": "openai:sim"}, input="go")
    await installation.until(run_id, "queued")
    assert (await installation.until(run_id))["output"] == "in the end"
    failed = await seen(installation, run_id, "model.request_finished")
    assert failed["error"]["code"] == "model.rate_limited" and failed["retry"]


CUT = script(text="the whole answer, whole", faults=(Cut(after="half", when=When(attempt=1)),))


@pytest.mark.parametrize("installation", [CUT], indirect=True)
async def test_a_reply_that_breaks_off_is_thrown_away_and_asked_for_again(installation: Installation) -> None:
    run_id = await installation.run(agent={"model": "openai:sim"}, input="go")
    assert (await installation.until(run_id))["output"] == "the whole answer, whole"
    finished = [e for e in await installation.events(run_id) if e["type"] == "model.request_finished"]
    assert [event.get("error", {}) and event["error"]["code"] for event in finished[:1]] == ["model.interrupted"]


async def test_the_database_dies_in_the_middle_and_nothing_is_lost(data_dir: Path) -> None:
    env = {"SOJOURN_DRAIN_S": "0.2", "SOJOURN_BEAT_S": "0.2"}
    async with installed(data_dir, script((shell(LONG),)), env=env) as installation:
        run_id = await installation.run(agent=AGENT, input="go")
        await begun(installation, run_id)
        pid = int((data_dir / "postgres/data/postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGKILL)
        run = await after_outage(installation, run_id)
        assert run["status"] == "completed"
        assert await results(installation, run_id) == ["begun\n"]


async def after_outage(installation: Installation, run_id: str) -> Any:
    """The run's end, asked for until the server answers again; until then it says that the store is away."""
    async with asyncio.timeout(90):
        while True:
            async with installation.http.get(f"/v1/runs/{run_id}") as response:
                body = await response.json()
                assert response.status in (200, 503), body
                if response.status == 200 and body["status"] in ("completed", "failed"):
                    return body
                if response.status == 503:
                    assert body["code"] == "store.unavailable" and body["retryable"]
            await asyncio.sleep(0.1)


FOREVER = Script(rules=(Rule(calls=(shell("true"),)),))


@pytest.mark.parametrize("installation", [FOREVER], indirect=True)
async def test_a_run_that_goes_round_and_round_ends_at_its_limit_of_steps(installation: Installation) -> None:
    run_id = await installation.run(agent={**AGENT, "limits": {"steps": 3}}, input="go")
    run = await installation.until(run_id)
    assert (run["status"], run["error"]["code"], run["steps"]) == ("failed", "budget.exhausted", 3)
    assert "3" in run["error"]["detail"]


TWO = script((shell("true"), shell("true")))


@pytest.mark.parametrize("installation", [TWO], indirect=True)
async def test_a_run_that_its_last_tool_call_ends_says_so(installation: Installation) -> None:
    run_id = await installation.run(agent={**AGENT, "limits": {"tool_calls": 1}}, input="go")
    run = await installation.until(run_id)
    assert (run["status"], run["error"]["code"]) == ("failed", "budget.exhausted")
    assert (await installation.events(run_id))[-1]["type"] == "run.failed"


@pytest.mark.parametrize(
    "installation", [script((Call("write_file", {"path": "note", "content": "kept"}),))], indirect=True
)
async def test_a_conversation_goes_on_in_its_session_with_its_files_and_words(installation: Installation) -> None:
    first = await installation.until(await installation.run(agent=AGENT, input="remember"))
    session = first["session_id"]
    second = await installation.run(agent=AGENT, input="again", session=session)
    await installation.until(second)
    said = [m["role"] for m in (await installation.get(f"/v1/runs/{second}/messages"))["data"]]
    assert said[:4] == ["user", "assistant", "tool", "assistant"] and said[4] == "user"
    async with installation.http.get(f"/v1/sessions/{session}/files/note") as response:
        assert await response.text() == "kept"


@pytest.mark.parametrize("installation", [script((shell("sleep 1; echo $((6*7))"),))], indirect=True)
async def test_a_run_posted_while_no_worker_lives_waits_for_one(installation: Installation) -> None:
    installation.workers[0].kill()
    await installation.workers[0].wait()
    run_id = await installation.run(agent=AGENT, input="go")
    assert (await installation.get(f"/v1/runs/{run_id}"))["status"] == "queued"
    await installation.start_worker()
    await installation.until(run_id)
    assert await results(installation, run_id) == ["42\n"]


async def test_a_worker_that_is_stopped_and_wakes_late_cannot_commit(data_dir: Path, dsns: Dsns) -> None:
    env = {"SOJOURN_LEASE_S": "4", "SOJOURN_BEAT_S": "0.2", **at(dsns)}
    async with installed(data_dir, script((shell(LONG),)), env=env) as installation:
        run_id = await installation.run(agent=AGENT, input="go")
        await begun(installation, run_id)
        zombie = installation.workers[0]
        zombie.send_signal(signal.SIGSTOP)
        await installation.start_worker()
        run = await installation.until(run_id)
        zombie.send_signal(signal.SIGCONT)
        assert run["status"] == "completed"
        again = await installation.until(await installation.run(agent=AGENT, input="more"))
        assert again["status"] == "completed", "the zombie serves again, under a new lease"
        assert (await installation.get(f"/v1/runs/{run_id}"))["rev"] == run["rev"]
        assert await results(installation, run_id) == ["begun\n"]
