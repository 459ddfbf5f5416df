"""What a provider counts is told as it comes, so that a call that is cut is not only guessed at."""

import pytest
from raw_server import END, RawServer, chunk, head, whole
from speaking import DIALECTS, Spoken, ask, speaking

from sojourn.loop.messages import Usage
from sojourn.models.model import ModelFailed

pytestmark = pytest.mark.parametrize("spoken", DIALECTS, ids=lambda spoken: spoken.dialect)


async def test_the_last_count_that_is_told_is_that_of_the_message(spoken: Spoken, raw: RawServer) -> None:
    raw.scripts = [[head(), chunk(spoken.stream), END]]
    told: list[Usage] = []
    async with speaking(spoken, raw.url) as models:
        _, message = await ask(models, told=told.append)
    assert told and told[-1] == message.usage
    assert len(told) == (2 if spoken.dialect == "anthropic" else 1), "each count once"


async def test_a_reply_that_breaks_off_has_told_what_was_counted_by_then(spoken: Spoken, raw: RawServer) -> None:
    raw.scripts = [[head(), *map(chunk, spoken.events[:3]), "reset"]]
    told: list[Usage] = []
    async with speaking(spoken, raw.url) as models:
        with pytest.raises(ModelFailed) as caught:
            await ask(models, told=told.append)
    assert not caught.value.refused
    assert [usage.prompt for usage in told] == ([107] if spoken.dialect == "anthropic" else [])


@pytest.mark.parametrize("status", [400, 429, 500, 529])
async def test_an_http_error_is_a_refusal(spoken: Spoken, raw: RawServer, status: int) -> None:
    raw.scripts = [whole(b"{}", f"{status} No", kind="application/json")]
    async with speaking(spoken, raw.url) as models:
        with pytest.raises(ModelFailed) as caught:
            await ask(models)
    assert caught.value.refused
