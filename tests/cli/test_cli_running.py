"""`sojourn run` and `logs -f` in a terminal: what is shown of a call while it is written and while it runs."""

import json
import re

from console_script import Console, until
from screens import screen
from scripted_api import ScriptedApi

MODEL = ("--model", "openai:gpt-x")


def asked_for(run, call: str, command: str) -> None:
    arguments = json.dumps({"command": command})
    run.event("agent.tool_use", call=call, tool="shell", arguments=arguments, evaluated_permission="allow", frame="/")


async def test_what_a_command_prints_is_shown_as_it_comes_and_once(api: ScriptedApi, sojourn: Console):
    run = api.run()
    async with sojourn.in_terminal("run", "the goal", *MODEL) as terminal:
        await until(lambda: run.streams)
        asked_for(run, "/1.0", "make")
        for word in ("first", "second"):
            run.delta("tool_output", call="/1.0", text=f"the {word} line\n")
            await terminal.shows(f"the {word} line")
        assert screen(terminal.text)[-2:] == ["  the first line", "  the second line"]
        assert "\x1b[2m  the second line\x1b[0m" in terminal.text, "it is dimmed"
        text = "the first line\nthe second line\nthe last line\n"
        run.event("agent.tool_result", call="/1.0", tool="shell", text=text, error=False)
        run.finish("Made.")
        assert await terminal.end() == 0
    assert screen(terminal.text)[1:-1] == [
        "→ shell make",
        "  the first line",
        "  the second line",
        "  the last line",
        "Made.",
    ]


async def test_a_chatty_command_shows_its_last_lines_and_how_many_came_before(api: ScriptedApi, sojourn: Console):
    run = api.run()
    async with sojourn.in_terminal("run", "the goal", *MODEL) as terminal:
        await until(lambda: run.streams)
        asked_for(run, "/1.0", "seq 5000")
        for start in range(0, 5000, 100):
            numbers = "\n".join(f"number {n}" for n in range(start, start + 100))
            run.delta("tool_output", call="/1.0", text=numbers + "\n")
        await terminal.shows("number 4999")
        last = [f"  number {n}" for n in range(4992, 5000)]
        assert screen(terminal.text)[1:] == ["→ shell seq 5000", "  … 4,992 lines before", *last]
        text = "\n".join(f"number {n}" for n in range(5000)) + "\n"
        run.event("agent.tool_result", call="/1.0", tool="shell", text=text, error=False)
        run.finish("Counted.")
        assert await terminal.end() == 0
    shown = screen(terminal.text)[1:-1]
    assert shown == ["→ shell seq 5000", "  … 4,992 lines before (--json shows all)", *last, "Counted."]
    assert len(terminal.text) < 50_000


async def test_a_line_that_is_written_over_and_one_that_is_too_long_stay_one_line(api: ScriptedApi, sojourn: Console):
    run = api.run()
    async with sojourn.in_terminal("run", "the goal", *MODEL, columns=40) as terminal:
        await until(lambda: run.streams)
        asked_for(run, "/1.0", "fetch")
        run.delta("tool_output", call="/1.0", text="10 %\r20 %\r")
        await terminal.shows("20 %")
        run.delta("tool_output", call="/1.0", text="30 %\nwide " + "漢" * 100)
        await terminal.shows("wide")
        assert screen(terminal.text)[-2:] == ["  30 %", "  wide " + "漢" * 16]
        run.event("agent.tool_result", call="/1.0", tool="shell", text="done", error=False)
        run.finish("Fetched.")
        assert await terminal.end() == 0
    assert screen(terminal.text)[1:-1] == ["→ shell fetch", "  done", "Fetched."]


async def test_arguments_are_shown_as_they_are_written_and_once(api: ScriptedApi, sojourn: Console):
    run = api.run()
    async with sojourn.in_terminal("run", "the goal", *MODEL) as terminal:
        await until(lambda: run.streams)
        run.delta("message", text="I shall look.")
        run.delta("tool_arguments", index=0, name="shell", text='{"comm')
        await terminal.shows('→ shell {"comm')
        run.delta("tool_arguments", index=0, name="shell", text='and":"ls')
        await terminal.shows('→ shell {"command":"ls')
        assert screen(terminal.text)[1:] == ["I shall look.", '→ shell {"command":"ls']
        run.event("agent.message", text="I shall look.", frame="/")
        asked_for(run, "/1.0", "ls")
        run.event("agent.tool_result", call="/1.0", tool="shell", text="a.txt", error=False)
        run.finish("One file.")
        assert await terminal.end() == 0
    assert screen(terminal.text)[1:-1] == ["I shall look.", "→ shell ls", "  a.txt", "One file."]


async def test_arguments_of_an_attempt_that_broke_are_taken_back(api: ScriptedApi, sojourn: Console):
    run = api.run()
    async with sojourn.in_terminal("run", "the goal", *MODEL) as terminal:
        await until(lambda: run.streams)
        run.delta("tool_arguments", index=0, name="shell", text='{"command":"rm')
        await terminal.shows('"rm')
        run.delta("reset", attempt=2)
        run.delta("tool_arguments", index=0, name="shell", text='{"command":"ls', attempt=2)
        await terminal.shows('"ls')
        assert screen(terminal.text)[1:] == ['→ shell {"command":"ls']
        run.finish("Nothing to do.", attempt=2)
        assert await terminal.end() == 0


async def test_output_that_is_told_again_to_a_reader_that_came_back_is_shown_once(api: ScriptedApi, sojourn: Console):
    run = api.run()
    async with sojourn.in_terminal("run", "the goal", *MODEL) as terminal:
        await until(lambda: run.streams)
        asked_for(run, "/1.0", "make")
        run.delta("tool_output", call="/1.0", text="one\n")
        await terminal.shows("one")
        run.delta("reset", call="/1.0")
        run.delta("tool_output", call="/1.0", text="one\ntwo\n")
        await terminal.shows("two")
        assert screen(terminal.text)[1:] == ["→ shell make", "  one", "  two"]
        run.event("agent.tool_result", call="/1.0", tool="shell", text="one\ntwo", error=False)
        run.finish("Made.")
        assert await terminal.end() == 0


async def test_a_lost_connection_takes_away_what_goes_on_and_not_what_is_said_of_it(api: ScriptedApi, sojourn: Console):
    run = api.run()
    async with sojourn.in_terminal("run", "the goal", *MODEL) as terminal:
        await until(lambda: run.streams)
        asked_for(run, "/1.0", "make")
        run.delta("tool_output", call="/1.0", text="one\n")
        await terminal.shows("one")
        await api.stop()
        lost = "The connection is lost; trying again. The run goes on without it."
        await terminal.shows(lost)
        assert screen(terminal.text)[1:] == ["→ shell make", lost]
        run.delta("tool_output", call="/1.0", text="two\n")
        await api.start()
        await terminal.shows("two")
        run.event("agent.tool_result", call="/1.0", tool="shell", text="one\ntwo", error=False)
        run.finish("Made.")
        assert await terminal.end() == 0
    assert screen(terminal.text)[1:-1] == ["→ shell make", lost, "  one", "  two", "Made."]


async def test_commands_side_by_side_are_shown_under_their_names(api: ScriptedApi, sojourn: Console):
    run = api.run()
    async with sojourn.in_terminal("run", "the goal", *MODEL) as terminal:
        await until(lambda: run.streams)
        for call in ("a", "b"):
            asked_for(run, call, f"do {call}")
            run.delta("tool_output", call=call, text=f"from {call}\n")
        await terminal.shows("from b")
        assert screen(terminal.text)[3:] == ["  ↳ shell do a", "  from a", "  ↳ shell do b", "  from b"]
        run.event("agent.tool_result", call="a", tool="shell", text="from a", error=False)
        run.event("agent.tool_result", call="b", tool="shell", text="from b", error=False)
        run.finish("Both.")
        assert await terminal.end() == 0
    assert screen(terminal.text)[3:-1] == ["  ↳ shell do a", "  from a", "  from b", "Both."]


async def test_nothing_that_a_running_tool_prints_reaches_the_terminal_raw(api: ScriptedApi, sojourn: Console):
    attack = "\x1b]0;owned\x07\x1b[2J\x1b[31m\x9b31mred\x08\x08\u202egnp\x7f"
    run = api.run()
    async with sojourn.in_terminal("run", "the goal", *MODEL) as terminal:
        await until(lambda: run.streams)
        run.delta("tool_arguments", index=0, name="x" + attack, text=attack + "\x1b[3F")
        await terminal.shows("␛[3F")
        asked_for(run, "/1.0", "cat evil")
        run.delta("tool_output", call="/1.0", text=f"{attack}\r\n{attack}\x1b[9A\rafter\x1b[1A\n")
        await terminal.shows("after␛[1A")
        run.delta("tool_output", call="/1.0", text="cut in two \x1b")
        run.delta("tool_output", call="/1.0", text="[8mhidden")
        await terminal.shows("cut in two ␛[8mhidden")
        run.event("agent.tool_result", call="/1.0", tool="shell", text=attack, error=False)
        run.finish("Seen.")
        assert await terminal.end() == 0
    assert "␛]0;owned␇" in terminal.text
    own = re.sub(r"\x1b\[(?:0|1|2|32)m|\x1b\[[1-4]F\x1b\[J|[\n]", "", terminal.text)
    assert not [char for char in own if ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 or char == "\u202e"]


async def test_without_colour_what_goes_on_is_shown_when_it_is_whole(api: ScriptedApi, sojourn: Console):
    run = api.run()
    async with sojourn.in_terminal("run", "the goal", *MODEL, NO_COLOR="1") as terminal:
        await until(lambda: run.streams)
        run.delta("tool_arguments", index=0, name="shell", text='{"command":"ma')
        asked_for(run, "/1.0", "make")
        run.delta("tool_output", call="/1.0", text="one\n")
        run.event("agent.tool_result", call="/1.0", tool="shell", text="one", error=False)
        run.finish("Made.")
        assert await terminal.end() == 0
    assert terminal.text.splitlines()[1:-1] == ["→ shell make", "  one", "Made."]


async def test_json_shows_events_as_they_are_and_no_pieces_of_them(api: ScriptedApi, sojourn: Console):
    run = api.run()
    async with sojourn.with_pipes("logs", "-f", run.id, "--json") as running:
        await until(lambda: run.streams)
        asked_for(run, "/1.0", "make")
        run.delta("tool_output", call="/1.0", text="one\n")
        run.event("agent.tool_result", call="/1.0", tool="shell", text="\x1b[2Jone\n", error=False)
        run.finish("Made.")
        assert await running.end() == 0
    assert [json.loads(line) for line in running.text.splitlines()] == run.events
    assert "\x1b" not in running.text
