"""The connection to the database is lost round the commit of a request: who asks again with its key is served once."""

from collections.abc import AsyncIterator

import pytest
from played_worker import Player
from served_api import GOAL, Served, serve
from test_approvals_api import answer, questions, suspended
from tests.postgres_wire import POINTS, CutWire, cut_wire

from sojourn.store.db import connect
from sojourn.store.roles import Dsns

KEY = {"Idempotency-Key": "one"}


@pytest.fixture
async def cutting(dsns: Dsns) -> AsyncIterator[tuple[CutWire, Served]]:
    """Give the wire, and the API that speaks through it."""
    async with cut_wire(dsns) as (wire, through), await connect(through) as database, serve(database) as api:
        yield wire, api


async def made(api: Served) -> int:
    return len((await api.get("/v1/runs")).json["data"])


@pytest.mark.parametrize("point", POINTS)
async def test_a_run_that_is_asked_for_again_with_its_key_is_one_run(
    cutting: tuple[CutWire, Served], point: str
) -> None:
    wire, api = cutting
    wire.cut(point, "COMMIT", since="insert into run")
    cut = await api.post("/v1/runs", GOAL, headers=KEY)
    assert (cut.status, cut.code, wire.cuts) == (503, "store.unavailable", 1)
    assert (cut.headers["Retry-After"], cut.json["retryable"]) == ("1", True)
    again = await api.post("/v1/runs", GOAL, headers=KEY)
    assert again.status == 202
    assert ("Idempotency-Replayed" in again.headers) == (point != "before")
    assert await made(api) == 1


@pytest.mark.parametrize("point", POINTS)
async def test_a_run_that_is_asked_for_without_a_key_is_never_half_there(
    cutting: tuple[CutWire, Served], point: str
) -> None:
    wire, api = cutting
    wire.cut(point, "COMMIT", since="insert into run")
    assert (await api.post("/v1/runs", GOAL)).status == 503
    assert (await api.post("/v1/runs", GOAL)).status == 202
    assert await made(api) == (1 if point == "before" else 2), "which is what a key is for"


@pytest.mark.parametrize("point", POINTS)
async def test_a_decision_that_is_sent_again_is_one_decision(cutting: tuple[CutWire, Served], point: str) -> None:
    wire, api = cutting
    player = await Player.start(api.parts.database, api.parts.doorbell.ring)
    run_id = await suspended(api, player)
    (question,) = await questions(api, run_id)
    wire.cut(point, "COMMIT", since="insert into inbox")
    assert (await answer(api, question, decision="approve")).status == 503
    assert wire.cuts == 1
    other = await answer(api, question, decision="reject")
    assert other.status == (202 if point == "before" else 409), "it was taken, or it was not"
    assert (await answer(api, question, decision="approve")).status == (409 if point == "before" else 202)
    assert len((await player.take(run_id)).mail) == 1
    await player.close()
