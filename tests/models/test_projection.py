"""Transcripts on their way to a provider: what goes, what stays here, and what never changes."""

import base64
import itertools
import random
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from speaking import SHELL
from transcripts import SOURCES, transcript

from sojourn.loop.agent import Params
from sojourn.loop.messages import File, Image, Message, Native, Reasoning, Source, Text, ToolCall, observed, said
from sojourn.models import anthropic, openai
from sojourn.models.anthropic.request import OUTPUT_TOKENS
from sojourn.models.attachments import ATTACHED_BYTES_MAX, ATTACHMENTS_MAX, attachments, fits
from sojourn.models.json_schema import in_words
from sojourn.models.kept import Transcripts
from sojourn.models.model import Endpoint, ModelFailed, Request
from sojourn.models.projection import NO_RESULT, family

TARGETS = [source for source in SOURCES if source is not None]
SEEDS = range(400)


def sent(target: Source, messages: list[Message], **more: Any) -> Any:
    """Project a transcript and read the request back as any server would."""
    wanted = {"system": "Be brief.", "tools": (SHELL,)} | more
    request = Request(model=target.model, messages=tuple(messages), **wanted)
    dialect = openai.OPENAI if target.dialect == "openai" else anthropic.ANTHROPIC
    endpoint = Endpoint(name=target.provider, dialect=target.dialect, base_url="https://x")  # type: ignore[arg-type]
    return msgspec.json.decode(b"".join(dialect.body(request, endpoint, Transcripts())))


def flat(rounds: list[list[Message]]) -> list[Message]:
    return list(itertools.chain(*rounds))


def answered(body: Any, dialect: str) -> Iterator[tuple[list[str], list[str]]]:
    """Yield the ids of each reply's calls, and those of the results that follow at once."""
    for message, after in itertools.pairwise([*body["messages"], {"role": "", "content": []}]):
        if message["role"] != "assistant":
            continue
        if dialect == "anthropic":
            calls = [block["id"] for block in message["content"] if block["type"] == "tool_use"]
            blocks = after["content"] if after["role"] == "user" else []
            results = [block["tool_use_id"] for block in blocks if block["type"] == "tool_result"]
            assert [block["type"] for block in blocks[: len(results)]] == ["tool_result"] * len(results)
            yield calls, results
        else:
            calls = [call["id"] for call in message.get("tool_calls", ())]
            place = body["messages"].index(message) + 1
            following = itertools.takewhile(lambda each: each["role"] == "tool", body["messages"][place:])
            yield calls, [each["tool_call_id"] for each in following]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: f"{target.provider}-{target.model}")
def test_every_call_has_exactly_one_result_right_after_it(target: Source) -> None:
    for seed in SEEDS:
        body = sent(target, flat(transcript(random.Random(seed))))
        exchanges = list(answered(body, target.dialect))
        calls = [id for ids, _ in exchanges for id in ids]
        assert all(called == resulted for called, resulted in exchanges), seed
        assert len(set(calls)) == len(calls), seed
        written = msgspec.json.encode(body).decode()
        assert written.count('"tool_call_id"') + written.count('"tool_use_id"') == len(calls), seed
        assert "of nobody" not in written


def test_anthropic_gets_only_what_it_accepts() -> None:
    for seed in SEEDS:
        body = sent(TARGETS[2], flat(transcript(random.Random(seed))))
        roles = [message["role"] for message in body["messages"]]
        assert roles[0] == "user" and all(one != other for one, other in itertools.pairwise(roles)), seed
        blocks = [block for message in body["messages"] for block in message["content"]]
        assert all(message["content"] for message in body["messages"])
        assert all(block["text"].strip() for block in blocks if block["type"] == "text")
        uses = [block for block in blocks if block["type"] == "tool_use"]
        assert all(
            isinstance(block["input"], dict) and re.fullmatch(r"[A-Za-z0-9_-]{1,128}", block["id"]) for block in uses
        )
        marks = [block for block in [*body["system"], *body["tools"], *blocks] if "cache_control" in block]
        assert len(marks) <= 4, seed


def test_openai_gets_arguments_that_are_objects() -> None:
    for seed in SEEDS:
        for message in sent(TARGETS[0], flat(transcript(random.Random(seed))))["messages"]:
            for call in message.get("tool_calls", ()):
                assert isinstance(msgspec.json.decode(call["function"]["arguments"]), dict)
                assert 1 <= len(call["id"]) <= 200
            assert message["content"] or message.get("tool_calls") or message["role"] == "tool", seed


def unmarked(body: Any) -> list[bytes]:
    """Write each block, or each message, with its role and without its cache mark."""
    pieces: list[Any] = [body["model"], body.get("system"), body["tools"]]
    for message in body["messages"]:
        content = message["content"]
        if isinstance(content, list):
            pieces += [(message["role"], {k: v for k, v in block.items() if k != "cache_control"}) for block in content]
        else:
            pieces.append(message)
    return [msgspec.json.encode(piece) for piece in pieces]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: f"{target.provider}-{target.model}")
def test_a_longer_transcript_begins_with_the_bytes_of_the_shorter_one(target: Source) -> None:
    for seed in SEEDS:
        rounds = transcript(random.Random(seed))
        longest = unmarked(sent(target, flat(rounds)))
        for count in range(1, len(rounds)):
            shorter = unmarked(sent(target, flat(rounds[:count])))
            assert longest[: len(shorter)] == shorter, (seed, count)


def test_words_for_a_server_without_tools_alternate_and_grow_at_the_end() -> None:
    for seed in SEEDS:
        rounds = transcript(random.Random(seed))
        request = Request(model="m", system="", messages=tuple(flat(rounds)))
        told = list(in_words(request, "p"))
        assert all(one.role != other.role for one, other in itertools.pairwise(told)), seed
        assert all(isinstance(part, Text) for message in told for part in message.parts)
        shorter = list(in_words(msgspec.structs.replace(request, messages=tuple(flat(rounds[:-1]))), "p"))
        if shorter:
            assert told[: len(shorter) - 1] == shorter[:-1], seed
            assert told[len(shorter) - 1].text.startswith(shorter[-1].text), seed


def thought_by(target: Source | None, *, model: str | None = None) -> list[Message]:
    """A turn of everything that only its author may read."""
    source = target and msgspec.structs.replace(target, model=model or target.model)
    dialect = source.dialect if source else "anthropic"
    native = '{"type": "new",  "n": 1.50}' if dialect == "anthropic" else '{"reasoning_details": [{"n":  1.50}]}'
    parts = (
        Reasoning(text="secret thought", signature="reasoning" if dialect == "openai" else "U0lH+/=="),
        Reasoning(redacted="UkVE"),
        Native(dialect=dialect, data=native),
        Text("Aloud."),
        ToolCall(id="toolu_1", name="shell", arguments="{}", signature='{"google":{"s":"U0lH"}}'),
    )
    reply = Message(id="a1", role="assistant", parts=parts, source=source, stop="tool_calls")
    return [said("u1", "Go."), reply, observed("t1", reply.calls[0].id, "done")]


def test_signed_parts_go_back_byte_for_byte_to_the_same_family() -> None:
    for model in ("claude-sonnet-4-5", "claude-opus-4-5-20251101"):
        request = Request(model="claude-sonnet-4-5", system="", messages=tuple(thought_by(TARGETS[2], model=model)))
        endpoint = Endpoint(name="anthropic", dialect="anthropic", base_url="https://x")
        written = b"".join(anthropic.ANTHROPIC.body(request, endpoint, Transcripts()))
        content = msgspec.json.decode(written)["messages"][1]["content"]
        assert content[0] == {"type": "thinking", "thinking": "secret thought", "signature": "U0lH+/=="}
        assert content[1] == {"type": "redacted_thinking", "data": "UkVE"}
        assert b'{"type": "new",  "n": 1.50}' in written
        assert content[4]["id"] == "toolu_1"


def test_openai_thoughts_go_back_under_the_member_that_they_came_in() -> None:
    message = sent(TARGETS[1], thought_by(TARGETS[1]))["messages"][2]
    assert message["reasoning"] == "secret thought"
    assert message["reasoning_details"] == [{"n": 1.5}]
    assert message["tool_calls"][0]["extra_content"] == {"google": {"s": "U0lH"}}


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: f"{target.provider}-{target.model}")
def test_nobody_else_is_told_what_was_thought(target: Source) -> None:
    others = [source for source in (*TARGETS, None) if not source or source.provider != target.provider]
    others += [
        msgspec.structs.replace(target, model="mistral-large"),
        msgspec.structs.replace(target, provider="proxy"),
    ]
    for other in others:
        written = msgspec.json.encode(sent(target, thought_by(other))).decode()
        assert "Aloud." in written and "done" in written
        assert not re.search(r"secret|U0lH|UkVE|1\.5|reasoning_details", written), other


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ("claude-sonnet-4-5", "claude"),
        ("gpt-5.1", "gpt"),
        ("o3", "o"),
        ("google/gemini-3-pro", "google/gemini"),
        ("accounts/fireworks/models/deepseek-v3", "accounts/fireworks/models/deepseek"),
        ("GPT-5", "gpt"),
        ("@cf/x", "@cf/x"),
        ("5", "5"),
    ],
)
def test_a_family_is_the_name_without_its_versions(model: str, named: str) -> None:
    assert family(model) == named


def test_a_call_without_a_result_gets_one_that_says_so() -> None:
    messages = thought_by(TARGETS[2])[:2]
    block = sent(TARGETS[2], messages)["messages"][2]["content"][0]
    assert (block["content"], block["is_error"]) == (NO_RESULT, True)


def test_malformed_arguments_are_shown_to_the_model_inside_an_object() -> None:
    call = ToolCall(id="toolu_1", name="shell", arguments='{"comm')
    reply = Message(id="a1", role="assistant", parts=(call,), source=TARGETS[2])
    messages = [said("u1", "Go."), reply, observed("t1", call.id, "not JSON", error=True)]
    assert sent(TARGETS[2], messages)["messages"][1]["content"][0]["input"] == {"malformed_arguments": '{"comm'}


PICTURE = Image(blob="sha256:1", media_type="image/png")
REPORT = File(blob="sha256:2", media_type="application/pdf", name="r.pdf")
TABLE = File(blob="sha256:3", media_type="text/csv", name="t.csv")
BINARY = File(blob="sha256:4", media_type="application/zip", name="z.zip")
BLOBS = {"sha256:1": b"PNG", "sha256:2": b"PDF", "sha256:3": b"a,b", "sha256:4": b"ZIP"}


def test_attachments_go_in_each_dialects_own_shape() -> None:
    messages = [said("u1", "Look.", PICTURE, REPORT, TABLE, BINARY)]
    pdf = base64.b64encode(b"PDF").decode()
    assert [part["type"] for part in sent(TARGETS[0], messages, blobs=BLOBS)["messages"][1]["content"]] == [
        "text", "image_url", "file", "text", "text",
    ]  # fmt: skip
    blocks = sent(TARGETS[2], messages, blobs=BLOBS)["messages"][0]["content"]
    assert [block["type"] for block in blocks] == ["text", "image", "document", "document", "text"]
    assert blocks[2]["source"] == {"type": "base64", "media_type": "application/pdf", "data": pdf}
    assert blocks[3]["source"]["data"] == "a,b"
    assert "z.zip (application/zip, 3 bytes) cannot be shown" in blocks[4]["text"]


def test_the_model_is_told_of_an_attachment_whose_bytes_are_gone() -> None:
    for target in (TARGETS[0], TARGETS[2]):
        body = sent(target, [said("u1", "Look.", PICTURE, TABLE)], blobs={"sha256:3": b"a,b"})
        words, picture, table = body["messages"][-1]["content"]
        assert words["text"] == "Look." and "a,b" in str(table)
        assert picture["text"] == "[The image sha256:1 (image/png) is not kept here any more and cannot be shown.]"


def test_a_picture_that_no_provider_takes_is_refused_by_its_type() -> None:
    picture = Image(blob="sha256:1", media_type="image/tiff")
    for target in (TARGETS[0], TARGETS[2]):
        with pytest.raises(ModelFailed, match="image/tiff") as caught:
            sent(target, [said("u1", "Look.", picture)], blobs=BLOBS)
        assert (caught.value.code, caught.value.retry) == ("model.media_type", False)


def test_an_empty_file_is_told_in_words() -> None:
    for target in (TARGETS[0], TARGETS[2]):
        body = sent(target, [said("u1", "", TABLE)], blobs={"sha256:3": b" "})
        assert "File t.csv:" in str(body["messages"][-1]["content"])


def test_attachments_are_listed_once_and_bounded_in_number_and_size() -> None:
    messages = [said("u1", "Look.", PICTURE, TABLE), said("u2", "Again.", PICTURE)]
    assert attachments(messages) == ("sha256:1", "sha256:3")
    many = [said(f"u{n}", "", Image(blob=f"sha256:{n}", media_type="image/png")) for n in range(ATTACHMENTS_MAX)]
    assert len(attachments(many)) == ATTACHMENTS_MAX
    with pytest.raises(ModelFailed, match="101 images and files"):
        attachments([*many, said("one more", "", Image(blob="sha256:x", media_type="image/png"))])
    fits(ATTACHED_BYTES_MAX)
    with pytest.raises(ModelFailed, match="begin a new session") as caught:
        fits(ATTACHED_BYTES_MAX + 1)
    assert (caught.value.code, caught.value.retry) == ("model.too_long", False)


def test_only_an_endpoint_that_knows_it_is_told_the_cache_key() -> None:
    request = Request(model="m", system="", messages=(said("u", "Hi"),), cache_key="k1")
    endpoint = Endpoint(name="p", dialect="openai", base_url="https://x")
    told = msgspec.structs.replace(endpoint, cache_key=True)
    assert "prompt_cache_key" not in msgspec.json.decode(b"".join(openai.OPENAI.body(request, endpoint, Transcripts())))
    body = msgspec.json.decode(b"".join(openai.OPENAI.body(request, told, Transcripts())))
    assert body["prompt_cache_key"] == "k1"


def test_a_system_prompt_may_be_empty() -> None:
    for target in (TARGETS[0], TARGETS[2]):
        body = sent(target, [said("u1", "Hi.")], system="", tools=())
        assert body["messages"][0]["role"] == "user"
        assert "system" not in body and "tools" not in body


def test_cache_marks_stand_on_tools_system_and_the_last_two_user_messages() -> None:
    body = sent(TARGETS[2], [*thought_by(TARGETS[2]), *thought_by(TARGETS[2]), said("u2", "More.")])
    assert "cache_control" in body["tools"][-1] and "cache_control" in body["system"][-1]
    marked = [any("cache_control" in block for block in message["content"]) for message in body["messages"]]
    assert marked == [False, False, True, False, True]
    assert "cache_control" in body["messages"][-1]["content"][-1]


def test_the_older_mark_stands_where_the_last_request_ended() -> None:
    first = sent(TARGETS[2], thought_by(TARGETS[2]))
    second = sent(TARGETS[2], [*thought_by(TARGETS[2]), *thought_by(TARGETS[2])[1:]])
    end = first["messages"][-1]
    assert end["content"][-1]["cache_control"] == {"type": "ephemeral"}
    assert second["messages"][len(first["messages"]) - 1] == end


@pytest.mark.parametrize(
    ("base_url", "member"),
    [
        ("https://api.openai.com/v1", "max_completion_tokens"),
        ("https://me.openai.azure.com/openai/v1", "max_completion_tokens"),
        ("http://localhost:8080", "max_tokens"),
        ("https://api.openai.com.evil.example", "max_tokens"),
    ],
)
def test_the_size_has_the_name_that_the_host_knows(base_url: str, member: str) -> None:
    params = Params(max_output_tokens=7, temperature=0.5, top_p=0.9, reasoning_effort="low")
    request = Request(model="m", system="", messages=(said("u", "Hi"),), params=params)
    endpoint = Endpoint(name="p", dialect="openai", base_url=base_url)
    body = msgspec.json.decode(b"".join(openai.OPENAI.body(request, endpoint, Transcripts())))
    assert body[member] == 7 and body["temperature"] == 0.5 and body["reasoning_effort"] == "low"
    assert len([name for name in body if name.startswith("max_")]) == 1


def test_anthropic_always_gets_a_size_and_thinking_gets_room() -> None:
    hello = [said("u", "Hi")]
    plain = sent(TARGETS[2], hello, params=Params(temperature=0.2))
    assert (plain["max_tokens"], plain["temperature"], "thinking" in plain) == (OUTPUT_TOKENS, 0.2, False)
    budget = sent(TARGETS[2], hello, params=Params(max_output_tokens=500, reasoning_tokens_max=10, temperature=0.2))
    assert budget["thinking"] == {"type": "enabled", "budget_tokens": 1024}
    assert budget["max_tokens"] == 1524 and "temperature" not in budget
    effort = sent(TARGETS[2], hello, params=Params(reasoning_effort="minimal"))
    assert effort["thinking"] == {"type": "adaptive"} and effort["output_config"] == {"effort": "low"}


def test_thinking_stays_off_in_a_turn_of_calls_that_another_model_began() -> None:
    params = Params(reasoning_tokens_max=2000)
    assert "thinking" not in sent(TARGETS[2], thought_by(TARGETS[0]), params=params)
    assert "thinking" in sent(TARGETS[2], thought_by(TARGETS[2]), params=params)
    answer = Message(id="a2", role="assistant", parts=(Text("Done."),), source=TARGETS[0])
    assert "thinking" in sent(TARGETS[2], [*thought_by(TARGETS[0]), answer, said("u2", "More.")], params=params)
