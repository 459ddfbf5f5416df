"""Both adapters against the simulator: another reading of the same two APIs."""

from contextlib import aclosing

import msgspec
import pytest

from sojourn.loop.messages import Message, Reasoning, observed, said
from sojourn.models.endpoints import Endpoints
from sojourn.models.model import Endpoint, ModelFailed, Request
from sojourn.models.simulator import Call, Cut, ErrorEvent, Reset, Rule, Script, Simulator, Status, When
from sojourn.models.wire.failures import RETRY_AFTER_S_MAX

from speaking import SHELL  # isort: skip

CALLS = (Call(tool="shell", arguments={"command": "ls"}), Call(tool="shell", arguments={"command": "pwd"}))
RULES = (
    Rule(when=When(tool=""), reasoning="I must look.", text="Looking.", calls=CALLS, interleave=True),
    Rule(text="It was {{last_tool_result}}."),
)


def models_at(sim: Simulator) -> Endpoints:
    return Endpoints(
        [
            Endpoint(name="openai", dialect="openai", base_url=sim.openai_url, keys=("k-good",)),
            Endpoint(name="anthropic", dialect="anthropic", base_url=sim.url, keys=("k-good",)),
        ]
    )


async def reply(models: Endpoints, provider: str, messages: list[Message], id: str) -> Message:
    model, name = models.resolve(f"{provider}:some-model")
    system = "You are careful. " * 500  # long enough to be cached
    request = Request(model=name, system=system, messages=tuple(messages), tools=(SHELL,))
    async with aclosing(model.stream(request, message_id=id)) as stream:  # type: ignore[type-var]
        items = [item async for item in stream]
    assert isinstance(items[-1], Message)
    return items[-1]


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
async def test_a_run_of_two_steps_calls_tools_and_reads_the_cache(provider: str) -> None:
    async with Simulator(Script(rules=RULES, keys=("k-good",))) as sim:
        models = models_at(sim)
        messages = [said("u1", "Look around.")]
        first = await reply(models, provider, messages, "a1")
        assert first.stop == "tool_calls" and first.text == "Looking."
        assert isinstance(first.parts[0], Reasoning) and first.parts[0].text == "I must look."
        assert [msgspec.json.decode(call.arguments) for call in first.calls] == [{"command": "ls"}, {"command": "pwd"}]
        results = [observed(f"t{index}", call.id, f"result {index}") for index, call in enumerate(first.calls)]
        second = await reply(models, provider, [*messages, first, *results], "a2")
        assert (second.text, second.stop) == ("It was result 1.", "end")
        assert first.usage is not None and second.usage is not None
        assert second.usage.cache_read > 0.9 * first.usage.prompt > 1000
        assert all(entry.outcome == "finished" for entry in sim.requests())
        await models.close()


async def test_a_run_moves_from_one_provider_to_the_other_and_back() -> None:
    rules = (Rule(when=When(turn=2), text="Done."), RULES[0])
    async with Simulator(Script(rules=rules)) as sim:
        models = models_at(sim)
        for route in (("openai", "anthropic", "openai"), ("anthropic", "openai", "anthropic")):
            messages = [said("u1", "Look around.")]
            for step, provider in enumerate(route):
                if step:
                    messages.append(said(f"u{step}", "Again."))
                message = await reply(models, provider, messages, f"a{step}")
                messages += [message, *(observed(f"t{step}-{call.id}", call.id, "ok") for call in message.calls)]
            assert message.text == "Done."
        assert {entry.status for entry in sim.requests()} == {200}
        await models.close()


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Status(status=429, retry_after=900.0, times=1), "rate_limited"),
        (Status(status=500, times=1), "server"),
        (Status(status=529, times=1), "overloaded"),
        (Reset(times=1), "interrupted"),
        (Cut(after="half", times=1), "interrupted"),
        (ErrorEvent(times=1), "overloaded"),
    ],
    ids=lambda value: getattr(value, "kind", value),
)
async def test_a_fault_is_named_and_the_next_attempt_succeeds(provider: str, fault, kind: str) -> None:
    async with Simulator(Script(rules=RULES, faults=(fault,))) as sim:
        models = models_at(sim)
        messages = [said("u1", "Look around.")]
        with pytest.raises(ModelFailed) as caught:
            await reply(models, provider, messages, "a1")
        assert (caught.value.kind, caught.value.retry) == (kind, True)
        if kind == "rate_limited":
            assert caught.value.retry_after_s == pytest.approx(RETRY_AFTER_S_MAX, abs=1)
        else:
            assert (await reply(models, provider, messages, "a1")).stop == "tool_calls"
        await models.close()


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
async def test_a_wrong_key_and_a_long_prompt_are_told_apart(provider: str) -> None:
    async with Simulator(Script(rules=RULES, keys=("k-other",), context_tokens_max=1000)) as sim:
        models = models_at(sim)
        with pytest.raises(ModelFailed) as caught:
            await reply(models, provider, [said("u1", "Hi.")], "a1")
        assert (caught.value.kind, caught.value.retry) == ("no_key", False)
        await models.close()
        sim.load(Script(rules=RULES, context_tokens_max=1000))
        models = models_at(sim)
        with pytest.raises(ModelFailed) as caught:
            await reply(models, provider, [said("u1", "Hi.")], "a1")
        assert (caught.value.kind, caught.value.retry) == ("too_long", False)
        await models.close()
