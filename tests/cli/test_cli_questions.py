"""Questions and their answers, holds and signals, on the command line."""

from pathlib import Path

from console_script import Console
from scripted_api import AT, ScriptedApi, page


async def test_approvals_are_listed_and_decided(api: ScriptedApi, sojourn: Console):
    asked = {"id": "run_1.dw", "kind": "approval", "title": "May it?", "display": '{\n  "x": 1\n}', "created_at": AT}
    api.answers["GET /v1/approvals"] = page(asked)
    api.answers["POST /v1/approvals/run_1.dw"] = {"accepted": True}
    line = (await sojourn("approvals")).out.splitlines()[1]
    assert line.startswith("run_1.dw  approval  ") and line.endswith('  May it? { "x": 1 }')
    assert (await sojourn("approve", "run_1.dw")).code == 0
    assert api.seen[-1].json == {"decision": "approve"}
    assert (await sojourn("reject", "run_1.dw", "--reason", "no")).code == 0
    assert api.seen[-1].json == {"decision": "reject", "reason": "no"}


async def test_a_question_is_shown_whole(api: ScriptedApi, sojourn: Console):
    api.answers["GET /v1/approvals/run_1.dw"] = {
        "id": "run_1.dw", "kind": "approval", "title": "May a run shell?", "display": '{"command": "ls"}',
        "allowed": ["approve", "edit"],
        "need": 2, "votes": [{"by": "ann"}], "approvers": ["ann", "bob"], "arguments_digest": "sha256:1",
    }  # fmt: skip
    shown = (await sojourn("approvals", "run_1.dw")).out
    assert shown.splitlines()[:2] == ["May a run shell?", '{"command": "ls"}']
    assert "  needs    2 yes of ann, bob, has ann\n" in shown and "  seen     sha256:1\n" in shown
    assert shown.endswith("  sojourn approve run_1.dw   (or edit)\n")
    api.answers["GET /v1/approvals"] = page()
    await sojourn("approvals", "--run", "run_1", "--mine")
    assert (api.seen[-1].query["run"], api.seen[-1].query["mine"]) == ("run_1", "true")


async def test_every_answer_has_its_words(api: ScriptedApi, sojourn: Console, tmp_path: Path):
    api.answers["POST /v1/approvals/run_1.dw"] = {"accepted": True, "replayed": True}
    (tmp_path / "args.json").write_text('{"to": "bob"}')
    for words, body in (
        (("approve", "run_1.dw", "--grant", "5", "--any-arguments", "--seen", "sha256:1"),
         {"decision": "approve", "grant": {"count": 5, "same_arguments": False}, "arguments_digest": "sha256:1"}),
        (("edit", "run_1.dw", '{"to": "bob"}'), {"decision": "edit", "arguments": {"to": "bob"}}),
        (("edit", "run_1.dw", f"@{tmp_path}/args.json"), {"decision": "edit", "arguments": {"to": "bob"}}),
        (("answer", "run_1.dw", "blue"), {"decision": "answer", "text": "blue"}),
        (("decide", "run_1.dw", "retry", "--reason", "try"), {"decision": "retry", "reason": "try"}),
        (("decide", "run_1.dw", "mark_done", "--text", "paid"), {"decision": "mark_done", "text": "paid"}),
        (("decide", "run_1.dw", "extend", "--steps", "9", "--usd", "1.5"),
         {"decision": "extend", "limits": {"steps": 9, "usd": "1.5"}}),
        (("decide", "run_1.dw", "extend", "--limit", "active_s=7200.5", "--limit", "usd=2.50"),
         {"decision": "extend", "limits": {"active_s": 7200.5, "usd": "2.50"}}),
        (("decide", "run_1.dw", "extend", "--until", AT), {"decision": "extend", "expires_at": AT}),
    ):  # fmt: skip
        result = await sojourn(*words)
        assert (result.code, api.seen[-1].json) == (0, body), words
        assert "it was given before" in result.out
    for wrong in ("[1]", "{", f"@{tmp_path}/none"):
        assert (await sojourn("edit", "run_1.dw", wrong)).code == 2
    assert (await sojourn("decide", "run_1.dw", "extend", "--limit", "steps")).code == 2


async def test_a_run_is_held_resumed_and_told_what_happened(api: ScriptedApi, sojourn: Console):
    for what in ("hold", "resume", "signals", "tool_results"):
        api.answers[f"POST /v1/runs/run_1/{what}"] = {"accepted": True}
    api.answers["GET /v1/runs/run_1/hook"] = {"path": "/v1/hooks/run_1", "secret": "whsec_x"}
    for words, body in (
        (("hold", "run_1", "--reason", "down"), {"reason": "down"}),
        (("resume", "run_1"), {"reason": ""}),
        (("signal", "run_1", "paid", '{"cents": 1}', "--id", "e1"), {"name": "paid", "data": {"cents": 1}, "id": "e1"}),
        (("signal", "run_1", "paid", "in full"), {"name": "paid", "data": "in full"}),
        (("result", "run_1", "/0.0", "shipped"), {"call": "/0.0", "output": "shipped"}),
        (("result", "run_1", "/0.0", "lost", "--error"), {"call": "/0.0", "error": "lost"}),
    ):
        assert (await sojourn(*words)).code == 0, words
        assert api.seen[-1].json == body
    assert f"  url     {api.url}/v1/hooks/run_1\n  secret  whsec_x\n" == (await sojourn("hook", "run_1")).out
