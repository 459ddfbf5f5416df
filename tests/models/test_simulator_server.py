"""The simulator as a server: its log, its control routes, its command line, and its page in the docs."""

import asyncio
import json
import re
import signal
import sys
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import get_args

import aiohttp
import pytest
from simulator_client import DIALECTS, request, saying, simulated, until

from sojourn.errors import Invalid
from sojourn.loop.messages import Usage
from sojourn.models.simulator import Cut, Entry, RequestLog, Rule, Script, Simulator, Status, When, parse
from sojourn.models.simulator import script as script_module
from sojourn.models.simulator.asked import Asked, Prompt, expand

PAGE = (Path(__file__).parents[2] / "docs" / "simulator.md").read_text()


async def get(client, path: str):
    async with client.session.get(client.sim.url + path) as response:
        return response.status, await response.json()


async def test_the_log_agrees_with_what_every_client_was_told():
    async with simulated() as client:
        models = [f"sim-tokens-{n}-think-{n % 3}" for n in range(1, 21)]
        asked = [(dialect, model, stream) for dialect in DIALECTS for model in models for stream in (True, False)]
        answers = await asyncio.gather(
            *(client.ask(dialect, "q" * 3_000, model=model, stream=stream) for dialect, model, stream in asked)
        )
        entries = {entry.request_id: entry for entry in client.sim.requests()}
    assert len(entries) == len(asked) == 80
    for answer in answers:
        entry = entries[answer.headers.get("X-Request-ID") or answer.headers["request-id"]]
        assert entry.told and entry.outcome == "finished" and entry.usage == answer.usage
        assert entry.response_id in answer.body.decode()
    assert sum(entry.usage.cache_read for entry in entries.values() if entry.dialect == "openai") == 0


async def test_the_log_holds_no_key_and_no_prompt(tmp_path: Path):
    path = tmp_path / "log.jsonl"
    async with simulated(saying("an answer", faults=(Status(status=500, times=1),)), path=path) as client:
        for _ in range(2):
            await client.ask("anthropic", "a secret question", key="sk-secret-key")
        status, listed = await get(client, "/_sim/requests")
        shown = json.dumps(listed)
    lines = path.read_text()
    for text in (shown, lines):
        assert "secret" not in text and "answer" not in text
    written = [json.loads(line) for line in lines.splitlines()]
    assert status == 200 and written == listed["requests"]
    assert [(line["outcome"], line["fault"], line["status"]) for line in written] == [
        ("refused", "status", 500),
        ("finished", "", 200),
    ]
    assert re.fullmatch(r"[0-9a-f]{12}", written[0]["key"]) and written[0]["key"] == written[1]["key"]
    assert written[1]["usage"] == {"input": 7, "output": 3} and written[1]["told"]


async def test_the_log_is_filtered_and_paged_and_bounded():
    async with simulated(saying("x", faults=(Cut(when=When(model="b")),)), size=5) as client:
        for model in "aabbacb":
            await client.ask("openai", model=model)
        assert [entry.model for entry in client.sim.requests()] == list("bbacb")
        assert [entry.seq for entry in client.sim.requests(model="b", outcome="failed")] == [3, 4, 7]
        for query, seqs in {
            "model=b": [3, 4, 7],
            "outcome=finished": [5, 6],
            "after=5&limit=1": [6],
            "seq=6": [6],
        }.items():
            _, listed = await get(client, f"/_sim/requests?{query}")
            assert [entry["seq"] for entry in listed["requests"]] == seqs
        assert (await get(client, "/_sim/requests?colour=red"))[0] == 422
        assert (await get(client, "/_sim/requests?after=x"))[0] == 422


async def test_bodies_are_kept_only_on_demand(tmp_path: Path):
    path = tmp_path / "log.jsonl"
    async with simulated(saying("x"), keep_bodies=True, path=path) as client:
        await client.ask("openai", "what was asked")
        [entry] = client.sim.requests()
        assert json.loads(bytes(entry.body)) == request("openai", "what was asked")
        assert (await get(client, "/_sim/requests"))[1]["requests"][0]["body"]["model"] == "m"
    assert "what was asked" not in path.read_text()


async def test_a_request_shows_in_the_log_while_it_is_open():
    async with simulated(parse(b'[[rules]]\n[[faults]]\nkind = "stall"\nafter = "nothing"', toml=True)) as client:
        asking = asyncio.create_task(client.ask("openai"))
        await until(lambda: client.sim.requests(fault="stall"))
        [entry] = client.sim.requests()
        assert entry.outcome == "open" and entry.ended_at is None
        asking.cancel()


async def test_a_script_is_loaded_and_reset_at_run_time():
    async with simulated(saying("old", keys=("sk-1",)), seed=3) as client:
        assert (await client.ask("openai")).text == "old"
        url = client.sim.url + "/_sim/script"
        async with client.session.post(url, data=b'[[rules]]\ntext = "new"\nwhen.nth = 1') as response:
            assert (response.status, await response.json()) == (200, {"rules": 1, "faults": 0})
        assert (await client.ask("openai", key="sk-9")).text == "new"
        assert (await client.ask("openai")).status == 400
        async with client.session.post(client.sim.url + "/_sim/reset") as response:
            assert response.status == 200
        assert client.sim.requests() == []
        assert (await client.ask("openai")).text == "new"
        async with client.session.post(url, json={"rules": [{"text": "json"}]}) as response:
            assert response.status == 200
        async with client.session.post(url, json={"rules": [{"text": 5}]}) as response:
            refused = await response.json()
            assert (response.status, refused["pointer"]) == (422, "/rules/0/text")
        assert "rule 1, text: Expected `str`" in refused["error"]
        assert (await client.ask("openai")).text == "json"


async def test_models_are_listed_in_both_dialects():
    rules = (Rule(when=When(model="mine")), Rule(when=When(model="a-*")), Rule(when=When(model="mine", step=1)))
    async with simulated(Script(rules=rules)) as client:
        _, ours = await get(client, "/v1/models")
        async with client.session.get(client.sim.url + "/v1/models", headers={"anthropic-version": "1"}) as response:
            theirs = await response.json()
        for model in ours["data"][1:]:
            assert (await client.ask("openai", model=model["id"], max_tokens=5)).status == 200
    names = [model["id"] for model in ours["data"]]
    assert names[:2] == ["mine", "sim-echo"] and ours["object"] == "list" and ours["data"][0]["object"] == "model"
    assert [model["id"] for model in theirs["data"]] == names and not theirs["has_more"]
    assert (theirs["first_id"], theirs["last_id"]) == (names[0], names[-1])


async def test_an_oversize_body_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sojourn.models.simulator.server.BODY_BYTES_MAX", 10_000)
    async with simulated(saying("x")) as client:
        for dialect in DIALECTS:
            assert (await client.ask(dialect, "x" * 20_000)).status == 413
        assert (await client.ask("openai", "x" * 2_000)).status == 200


async def test_an_address_in_use_is_refused_with_advice():
    async with Simulator() as sim:
        port = int(sim.url.rpartition(":")[2])
        with pytest.raises(Invalid, match=rf"cannot listen on 127.0.0.1:{port}: .*; choose another"):
            await Simulator(port=port).start()


async def test_a_log_that_cannot_be_written_is_refused(tmp_path: Path):
    with pytest.raises(Invalid, match="cannot write the request log"):
        RequestLog(path=tmp_path / "no" / "log")


async def test_closing_does_not_wait_for_open_streams():
    pacing = script_module.Pacing(tokens_per_s=1)
    sim = Simulator(saying("x" * 1_000, pacing=pacing))
    await sim.start()
    url = sim.openai_url + "/chat/completions"
    async with aiohttp.ClientSession() as session, session.post(url, json=request("openai")) as response:
        await response.content.readany()
        async with asyncio.timeout(30):
            await sim.close()
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()
    assert [entry.outcome for entry in sim.requests()] == ["aborted"]


async def test_the_command_serves_and_ends_on_sigterm_with_a_stream_open(tmp_path: Path):
    (tmp_path / "s.toml").write_text('pacing.tokens_per_s = 1\n[[rules]]\ntext = "0123456789 and so on"')
    arguments = ("--port", "0", "--script", tmp_path / "s.toml", "--seed", "5", "--log", tmp_path / "log.jsonl")
    command = (sys.executable, "-m", "sojourn.models.simulator", *map(str, arguments))
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE)
    try:
        async with asyncio.timeout(60):
            ready = [(await process.stdout.readline()).decode().strip() for _ in range(3)]
            url = ready[0].removeprefix("simulator at ")
            assert ready[1:] == [f"OPENAI_BASE_URL={url}/v1", f"ANTHROPIC_BASE_URL={url}"]
            url += "/v1/chat/completions"
            async with aiohttp.ClientSession() as session, session.post(url, json=request("openai")) as response:
                await response.content.readany()
                process.send_signal(signal.SIGTERM)
                assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
    [line] = (tmp_path / "log.jsonl").read_text().splitlines()
    assert json.loads(line)["outcome"] == "aborted"


async def test_the_command_refuses_a_bad_script_and_teaches_in_its_help(tmp_path: Path):
    async def run(*arguments: str) -> tuple[int | None, str]:
        command = (sys.executable, "-m", "sojourn.models.simulator", *arguments)
        process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE)
        out, err = await process.communicate()
        return process.returncode, (out + err).decode()

    (tmp_path / "bad.toml").write_text("[[rules]]\ntxt = 1")
    code, said = await run("--port", "0", "--script", str(tmp_path / "bad.toml"))
    assert code == 2 and said.startswith("simulator: bad.toml: rule 1") and "Traceback" not in said
    code, said = await run("--help")
    assert code == 0 and all(word in said for word in ("--seed", "sim-steps-3", "/_sim/requests", "examples:"))


def blocks(*languages: str) -> list[tuple[str, str]]:
    found = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return [(language, text) for language, text in found if language in languages]


async def test_every_example_of_the_page_does_what_the_page_says():
    script, said = Script(), 0
    for language, text in blocks("toml", "console"):
        if language == "toml":
            script = parse(text.encode(), toml=True)
            continue
        body, expected = re.search(r"-d '(.*)'\n(.*)\n", text, re.DOTALL).groups()
        async with simulated(script) as client:
            answer = await client.send("openai", body.encode())
        assert (answer.text if answer.status == 200 else answer.json["error"]["message"]) == expected
        said += 1
    assert said == 5


async def test_the_python_of_the_page_runs():
    [(_, source)] = blocks("python")
    lines = "\n".join(f"    {line}" for line in source.splitlines())
    space: dict = {}
    exec(f"async def page():\n{lines}", space)
    await space["page"]()


def test_the_page_names_every_field_and_kind():
    missing = []
    for name in ("When", "Reply", "Call", "Charge", "Pacing", "Script", "Entry"):
        struct = Entry if name == "Entry" else getattr(script_module, name)
        missing += [f"{name}.{field}" for field in struct.__struct_fields__ if not re.search(rf"\b{field}\b", PAGE)]
    for fault in get_args(script_module.Fault):
        row = re.search(rf"^\| `{fault.__struct_config__.tag}` \|.*$", PAGE, re.MULTILINE)
        own = set(fault.__struct_fields__) - set(script_module.FaultBase.__struct_fields__)
        missing += [f"{fault.__name__}.{field}" for field in own if not row or f"`{field}`" not in row[0]]
    assert missing == []


def test_every_slot_of_the_page_can_be_filled():
    slots = re.findall(r"\{\{[a-z_]+(?::[A-Z~]+)?\}\}", PAGE)
    assert len(slots) >= 8
    for slot in slots:
        expand(slot.replace("SLOT", "last_user"), Asked(dialect="openai", model="m", prompt=Prompt()))


async def test_a_thousand_streams_at_once_are_all_told_the_truth():
    async with simulated(parse(b"pacing.burst = 16", toml=True), size=2_000) as client:
        answers = await asyncio.gather(*(client.ask("openai", f"{n}", model="sim-tokens-40") for n in range(1_000)))
        entries = client.sim.requests()
    assert all(answer.ended for answer in answers) and len({answer.events[0]["id"] for answer in answers}) == 1_000
    assert {(entry.outcome, entry.told, entry.usage.output) for entry in entries} == {("finished", True, 40)}
    assert sum((entry.usage for entry in entries), Usage()) == sum((answer.usage for answer in answers), Usage())
