"""`examples/openai_loop` as its user runs it: a process for each command, and nothing between them but the file."""

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from example_kit import INVOICES, ROOT, Example, begun, example
from tests.conftest import until

from sojourn.models.simulator import Call, Rule, Stall, Status, When

PAY_1, PAY_2, PUBLISH = "/1.0?0", "/1.1?0", "/1.2/0.0?0"
WAITS, REFUSED = 7, 1


@pytest.fixture
async def books(tmp_path: Path) -> AsyncIterator[Example]:
    async with example("openai_loop", tmp_path) as books:
        yield books


@pytest.fixture(scope="session")
async def waiting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return await begun("openai_loop", tmp_path_factory.mktemp("openai_loop"))


@pytest.fixture
def asking(books: Example, waiting: Path) -> Example:
    """A run that waits, begun by another process, in another folder, with another model."""
    shutil.copytree(waiting, books.folder, dirs_exist_ok=True)
    return books


async def test_a_run_that_waits_for_approvals_ends_its_process_and_has_done_nothing(asking: Example) -> None:
    assert {id: (wait.kind, wait.frame) for id, wait in asking.waits.items()} == {
        PAY_1: ("approval", "/"),
        PAY_2: ("approval", "/"),
        PUBLISH: ("approval", "/1.2"),
    }
    assert '"eur": 120' in asking.waits[PAY_1].display
    assert not asking.payments
    assert not (asking.folder / "audit.txt").exists()


async def test_each_decision_reaches_its_call_and_the_run_ends_in_other_processes(asking: Example) -> None:
    assert (await asking.decide(PUBLISH, approve=True)).code == 0
    assert (await asking.resume()).code == WAITS
    assert (asking.folder / "audit.txt").read_text() == "Audited: INV-1 and INV-2 are being paid."
    assert (await asking.decide(PAY_1, edit='{"invoice": "INV-1", "eur": 100}')).code == 0
    assert (await asking.decide(PAY_2, reject="Not before May.")).code == 0
    told = await asking.resume()
    assert (told.code, told.err) == (0, "")
    assert told.out.startswith(
        "The last payment: A person rejected this call. Not before May. The audit: I say: Published."
    )
    assert asking.payments == [f"{asking.run.run_id}/1.0,INV-1,100"]
    invoices, *seen = asking.observed()
    assert invoices == INVOICES
    assert seen == ["Paid INV-1: 100 EUR.", "A person rejected this call. Not before May.", "I say: Published."]
    assert "A person changed the arguments" in asking.asked()[-1]["messages"][-1]["content"]


async def test_approving_one_of_two_parallel_calls_runs_only_that_one(asking: Example) -> None:
    await asking.decide(PAY_2, approve=True)
    assert (await asking.resume()).code == WAITS
    assert asking.payments == [f"{asking.run.run_id}/1.1,INV-2,80"]
    assert asking.waits.keys() == {PAY_1, PUBLISH}


async def test_an_answer_stands_in_the_place_of_the_call_and_nothing_runs(asking: Example) -> None:
    for wait in (PAY_1, PAY_2, PUBLISH):
        assert (await asking.decide(wait, answer="It was paid in cash.")).code == 0
    assert (await asking.resume()).code == 0
    assert asking.observed()[1:] == ["It was paid in cash.", "It was paid in cash.", "I say: It was paid in cash."]
    assert not asking.payments


async def test_resuming_again_does_nothing_again(asking: Example) -> None:
    for wait in (PAY_1, PAY_2, PUBLISH):
        await asking.decide(wait, approve=True)
    first = await asking.resume()
    requests, payments, text = len(asking.asked()), asking.payments, asking.file.read_bytes()
    assert first.code == 0
    assert await asking.resume() == first == await asking("show", "run.json")
    assert (len(asking.asked()), asking.payments, asking.file.read_bytes()) == (requests, payments, text)
    assert len(payments) == 2


@pytest.mark.parametrize(
    ("code", "wait", "answer"),
    [
        ("run.not_waiting", "/9.9?0", {"approve": True}),
        ("approval.not_allowed", PAY_1, {"retry": True}),
        ("approval.other_arguments", PAY_1, {"approve": True, "seen": "sha256:" + "0" * 64}),
        ("approval.edit_invalid", PAY_1, {"edit": "[]"}),
    ],
)
async def test_a_decision_that_is_not_taken_says_why_and_changes_nothing(
    asking: Example, code: str, wait: str, answer: dict[str, str | bool]
) -> None:
    before = asking.file.read_bytes()
    told = await asking.decide(wait, **answer)
    assert (told.code, told.err.split(":")[0]) == (REFUSED, code)
    assert asking.file.read_bytes() == before


async def test_the_second_answer_to_a_question_is_not_taken(asking: Example) -> None:
    await asking.decide(PAY_1, reject="No.")
    told = await asking.decide(PAY_1, approve=True)
    assert (told.code, told.err.split(":")[0]) == (REFUSED, "run.not_waiting")
    await asking.resume()
    assert not asking.payments


# ---- crashes ---------------------------------------------------------------------------------


async def killed_while_paying(asking: Example) -> None:
    """Kill the process with -9 after the intent to pay was saved and before anything came back."""
    bank = asking.folder / "payments.csv"
    os.mkfifo(bank)  # whoever writes to it waits for a reader, who never comes
    await asking.decide(PAY_1, approve=True)
    process = await asking.begin("resume", "run.json")
    await until(lambda: asking.run.root.calls[0].state == "intent")
    process.kill()
    await process.communicate()
    bank.unlink()


async def test_a_call_that_was_killed_in_the_middle_is_asked_about_and_not_run_again(asking: Example) -> None:
    await killed_while_paying(asking)
    assert (await asking.resume()).code == WAITS
    unknown = asking.waits["/1.0?1"]
    assert (unknown.kind, unknown.allowed) == ("outcome_unknown", ("retry", "mark_done", "cancel"))
    assert (await asking.resume()).code == WAITS
    assert not asking.payments


@pytest.mark.parametrize(
    ("answer", "paid", "observed"),
    [
        ({"retry": True}, 1, "Paid INV-1"),
        ({"done": "The bank says that it was paid."}, 0, "The bank says"),
        ({"cancel": True}, 0, "Nobody knows"),
    ],
)
async def test_an_unknown_outcome_is_settled_by_a_person(
    asking: Example, answer: dict[str, str | bool], paid: int, observed: str
) -> None:
    await killed_while_paying(asking)
    for wait in (PAY_2, PUBLISH):
        await asking.decide(wait, reject="No.")
    await asking.resume()
    assert (await asking.decide("/1.0?1", **answer)).code == 0
    assert (await asking.resume()).code == 0
    assert asking.payments == [f"{asking.run.run_id}/1.0,INV-1,120"] * paid
    assert asking.observed()[1].startswith(observed)


async def test_a_model_call_that_was_killed_is_made_again(tmp_path: Path) -> None:
    stall = Stall(when=When(turn=1), after="nothing", times=1)
    async with example("openai_loop", tmp_path, faults=(stall,)) as books:
        process = await books.begin("start", "Pay what is due.", file="run.json")
        await until(lambda: len(books.simulator.requests(turn=1)) == 1)
        process.kill()
        await process.communicate()
        assert books.run.root.turn.sent
        assert (await books.resume()).code == WAITS
        assert books.waits.keys() == {PAY_1, PAY_2, PUBLISH}
        assert books.run.spent.steps == 3  # two of the bookkeeper, one of the auditor


async def test_only_one_process_has_a_run_in_its_hands(asking: Example) -> None:
    os.mkfifo(asking.folder / "payments.csv")
    await asking.decide(PAY_1, approve=True)
    first = await asking.begin("resume", "run.json")
    await until(lambda: asking.run.root.calls[0].state == "intent")
    for told in (await asking.resume(), await asking.decide(PAY_2, approve=True)):
        assert (told.code, told.err) == (REFUSED, "Another process has run.json in its hands.\n")
    assert (await asking("show", "run.json")).code == WAITS
    paid = await asyncio.to_thread((asking.folder / "payments.csv").read_text)
    await first.communicate()
    assert first.returncode == WAITS
    assert paid.splitlines() == [f"{asking.run.run_id}/1.0,INV-1,120"]


# ---- the file --------------------------------------------------------------------------------


async def test_a_file_that_was_changed_is_refused_and_left_alone(asking: Example) -> None:
    changed = asking.file.read_bytes().replace(b'\\"eur\\":120', b'\\"eur\\":999')
    assert changed != asking.file.read_bytes()
    asking.file.write_bytes(changed)
    for told in (await asking.decide(PAY_1, approve=True), await asking.resume(), await asking("show", "run.json")):
        assert (told.code, told.err) == (REFUSED, "It was changed after it was written.\n")
    assert asking.file.read_bytes() == changed


async def test_a_run_is_not_begun_on_top_of_another(asking: Example) -> None:
    before = asking.file.read_bytes()
    told = await asking.start()
    assert (told.code, told.err) == (REFUSED, "run.json holds a run already.\n")
    assert asking.file.read_bytes() == before


async def test_a_file_that_is_not_there_is_said_so(books: Example) -> None:
    told = await books.resume()
    assert told.code == REFUSED
    assert "No such file" in told.err


async def test_a_run_goes_on_with_the_agents_that_it_began_with(tmp_path: Path) -> None:
    code, folder = tmp_path / "code", tmp_path / "work"
    folder.mkdir()
    shutil.copytree(ROOT / "examples", code / "examples")
    program = code / "examples/openai_loop/__main__.py"
    async with example("openai_loop", folder, code=code) as books:
        await books.start()
        program.write_text(program.read_text().replace("You are the bookkeeper.", "You are a pirate."))
        for wait in (PAY_1, PAY_2, PUBLISH):
            await books.decide(wait, approve=True)
        assert (await books.resume()).code == 0
        systems = {body["messages"][0]["content"].split(".")[0] for body in books.asked()}
        assert systems == {"You are the bookkeeper", "You are the auditor"}


async def test_a_file_that_was_laid_out_anew_is_the_same_run(asking: Example) -> None:
    asking.file.write_text(json.dumps(json.loads(asking.file.read_text()), indent=2))
    assert (await asking.decide(PAY_1, approve=True)).code == 0
    assert (await asking.resume()).code == WAITS
    assert len(asking.payments) == 1


# ---- the model -------------------------------------------------------------------------------


async def test_a_model_that_is_busy_is_asked_again_a_little_later(tmp_path: Path) -> None:
    async with example("openai_loop", tmp_path, faults=(Status(status=429, times=1),)) as books:
        assert (await books.start()).code == WAITS
        assert books.run.root.turn.failures == 0


async def test_a_model_that_refuses_ends_the_run_with_its_words(tmp_path: Path) -> None:
    async with example("openai_loop", tmp_path, faults=(Status(status=401, message="no such key"),)) as books:
        told = await books.start()
        assert told.code == REFUSED
        assert "model.failed" in told.err
        assert "no such key" in told.err


async def test_arguments_that_a_tool_cannot_take_are_read_by_the_model(tmp_path: Path) -> None:
    calls = (Call("list_invoices", '{"year": 1'), Call("list_invoices", {"year": 1}), Call("fly"))
    rules = (Rule(when=When(turn=0), calls=calls), Rule(text="I see."))
    async with example("openai_loop", tmp_path, rules=rules) as books:
        assert (await books.start())[:2] == (0, "I see.\n")
        broken, wrong, unknown = books.observed()
        assert broken.startswith("The arguments are not a JSON object")
        assert "unexpected keyword argument 'year'" in wrong
        assert unknown.startswith("There is no tool named 'fly'")
