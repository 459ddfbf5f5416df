"""A run that asks something: what is shown of the question, and how a person answers it where it is watched."""

import json
from typing import Any

import pytest
from console_script import Console, until
from screens import screen, without_style
from scripted_api import Problem, Run, ScriptedApi, Seen

MODEL = ("--model", "openai:gpt-x")
RAN = json.dumps({"command": "rm -r /work/old"}, indent=2)
CALL = {"id": "/0.0?0", "kind": "approval", "title": "May clerk run shell?", "approval": "run_1.aa", "display": RAN,
        "allowed": ["approve", "reject", "edit", "answer"]}  # fmt: skip
WORDS = {"id": "/0.1?0", "kind": "answer", "title": "clerk asks a question.", "approval": "run_1.bb",
         "display": json.dumps({"question": "Which colour?", "choices": ["blue", "red"]}),
         "allowed": ["answer", "reject"]}  # fmt: skip
PROMPT = "May clerk run shell? y, n WHY or skip: "


def waits(api: ScriptedApi, *asked: dict[str, Any]) -> Run:
    """Let a run stand still for some questions. Each answer is taken; with the last one it goes on and ends."""
    run = api.run(status="suspended")
    run.event("run.suspended", waits=[wait["id"] for wait in asked])
    for wait in asked:
        run.ask(**wait)
        path = f"/v1/approvals/{wait['approval']}"
        api.answers[f"GET {path}"] = {"need": 1, "votes": [], **wait, "arguments_digest": "sha256:1"}
        api.answers[f"POST {path}"] = lambda seen, id_=wait["id"]: taken(run, seen, id_)
    return run


def taken(run: Run, seen: Seen, id_: str) -> dict[str, Any]:
    run.waits = [wait for wait in run.waits if wait["id"] != id_]
    body = seen.json
    run.event("approval.resolved", wait=id_, by="ann", decision=body["decision"], reason=body.get("reason", ""))
    if not run.waits:
        run.status = "running"
        run.event("run.resumed")
        run.finish("Went on.")
    return {"accepted": True}


async def test_a_person_is_asked_where_the_run_is_watched_and_a_yes_is_bound_to_what_was_shown(
    api: ScriptedApi, sojourn: Console
):
    waits(api, CALL)
    async with sojourn.in_terminal("run", "the goal", *MODEL) as terminal:
        await terminal.shows(PROMPT)
        assert screen(terminal.text)[1:-1] == [
            "… the run waits, and holds nothing meanwhile",
            "? May clerk run shell?",
            *("  " + line for line in RAN.split("\n")),
            "  sojourn approve run_1.aa   (or reject, edit, answer)",
        ]
        terminal.press("perhaps\n")
        await until(lambda: terminal.text.count("or skip: ") == 2)
        terminal.press("y\n")
        assert await terminal.end() == 0
    (asked,) = api.asked("POST /v1/approvals/run_1.aa")
    assert asked.json == {"decision": "approve", "arguments_digest": "sha256:1"}
    assert "\nann decided: approve\nthe run goes on\nWent on.\ncompleted" in without_style(terminal.text)


async def test_a_no_has_a_reason_and_an_agents_question_takes_a_line(api: ScriptedApi, sojourn: Console):
    waits(api, CALL, WORDS)
    async with sojourn.in_terminal("run", "the goal", *MODEL) as terminal:
        await terminal.shows(PROMPT)
        terminal.press("n not on a Friday\n")
        await terminal.shows("/reject WHY refuses): ")
        assert screen(terminal.text)[-4:-1] == ["  Which colour?", "  - blue", "  - red"]
        terminal.press("the blue one\n")
        assert await terminal.end() == 0
    no, answer = (api.asked(f"POST /v1/approvals/{name}")[0].json for name in ("run_1.aa", "run_1.bb"))
    assert (no["decision"], no["reason"]) == ("reject", "not on a Friday")
    assert (answer["decision"], answer["text"]) == ("answer", "the blue one")
    assert "ann decided: reject (May clerk run shell?) · not on a Friday" in without_style(terminal.text)


async def test_an_agents_question_can_be_refused(api: ScriptedApi, sojourn: Console):
    waits(api, WORDS)
    async with sojourn.in_terminal("run", "the goal", *MODEL) as terminal:
        await terminal.shows("/reject WHY refuses): ")
        terminal.press("/reject ask the boss\n")
        assert await terminal.end() == 0
    (asked,) = api.asked("POST /v1/approvals/run_1.bb")
    assert (asked.json["decision"], asked.json["reason"]) == ("reject", "ask the boss")


@pytest.mark.parametrize("keys", ["skip\n", "\n", "\x04"])
async def test_a_question_that_is_left_open_ends_the_command_with_7(api: ScriptedApi, sojourn: Console, keys: str):
    waits(api, CALL)
    async with sojourn.in_terminal("run", "the goal", *MODEL) as terminal:
        await terminal.shows(PROMPT)
        terminal.press(keys)
        assert await terminal.end() == 7
    assert not api.asked("POST /v1/approvals/run_1.aa")
    assert "Follow it: sojourn logs -f run_1" in terminal.text


async def test_of_two_questions_one_may_be_left_to_others_and_is_asked_once(api: ScriptedApi, sojourn: Console):
    waits(api, CALL, WORDS)
    async with sojourn.in_terminal("run", "the goal", *MODEL) as terminal:
        await terminal.shows(PROMPT)
        terminal.press("skip\n")
        await terminal.shows("/reject WHY refuses): ")
        terminal.press("blue\n")
        assert await terminal.end() == 7
    assert terminal.text.count("or skip: ") == 1
    assert "ann decided: answer (clerk asks a question.)" in without_style(terminal.text)


async def test_one_yes_of_two_is_told_and_leaves_the_question_to_the_other(api: ScriptedApi, sojourn: Console):
    def counted(seen: Seen) -> dict[str, Any]:
        run.event("approval.resolved", wait=CALL["id"], by="ann", decision="approve", reason="")
        return {"accepted": True}

    run = waits(api, {**CALL, "need": 2})
    api.answers["POST /v1/approvals/run_1.aa"] = counted
    async with sojourn.in_terminal("run", "the goal", *MODEL) as terminal:
        await terminal.shows(PROMPT)
        terminal.press("y\n")
        assert await terminal.end() == 7
    assert "It needs 1 more yes, of somebody else." in terminal.text
    assert terminal.text.count("or skip: ") == 1


async def test_what_was_typed_before_the_question_does_not_answer_it(api: ScriptedApi, sojourn: Console):
    run = api.run()
    async with sojourn.in_terminal("run", "the goal", *MODEL) as terminal:
        await until(lambda: run.streams)
        terminal.press("y\n")
        await terminal.shows("y\n")  # the terminal's echo: it was typed
        run.status = "suspended"
        api.answers["GET /v1/approvals/run_1.aa"] = {**CALL, "arguments_digest": "sha256:1"}
        run.event("run.suspended", waits=[CALL["id"]])
        run.ask(**CALL)
        await terminal.shows(PROMPT)
        terminal.press("skip\n")
        assert await terminal.end() == 7
    assert not api.asked("POST /v1/approvals/run_1.aa")


async def test_nobody_is_asked_in_a_pipe_with_no_ask_or_for_json(api: ScriptedApi, sojourn: Console):
    for words in (("--no-ask",), ("--json",)):
        waits(api, CALL)
        async with sojourn.in_terminal("run", "the goal", *MODEL, *words) as terminal:
            assert await terminal.end() == 7
        assert "or skip" not in terminal.text
    assert (await sojourn("run", "the goal", *MODEL, stdin=b"y\n")).code == 7
    assert not api.asked("POST /v1/approvals/run_1.aa")


async def test_an_answer_that_the_server_refuses_is_told_and_the_question_stays(api: ScriptedApi, sojourn: Console):
    def refuse(seen: Seen) -> None:
        raise Problem(403, "approval.not_yours", "Only these may answer: boss.", request_id="req_1")

    waits(api, CALL)
    api.answers["POST /v1/approvals/run_1.aa"] = refuse
    async with sojourn.in_terminal("run", "the goal", *MODEL) as terminal:
        await terminal.shows(PROMPT)
        terminal.press("y\n")
        assert await terminal.end() == 7
    assert "Only these may answer: boss." in terminal.text


async def test_a_question_that_is_cut_is_shown_whole_before_it_is_asked(api: ScriptedApi, sojourn: Console):
    lines = [f"line {n}" for n in range(40)]
    waits(api, {**CALL, "display": "\n".join(lines)})
    async with sojourn.in_terminal("run", "the goal", *MODEL) as terminal:
        await terminal.shows(PROMPT)
        shown = screen(terminal.text)
        assert "  … 200 characters more (sojourn approvals run_1.aa shows all)" in shown
        assert shown[-41:-1] == ["  " + line for line in lines]
        terminal.press("skip\n")
        assert await terminal.end() == 7


async def test_a_run_that_sleeps_is_followed_on(api: ScriptedApi, sojourn: Console):
    run = api.run(status="suspended")
    until_ = {"id": "t", "kind": "timer", "title": "Waits until then.", "approval": "run_1.cc", "allowed": ["approve"]}
    run.event("run.suspended", waits=["t"])
    run.ask(**until_, expires_at="2026-03-01T13:00:00Z")
    async with sojourn.with_pipes("run", "the goal", *MODEL) as running:
        await running.shows("  sojourn approve run_1.cc   (goes on now)\n")
        run.status = "running"
        run.event("run.resumed")
        run.finish("Awake.")
        assert await running.end() == 0


@pytest.mark.parametrize(
    ("kind", "allowed", "title", "words"),
    [
        ("approval", ["approve", "reject", "edit", "answer", "extend"], "May it?",
         "sojourn approve run_1.aa   (or reject, edit, answer; until 2026-03-02T12:00:00Z)"),
        ("answer", ["answer", "reject"], "It asks.", "sojourn answer run_1.aa TEXT   (or reject; until 2026"),
        ("client_tool", ["answer", "reject"], "Run ship.", "sojourn result run_1 /0.0 TEXT\n"),
        ("event", ["answer", "reject"], "Waits for the event $(rm -r ~).", "sojourn signal run_1 '$(rm -r ~)' DATA\n"),
        ("event", ["answer", "reject"], "Waits for the event a\nb.", "sojourn signal run_1 'a b' DATA\n"),
        ("timer", ["approve", "reject"], "Waits until then.", "sojourn approve run_1.aa   (goes on now)\n"),
        ("budget", ["extend", "reject"], "The run has used all of its usd_micros. Raise it?",
         "sojourn decide run_1.aa extend --limit usd=N   (or reject"),
        ("turns", ["approve", "reject"], "Go on?", "sojourn approve run_1.aa   (or reject"),
        ("outcome_unknown", ["retry", "mark_done", "cancel"], "What is true?",
         "sojourn decide run_1.aa retry   (or mark_done, cancel"),
        ("hold", ["approve"], "ann put it on hold.", "sojourn resume run_1\n"),
    ],
)  # fmt: skip
async def test_each_kind_of_question_says_the_command_that_answers_it(
    api: ScriptedApi, sojourn: Console, kind: str, allowed: list[str], title: str, words: str
):
    end = "2026-03-02T12:00:00.123456Z"
    run = api.run(status="suspended")
    run.ask(id="w", kind=kind, approval="run_1.aa", allowed=allowed, title=title, call="/0.0", expires_at=end)
    assert f"  {words}" in (await sojourn("logs", run.id)).out
    assert words in (await sojourn("get", run.id)).out


async def test_what_happens_to_a_run_from_outside_has_a_line(api: ScriptedApi, sojourn: Console):
    run = api.run()
    run.event("run.queued", made_from="run_0", agent="a", version=1)
    run.event("run.held", by="ann", reason="the vendor is down")
    run.ask(id="run?0", kind="hold", approval="run_1.aa", allowed=["approve"], title="ann put the run on hold.")
    run.event("signal.received", name="payment.settled", id="s1", data='{"cents":1200}')
    run.event("approval.resolved", wait="run?0", by="bob", decision="approve", reason="it is back")
    run.event(
        "context.compacted", frame="/", step=3, usage={"input_tokens": 900, "output_tokens": 80}, cost={"usd": "0.01"}
    )
    run.event("context.compacted", frame="/", step=4)
    run.event("sandbox.restored")
    run.event("run.cancelled")
    assert (await sojourn("logs", run.id)).out.splitlines() == [
        "this run goes on from run_0",
        "ann put the run on hold · the vendor is down",
        "  sojourn resume run_1",
        'signal payment.settled {"cents":1200}',
        "bob ended the hold · it is back",
        "what came before was summed up for the model · 900 tokens in, 80 out · $0.01",
        "the model is shown less of what came before",
        "the files were brought back into a new sandbox; programs that ran in it have ended",
        "the run was cancelled",
    ]
