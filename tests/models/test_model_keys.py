"""Several keys at one endpoint: which one is next, and what a refusal costs."""

import pytest
from raw_server import RawServer, whole
from speaking import DIALECTS, Spoken, ask, speaking

from sojourn.errors import Invalid
from sojourn.models.model import Endpoint, ModelFailed
from sojourn.models.wire.keys import COOL_S, QUARANTINE_S, Keys


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def keys_of(*keys: str, clock: Clock | None = None, required: bool = True) -> Keys:
    endpoint = Endpoint(
        name="p", dialect="openai", base_url="http://x", keys=keys, key_env="P_API_KEY", key_required=required
    )
    return Keys(endpoint, now=clock or Clock())


def place(keys: Keys) -> int:
    key = keys.take()
    assert key is not None
    return key.place


def test_keys_take_turns() -> None:
    keys = keys_of("a", "b", "c", "a")
    assert [place(keys) for _ in range(7)] == [1, 2, 3, 1, 2, 3, 1]


def test_a_refused_key_is_left_out_for_ten_minutes() -> None:
    clock = Clock()
    keys = keys_of("a", "b", clock=clock)
    failure = keys.refuse(keys.take(), 401)
    assert (failure.kind, failure.retry, failure.retry_after_s) == ("no_key", True, 0.0)
    assert [place(keys) for _ in range(3)] == [2, 2, 2]
    clock.now_s += QUARANTINE_S
    assert {place(keys) for _ in range(2)} == {1, 2}


def test_when_all_keys_are_refused_the_variable_is_named() -> None:
    keys = keys_of("a", "b")
    keys.refuse(keys.take(), 401)
    failure = keys.refuse(keys.take(), 403)
    assert (failure.kind, failure.retry, failure.retry_after_s) == ("no_key", False, None)
    assert "P_API_KEY" in str(failure)
    with pytest.raises(ModelFailed, match="P_API_KEY") as caught:
        keys.take()
    assert (caught.value.kind, caught.value.retry) == ("no_key", False)


def test_without_a_key_the_variable_is_named() -> None:
    with pytest.raises(ModelFailed, match="set P_API_KEY") as caught:
        keys_of().take()
    assert (caught.value.kind, caught.value.retry) == ("no_key", False)


def test_an_endpoint_that_needs_no_key_gets_none() -> None:
    keys = keys_of(required=False)
    assert keys.take() is None
    assert keys.cool(None, 3.0) == 3.0
    assert "set P_API_KEY" in str(keys.refuse(None, 401))


def test_a_limited_key_rests_and_the_next_attempt_uses_another() -> None:
    clock = Clock()
    keys = keys_of("a", "b", clock=clock)
    assert keys.cool(keys.take(), 30.0) == 0.0
    assert [place(keys), place(keys)] == [2, 2]
    assert keys.cool(keys.take(), 20.0) == 20.0
    with pytest.raises(ModelFailed) as caught:
        keys.take()
    assert (caught.value.kind, caught.value.retry, caught.value.retry_after_s) == ("rate_limited", True, 20.0)
    clock.now_s += 20.0
    assert [place(keys), place(keys)] == [2, 2]
    clock.now_s += 10.0
    assert place(keys) == 1


def test_a_limit_without_a_time_rests_a_key_only_where_there_are_others() -> None:
    alone = keys_of("a")
    assert alone.cool(alone.take(), None) is None
    assert place(alone) == 1
    two = keys_of("a", "b")
    assert two.cool(two.take(), None) == 0.0
    assert two.cool(two.take(), None) == COOL_S


def test_refused_and_cooling_keys_together_are_a_rate_limit() -> None:
    keys = keys_of("a", "b")
    keys.refuse(keys.take(), 401)
    assert keys.cool(keys.take(), 9.0) == 9.0
    with pytest.raises(ModelFailed) as caught:
        keys.take()
    assert (caught.value.kind, caught.value.retry_after_s) == ("rate_limited", 9.0)


@pytest.mark.parametrize("key", ["", "a\nb", "a b", "schlüssel", "a\x00"])
def test_a_key_that_no_header_can_carry_is_refused_unseen(key: str) -> None:
    with pytest.raises(Invalid) as caught:
        keys_of("good", key)
    assert "good" not in str(caught.value) and (not key or key not in str(caught.value))


@pytest.mark.parametrize("spoken", DIALECTS, ids=lambda spoken: spoken.dialect)
async def test_over_the_wire_a_limit_moves_on_to_the_next_key(spoken: Spoken, raw: RawServer) -> None:
    limited = whole(b"", "429 Too Many Requests", extra="Retry-After: 30\r\n")
    raw.scripts = [limited, whole(b"", "401 Unauthorized"), whole(spoken.stream)]
    async with speaking(spoken, raw.url, keys=("k-1", "k-2", "k-3"), now=Clock()) as models:
        for kind in ("rate_limited", "no_key"):
            with pytest.raises(ModelFailed) as caught:
                await ask(models)
            assert (caught.value.kind, caught.value.retry, caught.value.retry_after_s) == (kind, True, 0.0)
        await ask(models)
        await ask(models)
    assert [seen.headers[spoken.no_key_header][-3:] for seen in raw.seen] == ["k-1", "k-2", "k-3", "k-3"]


@pytest.mark.parametrize("spoken", DIALECTS, ids=lambda spoken: spoken.dialect)
async def test_over_the_wire_no_key_sends_no_header(spoken: Spoken, raw: RawServer) -> None:
    raw.scripts = [whole(spoken.stream)]
    async with speaking(spoken, raw.url, keys=(), key_required=False) as models:
        await ask(models)
    assert spoken.no_key_header not in raw.seen[0].headers
