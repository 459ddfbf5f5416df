"""What calls cost."""

import pytest

from sojourn.loop.messages import Usage
from sojourn.models.model import Endpoint
from sojourn.models.prices import WINDOW_TOKENS, Price, Prices, usd

OPENAI = Endpoint(name="openai", dialect="openai", base_url="https://api.openai.com/v1")
ANTHROPIC = Endpoint(name="anthropic", dialect="anthropic", base_url="https://api.anthropic.com")
GOOGLE = Endpoint(name="g", dialect="openai", base_url="https://generativelanguage.googleapis.com/v1beta/openai")
LOCAL = Endpoint(name="local", dialect="openai", base_url="http://127.0.0.1:8080")
MANY = Usage(input=1_000_000, cache_read=1_000_000, cache_write=1_000_000, output=1_000_000)


@pytest.fixture(scope="module")
def prices() -> Prices:
    own = {"local:*": usd(0.1, 0.2), "local:big": usd(1, 2, cache_read=0.25, cache_write=3)}
    return Prices((OPENAI, ANTHROPIC, GOOGLE, LOCAL), own=own | {"openai:gpt-5": usd(7, 7)})


@pytest.mark.parametrize(
    ("reference", "usd"),
    [
        ("openai:gpt-4o", 2.5 + 1.25 + 2.5 + 10),
        ("openai:gpt-4o-2024-08-06", 2.5 + 1.25 + 2.5 + 10),
        ("anthropic:claude-3-5-haiku-latest", 0.8 + 0.08 + 1 + 4),
        ("anthropic:claude-3-5-sonnet-20241022", 3 + 0.3 + 3.75 + 15),
        ("local:big", 1 + 0.25 + 3 + 2),
        ("local:any", 0.1 + 0.1 + 0.1 + 0.2),
        ("openai:gpt-5", 28),
    ],
)
def test_each_kind_of_token_has_its_price(prices: Prices, reference: str, usd: float) -> None:
    assert prices.cost_micros(reference, MANY) == round(usd * 1_000_000)


def test_a_call_is_rounded_up_to_a_whole_micro_usd(prices: Prices) -> None:
    assert prices.cost_micros("openai:gpt-4o", Usage(input=1)) == 3
    assert prices.cost_micros("openai:gpt-4o", Usage(input=2)) == 5
    assert prices.cost_micros("openai:gpt-4o", Usage()) == 0
    assert prices.cost_micros("local:any", Usage(cache_read=1)) == 1


def test_a_prompt_beyond_a_tier_pays_the_tier_for_all_of_it(prices: Prices) -> None:
    below, above = Usage(cache_read=200_000, output=1), Usage(cache_read=200_001, output=1)
    low, high = (prices.cost_micros("g:gemini-2.5-pro", usage) for usage in (below, above))
    assert low is not None and high is not None and high > 1.9 * low


def test_thoughts_are_paid_once_as_output(prices: Prices) -> None:
    thought = prices.cost_micros("openai:gpt-4o", Usage(output=10, reasoning=9))
    assert thought == prices.cost_micros("openai:gpt-4o", Usage(output=10)) == 100


@pytest.mark.parametrize("reference", ["openai:nobody-knows-it", "nowhere:gpt-4o", "", "openai", "gpt-4o"])
def test_an_unknown_price_is_none(prices: Prices, reference: str) -> None:
    assert prices.cost_micros(reference, MANY) is None


def test_a_server_of_ones_own_is_not_billed_as_a_famous_one() -> None:
    moved = Endpoint(name="openai", dialect="openai", base_url="http://127.0.0.1:8080/v1")
    lookalike = Endpoint(name="x", dialect="openai", base_url="https://proxy.example/https://api.openai.com")
    prices = Prices((moved, lookalike))
    assert prices.cost_micros("openai:gpt-4o", MANY) is None
    assert prices.cost_micros("x:gpt-4o", MANY) is None


def test_dollars_are_taken_exactly() -> None:
    assert usd(0.1, 0.3) == Price(100_000, 300_000, 100_000, 100_000)
    assert usd(0.0000001, 0) == Price(1, 0, 1, 1)


def test_a_ceiling_takes_the_dearest_kind_and_tier_of_input(prices: Prices) -> None:
    big, gpt, gemini = map(prices.tariff, ("local:big", "openai:gpt-4o", "g:gemini-2.5-pro"))
    assert big and gpt and gemini
    assert big.ceiling_micros(input_tokens=1_000_000, output_tokens=1_000_000) == 5_000_000
    assert gpt.ceiling_micros(input_tokens=1_000_000, output_tokens=0) == 2_500_000
    low, high = (gemini.ceiling_micros(input_tokens=n, output_tokens=0) for n in (200_000, 200_001))
    assert high > 1.9 * low
    assert prices.tariff("nowhere:m") is None


def test_a_window_is_the_operators_or_the_tables_or_the_default() -> None:
    windows = {"local:small": 8_192, "local:*": 32_768, "openai:gpt-4o": 1_000}
    prices = Prices((OPENAI, ANTHROPIC, LOCAL), own={"anthropic:*": usd(1, 1)}, windows=windows, window_default=7)
    assert prices.window("anthropic:claude-sonnet-4-5-20250929") == 200_000  # a price of one's own hides no window
    assert prices.window("openai:gpt-4o-mini") == 128_000
    assert prices.window("openai:gpt-4o") == 1_000
    assert prices.window("local:small") == 8_192
    assert prices.window("local:other") == 32_768
    assert prices.window("openai:nobody-knows-it") == prices.window("nowhere:m") == 7
    assert Prices(()).window("a:b") == WINDOW_TOKENS
