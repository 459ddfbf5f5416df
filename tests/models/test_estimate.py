"""What a call may cost at most."""

import random

import msgspec
import pytest
from speaking import SHELL
from transcripts import transcript

from sojourn.loop.agent import Params
from sojourn.loop.budget import Held
from sojourn.loop.messages import File, Image, Message, Source, Text, Usage, observed, said
from sojourn.models.anthropic import ANTHROPIC
from sojourn.models.estimate import (
    FILE_TOKENS,
    IMAGE_TOKENS,
    MESSAGE_TOKENS,
    OUTPUT_TOKENS,
    call_ceiling,
    input_tokens,
    message_tokens,
    output_tokens,
)
from sojourn.models.kept import Transcripts
from sojourn.models.model import Endpoint, Request
from sojourn.models.openai import OPENAI
from sojourn.models.prices import Prices, usd

SOURCE = Source(dialect="openai", provider="openai", model="gpt-5")


def replied(text: str, usage: Usage | None, model: str = "gpt-5") -> Message:
    source = msgspec.structs.replace(SOURCE, model=model)
    return Message(id="a", role="assistant", parts=(Text(text),), source=source, usage=usage)


def asked(*messages: Message, model: str = "gpt-5.1", **more: object) -> Request:
    return Request(model=model, system="", messages=messages, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("dialect", [OPENAI, ANTHROPIC], ids=lambda dialect: dialect.name)
def test_no_request_has_more_bytes_than_the_estimate_allows_for(dialect) -> None:
    endpoint = Endpoint(name="p", dialect=dialect.name, base_url="https://x")
    for seed in range(200):
        messages = tuple(message for part in transcript(random.Random(seed)) for message in part)
        request = Request(model="m", system="Be brief.", messages=messages, tools=(SHELL,))
        written = b"".join(dialect.body(request, endpoint, Transcripts()))
        texts = sum(len(word.encode()) for word in _texts(msgspec.json.decode(written)["messages"]))
        assert 3 * input_tokens(request) > texts, seed


def _texts(value: object) -> list[str]:
    if isinstance(value, dict):
        return [word for key, inner in value.items() if key != "role" for word in _texts(inner)]
    if isinstance(value, list):
        return [word for inner in value for word in _texts(inner)]
    return [value] if isinstance(value, str) else []


def test_a_token_has_three_bytes() -> None:
    assert message_tokens(said("u", "x" * 3000)) == 1000 + MESSAGE_TOKENS
    assert message_tokens(said("u", "語" * 1000)) == 1000 + MESSAGE_TOKENS
    assert message_tokens(said("u", "\ud800")) == 1 + MESSAGE_TOKENS
    assert message_tokens(observed("t", "c", "x" * 30)) > 10 + MESSAGE_TOKENS


def test_pictures_and_files_count_by_what_they_are() -> None:
    picture, table = Image(blob="sha256:1", media_type="image/png"), File(blob="sha256:2", media_type="text/csv")
    assert message_tokens(said("u", "", picture)) >= IMAGE_TOKENS
    assert message_tokens(said("u", "", table)) >= FILE_TOKENS
    assert message_tokens(said("u", "", table), {"sha256:2": b"x" * 3000}) < 1100


def test_the_last_count_is_taken_as_it_is_and_only_the_rest_is_estimated() -> None:
    counted = Usage(input=600, cache_read=100, cache_write=50, output=50)
    since = observed("t", "c", "x" * 300)
    request = asked(said("u", "x" * 3000), replied("ok", counted), since)
    assert input_tokens(request) == 800 + message_tokens(since)


def test_a_count_by_another_family_or_of_a_longer_transcript_is_left_alone() -> None:
    new = asked(said("u", "x" * 3000), replied("ok", None))
    for reply in (replied("ok", Usage(input=10), "claude-sonnet-4-5"), replied("ok", Usage(input=900_000))):
        assert input_tokens(asked(said("u", "x" * 3000), reply)) == input_tokens(new) > 1000


def test_a_reply_is_bounded_or_assumed_and_thoughts_come_on_top() -> None:
    assert output_tokens(Params()) == OUTPUT_TOKENS
    assert output_tokens(Params(max_output_tokens=500)) == 500
    assert output_tokens(Params(max_output_tokens=500, reasoning_tokens_max=2000)) == 2500
    assert output_tokens(Params(max_output_tokens=5000, reasoning_tokens_max=2000)) == 5000
    assert output_tokens(Params(max_output_tokens=500, reasoning_tokens_max=600)) == 1524


def test_a_call_is_priced_as_if_nothing_were_cached() -> None:
    endpoint = Endpoint(name="p", dialect="openai", base_url="http://x")
    prices = Prices([endpoint], own={"p:m": usd(1, 10, cache_read=0.1, cache_write=2)})
    request = asked(said("u", "x" * 3000), model="m", params=Params(max_output_tokens=100))
    tokens = input_tokens(request)
    assert call_ceiling(request, prices.tariff("p:m")) == Held(
        input_tokens=tokens, output_tokens=100, usd_micros=tokens * 2 + 1000
    )
    assert call_ceiling(request, prices.tariff("p:other")).usd_micros == 0
