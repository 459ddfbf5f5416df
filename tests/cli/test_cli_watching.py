"""`sojourn run` and `logs -f`: what a person sees of a run, through every accident on the way."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from console_script import Console, until
from screens import without_style
from scripted_api import Problem, Run, ScriptedApi, Seen

MODEL = ("--model", "openai:gpt-x")


def tool_call(run, call: str, command: str, result: str, **fields) -> None:
    arguments = json.dumps({"command": command})
    run.event("agent.tool_use", call=call, tool="shell", arguments=arguments, evaluated_permission="allow", frame="/")
    run.event("agent.tool_result", call=call, tool="shell", text=result, error=False, frame="/", **fields)


async def test_text_streams_in_a_terminal_and_the_last_line_sums_up(api: ScriptedApi, sojourn: Console):
    run = api.run()
    async with sojourn.in_terminal("run", "the goal", *MODEL) as terminal:
        await until(lambda: run.streams)
        run.event("user.message", text="the goal", frame="/")
        run.delta("thinking", text="Let me")
        run.delta("thinking", text=" see.")
        run.delta("message", text="I shall ")
        await terminal.shows("I shall ")
        run.delta("message", text="look.")
        await terminal.shows("I shall look.")
        run.event("agent.thinking", text="Let me see.", frame="/")
        run.event("agent.message", text="I shall look.", frame="/")
        tool_call(run, "c1", "ls -la", "a.txt\nb.txt\n")
        run.finish("Two files.")
        assert await terminal.end() == 0
    plain = without_style(terminal.text)
    assert plain.splitlines() == [
        "run_1 in session ses_1",
        "> the goal",
        "Let me see.",
        "I shall look.",
        "→ shell ls -la",
        "  a.txt",
        "  b.txt",
        "Two files.",
        "completed · 2 steps · 1,234 tokens in (234 cached), 56 out · $0.001234 · 41.0 s · run_1",
    ]
    assert "\x1b[2m  a.txt\n  b.txt\x1b[0m" in terminal.text, "results are dimmed"


async def test_no_color_leaves_no_escape_sequence(api: ScriptedApi, sojourn: Console):
    run = api.run()
    tool_call(run, "c1", "ls", "a.txt")
    run.finish("Done.")
    async with sojourn.in_terminal("run", "the goal", *MODEL, NO_COLOR="1") as terminal:
        assert await terminal.end() == 0
    assert "\x1b" not in terminal.text


async def test_in_a_pipe_the_answer_alone_is_on_standard_output(api: ScriptedApi, sojourn: Console):
    run = api.run()
    tool_call(run, "c1", "ls", "a.txt")
    run.finish("The answer.")
    result = await sojourn("run", "the goal", *MODEL)
    assert (result.code, result.out) == (0, "The answer.\n")
    assert "→ shell ls\n  a.txt\nThe answer.\ncompleted · 2 steps" in result.err
    assert "\x1b" not in result.err


@pytest.mark.parametrize(("status", "code"), [("completed", 0), ("failed", 1), ("cancelled", 6)])
async def test_the_exit_code_tells_the_status(api: ScriptedApi, sojourn: Console, status: str, code: int):
    run = api.run()
    run.event(f"run.{status}", error={"code": "model.no_key", "detail": "There is no key."})
    assert (await sojourn("run", "the goal", *MODEL)).code == code
    assert (await sojourn("logs", "-f", run.id)).code == code


async def test_a_run_that_waits_for_somebody_ends_the_command_with_7(api: ScriptedApi, sojourn: Console):
    run = api.run(status="suspended")
    run.event("run.suspended", waits=["w"])
    run.ask(id="w", kind="approval", title="May it?", approval="run_1.dw", allowed=["approve", "reject", "edit"])
    result = await sojourn("run", "the goal", *MODEL)
    assert result.code == 7
    assert "? May it?\n  sojourn approve run_1.dw   (or reject, edit)\nsuspended · " in result.err
    assert "Follow it: sojourn logs -f run_1" in result.err


async def test_a_suspension_that_is_over_already_does_not_end_the_command(api: ScriptedApi, sojourn: Console):
    run = api.run()
    run.event("run.suspended", waits=["w"])
    run.event("run.resumed")
    run.finish("Went on.")
    result = await sojourn("run", "the goal", *MODEL)
    assert (result.code, result.out) == (0, "Went on.\n")


async def test_ctrl_c_leaves_the_run_alone_and_says_how_to_go_on(api: ScriptedApi, sojourn: Console):
    run = api.run()
    async with sojourn.in_terminal("run", "the goal", *MODEL) as terminal:
        await until(lambda: run.streams)
        terminal.press("\x03")
        assert await terminal.end() == 130
    assert "The run goes on. Follow it: sojourn logs -f run_1   Cancel it: sojourn cancel run_1" in terminal.text
    assert "Traceback" not in terminal.text
    assert not api.asked("POST /v1/runs/run_1/cancel")


async def test_ctrl_c_in_logs_only_detaches(api: ScriptedApi, sojourn: Console):
    run = api.run()
    async with sojourn.in_terminal("logs", "-f", run.id) as terminal:
        await until(lambda: run.streams)
        terminal.press("\x03")
        assert await terminal.end() == 130
    assert "Detached. The run goes on: sojourn logs -f run_1" in terminal.text
    assert {one.method for one in api.seen} == {"GET"}


async def test_a_server_that_restarts_in_the_middle_is_found_again_and_nothing_comes_twice(
    api: ScriptedApi, sojourn: Console
):
    run = api.run()
    run.event("agent.message", text="one", frame="/")
    async with sojourn.with_pipes("logs", "-f", run.id) as running:
        await running.shows("one")
        await api.stop()
        await running.shows("The connection is lost; trying again.")
        run.event("agent.message", text="two", frame="/")
        await api.start()
        await running.shows("two")
        run.finish("three")
        assert await running.end() == 0
    assert [running.text.count(word) for word in ("one", "two", "three")] == [1, 1, 1]
    last = api.asked("GET /v1/runs/run_1/events")[-1]
    assert last.headers["Last-Event-ID"] == "1"


def refusing(run: Run, times: int) -> Callable[[Seen], dict[str, Any]]:
    """Show a run once a server that begins and ends has refused it so often."""
    left = iter(range(times))

    def show(_: Seen) -> dict[str, Any]:
        if next(left, None) is not None:
            raise Problem(503, "store.unavailable", "The database is away.")
        return run.document

    return show


async def test_a_server_that_restarts_once_the_run_has_ended_keeps_nobody_from_the_answer(
    api: ScriptedApi, sojourn: Console
):
    run = api.run()
    run.finish("It was 1998.")
    for words, out in ((("run", "the goal", *MODEL), "It was 1998.\n"), (("logs", "-f", run.id), None)):
        api.answers["GET /v1/runs/run_1"] = refusing(run, 2)
        result = await sojourn(*words)
        assert result.code == 0 and out in (None, result.out), result.err


async def test_a_server_that_restarts_while_a_run_waits_is_asked_again(api: ScriptedApi, sojourn: Console):
    run = api.run(status="suspended")
    run.event("run.suspended", waits=["w"])
    run.ask(id="w", kind="approval", title="May it?", approval="run_1.dw", allowed=["approve"])
    api.answers["GET /v1/runs/run_1"] = refusing(run, 2)
    assert (await sojourn("run", "the goal", *MODEL)).code == 7


def frame(kind: str, data: dict, id_: int | None = None) -> bytes:
    head = "" if id_ is None else f"id: {id_}\n"
    return f"{head}event: {kind}\ndata: {json.dumps({'type': kind, **data})}\n\n".encode()


async def test_events_that_a_server_sends_again_are_passed_over(api: ScriptedApi, sojourn: Console):
    run = api.run(status="completed")
    said = [frame("agent.message", {"seq": 1, "text": "one"}, 1), frame("agent.message", {"seq": 2, "text": "two"}, 2)]
    end = frame("run.completed", {"seq": 3}, 3)
    api.answers[f"GET /v1/runs/{run.id}/events"] = said[0] * 2 + said[1] + said[0] + end
    result = await sojourn("logs", "-f", run.id, "--json")
    assert [line["seq"] for line in result.lines] == [1, 2, 3]


async def test_events_of_one_row_share_a_seq_and_each_comes_once_however_the_row_breaks(
    api: ScriptedApi, sojourn: Console
):
    run = api.run(status="completed")
    row = [frame("agent.message", {"seq": 2, "text": text}) for text in ("a", "b")]
    row.append(frame("agent.message", {"seq": 2, "text": "c"}, 2))
    first = frame("user.message", {"seq": 1, "text": "go"}, 1)
    end = frame("run.completed", {"seq": 3}, 3)
    broken = [first + row[0], row[0] + row[1], b"".join(row), end]
    api.answers[f"GET /v1/runs/{run.id}/events"] = lambda seen: broken.pop(0)
    result = await sojourn("logs", "-f", run.id, "--json")
    assert [line.get("text") for line in result.lines] == ["go", "a", "b", "c", None]
    asked = api.asked(f"GET /v1/runs/{run.id}/events")
    assert [one.headers.get("Last-Event-ID") for one in asked] == [None, "1", "1", "2"]


async def test_a_stream_that_breaks_inside_an_event_is_taken_up_before_it(api: ScriptedApi, sojourn: Console):
    run = api.run()
    whole = frame("agent.message", {"seq": 1, "text": "one"}, 1)
    answers = [whole + b'id: 2\ndata: {"type": "agent.mess', whole]
    run.event("agent.message", text="one", frame="/")
    run.event("agent.message", text="two", frame="/")
    run.event("run.completed")

    def answer(seen):
        if len(answers) > 1:
            return answers.pop(0)
        del api.answers["GET /v1/runs/run_1/events"]
        return answers[0]

    api.answers["GET /v1/runs/run_1/events"] = answer
    result = await sojourn("logs", "-f", run.id)
    assert result.code == 0
    assert result.out.splitlines()[:2] == ["one", "two"]


async def test_following_a_run_that_ended_before_the_given_event_ends(api: ScriptedApi, sojourn: Console):
    run = api.run()
    run.finish("long ago")
    result = await sojourn("logs", "-f", run.id, "--after", "2")
    assert result.code == 0
    assert "long ago" not in result.out


async def test_a_reset_begins_the_text_anew(api: ScriptedApi, sojourn: Console):
    run = api.run()
    async with sojourn.in_terminal("run", "the goal", *MODEL) as terminal:
        await until(lambda: run.streams)
        run.delta("message", text="A first try th")
        run.delta("reset", attempt=2)
        run.delta("message", text="A second try.", attempt=2)
        await terminal.shows("A second try.")
        run.finish("A second try.", attempt=2)
        assert await terminal.end() == 0
    lines = without_style(terminal.text).splitlines()
    assert lines[1:4] == ["A first try th", "… the answer broke off and begins anew", "A second try."]


async def test_a_lost_connection_costs_nothing_of_the_text_and_repeats_nothing(api: ScriptedApi, sojourn: Console):
    run = api.run()
    async with sojourn.in_terminal("run", "the goal", *MODEL) as terminal:
        await until(lambda: run.streams)
        run.delta("message", text="It is ")
        await terminal.shows("It is ")
        api.cut()
        await until(lambda: not run.streams)
        run.delta("message", text="thirty-")
        await terminal.shows("thirty-")
        run.delta("message", text="one.")
        await terminal.shows("one.")
        run.finish("It is thirty-one.")
        assert await terminal.end() == 0
    assert "\nIt is thirty-one.\ncompleted" in without_style(terminal.text)


async def test_deltas_that_never_came_are_made_good_by_the_whole_message(api: ScriptedApi, sojourn: Console):
    run = api.run()
    async with sojourn.in_terminal("run", "the goal", *MODEL) as terminal:
        await until(lambda: run.streams)
        run.delta("message", text="It is ")
        await terminal.shows("It is ")
        run.finish("It is thirty-one.")
        assert await terminal.end() == 0
    assert "\nIt is thirty-one.\ncompleted" in without_style(terminal.text)


async def test_deltas_with_a_hole_are_followed_by_the_whole_message(api: ScriptedApi, sojourn: Console):
    run = api.run()
    async with sojourn.in_terminal("run", "the goal", *MODEL) as terminal:
        await until(lambda: run.streams)
        run.delta("message", text="It is one.")
        await terminal.shows("It is one.")
        run.finish("It is thirty-one.")
        assert await terminal.end() == 0
    assert "\nIt is one.\nIt is thirty-one.\ncompleted" in without_style(terminal.text)


async def test_a_reply_of_several_texts_is_shown_once(api: ScriptedApi, sojourn: Console):
    run = api.run()
    async with sojourn.in_terminal("run", "the goal", *MODEL) as terminal:
        await until(lambda: run.streams)
        run.delta("message", text="First. ")
        run.delta("message", text="Second.")
        await terminal.shows("Second.")
        run.event("agent.message", text="First. ", frame="/")
        run.finish("Second.")
        assert await terminal.end() == 0
    assert "\nFirst. Second.\ncompleted" in without_style(terminal.text)


async def test_whoever_joins_in_the_middle_of_a_message_sees_it_from_its_beginning(api: ScriptedApi, sojourn: Console):
    run = api.run()
    run.delta("message", text="The beginning ")
    async with sojourn.in_terminal("logs", "-f", run.id) as terminal:
        await terminal.shows("The beginning ")
        run.delta("message", text="and the end.")
        await terminal.shows("and the end.")
        run.finish("The beginning and the end.")
        assert await terminal.end() == 0
    assert without_style(terminal.text).startswith("The beginning and the end.\ncompleted")


async def test_the_text_of_a_sub_agent_is_shown_whole_and_indented(api: ScriptedApi, sojourn: Console):
    run = api.run()
    async with sojourn.in_terminal("logs", "-f", run.id) as terminal:
        await until(lambda: run.streams)
        run.delta("message", text="Below", frame="/1.0")
        run.event("agent.message", text="Below.", frame="/1.0", step=0)
        run.finish("Above.")
        assert await terminal.end() == 0
    assert without_style(terminal.text).startswith("  Below.\nAbove.\ncompleted")


async def test_nothing_that_a_model_or_a_tool_writes_reaches_the_terminal_raw(api: ScriptedApi, sojourn: Console):
    attack = "\x1b]0;owned\x07\x1b[2J\x9b31mred\x08\x08\u202egnp\r\nsecond\x7f"
    run = api.run(waits=[])
    tool_call(run, "c1", attack, attack)
    run.event("model.request_finished", error={"code": attack, "detail": attack}, model=attack)
    async with sojourn.in_terminal("run", "the goal", *MODEL, NO_COLOR="1") as terminal:
        await until(lambda: run.streams)
        run.delta("message", text=attack, step=2)
        await terminal.shows("owned")
        run.finish(attack)
        assert await terminal.end() == 0
    written = terminal.text.replace("\n", "").replace("^C", "")
    assert not [char for char in written if ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 or char == "\u202e"]
    assert "␛]0;owned␇" in written


async def test_a_long_result_is_cut_for_people_and_whole_in_json(api: ScriptedApi, sojourn: Console):
    run = api.run()
    text = "\n".join(f"line {n}" for n in range(500))
    tool_call(run, "c1", "seq 500", text)
    run.finish("Done.")
    shown = await sojourn("logs", run.id)
    assert "line 9\n" in shown.out
    assert "line 10\n" not in shown.out
    assert "characters more (--json shows all)" in shown.out
    result = next(one for one in (await sojourn("logs", run.id, "--json")).lines if one["type"] == "agent.tool_result")
    assert result["text"] == text


async def test_parallel_calls_name_the_one_that_came_back(api: ScriptedApi, sojourn: Console):
    run = api.run()
    for call in ("a", "b"):
        run.event("agent.tool_use", call=call, tool="shell", arguments=json.dumps({"command": f"do {call}"}))
    run.event("agent.tool_result", call="b", tool="shell", text="b is done")
    run.event("agent.tool_result", call="a", tool="shell", text="exit 1", error=True)
    run.finish("Both.")
    out = (await sojourn("logs", run.id)).out
    assert out.splitlines()[:6] == [
        "→ shell do a",
        "→ shell do b",
        "  ↳ shell do b",
        "  b is done",
        "  exit 1",
        "Both.",
    ]


async def test_a_call_that_was_answered_in_its_place_is_not_waited_for(api: ScriptedApi, sojourn: Console):
    run = api.run()
    run.event("agent.tool_use", call="/0.0", tool="ask_user", arguments=json.dumps({"question": "Why?"}))
    run.event("model.request_started", frame="/", step=1, attempt=1, model="openai:x")
    tool_call(run, "/1.0", "ls", "a.txt")
    run.finish("Done.")
    assert (await sojourn("logs", run.id)).out.splitlines()[:4] == ["→ ask_user Why?", "→ shell ls", "  a.txt", "Done."]


async def test_run_json_is_one_document_and_nothing_else(api: ScriptedApi, sojourn: Console):
    run = api.run()
    tool_call(run, "c1", "ls", "a.txt")
    run.finish("Done.")
    result = await sojourn("run", "the goal", *MODEL, "--json")
    assert (result.code, result.err) == (0, "")
    assert result.json["output"] == "Done."


async def test_a_reader_that_goes_away_is_no_error(api: ScriptedApi, sojourn: Console):
    run = api.run()
    for n in range(2000):
        run.event("agent.message", text=f"{n} " + "x" * 200, frame="/")
    console = Console(
        home=sojourn.home, url=api.url, command=("/bin/sh", "-c", '"$0" "$@" | head -1', *sojourn.command)
    )
    result = await console("logs", run.id, SOJOURN_API_KEY="sk_test")
    assert result.out.startswith("0 x")
    assert result.err == ""
