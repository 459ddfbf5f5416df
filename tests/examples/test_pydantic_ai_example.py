"""`examples/pydantic_ai` as its user runs it: their agent, our questions, and a process for each command."""

import os
import shutil
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from example_kit import INVOICES, Example, begun, example
from msgspec.structs import replace
from pydantic_ai.messages import ModelMessagesTypeAdapter
from tests.conftest import until

from sojourn.loop import Native, dumps, loads
from sojourn.models.simulator import Call, Rule, Stall, Status, When

PAY, COUNT = "/0.0?0", "/0.3?0"
WAITS, REFUSED = 7, 1


@pytest.fixture
async def payer(tmp_path: Path) -> AsyncIterator[Example]:
    async with example("pydantic_ai", tmp_path) as payer:
        yield payer


@pytest.fixture(scope="session")
async def waiting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return await begun("pydantic_ai", tmp_path_factory.mktemp("pydantic_ai"))


@pytest.fixture
def asking(payer: Example, waiting: Path) -> Example:
    """A run that waits, begun by another process, in another folder, with another model."""
    shutil.copytree(waiting, payer.folder, dirs_exist_ok=True)
    return payer


async def test_deferred_calls_are_judged_by_the_policy_and_the_rest_waits(asking: Example) -> None:
    assert {id: (wait.kind, wait.allowed[0]) for id, wait in asking.waits.items()} == {
        PAY: ("approval", "approve"),
        COUNT: ("client_tool", "answer"),
    }
    assert '"eur": 120' in asking.waits[PAY].display
    assert asking.waits[PAY].expires_at is not None
    assert asking.payments == ["INV-2,40.0"]  # small enough for the policy; INV-3 is too large for everybody


async def test_decisions_become_deferred_results_and_the_agent_goes_on_in_another_process(asking: Example) -> None:
    assert (await asking.decide(COUNT, answer="123")).code == 0
    for person in ("ann", "ben"):
        assert (await asking.decide(PAY, approve=True, by=person)).code == 0
    assert await asking.resume() == (0, "There are 123 EUR in the till.\n", "")
    assert asking.payments == ["INV-2,40.0", "INV-1,120.0"]
    assert asking.observed() == [
        INVOICES,
        "Paid INV-1: 120.0 EUR.",
        "Paid INV-2: 40.0 EUR.",
        '{"error":"The policy does not allow this call. More than 1000 EUR are paid by nobody."}',
        "123",
    ]
    assert len(asking.asked()) == 1  # a call that is run alone asks no model


async def test_their_messages_are_kept_as_they_wrote_them(asking: Example) -> None:
    [data] = [part.data for message in asking.run.root.messages for part in message.parts if isinstance(part, Native)]
    kinds = [message.kind for message in ModelMessagesTypeAdapter.validate_json(data)]
    assert kinds == ["request", "response", "request", "response"]
    await asking.decide(COUNT, answer="123")
    await asking.decide(PAY, reject="Not yet.", by="eve")
    await asking.resume()
    first, second = (
        part.data for message in asking.run.root.messages for part in message.parts if isinstance(part, Native)
    )
    assert first == data
    assert data not in second  # each keeps what it added, so a long run grows by what is new


async def test_a_rejection_is_read_by_the_model(asking: Example) -> None:
    await asking.decide(COUNT, reject="Nobody is there.")
    await asking.decide(PAY, reject="Not yet.", by="eve")
    assert (await asking.resume()).code == 0
    assert asking.observed()[1] == '{"error":"A person rejected this call. Not yet."}'
    assert asking.observed()[4] == '{"error":"A person rejected this call. Nobody is there."}'
    assert asking.payments == ["INV-2,40.0"]


async def test_edited_arguments_run_once_everybody_approved_them(asking: Example) -> None:
    await asking.decide(COUNT, answer="123")
    await asking.decide(PAY, approve=True, by="ann")
    await asking.decide(PAY, edit='{"invoice": "INV-1", "eur": 60}', by="ben")
    [changed] = asking.waits.keys() - {COUNT}
    assert '"eur": 60' in asking.waits[changed].display
    assert (await asking.resume()).code == WAITS
    await asking.decide(changed, approve=True, by="ann")
    assert (await asking.resume()).code == 0
    assert asking.payments == ["INV-2,40.0", "INV-1,60.0"]
    assert "A person changed the arguments" in asking.asked()[-1]["messages"][-1]["content"]


async def test_edited_arguments_are_checked_as_the_agent_checks_them(asking: Example) -> None:
    await asking.decide(COUNT, answer="123")
    await asking.decide(PAY, edit='{"invoice": "INV-1", "eur": "sixty"}', by="ben")
    [changed] = asking.waits.keys() - {COUNT}
    await asking.decide(changed, approve=True, by="ann")
    assert (await asking.resume()).code == 0
    assert "unable to parse string as a number" in asking.observed()[1]
    assert asking.payments == ["INV-2,40.0"]


@pytest.mark.parametrize(
    ("code", "before", "answer"),
    [
        ("approval.not_yours", {}, {"approve": True, "by": "carl"}),
        ("approval.voted", {"approve": True, "by": "ann"}, {"approve": True, "by": "ann"}),
        ("approval.edit_denied", {}, {"edit": '{"invoice": "INV-1", "eur": 9000}', "by": "ann"}),
        ("approval.not_allowed", {}, {"retry": True, "by": "ann"}),
        ("run.not_waiting", {"reject": "No.", "by": "eve"}, {"approve": True, "by": "ann"}),
    ],
)
async def test_a_decision_that_is_not_taken_says_why_and_changes_nothing(
    asking: Example, code: str, before: dict[str, str | bool], answer: dict[str, str | bool]
) -> None:
    if before:
        assert (await asking.decide(PAY, **before)).code == 0
    text = asking.file.read_bytes()
    told = await asking.decide(PAY, **answer)
    assert (told.code, told.err.split(":")[0]) == (REFUSED, code)
    assert asking.file.read_bytes() == text


async def test_whoever_began_the_run_approves_nothing_in_it(payer: Example) -> None:
    await payer.start(by="ann")
    told = await payer.decide(PAY, approve=True, by="ann")
    assert (told.code, told.err.split(":")[0]) == (REFUSED, "approval.initiator")


async def test_a_question_that_nobody_answered_in_time_is_over(asking: Example) -> None:
    run, agents = loads(asking.file.read_bytes())
    call, *others = run.root.calls
    assert call.wait is not None
    late = replace(call, wait=replace(call.wait, expires_at=datetime.now(UTC) - timedelta(seconds=1)))
    run = replace(run, root=replace(run.root, calls=(late, *others)))
    asking.file.write_bytes(dumps(run, agents))
    told = await asking.decide(PAY, approve=True, by="ann")
    assert (told.code, told.err.split(":")[0]) == (REFUSED, "approval.expired")
    await asking.decide(COUNT, answer="123")
    assert (await asking.resume()).code == 0
    assert "Nobody answered in time" in asking.observed()[1]
    assert asking.payments == ["INV-2,40.0"]


async def test_an_approved_call_that_was_killed_is_asked_about_and_not_run_again(asking: Example) -> None:
    bank = asking.folder / "payments.csv"
    bank.unlink()
    os.mkfifo(bank)  # whoever writes to it waits for a reader, who never comes
    for person in ("ann", "ben"):
        await asking.decide(PAY, approve=True, by=person)
    process = await asking.begin("resume", "run.json")
    await until(lambda: asking.run.root.calls[0].state == "intent")
    process.kill()
    await process.communicate()
    bank.unlink()
    assert (await asking.resume()).code == WAITS
    assert asking.waits["/0.0?1"].kind == "outcome_unknown"
    assert (await asking.decide("/0.0?1", done="The bank says that it was paid.", by="ann")).code == 0
    await asking.decide(COUNT, answer="123")
    assert (await asking.resume()).code == 0
    assert asking.observed()[1] == "The bank says that it was paid."
    assert not asking.payments


async def test_an_agent_that_was_killed_in_its_own_loop_is_asked_again(tmp_path: Path) -> None:
    stall = Stall(when=When(turn=1), after="nothing", times=1)
    async with example("pydantic_ai", tmp_path, faults=(stall,)) as payer:
        process = await payer.begin("start", "Pay what is due.", file="run.json")
        await until(lambda: len(payer.simulator.requests(turn=1)) == 1)
        process.kill()
        await process.communicate()
        assert (await payer.resume()).code == WAITS
        assert payer.waits.keys() == {PAY, COUNT}
        assert payer.payments == ["INV-2,40.0"]


async def test_a_model_that_refuses_ends_the_run_with_its_words(tmp_path: Path) -> None:
    async with example("pydantic_ai", tmp_path, faults=(Status(status=401, message="no such key"),)) as payer:
        told = await payer.start()
        assert told.code == REFUSED
        assert "no such key" in told.err


async def test_two_calls_with_one_id_end_the_run_before_anything_is_done(tmp_path: Path) -> None:
    twice = tuple(Call("pay", {"invoice": f"INV-{n}", "eur": 120}, id="same") for n in (1, 2))
    async with example("pydantic_ai", tmp_path, rules=(Rule(calls=twice),)) as payer:
        await payer.start()
        for wait in payer.waits:
            for person in ("ann", "ben"):
                await payer.decide(wait, approve=True, by=person)
        told = await payer.resume()
        assert not payer.payments
        assert (told.code, "same" in told.err) == (REFUSED, True)
