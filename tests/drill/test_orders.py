"""What the drills take for a sound session: every command once, or a model that was told."""

from typing import Any

import pytest
from tests.drill.orders import check_log

from sojourn.tools.shell import INTERRUPTED


def told(*results: str) -> tuple[list[Any], list[Any]]:
    """The events and messages of a run whose commands came back so."""
    used = [{"type": "agent.tool_use", "tool": "shell", "call": f"/{n}.0"} for n in range(len(results))]
    back = [{"type": "agent.tool_result", "call": f"/{n}.0", "text": text} for n, text in enumerate(results)]
    return [*used, *back], [{"role": "tool", "parts": [{"text": text}]} for text in results]


SOUND = {
    "both ran": ("one\ntwo\n", ("1", "one\ntwo")),
    "the first never ran": ("two\n", (INTERRUPTED, "two")),
    "the second ran and was lost": ("one\ntwo\n", ("1", INTERRUPTED)),
    "neither ran": ("", (INTERRUPTED, INTERRUPTED)),
}
UNSOUND = {
    "one ran twice": ("one\none\ntwo\n", ("1", "one\ntwo")),
    "one ran twice and was told of": ("one\ntwo\ntwo\n", ("1", INTERRUPTED)),
    "they ran in another order": ("two\none\n", ("1", "one\ntwo")),
    "one is missing": ("one\n", ("1", "one")),
    "one is missing, and the other was told of": ("two\n", ("1", INTERRUPTED)),
    "a line of nobody": ("one\ntwo\nthree\n", ("1", "one\ntwo")),
}


@pytest.mark.parametrize("name", SOUND)
def test_a_command_ran_once_or_its_model_was_told(name: str) -> None:
    log, results = SOUND[name]
    assert check_log(log, *told(*results)) == results.count(INTERRUPTED)


@pytest.mark.parametrize("name", UNSOUND)
def test_no_command_is_doubled_or_missing_in_silence(name: str) -> None:
    log, results = UNSOUND[name]
    with pytest.raises(AssertionError):
        check_log(log, *told(*results))


def test_what_the_journal_says_must_be_what_the_model_read() -> None:
    events, messages = told("1", INTERRUPTED)
    with pytest.raises(AssertionError, match="reads what the journal says"):
        check_log("one\n", events, messages[:1])
