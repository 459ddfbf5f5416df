"""Tokens and scopes: what is remembered of a caller, for how long, and what a scope grants."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from sojourn.errors import Forbidden, StoreUnavailable, Unauthenticated
from sojourn.identity import scopes, tokens
from sojourn.identity.tokens import CACHE_S, Tokens
from sojourn.store.rows import Principal

T0 = datetime(2026, 1, 1, tzinfo=UTC)


class Keys:
    """A database of keys that counts how often it is asked."""

    def __init__(self) -> None:
        self.now, self.asked, self.lives_s = T0, 0, 300.0
        self.refuses: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def look_up(self, token: str) -> Principal:
        self.asked += 1
        await self.gate.wait()
        if self.refuses is not None:
            raise self.refuses
        expires_at = self.now + timedelta(seconds=self.lives_s)
        return Principal(
            tenant="acme", user="ann", key_id=f"key_{token}", scopes=frozenset(), handle="h", expires_at=expires_at
        )

    def tokens(self) -> Tokens:
        return Tokens(self.look_up, lambda: self.now)


@pytest.fixture
async def keys() -> Keys:
    return Keys()


async def test_a_token_is_looked_up_once_in_thirty_seconds(keys: Keys) -> None:
    known = keys.tokens()
    for _ in range(3):
        assert (await known.principal("a")).user == "ann"
    assert keys.asked == 1
    keys.now += timedelta(seconds=CACHE_S)
    await known.principal("a")
    assert keys.asked == 2


async def test_nothing_is_remembered_longer_than_the_handle_lives(keys: Keys) -> None:
    keys.lives_s = 2.0
    known = keys.tokens()
    await known.principal("a")
    keys.now += timedelta(seconds=2)
    await known.principal("a")
    assert keys.asked == 2


async def test_many_requests_at_once_ask_once(keys: Keys) -> None:
    keys.gate.clear()
    known = keys.tokens()
    asking = [asyncio.create_task(known.principal("a")) for _ in range(20)]
    await asyncio.sleep(0)
    asking[0].cancel()
    keys.gate.set()
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert all(isinstance(answer, Principal) for answer in answers[1:])
    assert keys.asked == 1


@pytest.mark.parametrize("error", [Unauthenticated(), StoreUnavailable()])
async def test_a_refusal_and_an_outage_are_not_remembered(keys: Keys, error: Exception) -> None:
    known, keys.refuses = keys.tokens(), error
    for _ in range(2):
        with pytest.raises(type(error)):
            await known.principal("a")
    keys.refuses = None
    await known.principal("a")
    assert keys.asked == 3


async def test_a_revoked_key_is_forgotten_at_once(keys: Keys) -> None:
    known = keys.tokens()
    await known.principal("a")
    await known.principal("b")
    known.forget("key_a")
    keys.refuses = Unauthenticated()
    with pytest.raises(Unauthenticated):
        await known.principal("a")
    await known.principal("b")


async def test_a_key_that_is_revoked_while_it_is_looked_up_is_not_remembered(keys: Keys) -> None:
    keys.gate.clear()
    known = keys.tokens()
    asking = asyncio.create_task(known.principal("a"))
    await asyncio.sleep(0)
    known.forget("key_a")
    keys.gate.set()
    await asking
    await known.principal("a")
    assert keys.asked == 2


async def test_only_so_many_are_remembered(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "CACHE_MAX", 2)
    known = keys.tokens()
    for token in ("a", "b", "c", "a"):
        await known.principal(token)
    assert keys.asked == 4


@pytest.mark.parametrize("token", ["", "ä", "a\n", "x" * 8001])
async def test_what_cannot_be_a_token_is_refused_without_a_look(keys: Keys, token: str) -> None:
    with pytest.raises(Unauthenticated):
        await keys.tokens().principal(token)
    assert keys.asked == 0


@pytest.mark.parametrize(
    ("held", "wanted", "allowed"),
    [
        ({"runs:read"}, "runs:read", True),
        ({"runs:*"}, "runs:read", True),
        ({"*"}, "runs:read", True),
        ({"runs:write"}, "runs:read", False),
        ({"run:*"}, "runs:read", False),
        ({"runs"}, "runs:read", False),
        ({"runs:read"}, "runs:*", False),
        ({"runs:*"}, "*", False),
        (set(), "runs:read", False),
    ],
)
def test_a_scope_is_granted_by_name_area_or_star(held: set[str], wanted: str, allowed: bool) -> None:
    assert scopes.allows(held, wanted) is allowed


def test_a_refusal_names_the_scope_that_is_missing() -> None:
    with pytest.raises(Forbidden, match="runs:write"):
        scopes.require({"runs:read"}, "runs:write")


def test_known_scopes_are_those_of_the_list_and_patterns_over_them() -> None:
    assert all(scopes.known(scope) for scope in (*scopes.SCOPES, "*", "runs:*", "admin:*"))
    assert not any(scopes.known(scope) for scope in ("", "runs", "fly:*", "runs:fly", "**", ":*"))
