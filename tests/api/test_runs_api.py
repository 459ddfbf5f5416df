"""Runs over HTTP: started, looked at, talked to and stopped."""

import asyncio

import pytest
from played_worker import Player
from served_api import GOAL, Served

from sojourn.api.runs import routes
from sojourn.errors import UnknownFormat
from sojourn.store import queue, runs


async def test_a_run_is_accepted_and_ends_where_a_worker_takes_it(api: Served, player: Player) -> None:
    made = await api.post("/v1/runs", GOAL)
    assert (made.status, made.json["status"]) == (202, "queued")
    run_id = made.json["run_id"]
    assert made.headers["Location"] == f"/v1/runs/{run_id}"
    play = await player.take(run_id)
    await play.work("Let me look.")
    await play.finish("1998.")
    run = (await api.get(f"/v1/runs/{run_id}")).json
    assert (run["status"], run["output"], run["steps"]) == ("completed", "1998.", 2)
    assert run["usage"] == {
        "input_tokens": 200, "cache_read_tokens": 40, "cache_write_tokens": 0, "output_tokens": 20,
        "reasoning_tokens": 0,
    }  # fmt: skip
    assert run["cost"] == {"usd": "0.003000"}
    assert run["agent"]["name"] == "inline"
    assert run["limits"]["steps"] == 75
    assert run["session_id"] == made.json["session_id"]


async def test_waiting_holds_the_answer_until_the_run_has_ended(api: Served, player: Player) -> None:
    held = asyncio.create_task(api.post("/v1/runs?wait=30", GOAL))
    async with asyncio.timeout(30):
        while not (queued := (await api.get("/v1/runs?status=queued")).json["data"]):
            pass
    await (await player.take(queued[0]["id"])).finish("1998.")
    reply = await held
    assert (reply.status, reply.json["output"], reply.json["status"]) == (200, "1998.", "completed")


async def test_waiting_gives_up_in_time_and_says_where_to_look(api: Served) -> None:
    reply = await api.post("/v1/runs?wait=0.05", GOAL)
    assert (reply.status, reply.json["status"]) == (202, "queued")


async def test_a_run_of_a_session_reads_what_was_said_before(api: Served, player: Player) -> None:
    first = (await api.post("/v1/runs", GOAL)).json
    await (await player.take(first["run_id"])).finish("1998.")
    second = (await api.post("/v1/runs", {**GOAL, "input": "And the coldest?", "session": first["session_id"]})).json
    play = await player.take(second["run_id"])
    assert [message.text for message in play.state.root.messages] == [GOAL["input"], "1998.", "And the coldest?"]
    await play.finish("1904.")
    said = (await api.get(f"/v1/runs/{second['run_id']}/messages")).json["data"]
    assert [message["role"] for message in said] == ["user", "assistant", "user", "assistant"]


async def test_a_session_has_one_unfinished_run_at_a_time(api: Served) -> None:
    session = (await api.post("/v1/runs", GOAL)).json["session_id"]
    again = await api.post("/v1/runs", {**GOAL, "session": session})
    assert (again.status, again.code) == (409, "session.busy")


async def test_a_finished_run_cannot_be_cancelled_or_talked_to(api: Served, player: Player) -> None:
    run_id = await api.start()
    await (await player.take(run_id)).finish()
    cancelled = await api.post(f"/v1/runs/{run_id}/cancel", {"reason": "too late"})
    assert (cancelled.status, cancelled.code) == (409, "run.ended")
    told = await api.post(f"/v1/runs/{run_id}/messages", {"input": "One more thing."})
    assert (told.status, told.code) == (409, "run.ended")


async def test_a_cancelled_run_ends_when_a_worker_sees_it(api: Served, player: Player) -> None:
    run_id = await api.start()
    assert (await api.post(f"/v1/runs/{run_id}/cancel")).status == 202
    play = await player.take(run_id)
    await play.commit(release="cancelled")
    run = (await api.get(f"/v1/runs/{run_id}")).json
    assert (run["status"], run["finished_at"] is not None) == ("cancelled", True)


async def test_a_message_reaches_the_run_in_its_inbox(api: Served, player: Player) -> None:
    run_id = await api.start()
    reply = await api.post(f"/v1/runs/{run_id}/messages", {"input": [{"type": "text", "text": "Be brief."}]})
    assert (reply.status, reply.json) == (202, {"accepted": True})
    play = await player.take(run_id)
    assert [message.text for message in play.state.root.messages] == [GOAL["input"], "Be brief."]


async def test_a_message_may_interrupt_the_reply_that_is_being_made(api: Served, player: Player) -> None:
    run_id = await api.start()
    play = await player.take(run_id)
    play.asked()
    await play.commit(release="queued")
    body = {"input": "Stop that.", "interrupt": True}
    assert (await api.post(f"/v1/runs/{run_id}/messages", body)).status == 202
    play = await player.take(run_id)
    assert (play.state.root.turn.sent, play.state.root.turn.attempt) == (False, 2)
    assert play.state.root.messages[-1].text == "Stop that."


async def test_lists_go_page_by_page_and_can_be_filtered(api: Served, player: Player) -> None:
    made = [await api.start({"labels": {"n": str(n)}}) for n in range(5)]
    await (await player.take(made[0])).finish()
    seen, after = [], ""
    while True:
        page = (await api.get(f"/v1/runs?limit=2{after}")).json
        seen += [run["id"] for run in page["data"]]
        if not page["has_more"]:
            break
        after = f"&after={page['next']}"
    assert seen == made[::-1]
    done = (await api.get("/v1/runs?status=completed")).json["data"]
    assert [(run["id"], run["labels"]) for run in done] == [(made[0], {"n": "0"})]
    assert (await api.get("/v1/runs?user=nobody")).json == {"data": [], "has_more": False, "next": None}
    assert len((await api.get("/v1/runs?agent=inline&user=local")).json["data"]) == 5


async def test_an_unchanged_run_is_not_sent_again(api: Served) -> None:
    run_id = await api.start()
    etag = (await api.get(f"/v1/runs/{run_id}")).headers["ETag"]
    for known in (etag, f'"0", W/{etag}', "*"):
        again = await api.get(f"/v1/runs/{run_id}", headers={"If-None-Match": known})
        assert (again.status, again.body, again.headers["ETag"]) == (304, b"", etag), known


async def test_a_run_that_changed_beside_its_journal_is_sent_again(api: Served, player: Player) -> None:
    run_id = await api.start()
    etag = (await api.get(f"/v1/runs/{run_id}")).headers["ETag"]
    (claimed,) = await queue.claim(api.parts.database, player.id, 1)
    assert await runs.quarantine(api.parts.database, player.id, (run_id, claimed.fence), UnknownFormat("Newer."))
    changed = await api.get(f"/v1/runs/{run_id}", headers={"If-None-Match": etag})
    assert (changed.status, changed.json["status"]) == (200, "quarantined")


async def test_a_full_queue_refuses_and_says_so(api: Served) -> None:
    settings = api.parts.settings
    object.__setattr__(api.parts, "settings", type(settings)(queued_runs_max=2))
    await api.start()
    await api.start()
    reply = await api.post("/v1/runs", GOAL)
    assert (reply.status, reply.code, reply.json["retryable"]) == (429, "limit.queue", True)
    assert int(reply.headers["Retry-After"]) >= 1
    assert (await api.post("/v1/runs", GOAL, key=api.other)).status == 202, "the queue is full for one tenant only"


async def test_a_run_that_a_limit_holds_back_says_which(api: Served, player: Player) -> None:
    await api.post("/v1/agents", {"name": "one", "model": "sim:one"})
    reply = await api.call("PUT", "/v1/agents/one/runs_max", json={"runs_max": 1})
    assert (reply.status, reply.json["runs_max"]) == (200, 1)
    body = {"agent": "one", "input": "go"}
    first, second = [(await api.post("/v1/runs", body)).json["run_id"] for _ in range(2)]
    assert (await api.get(f"/v1/runs/{second}")).json["held_back"] is None
    await player.take(first)
    assert (await api.get(f"/v1/runs/{first}")).json["held_back"] is None
    assert (await api.get(f"/v1/runs/{second}")).json["held_back"] == "agent_runs_max"
    metrics = (await api.get("/metrics")).body.decode()
    assert 'sojourn_queue_due{state="claimable"} 0\nsojourn_queue_due{state="held_back"} 1\n' in metrics
    assert (await api.call("PUT", "/v1/agents/one/runs_max", json={"runs_max": None})).json["runs_max"] is None
    assert (await api.get(f"/v1/runs/{second}")).json["held_back"] is None
    assert (await api.call("PUT", "/v1/agents/one/runs_max", json={"runs_max": 0})).status == 422
    assert (await api.call("PUT", "/v1/agents/none/runs_max", json={"runs_max": 1})).status == 404


async def test_a_run_takes_tighter_limits_and_wider_ones_need_a_scope(api: Served) -> None:
    agent = {"model": "sim:one", "limits": {"steps": 10, "usd": "0.50"}}
    run_id = await api.start({"model": None, "tools": [], "agent": agent, "limits": {"steps": 5}})
    limits = (await api.get(f"/v1/runs/{run_id}")).json["limits"]
    assert (limits["steps"], limits["usd"]) == (5, "0.500000")
    narrow = await api.key_with("runs:*")
    body = {"input": "go", "agent": agent, "limits": {"steps": 11}}
    reply = await api.post("/v1/runs", body, key=narrow)
    assert (reply.status, reply.code) == (403, "auth.forbidden")
    assert "budgets:raise" in reply.json["detail"]
    assert (await api.post("/v1/runs", body)).status == 202


async def test_a_trace_tells_every_attempt_with_its_time_tokens_and_cost(
    api: Served, player: Player, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "PAGE_BYTES", 1)  # each event comes alone
    run_id = await api.start()
    play = await player.take(run_id)
    play.asked()
    await play.commit()
    play.erred()
    play.ticked()
    await play.work()
    await play.finish("1998.")
    trace = (await api.get(f"/v1/runs/{run_id}/trace")).json
    spans = {span["id"]: span for span in trace["spans"]}
    assert list(spans) == [
        "run", "/#0", "/#0/model.1", "/#0/model.2", "/0.0/tool.1", "/#1", "/#1/model.2",
    ] or list(spans) == ["run", "/#0", "/#0/model.1", "/#0/model.2", "/0.0/tool.1", "/#1", "/#1/model.1"]  # fmt: skip
    assert spans["/#0/model.1"]["status"] == "failed"
    assert spans["/#0/model.1"]["error"]["code"] == "model.interrupted"
    reply = spans["/#0/model.2"]
    assert (reply["parent"], reply["provider"], reply["first_token_ms"]) == ("/#0", "sim", 12)
    assert reply["cost"] == {"usd": "0.001500"}
    tool = spans["/0.0/tool.1"]
    assert (tool["parent"], tool["name"], tool["status"]) == ("/#0", "shell", "ok")
    assert all(span["ended_at"] >= span["started_at"] for span in spans.values())
    assert trace["totals"]["cost"] == {"usd": "0.003000"}
    assert (trace["totals"]["model_attempts"], trace["totals"]["tool_attempts"]) == (3, 1)
