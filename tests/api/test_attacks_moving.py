"""Runs that move, for callers who want more than is theirs: memory, money, and what a narrow key may not do."""

import asyncio
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import pytest
from msgspec.structs import replace
from played_worker import Player
from served_api import Reply, Served
from tests.loop.exported_runs import ISSUER, Tree, call, export, sealed, starts

from sojourn.api.app import MOVING_MAX, MOVING_WAITING_MAX
from sojourn.loop.agent import Agent
from sojourn.loop.budget import Limits

JSON = {"Content-Type": "application/json"}
CLERK = {"name": "clerk", "model": "sim:one", "tools": ["shell"], "policy": {"otherwise": "ask"}}
NARROW = ("runs:write", "runs:read", "sessions:read", "agents:read")


async def waiting(api: Served, player: Player, **more: Any) -> str:
    """A run of a named agent that waits for an approval."""
    await api.post("/v1/agents", CLERK)
    reply = await api.post("/v1/runs", {"agent": "clerk", "input": "go", **more})
    assert reply.status == 202, reply.body
    run_id: str = reply.json["run_id"]
    play = await player.take(run_id)
    play.asked()
    await play.commit()
    play.replied("", play.call())
    await play.commit(release="suspended")
    return run_id


async def import_(api: Served, data: bytes, **more: Any) -> Reply:
    return await api.call("POST", "/v1/runs/import", data=data, headers=JSON, **more)


async def test_raised_limits_are_not_doubled_by_a_key_that_may_not_raise_them(api: Served, player: Player) -> None:
    plain = await waiting(api, player)
    raised = await waiting(api, player, limits={"steps": 1000})
    narrow = await api.key_with(*NARROW)
    assert (await api.post(f"/v1/runs/{plain}/fork", {}, key=narrow)).status == 202
    for body in ({}, {"step": 0}, {"step": 0, "input": "again"}):
        reply = await api.post(f"/v1/runs/{raised}/fork", body, key=narrow)
        assert (reply.status, reply.code) == (403, "auth.forbidden") and "budgets:raise" in reply.json["detail"]
    broad = await api.key_with(*NARROW, "budgets:raise")
    assert (await api.post(f"/v1/runs/{raised}/fork", {}, key=broad)).status == 202


@pytest.mark.parametrize("below", [False, True])
async def test_an_import_gets_no_limits_that_its_importer_may_not_give(api: Served, below: bool) -> None:
    assert (await api.post("/v1/trust", {"issuer": ISSUER, "name": "elsewhere"})).status == 201
    sub = Agent(name="sub", models=("sim:one",), limits=Limits(steps=5))
    run = Tree(Agent(name="one", models=("sim:one",), tools=(starts(sub),)), sub)
    run.reply(call("sub", '{"input":"go"}'))
    (called,) = run.root.calls
    assert called.child is not None
    state = run.state
    if below:
        child = replace(called.child, limits=Limits(steps=None))
        state = replace(state, root=replace(run.root, calls=(replace(called, child=child),)))
        state = replace(state, limits=Limits())
    else:
        state = replace(state, limits=Limits(steps=76))
    data = sealed(export(state, run.agents))
    narrow = await api.key_with("runs:write")
    refused = await import_(api, data, key=narrow)
    assert (refused.status, refused.code) == (403, "auth.forbidden")
    assert (await import_(api, data)).status == 202


async def test_few_imports_are_in_memory_at_once_and_few_wait(api: Served) -> None:
    address = urlsplit(api.url)
    head = (
        f"POST /v1/runs/import HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer {api.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{{"
    ).encode()
    count = MOVING_MAX + MOVING_WAITING_MAX
    slow = [(await asyncio.open_connection(address.hostname, address.port))[1] for _ in range(count)]
    for writer in slow:
        writer.write(head)
    reply = await until_it_answers(api)
    assert (reply.status, reply.code, reply.headers["Retry-After"]) == (503, "service.unavailable", "2")
    assert (await api.get("/v1/me")).status == 200
    for writer in slow:
        writer.close()
    async with asyncio.timeout(60):
        while (await until_it_answers(api)).status != 422:  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # the server notices each that has gone


async def until_it_answers(api: Served) -> Reply:
    """The answer to an import; it is tried again where it has to wait."""
    async with asyncio.timeout(60):
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    return await import_(api, b"{}")
